"""StaR and StaR+: turn a policy's own rollouts into training data for it (SegAgent, arXiv 2503.08625, Alg. 1).

    D_0 = the annotator's trajectories                             S_0 = train(base, D_0)
    D_n = filter(rollouts of S_{n-1} on training tasks)            S_n = train(S_0, D_0 ∪ D_n)      (StaR: D_n alone)

StaR+ judges each action: one that raised the IoU is kept, another is replaced by what the annotator does in that very
state. Plain StaR keeps or drops whole trajectories. Neither thresholds nor the rules for stopping and for replies that
are no action are published; ours are in `Rules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from search.episode import Episode, Step, action_from_json, action_to_json, clicks_of, decode_mask
from segenv import annotator, metrics
from segenv.mdp import SegState
from segenv.seeds import seed_of
from segenv.types import Action, Click, Stop, Task

PROVENANCES = ("expert", "policy", "corrected")


@dataclass(frozen=True)
class Rules:
    """What counts as a good action.

    A click or box is good if it raised the IoU by more than `min_gain`; a stop is good at `stop_iou` or above, and
    there a click is not. `zero_gain` says what becomes of one that left the IoU exactly as it was, whatever `min_gain`:
    "correct" (the default: a click without effect is a wasted one), "keep" or "drop". All else is bad: a loss, a reply
    that is no action, a stop too early, an undo. Where the annotator's own click would not raise the IoU by more than
    `min_gain` either, `no_gain` says what is right: "stop" (the default: a tool is at its end before a mask is perfect)
    at `spent_iou` or above, and no lesson below; or "click" all the same. A whole trajectory is good if it ends at
    `keep_iou` or above.
    """

    min_gain: float = 0.0
    zero_gain: Literal["correct", "keep", "drop"] = "correct"
    no_gain: Literal["stop", "click"] = "stop"
    stop_iou: float = 0.9
    keep_iou: float = 0.7
    spent_iou: float = 0.3

    def verdict(self, kind: str, before: float, after: float) -> str:
        """ "keep", "correct" or "drop" for an action of type `kind` that led from one IoU to another."""
        done = before >= self.stop_iou
        if kind == "stop":
            return "keep" if done else "correct"
        if kind not in ("click", "box") or done:
            return "correct"
        if after == before:
            return self.zero_gain
        return "keep" if after - before > self.min_gain else "correct"

    def spent(self, before: float, best: float) -> bool:
        """Whether to stop at one IoU because the annotator's clicks lead no further than to another."""
        return self.no_gain == "stop" and before >= self.spent_iou and best - before <= self.min_gain

    def better(self, task: Task, mask: Any, clicks: Sequence[Click], iou: float) -> Action:
        """What the annotator does about `mask` (bool [H, W], its IoU `iou`): its next click, or a stop from `stop_iou`
        on and where there is nothing left to click."""
        click = None if iou >= self.stop_iou else annotator.next_click(task.target, mask, clicks)
        return Stop() if click is None else click

    def corrector(self) -> Callable[[SegState, Action, SegState], Action | None]:
        """What `search.rollout.rollout` asks after each action: what to try in place of a bad one."""

        def correct(state: SegState, action: Action, following: SegState) -> Action | None:
            before, after = (float(metrics.iou(state.task.target, each.mask)) for each in (state, following))
            if self.verdict(type(action).__name__.lower(), before, after) != "correct":
                return None
            return self.better(state.task, state.mask, state.clicks, before)

        return correct


