"""Metrics of tree searches: per task, per condition, and per step of greedy search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np

from experiments.evaluate.episodes import click_quality
from search import spec
from search.budget import AXES
from search.spec import SearchSpec
from search.tree import Node, Tree
from segenv import metrics, statistics
from segenv.types import Action

Record = dict[str, Any]
COSTS = {
    "policy_calls": "replies",
    "tokens": "tokens",
    "tool_calls": "tool calls",
    "value_calls": "values",
    "seconds": "seconds",
}
METRIC_DEFINITIONS = {
    "miou": "mean IoU of the masks that the searches return: the best-valued mask of the whole tree, the first and the "
    "last one included; where value is none, the last mask",
    "oracle": "a search whose values are the true IoU; it reads the target, is the ceiling, and has no place among the "
    "others",
    "gain": "paired difference of the IoU to greedy search at K = 1 with the same value, depth and budget",
    "over_last": "paired difference of the IoU to the policy's own last mask, of the same depth and budget",
    "over_greedy": "paired difference of the IoU to greedy search at the same K, value, depth and budget",
    "in_tree": "mean of the highest IoU in each tree; what it is above miou was found and not chosen",
    "regret": "paired difference of the same search with value=oracle to this one",
    "place": "rank of the mIoU among searches of the same depth, budget and value source; the oracle's have none",
    "costs": "means for each task. Image encoding is done before and counted for none; seconds are wall-clock time, an "
    "equal share of each batch, and vary between runs",
    "budget": "hard limits for each task; a search that is cut returns the best-valued mask so far",
    "curves": "mean IoU of the best-valued mask so far, once so much has been spent",
    "equal_cost": "paired difference, at K > 1 and within a budget, to greedy search at K = 1 of K times as many "
    "steps, and to best-of-n of K episodes, of the same value and budget: what as many replies give without branching",
    "on_path": "mean of the highest IoU on the way to the mask that is returned, both ends included",
    "steps": "greedy search without a budget cut after t steps: its last mask, and the best-valued of its masks up to "
    "there; their paired difference, and that of the best-valued mask to K = 1's",
    "intervals": "95 % percentile bootstrap over images, 2000 resamples, seed 0; nothing of the spread over seeds",
    **{name: f"on the way to the returned mask: {text}" for name, text in click_quality.METRIC_DEFINITIONS.items()},
}


@dataclass(frozen=True)
class Condition:
    """One search, as `search.spec` writes it, and the number of actions an episode may take."""

    search: str
    depth: int

    @property
    def key(self) -> tuple[str, int]:
        return self.search, self.depth

    @cached_property
    def parsed(self) -> SearchSpec:
        parsed = spec.parse(self.search)
        assert parsed is not None
        return parsed

    @property
    def k(self) -> int:
        """Replies at each node, or episodes of best-of-n."""
        return int(next(value for key, value in self.parsed.options.items() if key in ("k", "n")))

    @property
    def name(self) -> str:
        """The algorithm with its options but K."""
        options = [f"{key}={value}" for key, value in self.parsed.options.items() if key not in ("k", "n")]
        return self.parsed.algorithm + (f" ({', '.join(options)})" if options else "")

    @property
    def budget(self) -> str:
        return (
            ", ".join(f"{limit:g} {COSTS[axis]}" for axis, limit in self.parsed.config.limits.finite().items())
            or "none"
        )

    @property
    def privileged(self) -> bool:
        return self.parsed.value == "oracle"

    def like(self, algorithm: str | None = None, k: int | None = None, value: str | None = None) -> Condition:
        """This condition with another algorithm (greedy), K or value."""
        old = self.parsed
        options: dict[str, int | float] = dict(old.options)
        if algorithm is not None:
            options = {"n" if algorithm == "best-of-n" else "k": self.k}
        if k is not None:
            options = {key: k if key in ("k", "n") else option for key, option in options.items()}
        new = SearchSpec(algorithm or old.algorithm, options, value or old.value, old.config)
        return Condition(str(new), self.depth)


def labelled(value: str) -> str:
    """Name of a value source for a table, with the oracle's privilege."""
    return f"{value} (reads the target)" if value == "oracle" else value


class Path(TypedDict, total=False):
    """The way from the first mask to the one that a search returns; records of earlier versions have none."""

    on_path: float
    right: list[float | None]
    first_inside: float


