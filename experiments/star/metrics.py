"""Metrics of a StaR run: of each policy from its held-out episodes, of each round from its filtered rollouts."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.common.run_folder import finite
from experiments.evaluate.episodes import metrics as summary
from search.episode import Episode
from search.star import Rules, StarExample, star_plus_examples
from segenv import metrics, statistics
from segenv.types import Task

PAIRED = ("best_iou", "boundary_iou", "noc/85", "first_click_in_object", "stop_rate")  # beside the final IoU
Decision = tuple[bool, bool]  # whether it was a stop, and whether a stop was due
FAULTS = ("no_gain", "stopped_too_early", "went_on_too_long", "invalid_reply", "undo")

METRIC_DEFINITIONS = {
    "evaluation": "every policy plays the same held-out tasks, greedily, from an empty mask or the task's initial one",
    "gain": "paired difference of the final IoU to S_0; 95 % bootstrap over images, nothing of the spread over seeds",
    "gains": "paired differences to S_0 of the other measures that are means over episodes, with intervals as of gain",
    # the text stays, as runs are resumed only with equal texts; `no_gain stop` was an option, and is what all runs do
    "stop_accuracy": "each reply of a held-out episode that is an action is a decision in the state before it, to stop "
    "or to go on (any other action); the share of decisions that are right. What is right is what the lesson would be "
    "that star+ makes of that state, by the same rules: a stop is due at IoU >= stop_iou and, with no_gain stop, from "
    "spent_iou on where neither the action nor the annotator's click, which is tried there, raises the IoU by more "
    "than min_gain. A state of which no lesson is made asks nothing, nor does the last mask of an episode that the "
    "budget ends, and an invalid reply decides nothing",
    "stop_precision": "share of the stops that were due; without a value where there was no stop",
    "stop_recall": "share of the decisions where a stop was due that were stops; without a value where none was due: "
    "then each stop is wrong, and the accuracy is the share of decisions to go on",
    "stop_accuracy_at_iou": "the same by the IoU alone: to stop is right at IoU >= stop_iou, and to go on is right "
    "below it, even where no click would have helped",
    "tries": "the annotator's clicks that are tried to judge stops are not gone on from; seconds hold their time",
    "stop_intervals": "95 % bootstrap over images of the ratio of sums, as the decisions of an episode depend on "
    "each other; resamples without a denominator are left out",
    "invalid_rate": "share of replies that the codec could not read as an action: 1 - parse_rate",
    "acceptance": "shares of all actions in the judged rollouts of a round: accepted (a lesson as it was played), "
    "corrected (the annotator's action in that state is the lesson) and dropped; 95 % bootstrap over images; before "
    "repetitions are left out. faults: what was wrong with the corrected ones, as shares of all actions",
    **summary.METRIC_DEFINITIONS,
}


def policies(
    played: Sequence[Sequence[Episode]],
    max_steps: int,
    load: Callable[[str], Task],
    rules: Rules = Rules(),  # noqa: B008  # frozen
    images: Sequence[Hashable] | None = None,
) -> list[dict[str, Any]]:
    """Measure each policy S_0, S_1, … by its held-out episodes, of the same tasks in the same order (else ValueError);
    `load` gives the task of an id, and is called once for each; `images` names the image of each episode."""
    orders = [[(episode.task, episode.sample) for episode in episodes] for episodes in played]
    if any(order != orders[0] for order in orders):
        raise ValueError(
            f"the policies played {[len(order) for order in orders]} episodes, not the same tasks in the same order; "
            "differences are paired, so give the same episodes of each"
        )
    outcomes, decided = [], []  # [episodes, policies]
    for group in zip(*played, strict=True):
        task = load(group[0].task)
        outcomes.append([summary.outcome_of(episode, task) for episode in group])
        decided.append([decisions(episode, task, rules) for episode in group])
    measured: list[dict[str, Any]] = []
    base: dict[str, np.ndarray] = {}
    columns = zip(played, zip(*outcomes, strict=True), zip(*decided, strict=True), strict=True)
    for n, (episodes, own, choices) in enumerate(columns):
        numbers = summary.summarise(own, max_steps, {}, images)
        del numbers["protocol"], numbers["decomposed"]  # an answer is taken apart by evaluate
        first = np.array([outcome.first_inside for outcome in own])
        each = {**_each(episodes, max_steps), "first_click_in_object": first}
        base = base or each
        gains = {key: statistics.bootstrap_difference(each[key], base[key], images=images) for key in each}
        change = each["miou"] - base["miou"]
        low, high = numbers["intervals"]["parse_rate"]
        numbers["intervals"] |= {
            "gain": list(gains["miou"][1:]),
            "gains": {key: list(gains[key][1:]) for key in PAIRED},
            "invalid_rate": [1 - high, 1 - low],
        }
        numbers |= {
            "gain": gains["miou"][0],
            "gains": {key: gains[key][0] for key in PAIRED},
            "against_S_0": {"better": int((change > 0).sum()), "worse": int((change < 0).sum())},
            "invalid_rate": 1 - numbers["parse_rate"],
        }
        stops, intervals = stopping(choices, images)
        alone, between = stopping([decisions_at(episode, rules.stop_iou) for episode in episodes], images)
        stops["stop_accuracy_at_iou"] = alone["stop_accuracy"]
        numbers["intervals"] |= {**intervals, "stop_accuracy_at_iou": between["stop_accuracy"]}
        measured.append(finite({"round": n, **numbers, **stops}))
    return measured


def _each(episodes: Sequence[Episode], max_steps: int) -> dict[str, np.ndarray]:
    """Per-episode values of the measures that are means over episodes, [episodes] each."""
    return {
        "miou": np.array([episode.final_iou for episode in episodes]),
        "best_iou": np.array([episode.best_iou for episode in episodes]),
        "boundary_iou": np.array([episode.boundary_iou for episode in episodes]),
        "noc/85": np.array([metrics.noc(episode.ious, 0.85, max_steps) for episode in episodes], float),
        "stop_rate": np.array([episode.stopped for episode in episodes], float),
    }


def decisions(episode: Episode, task: Task, rules: Rules) -> list[Decision]:
    """Compare the decisions in an episode with the examples that `star_plus_examples` makes of the same states."""
    due = {row.step: row.action["type"] == "stop" for row in star_plus_examples(episode, task, rules)}
    kinds = [step.action["type"] for step in episode.steps]
    return [(kind == "stop", due[k]) for k, kind in enumerate(kinds) if kind != "invalid" and k in due]


def decisions_at(episode: Episode, stop_iou: float) -> list[Decision]:
    """Compare the decisions in an episode with the IoU of the mask before each."""
    shown = [episode.start_iou, *episode.ious[:-1]]
    kinds = [step.action["type"] for step in episode.steps]
    return [(kind == "stop", iou >= stop_iou) for kind, iou in zip(kinds, shown, strict=True) if kind != "invalid"]


def stopping(
    decided: Sequence[Sequence[Decision]], images: Sequence[Hashable] | None = None
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Accuracy, precision and recall of stops from the decisions of each episode, and their intervals, as in
    METRIC_DEFINITIONS; `stop_counts` are what they are shares of. A share of nothing is NaN."""
    counts = np.zeros((len(decided), 4))
    for row, each in zip(counts, decided, strict=True):
        for stop, due in each:
            row += 1, stop, due, stop and due
    total, stops, dues, both = counts.T
    shares = {"stop_accuracy": (total - stops - dues + 2 * both, total)}
    shares |= {"stop_precision": (both, stops), "stop_recall": (both, dues)}
    values = {key: over.sum() / under.sum() if under.any() else np.nan for key, (over, under) in shares.items()}
    names = ("decisions", "stops", "due", "right_stops")
    totals = dict(zip(names, counts.sum(0).astype(int).tolist(), strict=True))
    intervals = {key: list(statistics.bootstrap_ratio(*pair, images=images)) for key, pair in shares.items()}
    return values | {"stop_counts": totals}, intervals


