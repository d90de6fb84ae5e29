"""What tree searches are measured by, and the tables that say so."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from search import spec
from search.budget import AXES
from search.spec import SearchSpec
from search.tree import Tree
from segenv import metrics

Record = dict[str, Any]
COSTS = {
    "policy_calls": "replies",
    "tokens": "tokens",
    "tool_calls": "tool calls",
    "value_calls": "values",
    "seconds": "seconds",
}
PROTOCOL = {
    "miou": "mean IoU of the masks that the searches return: the best-valued mask of the whole tree, the first and the "
    "last one included; where value is none, the last mask",
    "oracle": "a search whose values are the true IoU; it reads the target, is the ceiling, and has no place among the "
    "others",
    "gain": "paired difference of the IoU to greedy search at K = 1 with the same value, depth and budget",
    "over_last": "paired difference of the IoU to the policy's own last mask, of the same depth and budget",
    "in_tree": "mean of the highest IoU in each tree; what it is above miou was found and not chosen",
    "regret": "paired difference of the same search with value=oracle to this one",
    "place": "rank of the mIoU among searches of the same depth, budget and value source; the oracle's have none",
    "costs": "means for each task. Image encoding is done before and counted for none; seconds are wall-clock time, an "
    "equal share of each batch, and vary between runs",
    "budget": "hard limits for each task; a search that is cut returns the best-valued mask so far",
    "curves": "mean IoU of the best-valued mask so far, once so much has been spent",
    "steps": "greedy search cut after t steps: its last mask, and the best-valued of its masks up to there",
    "intervals": "95 % percentile bootstrap over tasks, 2000 resamples, seed 0; nothing of the spread over seeds",
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
        own = {key: value for key, value in self.parsed.options.items() if key in ("k", "n")}
        return int(next(iter(own.values())))

    @property
    def name(self) -> str:
        """The algorithm with its options but K."""
        options = [f"{key}={value}" for key, value in self.parsed.options.items() if key not in ("k", "n")]
        return self.parsed.algorithm + (f" ({', '.join(options)})" if options else "")

    @property
    def budget(self) -> str:
        return (
            ", ".join(f"{limit:g} {COSTS[axis]}" for axis, limit in self.parsed.terms.limits.given().items()) or "none"
        )

    @property
    def privileged(self) -> bool:
        return self.parsed.value == "oracle"

    def like(self, algorithm: str | None = None, k: int | None = None, value: str | None = None) -> Condition:
        """This condition with another algorithm (greedy), K or value."""
        old = self.parsed
        options: dict[str, int | float] = dict(old.options) if algorithm is None else {"k": self.k}
        if k is not None:
            options = {key: k if key in ("k", "n") else option for key, option in options.items()}
        new = SearchSpec(algorithm or old.algorithm, options, value or old.value, old.terms)
        return Condition(str(new), self.depth)


def record(condition: Condition, tree: Tree) -> Record:
    """What is kept of a finished search: measures against the target, costs, and how both came about."""
    target = tree.task.target
    ious = [float(metrics.iou(target, node.state.mask)) for node in tree.nodes]
    last = tree.last or tree.root
    return {
        "search": condition.search,
        "depth": condition.depth,
        "task": tree.task.id,
        "iou": ious[tree.best.index],
        "last_iou": ious[last.index],
        "in_tree": max(ious),
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


# ------------------------------------------------------------------------------------------------------------- numbers


def summarise(results: Mapping[Condition, Sequence[Record]], steps: Sequence[int], protocol: Mapping) -> dict[str, Any]:
    """The content of metrics.json. `results` hold the records of the same tasks, in the same order, for each
    condition."""
    tasks = {tuple(record["task"] for record in records) for records in results.values()}
    if len(tasks) != 1:
        raise ValueError("the conditions were run on unlike tasks; differences are paired, so finish the run first")
    ious = {condition: column(records, "iou") for condition, records in results.items()}
    rows = [_row(condition, records, ious) for condition, records in results.items()]
    _place(rows)
    return {
        "tasks": len(next(iter(tasks))),
        "conditions": rows,
        "steps": [row for condition in results for row in _steps(condition, results[condition], steps)],
        "findings": findings(results),
        "protocol": dict(protocol),
    }


def column(records: Sequence[Record], key: str) -> np.ndarray:
    """One measure of each record, float64 [tasks]."""
    return np.array([record[key] for record in records], np.float64)


def _row(condition: Condition, records: Sequence[Record], ious: Mapping[Condition, np.ndarray]) -> dict[str, Any]:
    own = ious[condition]
    greedy, oracle = condition.like("greedy", 1), condition.like(value="oracle")
    last = condition.like("greedy", 1, "none")

    def against(other: Condition, sign: int = 1) -> list[float] | None:
        """Mean and interval of the paired difference, or None where the other was not run, or is this one."""
        if other == condition or other not in ious:
            return None
        pair = (own, ious[other]) if sign > 0 else (ious[other], own)
        return list(metrics.bootstrap_difference(*pair))

    return {
        "search": condition.search,
        "algorithm": condition.name,
        "k": condition.k,
        "depth": condition.depth,
        "value": condition.parsed.value,
        "budget": condition.budget,
        "privileged": condition.privileged,
        "miou": float(own.mean()),
        "interval": list(metrics.bootstrap(own)),
        "gain": against(greedy) if condition.parsed.value != "none" else None,
        "over_last": against(last),
        "in_tree": float(column(records, "in_tree").mean()),
        "regret": None if condition.privileged or condition.parsed.value == "none" else against(oracle, -1),
        "place": None,
        "steps": float(column(records, "steps").mean()),
        "deepest": float(column(records, "deepest").mean()),
        "nodes": float(column(records, "nodes").mean()),
        "spent": {axis: float(np.mean([record["spent"][axis] for record in records])) for axis in AXES},
    }


def _place(rows: Sequence[dict[str, Any]]) -> None:
    """Number the rows of each depth, budget and value source by mIoU; not the oracle's, and not where none compete."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["privileged"] and row["value"] != "none" and row["budget"] != "none":
            groups.setdefault((row["depth"], row["budget"], row["value"]), []).append(row)
    for group in groups.values():
        for row in group:
            row["place"] = [1 + sum(other["miou"] > row["miou"] for other in group), len(group)]