class Found(Path):
    """Record of a search in results.jsonl."""

    search: str
    depth: int
    task: str
    iou: float
    last_iou: float
    in_tree: float
    value: float | None
    steps: int
    deepest: int
    nodes: int
    spent: dict[str, float]
    trace: list[list[float]]
    walk: list[list[float | None]]


def record(condition: Condition, tree: Tree) -> Record:
    """Measure a finished search against the target, with its costs and the way that it took."""
    target = tree.task.target
    ious = [float(metrics.iou(target, node.state.mask)) for node in tree.nodes]
    last, path = tree.last or tree.root, tree.best.path()
    right = [click_quality.is_right(tree.task, *step) for step in _steps_of(path)]
    return {
        "search": condition.search,
        "depth": condition.depth,
        "task": tree.task.id,
        "iou": ious[tree.best.index],
        "last_iou": ious[last.index],
        "in_tree": max(ious),
        "on_path": max(ious[node.index] for node in path),
        # of each action on the way to the returned mask, whether it is a click on a true error
        "right": [None if np.isnan(one) else one for one in right],
        "first_inside": click_quality.is_inside(tree.task, path[1].action if len(path) > 1 else None),
        "value": tree.best.value,
        "steps": tree.best.state.step,
        "deepest": max(node.state.step for node in tree.nodes),
        "nodes": len(tree.nodes),
        "spent": vars(tree.budget.spent),
        # after each round of expansion: what was spent (by AXES), and the IoU of the best-valued mask
        "trace": [[*vars(cost).values(), ious[index]] for cost, index in tree.trace],
        # the way that the search walked: IoU and value of each mask
        "walk": [[ious[node.index], node.value] for node in last.path()],
    }


def _steps_of(path: Sequence[Node]) -> Iterator[tuple[np.ndarray, Action]]:
    """The mask before each action of a path, and the action."""
    for node, following in pairwise(path):
        assert following.action is not None
        yield node.state.mask, following.action