def acceptance(
    rows: Sequence[StarExample],
    episodes: Iterable[Episode],
    images_of: Callable[[Sequence[str]], Sequence[Hashable]] = tuple,
) -> dict[str, Any]:
    """Count the actions in the rollouts `episodes`, of which a filter made `rows` (repetitions included): "actions" and
    the shares "accepted", "corrected" and "dropped", "faults" of the corrected, and "intervals"; `images_of` gives the
    images of task ids."""
    played = {(episode.task, episode.sample): episode for episode in episodes}
    tasks = {name: index for index, name in enumerate(sorted({name for name, _ in played}))}
    actions, accepted, corrected = np.zeros((3, len(tasks)))
    for episode in played.values():
        actions[tasks[episode.task]] += len(episode.steps)
    faults = dict.fromkeys(FAULTS, 0)
    for row in rows:
        if row.provenance == "corrected":
            corrected[tasks[row.task]] += 1
            faults[_fault(row, played[row.task, row.sample])] += 1
        else:
            accepted[tasks[row.task]] += 1
    total, images = max(1, int(actions.sum())), images_of(list(tasks))
    shares = {"accepted": accepted, "corrected": corrected, "dropped": actions - accepted - corrected}
    intervals = {name: statistics.bootstrap_ratio(counts, actions, images=images) for name, counts in shares.items()}
    return finite(
        {
            "actions": int(actions.sum()),
            **{name: float(counts.sum()) / total for name, counts in shares.items()},
            "faults": {name: count / total for name, count in faults.items()},
            "intervals": {name: list(ends) for name, ends in intervals.items()},
        }
    )


def _fault(row: StarExample, episode: Episode) -> str:
    """Name of `FAULTS` for the action that a corrected example replaces."""
    kind = episode.steps[row.step].action["type"]
    if kind in ("invalid", "undo"):
        return {"invalid": "invalid_reply", "undo": "undo"}[kind]
    if kind == "stop":
        return "stopped_too_early"
    return "went_on_too_long" if row.action["type"] == "stop" else "no_gain"
