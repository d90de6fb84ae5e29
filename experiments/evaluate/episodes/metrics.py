"""Metrics of episodes of clicks: each mean with its interval, and their definitions."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from experiments.evaluate.episodes import click_quality, diagnosis
from experiments.evaluate.episodes.step_facts import StepFacts, step_facts
from search.episode import PARTS, Episode
from segenv import metrics, statistics
from segenv.codec.base import Codec
from segenv.types import Task, object_of

UNSOLVED = 0.5  # a task is unsolved where no IoU of the annotator reaches this
THRESHOLDS = (0.50, 0.70, 0.80, 0.85, 0.90, 0.95)  # of NoC and NoF; the field's tables print 85, 90 and 95
MEASURES = (
    *("miou", "ciou", "iou_at", "noc", "nof", "nof_never", "boundary_iou"),
    *("acc_at_50", "best_iou", "regret", "start_gain", "parse_rate", "exact_rate", "stop_rate"),
    *("no_target", "n_acc", "t_acc", "absent_steps"),
    *("first_click_in_object", "clicks_on_error", "click_counts"),
)

METRIC_DEFINITIONS = {
    "iou": "intersection over union at the image's own size; pixels labelled 128 count in neither mask; two empty "
    "masks count 1",
    "miou": "mean IoU of the final masks over episodes; equals gIoU",
    "ciou": "sum of intersections over sum of unions, over the final masks",
    "iou_at": "mean IoU after k actions (clicks, and whatever else takes a step, such as an invalid reply)",
    "early_stop": "an episode that ends early keeps its last IoU for all later clicks, in iou_at and in NoC",
    "noc": "mean number of actions to reach IoU >= t, compared in float32; max_steps where it is never reached",
    "nof": "number of episodes whose NoC is max_steps, as RITM's published code counts: those that never reach t, and "
    "those that reach it at exactly the last action",
    "nof_never": "number of episodes that never reach t within max_steps actions",
    "boundary_iou": "IoU of the inner rings of the final mask and the target, 0.02 of the diagonal wide, by 3x3 "
    "erosion",
    "acc_at_50": "share of episodes whose final mask's tight box has IoU >= 0.5 with the target's",
    "best_iou": "mean over episodes of the highest IoU that any of its masks had, the first one included; on a task "
    "without an object the empty first mask does not count, which every agent has for nothing",
    "regret": "mean of best IoU minus final IoU",
    "start_gain": "mean of final IoU minus that of the initial mask",
    "parse_rate": "share of replies that the codec could read as an action",
    "exact_rate": "share of replies that are written exactly as asked; others may be read, too",
    "stop_rate": "share of episodes that the agent ended itself",
    "no_target": "number of episodes on tasks without an object",
    "n_acc": "of episodes on tasks without an object, the share that the agent ended itself with an empty mask: an "
    "invalid reply says nothing about the object",
    "t_acc": "of episodes on tasks with an object, the share whose final mask has a pixel",
    "absent_steps": "mean number of actions on tasks without an object, but for the one that ends the episode",
    "unsolved": f"of the annotator: best IoU of each task that stays below {UNSOLVED:g}, by task",
    "intervals": "95 % percentile bootstrap over images, each with all of its episodes, 2000 resamples, seed 0; "
    "nothing of the spread over training seeds",
    **click_quality.METRIC_DEFINITIONS,
    **diagnosis.DEFINITIONS,
    "seconds": "wall-clock time summed over episodes (and so over workers), an equal share of a batch for each; "
    "per_click divides it by the clicks and boxes that the tool answered. The annotator's clicks that are tried to "
    "compare with are not in it. Timings vary between runs, the rest does not",
}


@dataclass(frozen=True)
class Outcome:
    """Numbers of one episode that the metrics use, without its masks and texts."""

    task: str
    sample: int
    start_iou: float
    ious: np.ndarray  # [steps] float64, after each action
    best_iou: float
    intersection: int
    union: int
    boundary_iou: float
    box_iou: float
    stopped: bool
    invalid: int  # replies that were no action
    clicks: int  # clicks and boxes that the tool answered
    seconds: dict[str, float]
    right: np.ndarray | None = None  # [steps] float64, `click_quality.right_clicks`; None where the task was not given
    first_inside: float = float("nan")  # whether the first action is a positive click on the object; NaN as above
    exact: int = 0  # replies written as asked, of those of which it is known
    known: int = 0  # replies of which that is known
    extra: int = 0
    unsigned: int = 0
    finish_reasons: tuple[str, ...] = ()  # of the replies of which it is known
    tokens: tuple[int, ...] = ()
    has_object: bool = True  # whether the target has a pixel
    drawn: bool = True  # whether the final mask has one
    facts: StepFacts | None = None  # from which answers are taken apart

    @property
    def final_iou(self) -> float:
        """IoU of the last mask."""
        return float(self.ious[-1])


def outcome_of(episode: Episode, task: Task | None = None, codec: Codec | None = None, shared: bool = False) -> Outcome:
    """Reduce an episode to its numbers; those of its clicks need its task. With the agent's codec, or of a task that
    has its image in common with others (`shared`), they tell more."""
    actions = [step.action["type"] for step in episode.steps]
    answered = [step.error is None and step.action["type"] in ("click", "box") for step in episode.steps]
    own: dict[str, Any] = {"ious": np.array(episode.ious), "invalid": actions.count("invalid"), "clicks": sum(answered)}
    own["facts"] = step_facts(episode, task, codec, shared) if task else None
    own["has_object"] = _has_object(episode, task)
    own["drawn"] = bool(episode.mask(len(episode.steps)).any())
    own["best_iou"] = episode.best_iou if own["has_object"] else max(episode.ious)
    own["right"] = click_quality.right_clicks(episode, task) if task else None
    own["first_inside"] = float("nan")
    if task is not None and own["has_object"]:
        own["first_inside"] = click_quality.first_click_inside(episode, task)
    steps = episode.steps
    own |= {
        "exact": sum(bool(step.exact) for step in steps),
        "known": sum(step.exact is not None for step in steps),
        "extra": sum(step.extra for step in steps),
        "unsigned": sum(step.unsigned for step in steps),
        "finish_reasons": tuple(step.finish_reason for step in steps if step.finish_reason is not None),
        "tokens": tuple(step.tokens for step in steps if step.tokens is not None),
    }
    return Outcome(**own, **{one.name: getattr(episode, one.name) for one in fields(Outcome) if one.name not in own})


def _has_object(episode: Episode, task: Task | None) -> bool:
    """Whether the target has a pixel; without the task, whether an empty first mask is not already right."""
    if task is not None:
        return bool(object_of(task.target).any())
    return episode.start_iou < 1 or bool(episode.mask(0).any())


def read_episode(record: Any) -> Episode:
    """Read a record of episodes.jsonl. Raises ValueError where it is another thing."""
    episode = Episode.from_json(record)
    if not episode.steps:
        raise ValueError("it holds no step")
    return episode


def curves(outcomes: Sequence[Outcome], max_steps: int) -> np.ndarray:
    """IoU after each action, [episodes, max_steps]; an episode that ended early keeps its last IoU."""
    return np.array([np.pad(item.ious, (0, max_steps - len(item.ious)), mode="edge") for item in outcomes])


def summarise(
    outcomes: Sequence[Outcome], max_steps: int, protocol: dict[str, Any], images: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Summarise outcomes for `metrics.json`: plain numbers, `intervals` with [low, high] under the same keys, and
    `protocol`. `images` names the image of each outcome. The order of `outcomes` matters to the last digits of the
    intervals: give the data's."""
    if not outcomes:
        raise ValueError("no episode to summarise")
    ious, iou_curves = [item.ious for item in outcomes], curves(outcomes, max_steps)
    best = np.array([item.best_iou for item in outcomes])
    samples: dict[str, Any] = {
        "miou": iou_curves[:, -1],
        "iou_at": {str(k): iou_curves[:, k - 1] for k in range(1, max_steps + 1)},
        "noc": {_percent(t): np.array([metrics.noc(x, t, max_steps) for x in ious], float) for t in THRESHOLDS},
        "boundary_iou": np.array([item.boundary_iou for item in outcomes]),
        "acc_at_50": np.array([float(item.box_iou >= 0.5) for item in outcomes]),
        "best_iou": best,
        "regret": best - iou_curves[:, -1],
        "start_gain": iou_curves[:, -1] - [item.start_iou for item in outcomes],
        "stop_rate": np.array([float(item.stopped) for item in outcomes]),
    }
    areas = [item.intersection for item in outcomes], [item.union for item in outcomes]
    read = [len(item.ious) - item.invalid for item in outcomes], [len(item.ious) for item in outcomes]
    exact = [item.exact for item in outcomes], [item.known for item in outcomes]
    means = _map(samples, lambda values: float(values.mean()))
    intervals = _map(samples, lambda values: list(statistics.bootstrap(values, images=images)))
    intervals["ciou"] = list(statistics.bootstrap_ratio(*areas, images=images))
    intervals["parse_rate"] = list(statistics.bootstrap_ratio(*read, images=images))
    ends = list(statistics.bootstrap_ratio(*exact, images=images)) if any(exact[1]) else [None, None]
    intervals["exact_rate"] = ends
    absent, absent_intervals = _no_target(outcomes, images)
    intervals |= absent_intervals
    right = [np.full(len(item.ious), np.nan) if item.right is None else item.right for item in outcomes]
    inside = [item.first_inside for item in outcomes]
    of_clicks, of_clicks_intervals = click_quality.summarise(click_quality.by_step(right, max_steps), inside, images)
    intervals |= of_clicks_intervals
    numbers = (
        means
        | of_clicks
        | absent
        | {
            "ciou": metrics.ciou(*areas),
            "nof": {_percent(t): metrics.nof(ious, t, max_steps, published=True) for t in THRESHOLDS},
            "nof_never": {_percent(t): metrics.nof(ious, t, max_steps) for t in THRESHOLDS},
            "parse_rate": sum(read[0]) / sum(read[1]),
            "exact_rate": sum(exact[0]) / sum(exact[1]) if any(exact[1]) else None,
        }
    )
    return {
        "episodes": len(outcomes),
        **{key: numbers[key] for key in MEASURES},
        "finish_reasons": finish_reasons(outcomes),
        "decomposed": _decomposed(outcomes, images),
        "seconds": _seconds(outcomes),
        "intervals": {key: intervals[key] for key in MEASURES if key in intervals},
        "protocol": protocol,
    }


