"""What trees cost is measured on real trees, and what is compared is the same."""

from __future__ import annotations

import agents
from experiments.benchmark import search
from segenv import tools
from segenv.mdp import SegMDP


def test_a_branch_copies_no_array_and_is_fast() -> None:
    """Ten times the limit that the table shows: a busy machine passes, a copy of arrays does not."""
    (row,) = search.node(0.05)
    assert row.fast_ms is not None and row.plain_ms is not None
    assert row.fast_ms < min(10 * search.BRANCH_LIMIT_MS, row.plain_ms)


def test_a_node_holds_little_more_than_its_packed_mask() -> None:
    """640 x 480 bits are 38.4 kB; the disc has no logits."""
    row = search.measure_memory(tools.make("disc"), "disc", nodes=60)
    held = float(row.note.split("hold ")[1].split(" MB")[0])
    assert row.note.startswith("60 nodes") and row.passed
    assert 59 * 0.0384 < held < 60 * 0.0384 + 0.5


def test_one_by_one_and_all_at_once_give_the_same_nodes() -> None:
    row = search.time_expansion(SegMDP(tools.make("disc"), 2), agents.make("random"), "disc", 0.01)
    assert row.ratio is not None and "nodes a second" in row.note
