"""StaR and StaR+: turn a policy's own rollouts into training data for it (SegAgent, arXiv 2503.08625, Alg. 1).

    D_0 = the annotator's trajectories                             S_0 = train(base, D_0)
    D_n = filter(rollouts of S_{n-1} on training tasks)            S_n = train(S_0, D_0 ∪ D_n)      (StaR: D_n alone)

StaR+ filters each action: one that raised the IoU is kept, another is replaced by what the annotator does in that very
state. Plain StaR keeps or drops whole trajectories. Neither thresholds nor the rules for stopping and for replies that
are no action are published; ours are in `Rules`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from search.episode import Episode, Step, action_from_json, action_to_json, check_action, clicks_of
from segenv import annotator, metrics, ranges
from segenv.geometry.rle import check_counts, decode_mask
from segenv.mdp import Observation, SegState
from segenv.ranges import Gain, NotNegative
from segenv.types import Action, Click, Stop, Task

PROVENANCES = ("expert", "policy", "corrected")
TASKS_KEPT = 1024  # in memory while examples are rendered


@dataclass(frozen=True)
class Rules:
    """Thresholds that decide whether an action is good.

    A click or box is good if it raised the IoU by more than `min_gain`; a stop is good at `stop_iou` or above, and
    there a click is not. All else is bad: a loss, no change (a wasted step), a reply that is no action, a stop too
    early, an undo. Where the annotator's own click would not raise the IoU by more than `min_gain` either, the tool is
    saturated, which happens before a mask is perfect: the action to learn is a stop at `saturation_iou` or above, and
    below there is none. A whole trajectory is good if it ends at `keep_iou` or above.
    """

    min_gain: Gain = 0.02  # less is within what the next click may lose again
    stop_iou: NotNegative = 0.9
    keep_iou: NotNegative = 0.7
    saturation_iou: NotNegative = 0.3

    def __post_init__(self) -> None:
        ranges.check(self)

    def good(self, kind: str, before: float, after: float) -> bool:
        """Whether an action of type `kind` that led from one IoU to another is good."""
        if kind == "stop":
            return before >= self.stop_iou
        return kind in ("click", "box") and before < self.stop_iou and after - before > self.min_gain

    def saturated(self, before: float, best: float) -> bool:
        """Whether to stop at one IoU because the annotator's clicks lead no further than to another."""
        return before >= self.saturation_iou and best - before <= self.min_gain

    def annotator_action(self, task: Task, mask: Any, clicks: Sequence[Click], iou: float) -> Action:
        """The annotator's next click on `mask` (bool [H, W], its IoU `iou`), or a stop where none is due."""
        click = None if iou >= self.stop_iou else annotator.next_click(task.target, mask, clicks)
        return Stop() if click is None else click

    def correction(self, state: SegState, action: Action, following: SegState) -> Action | None:
        """The annotator's action in `state` if `action` was bad, as `correct` of `search.rollout.rollout`."""
        target = metrics.prepared(state.task)
        before, after = target.iou(state.mask), target.iou(following.mask)
        if self.good(type(action).__name__.lower(), before, after):
            return None
        return self.annotator_action(state.task, state.mask, state.clicks, before)


@dataclass(frozen=True)
class StarExample:
    """Training example: in the state (task, mask), take `action`.

    `iou` is the mask's, before the action; the action that was played in that state had the reply `text` and led to
    `iou_after`. In a corrected example the played action is the policy's, and `action` the annotator's. `mask` is in
    COCO's run lengths, [height, width]. `error` is the state's: why the action before was not carried out, which a
    prompt may tell.
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
        """ΔIoU of the action that was played."""
        return self.iou_after - self.iou

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; `reader(StarExample)` is the inverse."""
        return dataclasses.asdict(self)

    def check(self) -> None:
        """Raise ValueError where the action or the mask of a record cannot be read."""
        check_action(self.action)
        check_counts(self.mask, self.height, self.width)


def demonstration_examples(episode: Episode, rules: Rules = Rules(), filtered: bool = False) -> list[StarExample]:  # noqa: B008  # frozen
    """Turn the annotator's trajectory into examples: its clicks with ΔIoU > `min_gain` until the mask reaches
    `stop_iou`, and then a stop; `filtered`, a stop also where no later click leads further, as StaR+ finds out."""
    rows: list[StarExample] = []
    for k, (step, row) in enumerate(_visited(episode, "expert")):
        saturated = filtered and rules.saturated(row.iou, max(episode.ious[k:]))
        if row.iou >= rules.stop_iou or saturated:
            return [*rows, dataclasses.replace(row, action=action_to_json(Stop()))]
        if step.action["type"] == "stop" or row.gain > rules.min_gain:
            rows.append(row)
    return rows


