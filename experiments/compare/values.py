"""Values of a run's items by measure: of episodes of clicks, of replies with polygons, or of masks that were judged."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.common.config import RunError
from experiments.common.run_folder import COPY
from experiments.evaluate.answers import polygon_answers
from experiments.evaluate.answers.filter import READINGS, read_masks
from experiments.evaluate.answers.iou_estimates import TOOL
from experiments.evaluate.answers.polygon_metrics import MEANS, SIZES, TOPOLOGIES, VALUES, Record, having
from experiments.evaluate.episodes.metrics import Outcome, curves, outcome_of, read_episode
from experiments.evaluate.episodes.records import read_images
from experiments.evaluate.finished import Run
from segenv import metrics
from segenv.data.base import unique

Item = tuple[str, int]  # a task, and the number of its sample or of its mask
SHOWN = (1, 3, 5, 7, 10, 20)
FINAL = "final IoU"


@dataclass(frozen=True)
class Values:
    """Measures of a run: `by_measure` holds a number for each item that the measure is of; `result` is the one by
    which runs are said to disagree; `masks` are those that were judged, of the task filter."""

    by_measure: Mapping[str, Mapping[Item, float]]
    result: Mapping[Item, float]
    masks: Mapping[Item, str]


def read_values(runs: Sequence[Run]) -> list[Values]:
    """Read the values of runs. Runs of several tasks have the IoU of their final masks in common."""
    if len({run.task for run in runs}) > 1 and "filter" in {run.task for run in runs}:
        raise RunError("runs of the task filter predict IoUs, and make no masks: compare them with each other")
    most = min((int(run.protocol["max_steps"]) for run in runs if run.task == "segment"), default=1)
    found = []
    for run in runs:
        if run.task == "segment":
            found.append(_of_episodes(run, most))
        else:
            found.append({"polygon": _of_replies, "filter": _of_masks}[run.task](run))
    return found


def images_of(runs: Sequence[Run], items: Sequence[Item]) -> list[str]:
    """The image of each item: of its task, or the task itself where no run says that some share one."""
    tasks = [task for task, _ in items]
    for run in runs:
        try:
            if (found := read_images(run.folder, tasks)) is not None:
                return found
        except KeyError:  # of other data
            continue
    return tasks


def _of_episodes(run: Run, most: int) -> Values:
    outcomes = dict(_outcomes(run))
    items, all_of = list(outcomes), list(outcomes.values())
    by_action = curves(all_of, max(int(run.protocol["max_steps"]), most))
    columns: dict[str, Any] = {f"IoU@{k}": by_action[:, k - 1] for k in sorted({*SHOWN, most}) if k <= most}
    for threshold in (0.85, 0.90):
        name = f"NoC@{round(100 * threshold)}"
        columns[name] = [metrics.noc(one.ious[:most], threshold, most) for one in all_of]
    columns[FINAL] = [one.final_iou for one in all_of]
    columns["best IoU"] = [one.best_iou for one in all_of]
    columns["valid replies"] = [1 - one.invalid / len(one.ious) for one in all_of]
    columns["stopped"] = [float(one.stopped) for one in all_of]
    by_measure = {name: dict(zip(items, map(float, column), strict=True)) for name, column in columns.items()}
    return Values(by_measure, by_measure[FINAL], {})


def _outcomes(run: Run) -> list[tuple[Item, Outcome]]:
    path = run.folder / "episodes.jsonl"
    episodes = run.folder.records("episodes.jsonl", read_episode)
    found = [((one.task, one.sample), outcome_of(one)) for one in episodes]
    if not found:
        raise RunError(f"{path} is missing or empty; {COPY}")
    unique((key for key, _ in found), "episodes with task and sample", path)
    return found


def _of_replies(run: Run) -> Values:
    records = polygon_answers.read(run.folder)
    if not records:
        raise RunError(f"{run.folder / 'answers.jsonl'} is missing or empty; {COPY}")
    greedy, sampled = ([one for one in records if bool(one.sample) is some] for some in (False, True))
    by_measure = {name: _by_task(having(greedy, name), VALUES[name]) for name in MEANS}
    if sampled:
        by_measure["sampled giou"] = _by_task(sampled, VALUES["giou"])
    for field in ("size", "topology"):
        for name in (*SIZES, *TOPOLOGIES):
            if some := [one for one in greedy if getattr(one, field) == name]:
                by_measure[f"giou, {name}"] = _by_task(some, VALUES["giou"])
    by_measure[FINAL] = by_measure["giou"]
    return Values(by_measure, by_measure[FINAL], {})


def _by_task(records: Sequence[Record], value: Callable[[Record], float]) -> dict[Item, float]:
    values: dict[Item, list[float]] = {}
    for one in records:
        values.setdefault((one.task, 0), []).append(value(one))
    return {item: float(np.mean(found)) for item, found in values.items()}


def _of_masks(run: Run) -> Values:
    true: dict[Item, float] = {}
    masks: dict[Item, str] = {}
    predicted: dict[str, dict[Item, float]] = {}
    for record in run.folder.records("masks.jsonl", read_masks):
        for k, one in enumerate(record["masks"]):
            item = (record["task"], k)
            true[item], masks[item] = one.iou, one.mask
            readings = {name: record[name][k] for name in READINGS if name in record}
            for name, value in {**readings, TOOL: one.score}.items():
                if value is not None:
                    predicted.setdefault(name, {})[item] = value
    if not true:
        raise RunError(f"{run.folder / 'masks.jsonl'} is missing or empty; {COPY}")
    by_measure = {}
    for name, values in predicted.items():
        by_measure[f"|error| of {name}"] = {item: abs(value - true[item]) for item, value in values.items()}
        by_measure[f"bias of {name}"] = {item: value - true[item] for item, value in values.items()}
    return Values(by_measure, {item: predicted["greedy"].get(item, 0.0) for item in true}, masks)


def moments(run: Run, items: Collection[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
    """The record behind each of `items`: an episode, a reply, or a mask with what was predicted of it."""
    if run.task == "segment":
        for one in run.folder.records("episodes.jsonl", read_episode):
            if (one.task, one.sample) in items:
                yield (one.task, one.sample), {"episode": one}
    elif run.task == "polygon":
        for answer in polygon_answers.read(run.folder):
            if not answer.sample and (answer.task, 0) in items:
                yield (answer.task, 0), {"answer": answer}
    else:
        for record in run.folder.records("masks.jsonl", read_masks):
            for k, mask in enumerate(record["masks"]):
                if (record["task"], k) in items:
                    yield (record["task"], k), {"judged": mask, "predicted": record["greedy"][k]}