def _decomposed(outcomes: Sequence[Outcome], images: Sequence[Hashable] | None) -> dict[str, Any] | None:
    """Take the answers apart, where the tasks of all are known."""
    facts = [item.facts for item in outcomes if item.facts is not None]
    if len(facts) < len(outcomes):
        return None
    return diagnosis.diagnose(facts, [item.final_iou for item in outcomes], images)


def finish_reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Number of replies by why they ended, where the backend tells it."""
    return dict(sorted(Counter(one for item in outcomes for one in item.finish_reasons).items()))


def _no_target(outcomes: Sequence[Outcome], images: Sequence[Hashable] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures of tasks without an object, and of tasks with one as their counterpart, and their intervals; NaN where
    there is no such task."""
    absent = np.array([not item.has_object for item in outcomes], float)
    columns = {
        "n_acc": (np.array([item.stopped and not item.drawn for item in outcomes]) * absent, absent),
        "t_acc": (np.array([item.drawn for item in outcomes]) * (1 - absent), 1 - absent),
        "absent_steps": (np.array([len(item.ious) - item.stopped for item in outcomes]) * absent, absent),
    }
    numbers = {name: click_quality.ratio(*pair) for name, pair in columns.items()}
    ends = {name: list(statistics.bootstrap_ratio(*pair, images=images)) for name, pair in columns.items()}
    return {"no_target": int(absent.sum()), **numbers}, ends


def _seconds(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Sum the seconds of each part: in all, and for each click."""
    clicks = sum(item.clicks for item in outcomes)
    total = {part: sum(item.seconds[part] for item in outcomes) for part in PARTS}
    per_click = {part: seconds / clicks if clicks else None for part, seconds in total.items()}
    return {**total, "clicks": clicks, "per_click": per_click}


def _percent(threshold: float) -> str:
    return str(round(100 * threshold))


def _map(tree: dict[str, Any], function: Any) -> dict[str, Any]:
    return {key: _map(item, function) if isinstance(item, dict) else function(item) for key, item in tree.items()}