def star_plus_examples(episode: Episode, task: Task, rules: Rules = Rules()) -> list[StarExample]:  # noqa: B008  # frozen
    """Filter each action (StaR+): keep good ones, and correct others by the annotator's action, a stop or nothing."""
    rows = []
    for k, (step, row) in enumerate(_visited(episode, "policy")):
        if rules.good(step.action["type"], row.iou, row.iou_after):
            rows.append(row)
        elif (better := _correction(episode, k, row, task, rules)) is not None:
            played = better == step.action
            rows.append(row if played else dataclasses.replace(row, action=better, provenance="corrected"))
    return rows


def _correction(episode: Episode, k: int, row: StarExample, task: Task, rules: Rules) -> dict[str, Any] | None:
    """The right action in the state before step k, in which the policy's was bad; None where none is known."""
    tried = episode.steps[k].other
    if tried is None:  # the episode was played without a corrector
        mask = decode_mask(row.mask, row.height, row.width)
        return action_to_json(rules.annotator_action(task, mask, clicks_of(episode.steps[:k]), row.iou))
    if tried["action"]["type"] == "stop" or tried["iou"] - row.iou > rules.min_gain:
        return tried["action"]
    return action_to_json(Stop()) if rules.saturated(row.iou, tried["iou"]) else None


def star_examples(episode: Episode, rules: Rules = Rules()) -> list[StarExample]:  # noqa: B008  # frozen
    """Filter whole trajectories (StaR): all of the valid actions if the last mask reaches `keep_iou`, else nothing."""
    if episode.final_iou < rules.keep_iou or episode.final_iou - episode.start_iou <= rules.min_gain:
        return []
    return [row for step, row in _visited(episode, "policy") if step.error is None]


def _visited(episode: Episode, provenance: str) -> Iterator[tuple[Step, StarExample]]:
    """Yield each step of an episode with an example of the action that was played."""
    frame: dict[str, Any] = {name: getattr(episode, name) for name in ("task", "sample", "height", "width")}
    mask, iou, error = episode.start_mask, episode.start_iou, None
    for k, step in enumerate(episode.steps):
        played: dict[str, Any] = {"action": step.action, "iou_after": step.iou, "text": step.text}
        yield step, StarExample(step=k, mask=mask, iou=iou, error=error, provenance=provenance, **frame, **played)
        mask, iou, error = step.mask, step.iou, step.error


def annotator_queries(episodes: Iterable[Episode]) -> int:
    """Count the annotator's actions that were asked for in rollouts, where the policy's own was bad."""
    return sum(step.other is not None for episode in episodes for step in episode.steps)


def unique_examples(rows: Iterable[StarExample]) -> list[StarExample]:
    """Drop examples with the action and the state of an earlier one."""
    kept: dict[tuple, StarExample] = {}
    for row in rows:
        kept.setdefault((row.task, row.mask, row.error, tuple(sorted(row.action.items()))), row)
    return list(kept.values())


def provenance_rates(rows: Sequence[StarExample]) -> dict[str, float]:
    """Share of examples by provenance."""
    return {name: sum(row.provenance == name for row in rows) / max(1, len(rows)) for name in PROVENANCES}


def action_of(row: StarExample) -> Action:
    """Return the action to learn."""
    return action_from_json(row.action)


class Conversations(Sequence):
    """Examples as `policy` (an `MllmAgent`) met their states, for `agents.training.sft.finetune`: picture, prompt and
    the reply to learn, rendered on access. `task` loads the task of an id.

    The prompt tells the error of the reply before where the codec does. The reply predicts the IoU of the mask before
    the action, which makes the policy its own process reward model.
    """

    def __init__(self, examples: Sequence[Any], policy: Any, task: Callable[[str], Task], max_steps: int) -> None:
        self.examples, self.policy, self.max_steps = examples, policy, max_steps
        self.task = lru_cache(maxsize=TASKS_KEPT)(task)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: Any) -> Any:
        example = self.examples[k]
        seen = self.observation(example, self.task(example.task))
        reply = self.policy.codec.format(action_from_json(example.action), seen, iou=example.iou)
        return {"image": self.policy.picture(seen), "prompt": self.policy.prompt(seen), "reply": reply}

    def observation(self, row: Any, task: Task) -> Observation:
        """The policy's observation in the state of an example."""
        mask, left = decode_mask(row.mask, row.height, row.width), self.max_steps - row.step
        return Observation(row.task, task.image, mask, task.instruction, row.step, left, row.error)