def summarise(
    results: Mapping[Condition, Sequence[Record]],
    steps: Sequence[int],
    protocol: Mapping,
    images: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Content of metrics.json; `results` hold each condition's records of the same tasks, in one order, and `images`
    names the image of each task."""
    tasks = {tuple(record["task"] for record in records) for records in results.values()}
    if len(tasks) != 1:
        raise ValueError("the conditions were run on unlike tasks; differences are paired, so finish the run first")
    ious = {condition: column(records, "iou") for condition, records in results.items()}
    rows = [_row(condition, records, ious, images) for condition, records in results.items()]
    _rank(rows)
    return {
        "tasks": len(next(iter(tasks))),
        "conditions": rows,
        "equal_cost": equal_cost(ious, images),
        "steps": _steps(results, steps, images),
        "protocol": dict(protocol),
    }


def column(records: Sequence[Record], key: str) -> np.ndarray:
    """One measure of each record, float64 [tasks]."""
    return np.array([record[key] for record in records], np.float64)


def equal_cost(ious: Mapping[Condition, np.ndarray], images: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Compare each search of K > 1 within a budget with its controls that spend as many replies without branching: the
    paired difference of the IoU, as mean and interval. `ious` hold those of the same tasks for each condition."""
    found = []
    for condition in ious:
        if condition.k == 1 or condition.parsed.value == "none" or not condition.parsed.config.limits.finite():
            continue
        longer = Condition(condition.like("greedy", 1).search, condition.depth * condition.k)
        episodes = condition.like("best-of-n", condition.k)
        controls = {f"greedy, K = 1, {longer.depth} steps": longer, f"best-of-n, n = {condition.k}": episodes}
        for name, control in controls.items():
            if control in ious and control != condition:
                difference = statistics.bootstrap_difference(ious[condition], ious[control], images=images)
                row = {"search": condition.search, "depth": condition.depth, "control": name}
                row |= {"control_search": control.search, "control_depth": control.depth}
                found.append({**row, "difference": list(difference)})
    return found


def _row(
    condition: Condition,
    records: Sequence[Record],
    ious: Mapping[Condition, np.ndarray],
    images: Sequence[str] | None,
) -> dict[str, Any]:
    values = ious[condition]
    valued = condition.parsed.value != "none"

    def against(other: Condition, sign: int = 1) -> list[float] | None:
        """Mean and interval of the paired difference, or None where the other was not run, or is this one."""
        if other == condition or other not in ious:
            return None
        pair = (values, ious[other]) if sign > 0 else (ious[other], values)
        return list(statistics.bootstrap_difference(*pair, images=images))

    return {
        "search": condition.search,
        "algorithm": condition.name,
        "k": condition.k,
        "depth": condition.depth,
        "value": condition.parsed.value,
        "budget": condition.budget,
        "privileged": condition.privileged,
        "miou": float(values.mean()),
        "interval": list(statistics.bootstrap(values, images=images)),
        "gain": against(condition.like("greedy", 1)) if valued else None,
        "over_greedy": against(condition.like("greedy")),
        "over_last": against(condition.like("greedy", 1, "none")),
        "in_tree": float(column(records, "in_tree").mean()),
        **_path(condition, records, images),
        "regret": against(condition.like(value="oracle"), -1) if valued and not condition.privileged else None,
        "place": None,
        "steps": float(column(records, "steps").mean()),
        "deepest": float(column(records, "deepest").mean()),
        "nodes": float(column(records, "nodes").mean()),
        "spent": {axis: float(np.mean([record["spent"][axis] for record in records])) for axis in AXES},
    }


def _path(condition: Condition, records: Sequence[Record], images: Sequence[str] | None) -> dict[str, Any]:
    """Measure the ways to the returned masks, and their clicks; None where a record has none."""
    if not all("right" in record for record in records):
        return {"on_path": None, "first_click_in_object": None, "clicks_on_error": None, "click_intervals": None}
    right = [np.array(record["right"], np.float64) for record in records]  # None becomes NaN
    inside = column(records, "first_inside")
    numbers, intervals = click_quality.summarise(click_quality.by_step(right, condition.depth), inside, images)
    return {"on_path": float(column(records, "on_path").mean()), **numbers, "click_intervals": intervals}


def _rank(rows: Sequence[dict[str, Any]]) -> None:
    """Rank the rows of each depth, budget and value source by mIoU, but for oracle rows and those without a budget."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["privileged"] and row["value"] != "none" and row["budget"] != "none":
            groups.setdefault((row["depth"], row["budget"], row["value"]), []).append(row)
    for group in groups.values():
        for row in group if len(group) > 1 else ():
            row["place"] = [1 + sum(other["miou"] > row["miou"] for other in group), len(group)]


def _steps(
    results: Mapping[Condition, Sequence[Record]], steps: Sequence[int], images: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Greedy searches without a budget, cut after each number of steps (the paper's Table 2)."""
    rows = []
    for condition, step in ((one, step) for one in results if _stepwise(one) for step in sorted(steps)):
        if step > condition.depth:
            continue
        last = after(results[condition], step)
        row: dict[str, Any] = {"k": condition.k, "value": condition.parsed.value, "step": step}
        row |= {"last": float(last.mean()), "last_interval": list(statistics.bootstrap(last, images=images))}
        if condition.parsed.value != "none":
            chosen, single = after(results[condition], step, chosen=True), condition.like(k=1)
            row |= {"chosen": float(chosen.mean())}
            row["chosen_interval"] = list(statistics.bootstrap(chosen, images=images))
            row["gain"] = list(statistics.bootstrap_difference(chosen, last, images=images))
            if condition.k > 1 and single in results:
                other = after(results[single], step, chosen=True)
                row["over_one"] = list(statistics.bootstrap_difference(chosen, other, images=images))
        rows.append(row)
    return rows


def _stepwise(condition: Condition) -> bool:
    return condition.parsed.algorithm == "greedy" and not condition.parsed.config.limits.finite()


def after(records: Sequence[Record], step: int, chosen: bool = False) -> np.ndarray:
    """IoU that a greedy search has after `step` steps, float64 [tasks]: that of its last mask, or of the one that
    it would return, which is the first of the best-valued."""
    walks = [record["walk"][: step + 1] for record in records]
    masks = [max(walk, key=lambda mask: mask[1]) if chosen else walk[-1] for walk in walks]
    return np.array([iou for iou, _ in masks], np.float64)
