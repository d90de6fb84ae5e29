"""StaR and StaR+: turn a policy's own rollouts into training data for it (SegAgent, arXiv 2503.08625, Alg. 1).

    D_0 = the annotator's trajectories                             S_0 = train(base, D_0)
    D_n = filter(rollouts of S_{n-1} on training tasks)            S_n = train(S_0, D_0 ∪ D_n)      (StaR: D_n alone)

StaR+ judges each action: one that raised the IoU is kept, another is replaced by what the annotator does in that very
state. Plain StaR keeps or drops whole trajectories. Neither the rules for stopping nor for replies that are no action
are published; ours are in `star_plus_rows`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from search.rollout import Episode, action_from_json, action_to_json, clicks_of, decode_mask
from segenv import annotator
from segenv.types import Action, Stop, Task

PROVENANCES = ("expert", "policy", "corrected")


@dataclass(frozen=True)
class Row:
    """One lesson: in the state (task, mask), take `action`.

    `iou` is the mask's, before the action. `gain` is ΔIoU of what was played in that state, whose reply was `text`; for
    a corrected row that is the policy's action, not the one taught. `mask` is in COCO's run lengths, [height, width].
    """

    task: str
    sample: int
    step: int
    height: int
    width: int
    mask: str
    iou: float
    action: dict[str, Any]
    provenance: str
    gain: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """The row as what JSON holds; `Row(**record)` reads it."""
        return dataclasses.asdict(self)


def expert_rows(episode: Episode, min_gain: float = 0.0, stop_iou: float = 0.9) -> list[Row]:
    """The annotator's trajectory as lessons: its clicks with ΔIoU > `min_gain` until the mask reaches `stop_iou`, and
    then a stop."""
    rows: list[Row] = []
    for k, row in _visited(episode, "expert"):
        if row.iou >= stop_iou:
            return [*rows, dataclasses.replace(row, action=action_to_json(Stop()))]
        if episode.steps[k].action["type"] == "stop" or row.gain > min_gain:
            rows.append(row)
    return rows


def star_plus_rows(episode: Episode, task: Task, min_gain: float = 0.0, stop_iou: float = 0.9) -> list[Row]:
    """Per-action filter with correction (StaR+).

    A click or box is kept if it raised the IoU by more than `min_gain`; a stop is kept at `stop_iou` or above.
    Everything else (a loss, no change, a reply that is no action, a stop too early, an undo) is replaced by the
    annotator's next click in that state; above `stop_iou`, or where there is nothing left to click, by a stop. The
    rollout itself goes on from what the policy did.
    """
    rows = []
    for k, row in _visited(episode, "policy"):
        kind = episode.steps[k].action["type"]
        done = row.iou >= stop_iou
        if (kind in ("click", "box") and row.gain > min_gain and not done) or (kind == "stop" and done):
            rows.append(row)
        else:
            mask = decode_mask(row.mask, row.height, row.width)
            better = None if done else annotator.next_click(task.target, mask, clicks_of(episode.steps[:k]))
            action: Action = Stop() if better is None else better
            rows.append(dataclasses.replace(row, action=action_to_json(action), provenance="corrected"))
    return rows


def star_rows(episode: Episode, min_gain: float = 0.0, keep_iou: float = 0.7) -> list[Row]:
    """Whole-trajectory filter (StaR): all of a trajectory's valid actions if its last mask reaches `keep_iou`, else
    nothing."""
    if episode.final_iou < keep_iou or episode.final_iou - episode.start_iou <= min_gain:
        return []
    return [row for k, row in _visited(episode, "policy") if episode.steps[k].error is None]


def _visited(episode: Episode, provenance: str) -> Iterator[tuple[int, Row]]:
    """What was done in each state of an episode, as rows that teach just that."""
    mask, iou = episode.start_mask, episode.start_iou
    for k, step in enumerate(episode.steps):
        yield (
            k,
            Row(
                task=episode.task,
                sample=episode.sample,
                step=k,
                height=episode.height,
                width=episode.width,
                mask=mask,
                iou=iou,
                action=step.action,
                provenance=provenance,
                gain=step.iou - iou,
                text=step.text,
            ),
        )
        mask, iou = step.mask, step.iou


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Rows without those that teach the same action in the same state as an earlier one."""
    kept: dict[tuple, Row] = {}
    for row in rows:
        kept.setdefault((row.task, row.mask, tuple(sorted(row.action.items()))), row)
    return list(kept.values())


def rates(rows: Sequence[Row]) -> dict[str, float]:
    """Share of rows by provenance: of all that a policy did, "policy" is its acceptance rate and "corrected" the
    rest."""
    return {name: sum(row.provenance == name for row in rows) / max(1, len(rows)) for name in PROVENANCES}


def action_of(row: Row) -> Action:
    """The action that the row teaches."""
    return action_from_json(row.action)
