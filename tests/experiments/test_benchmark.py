"""The benchmark runs, compares equal things, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmark import __main__, cases, environments, sam, timing


def test_writes_what_it_measured_and_only_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main(["--only", "iou", "--seconds", "0.01", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert set(result) == {"rows", "manifest"}
    row, _ = result["rows"]
    assert set(row) == {"name", "case", "plain_ms", "fast_ms", "ratio", "note", "passed", "goal"}
    assert row["name"] == "iou"
    assert row["ratio"] == pytest.approx(row["plain_ms"] / row["fast_ms"])
    assert "iou" in capsys.readouterr().out
    assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["next-click", "overlay", "branch"])
def test_fast_kernels_are_faster(name: str) -> None:
    (row,) = cases.BENCHMARKS[name](0.1)
    assert row.ratio is not None
    assert row.ratio > 1


def test_batches_give_what_single_calls_give() -> None:
    assert all(row.ratio for row in cases.time_tool("disc", "disc", 0.01))
    mdp = cases.SegMDP(cases.tools.make("disc"), max_steps=3)
    assert cases.time_rollout(mdp, cases.agents.make("annotator"), 4, "disc", 0.01).ratio


def test_environments_are_compared_on_equal_episodes(tmp_path: Path) -> None:
    """What stands for today's and for Gymnasium's way gives the rewards of the fast one, or is not timed."""
    pool = environments.Pool(environments.data.make("synthetic:val#easy"), 3)
    assert environments.light(environments.NullTool(), "null", pool, 0.0).at_most(99).passed
    (row,) = environments.step("disc", list(pool), "disc", 1.05, 0.0)
    assert row.ratio is not None and row.ratio > 1  # a step holds what the tool does in it
    assert environments.beside_processes(environments.DiscTool(), "disc", pool, 0.0).ratio
    assert environments.by_id(0.0).ratio
    (row,) = environments.photos(None, 0.0)
    assert row.ratio is None and "--photos" in row.note
    rows = list(environments.photos_iou(list(pool), 0.0))
    assert [row.ratio is not None for row in rows] == [True]
    assert __main__.plot([row, *rows])[:4] == b"\x89PNG"


def test_a_goal_is_missed_or_kept() -> None:
    row = timing.Timing("a", "b", 3.0, 1.0, "")
    assert (row.at_least(3).passed, row.at_least(3.1).passed, row.at_most(3).passed) == (True, False, True)
    assert row.at_most(2.9).goal == "≤ 2.9" and not row.at_most(2.9).passed


def test_episodes_that_differ_are_seen_but_for_one_in_ten() -> None:
    mdp = cases.SegMDP(cases.tools.make("disc"), max_steps=2)
    tasks = list(cases.data.make("synthetic:val")[:10])
    expert, other = ([*cases.rollout(mdp, cases.agents.make(name), tasks)] for name in ("annotator", "random"))
    assert cases.same_episodes(expert, expert)
    assert cases.same_episodes(expert, [*expert[:9], other[9]])
    assert not cases.same_episodes(expert, [*expert[:8], *other[8:]])


@pytest.mark.slow
def test_the_embedded_sam_is_timed_on_equal_answers() -> None:
    rows = list(sam.rows(0.0))
    assert len(rows) == 3 and all(row.ratio is not None for row in rows), [row.note for row in rows]


@pytest.mark.slow
def test_the_embedded_pair_plays_a_batch_faster() -> None:
    """Half of what the table asks for: a busy machine passes, a batch that is played item by item does not."""
    rows = [row for row in cases.episodes(0.0) if row.case.startswith("mllm and sam")]
    assert [row.ratio is not None and row.ratio > cases.PAIR_RATIO / 2 for row in rows] == [True]


def test_the_memory_of_a_process_is_its_own() -> None:
    """Linux's ru_maxrss of a child is at least what its parent held: two children of a large parent seem equal."""
    held = np.ones(400_000_000, np.uint8)
    code = "from experiments.benchmark.environments import highest; print(highest())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < float(child.stdout) < 400 <= environments.highest() and held[-1] == 1


def test_every_adversarial_text_has_full_length() -> None:
    texts = dict(timing.adversarial_texts("Positive point: (1, 2)"))
    assert {len(text) for text in texts.values()} == {timing.PARSER_BYTES}
    assert texts["'(' over and over"].startswith("(((")
    assert texts["'9' over and over after 'Positive point: ('"].startswith("Positive point: (999")


def test_ways_that_differ_are_not_timed() -> None:
    with pytest.raises(RuntimeError, match="different results"):
        timing.compare(lambda: 1, lambda: 2, int.__eq__, 0.0)


@pytest.mark.slow
def test_no_text_stops_a_parser_for_long() -> None:
    """Ten times the limit that the table shows: a busy machine passes, a parser that backtracks does not."""
    rows = list(cases.parser(0.0))
    assert rows
    assert not [row for row in rows if row.fast_ms is None or row.fast_ms > 10 * timing.PARSER_LIMIT_MS]


def test_a_name_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--only", "nonsense", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