@dataclass(frozen=True)
class StarExample:
    """One lesson: in the state (task, mask), take `action`.

    `iou` is the mask's, before the action, and `iou_after` what was played in that state led to; its reply was `text`.
    For a corrected row that is the policy's action, not the one taught. `mask` is in COCO's run lengths, [height,
    width]. `error` is the state's: why the action before was not carried out, which a prompt may tell.
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
    iou_after: float
    text: str
    error: str | None = None

    @property
    def gain(self) -> float:
        """ΔIoU of what was played."""
        return self.iou_after - self.iou

    def to_json(self) -> dict[str, Any]:
        """The row as what JSON holds; `Row(**record)` reads it."""
        return dataclasses.asdict(self)


def demonstration_examples(episode: Episode, rules: Rules = Rules(), judged: bool = False) -> list[StarExample]:  # noqa: B008  # frozen
    """The annotator's trajectory as lessons: its clicks with ΔIoU > `min_gain` until the mask reaches `stop_iou`, and
    then a stop.

    `judged`: a stop also where none of its later clicks leads further, by the rules of `no_gain`. The paper's
    trajectories say nothing there; what StaR+ finds out by trying is then told to S_0 and to the control as well.
    """
    rows: list[StarExample] = []
    for k, (step, row) in enumerate(_visited(episode, "expert")):
        spent = judged and rules.spent(row.iou, max(episode.ious[k:]))
        if row.iou >= rules.stop_iou or spent:
            return [*rows, dataclasses.replace(row, action=action_to_json(Stop()))]
        if step.action["type"] == "stop" or row.gain > rules.min_gain:
            rows.append(row)
    return rows


def star_plus_examples(episode: Episode, task: Task, rules: Rules = Rules()) -> list[StarExample]:  # noqa: B008  # frozen
    """Per-action filter with correction (StaR+): good actions as they are, others replaced by the annotator's action in
    that state; where that one was tried and leads no further, by a stop, or by nothing."""
    rows = []
    for k, (step, row) in enumerate(_visited(episode, "policy")):
        own, iou_after = step.action, step.iou
        if step.corrected and step.other is not None:
            own, iou_after = step.other["action"], step.other["iou"]
        row = dataclasses.replace(row, action=own, iou_after=iou_after)
        verdict = rules.verdict(own["type"], row.iou, iou_after)
        if verdict == "keep":
            rows.append(row)
        elif verdict == "correct" and (better := _correction(episode, k, row, task, rules)) is not None:
            rows.append(row if better == own else dataclasses.replace(row, action=better, provenance="corrected"))
    return rows


def _correction(episode: Episode, k: int, row: StarExample, task: Task, rules: Rules) -> dict[str, Any] | None:
    """The right action in the state before step k, in which the policy's was bad; None where none is known."""
    step = episode.steps[k]
    if step.other is None:  # it was not tried when the episode was played
        mask = decode_mask(row.mask, row.height, row.width)
        return action_to_json(rules.better(task, mask, clicks_of(episode.steps[:k]), row.iou))
    action, iou = (step.action, step.iou) if step.corrected else (step.other["action"], step.other["iou"])
    if action["type"] == "stop" or rules.no_gain == "click" or iou - row.iou > rules.min_gain:
        return action
    return action_to_json(Stop()) if rules.spent(row.iou, iou) else None


def star_examples(episode: Episode, rules: Rules = Rules()) -> list[StarExample]:  # noqa: B008  # frozen
    """Whole-trajectory filter (StaR): all of a trajectory's valid actions if its last mask reaches `keep_iou`, else
    nothing."""
    if episode.final_iou < rules.keep_iou or episode.final_iou - episode.start_iou <= rules.min_gain:
        return []
    return [row for step, row in _visited(episode, "policy") if step.error is None]


def _visited(episode: Episode, provenance: str) -> Iterator[tuple[Step, StarExample]]:
    """What was done in each state of an episode, as rows that teach just that."""
    mask, iou, error = episode.start_mask, episode.start_iou, None
    for k, step in enumerate(episode.steps):
        yield (
            step,
            StarExample(
                task=episode.task,
                sample=episode.sample,
                step=k,
                height=episode.height,
                width=episode.width,
                mask=mask,
                iou=iou,
                action=step.action,
                provenance=provenance,
                iou_after=step.iou,
                text=step.text,
                error=error,
            ),
        )
        mask, iou, error = step.mask, step.iou, step.error


def unique_examples(rows: Iterable[StarExample]) -> list[StarExample]:
    """Rows without those that teach the same action in the same state as an earlier one."""
    kept: dict[tuple, StarExample] = {}
    for row in rows:
        kept.setdefault((row.task, row.mask, row.error, tuple(sorted(row.action.items()))), row)
    return list(kept.values())


def distinct_episodes(episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Episodes without those that took the same clicks (and all other actions) for the same task as an earlier one."""
    seen = set()
    for episode in episodes:
        key = (episode.task, *(tuple(sorted(step.action.items())) for step in episode.steps))
        if key not in seen:
            seen.add(key)
            yield episode


def capped(rows: Iterable[StarExample], limit: int, seed: int = 0) -> list[StarExample]:
    """At most `limit` rows of each task (0: all), chosen by a hash of what they are, in their order."""
    rows = list(rows)
    if not limit:
        return rows
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.task, []).append(place)
    chosen = {
        place
        for task, found in places.items()
        for place in sorted(found, key=lambda p: seed_of(seed, "cap", task, rows[p].sample, rows[p].step))[:limit]
    }
    return [row for place, row in enumerate(rows) if place in chosen]


def provenance_rates(rows: Sequence[StarExample]) -> dict[str, float]:
    """Share of lessons by provenance."""
    return {name: sum(row.provenance == name for row in rows) / max(1, len(rows)) for name in PROVENANCES}


def action_of(row: StarExample) -> Action:
    """The action that the row teaches."""
    return action_from_json(row.action)