def _steps(condition: Condition, records: Sequence[Record], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Greedy search without a budget, cut after each number of steps (the paper's Table 2)."""
    if condition.parsed.algorithm != "greedy" or condition.parsed.terms.limits.given() or not steps:
        return []
    rows = []
    for step in sorted(step for step in steps if step <= condition.depth):
        walks = [record["walk"][: step + 1] for record in records]
        last = np.array([walk[-1][0] for walk in walks])
        row: dict[str, Any] = {"k": condition.k, "value": condition.parsed.value, "step": step}
        row |= {"last": float(last.mean()), "last_interval": list(metrics.bootstrap(last))}
        if condition.parsed.value != "none":
            # the first of the best: as the search chooses, fewer steps where values are equal
            chosen = np.array([max(walk, key=lambda mask: mask[1])[0] for walk in walks])
            row |= {"chosen": float(chosen.mean()), "chosen_interval": list(metrics.bootstrap(chosen))}
            row["gain"] = list(metrics.bootstrap_difference(chosen, last))
        rows.append(row)
    return rows


def findings(results: Mapping[Condition, Sequence[Record]]) -> list[str]:
    """What the differences say, in sentences: selection, K, and each algorithm against greedy at equal cost."""
    lines = []
    ious = {condition: column(records, "iou") for condition, records in results.items()}
    for one in ious:
        if one.privileged or one.parsed.value == "none":
            continue
        where = f"{one.parsed.value}, {one.depth} steps, budget {one.budget}"
        greedy = one.like("greedy")
        if one.parsed.algorithm == "greedy":
            base = one.like(k=1) if one.k > 1 else one.like(value="none")
            what = f"K = {one.k} over K = 1" if one.k > 1 else "the best-valued mask over the last one"
            if base in ious:
                lines.append(f"{what} ({where}): {_difference(ious[one], ious[base])}")
        elif greedy in ious and one.parsed.terms.limits.given():
            words = f"{one.name} against greedy, K = {one.k} ({where}): {_difference(ious[one], ious[greedy])}"
            if float((ious[one] - ious[greedy]).mean()) < 0:
                words += _why(results[one], results[greedy])
            lines.append(words)
    return lines


def _difference(first: np.ndarray, second: np.ndarray) -> str:
    mean, low, high = metrics.bootstrap_difference(first, second)
    sure = "" if low > 0 or high < 0 else "; the interval holds 0"
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]{sure}"


def _why(own: Sequence[Record], greedy: Sequence[Record]) -> str:
    """Where an algorithm loses: what its trees hold, and what was chosen of it."""
    held = float((column(own, "in_tree") - column(greedy, "in_tree")).mean())
    missed = [float((column(records, "in_tree") - column(records, "iou")).mean()) for records in (own, greedy)]
    steps = [float(column(records, "steps").mean()) for records in (own, greedy)]
    deep = [float(column(records, "deepest").mean()) for records in (own, greedy)]
    cause = "by what its trees hold" if held < missed[1] - missed[0] else "by what it chooses of them"
    return (
        f". It loses mainly {cause}: the best mask in its trees is {held:+.4f} to greedy's, and {missed[0]:.4f} of IoU "
        f"is in them and not chosen (greedy: {missed[1]:.4f}). Its masks lie {steps[0]:.1f} clicks deep, of "
        f"{deep[0]:.1f} reached (greedy: {steps[1]:.1f} of {deep[1]:.1f})"
    )


# -------------------------------------------------------------------------------------------------------------- tables

HEADERS: tuple[str, ...] = (
    "search",
    "value",
    "K",
    "depth",
    "budget",
    "mIoU",
    "interval",
    "to K = 1",
    "interval",
    "to last mask",
)
HEADERS += ("interval", "best in tree", "regret to oracle", "interval", "place", *COSTS.values())


def table(numbers: Mapping) -> list[list[str]]:
    """The rows of the comparison as text, under `HEADERS`: the oracle's last, as they compete with none."""
    rows = sorted(numbers["conditions"], key=lambda row: (row["privileged"], row["depth"], row["budget"], row["value"]))
    return [
        [
            row["algorithm"],
            labelled(row["value"]),
            str(row["k"]),
            str(row["depth"]),
            row["budget"],
            f"{row['miou']:.4f}",
            _between(row["interval"], ".4f"),
            *_signed(row["gain"]),
            *_signed(row["over_last"]),
            f"{row['in_tree']:.4f}",
            *_signed(row["regret"]),
            "" if row["place"] is None else f"{row['place'][0]} of {row['place'][1]}",
            *(f"{row['spent'][axis]:.{2 if axis == 'seconds' else 1}f}" for axis in AXES),
        ]
        for row in rows
    ]


STEP_HEADERS = (
    "steps",
    "K",
    "value",
    "last mask",
    "interval",
    "best-valued so far",
    "interval",
    "difference",
    "interval",
)


def steps_table(numbers: Mapping) -> list[list[str]]:
    """Greedy search by number of steps, under `STEP_HEADERS`."""
    rows = []
    for row in sorted(
        numbers["steps"], key=lambda row: (row["value"] == "oracle", row["k"], row["value"], row["step"])
    ):
        cells = [str(row["step"]), str(row["k"]), labelled(row["value"]), f"{row['last']:.4f}"]
        cells.append(_between(row["last_interval"], ".4f"))
        if "chosen" in row:
            cells += [f"{row['chosen']:.4f}", _between(row["chosen_interval"], ".4f"), *_signed(row["gain"])]
        rows.append(cells + [""] * (len(STEP_HEADERS) - len(cells)))
    return rows


def labelled(value: str) -> str:
    """A value source by name, and what sets the oracle apart."""
    return f"{value} (reads the target)" if value == "oracle" else value


def _between(interval: Sequence[float], form: str) -> str:
    return f"{interval[0]:{form}} – {interval[1]:{form}}"


def _signed(difference: Sequence[float] | None) -> list[str]:
    return ["", ""] if difference is None else [f"{difference[0]:+.4f}", _between(difference[1:], "+.4f")]


def text(numbers: Mapping) -> str:
    """The tables and findings for a terminal."""
    parts = [f"{numbers['tasks']} tasks, each searched under {len(numbers['conditions'])} conditions"]
    parts.append(aligned(HEADERS, table(numbers)))
    if numbers["steps"]:
        parts.append("greedy search by steps\n" + aligned(STEP_HEADERS, steps_table(numbers)))
    return "\n\n".join([*parts, "\n".join(numbers["findings"])]).rstrip()


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in columns of spaces."""
    widths = [max(map(len, cells)) for cells in zip(headers, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headers, *rows))
    return "\n".join(line.rstrip() for line in lines)


def markdown(numbers: Mapping) -> str:
    """The tables and findings in Markdown."""
    tables = [(HEADERS, table(numbers)), (STEP_HEADERS, steps_table(numbers))]
    blocks = []
    for headers, rows in tables:
        if rows:
            lines = [headers, ["---"] * len(headers), *rows]
            blocks.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    blocks.append("\n".join(f"- {finding}" for finding in numbers["findings"]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def comma_separated(numbers: Mapping) -> str:
    """The comparison as CSV: numbers with all their digits, one row a condition."""
    buffer = io.StringIO()
    names = ["search", "algorithm", "k", "depth", "value", "budget", "privileged", "miou", "miou_low", "miou_high"]
    pairs = ("gain", "over_last", "regret")
    names += [f"{key}{end}" for key in pairs for end in ("", "_low", "_high")]
    names += ["in_tree", "place", "steps", "deepest", "nodes", *AXES]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in numbers["conditions"]:
        cells = {key: row[key] for key in names if key in row and key not in (*pairs, "place")}
        cells |= {"miou_low": row["interval"][0], "miou_high": row["interval"][1], **row["spent"]}
        for key in pairs:
            given = row[key] or ["", "", ""]
            cells |= dict(zip((key, f"{key}_low", f"{key}_high"), given, strict=True))
        writer.writerow(cells | {"place": row["place"][0] if row["place"] else ""})
    return buffer.getvalue()
