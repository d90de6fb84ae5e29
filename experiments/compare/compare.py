"""Paired comparison of finished runs, as numbers and as a text."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from experiments.common.config import RunError
from experiments.common.run_folder import as_expected
from experiments.common.tables import Table, interval, number
from experiments.compare.values import Item, Values, images_of, read_values
from experiments.evaluate.finished import Run, check_alike, read
from segenv import statistics


def compare(*paths: Path, allowed: Collection[str] = ()) -> dict[str, Any]:
    """Compare finished runs, paired, each with the first one: `measures` with the `values` of all runs, their
    `intervals` and `differences` from the first, on the `episodes` that all of them have. Raises RunError where the
    runs differ in "protocol", "data" or "prompt", but for those in `allowed`."""
    return compare_runs(*load(paths, allowed))


def load(paths: Sequence[Path], allowed: Collection[str]) -> tuple[list[Run], list[Values], list[str]]:
    """Read runs and their values, and in what they differ as it is `allowed`."""
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise RunError(f"got {len(paths)} runs; expected two to {len(ascii_uppercase)}")
    runs = read(paths)
    with as_expected(f"metrics.json of {' or '.join(map(str, paths))}", "metrics of experiments.evaluate"):
        told = check_alike(runs, allowed, "compare runs of the same episodes, or compare them so with --any-{kind}")
        return runs, read_values(runs), told


def compare_runs(runs: Sequence[Run], values: Sequence[Values], told: Sequence[str] = ()) -> dict[str, Any]:
    """Compare the values of runs, as `compare` does; `told` is in what they differ."""
    items = shared(values)
    if not items:
        raise RunError(f"the runs share no {'task' if runs[0].task == 'polygon' else 'episode'}")
    if len(items) < max(len(one.result) for one in values):
        counts = " and ".join(str(len(one.result)) for one in values)
        print(f"{len(items)} of {counts} episodes are in all runs", file=sys.stderr)
    if any(one.masks[item] != values[0].masks[item] for one in values[1:] for item in items if one.masks):
        raise RunError("the runs judged other masks of the same tasks: give them one --tool and one --seed")
    names = [name for name in values[0].by_measure if all(name in one.by_measure for one in values)]
    seconds = [run.numbers.get("seconds", {}).get("per_click") for run in runs]
    return {
        "names": [run.name for run in runs],
        "data": runs[0].protocol.get("data"),
        "episodes": len(items),
        "differ": list(told),
        "measures": {name: _row(runs, values, items, name) for name in names},
        "better": [_wins(values, items, k) for k in range(1, len(values))],
        "seconds_per_click": [one and sum(one[part] or 0.0 for part in ("encode", "decode")) for one in seconds],
    }


def shared(values: Sequence[Values]) -> list[Item]:
    """The items that all runs have."""
    return sorted(set.intersection(*(set(one.result) for one in values)))


def _row(runs: Sequence[Run], values: Sequence[Values], items: Sequence[Item], name: str) -> dict[str, Any]:
    """A measure of all runs, on the items that all of them have it of."""
    columns = [one.by_measure[name] for one in values]
    some = [item for item in items if all(item in column for column in columns)]
    images = images_of(runs, some)
    table = [np.array([column[item] for item in some], float) for column in columns]
    differences = []
    for other in table[1:]:
        difference, *ends = statistics.bootstrap_difference(table[0], other, images=images)
        differences.append({"difference": difference, "interval": ends})
    return {
        "tasks": len(some),
        "values": [float(column.mean()) if len(column) else float("nan") for column in table],
        "intervals": [list(statistics.bootstrap(column, images=images)) for column in table],
        "differences": differences,
    }


def _wins(values: Sequence[Values], items: Sequence[Item], k: int) -> dict[str, int]:
    """On how many items the first run's result is higher than that of run `k`, lower, and equal."""
    pairs = [(values[0].result[item], values[k].result[item]) for item in items]
    higher, lower = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return {"higher": higher, "lower": lower, "equal": len(pairs) - higher - lower}


def letters(result: dict[str, Any]) -> list[str]:
    """A letter for each run."""
    return list(ascii_uppercase[: len(result["names"])])


def table(result: dict[str, Any]) -> Table:
    """Each measure by run, and the differences of the first from the others with their intervals."""
    first, *others = letters(result)
    head = ["", first, *others, *(one for other in others for one in (f"{first} − {other}", "95 % interval"))]
    rows = []
    for name, row in result["measures"].items():
        cells = [name, *map(number, row["values"])]
        for one in row["differences"]:
            cells += [number(one["difference"], sign="+"), interval(one["interval"], sign="+")]
        rows.append(cells)
    return Table(head, rows)


def text(result: dict[str, Any]) -> str:
    """Format the comparison for a terminal."""
    lines = [f"{letter}: {name}" for letter, name in zip(letters(result), result["names"], strict=True)]
    lines += [f"{result['episodes']} paired episodes", *result["differ"], table(result).text()]
    if None not in result["seconds_per_click"]:
        spent = ", ".join(f"{1000 * one:.1f}" for one in result["seconds_per_click"])
        lines.append(f"ms per click of the tool (encode + decode): {spent}")
    return "\n".join(lines)
