"""Ablations: arms × seeds, each a run of a command in a folder of its own, compared on the same held-out tasks.

    OUT/seed0/ARM/, OUT/seed1/ARM/, …                          the runs, each with a report of its own
    OUT/ablation.json, .md, .csv, plots/, report.html          their comparison

Differences are paired over tasks. Those of a seed have bootstrap intervals over images; those of all seeds have
intervals for other seeds and other images, both random effects (`segenv.statistics.random_effects`).
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.html import write_report
from experiments.common.run_folder import RunFolder, disk_errors, write_atomic
from experiments.common.tables import Table
from search.executors import run_parallel
from segenv import statistics


@dataclass(frozen=True)
class Arm:
    """A line of an ablation's table: fields of the command's `Args` that its runs set, and of the options of training
    within them."""

    name: str
    about: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """An ablation's numbers for people."""

    title: str
    about: str
    """the paragraph above the table"""
    table: Table
    plots: Mapping[str, bytes]
    """PNGs by their names"""
    arms: Mapping[str, str] = field(default_factory=dict)
    """what each arm is"""
    csv: Table | None = None
    """ablation.csv, where it is not the table"""
    contrasts: Table | None = None
    """the claim against each of its controls, in a table of its own"""


INTERVALS = (
    "95 %, paired over tasks: of one seed a bootstrap over images, each with all of its tasks; of all seeds for other "
    "seeds and other images, both random effects (generalised interval of a crossed analysis of variance)"
)


def arm_folder(out: str | Path, seed: int, arm: str) -> Path:
    """The folder of an arm's run: its name without blanks and signs that file systems dislike."""
    return Path(out) / f"seed{seed}" / "-".join(re.findall(r"[A-Za-z0-9=]+\+?", arm))


def run_arms(command: Callable[[Any], Any], stage: str, runs: Sequence[Any], workers: int) -> None:
    """Call `command`, a function of a module other than `__main__`, with the settings of each run that has not finished
    `stage`, `workers` at a time in processes of their own (0: one on a GPU and otherwise two)."""
    waiting = [args for args in runs if not RunFolder(args.resume or args.out).done(stage)]
    run_parallel(partial(_run_arm, command), waiting, workers)


def _run_arm(command: Callable[[Any], Any], args: Any) -> None:
    print(f"[{args.resume or args.out}]", file=sys.stderr)
    command(args)


def link(source: Path, target: Path) -> None:
    """Give a file, which is never written to again, a second name; copy it where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def share(
    source: Path, target: Path, patterns: Sequence[str] = ("**/*",), copy: Callable[[Path, Path], Any] = link
) -> None:
    """Give the run `target`, unless it exists, the files of the run `source` that match one of `patterns`: all of them
    or, after a kill, none."""
    if target.exists():
        return
    beside = target.with_name(f".{target.name}.linked")
    shutil.rmtree(beside, ignore_errors=True)
    with disk_errors(target):
        beside.mkdir(parents=True)
        for path in {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}:
            copied = beside / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copy(path, copied)
        beside.rename(target)


def paired_gains(
    values: Sequence[Any],
    reference: Sequence[Any],
    name: str = "gain",
    images: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Paired difference of two [seeds, tasks], (mean, low, high): `name` of all, and `name`_by_seed. `images` names the
    image of each task."""
    pooled = statistics.random_effects(np.subtract(values, reference), images)
    pairs = zip(values, reference, strict=True)
    each = [list(statistics.bootstrap_difference(*pair, images=images)) for pair in pairs]
    return {name: list(pooled), f"{name}_by_seed": each}


def averaged(name: str, by_seed: Sequence[float | None]) -> dict[str, Any]:
    """A measure of each seed's run, `name`_by_seed, and the mean of those that have one, `name`."""
    known = [value for value in by_seed if value is not None]
    return {name: float(np.mean(known)) if known else None, f"{name}_by_seed": list(by_seed)}


def by_seed(lines: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Numbers of each arm over all seeds and of each seed, with the `seed`: `name` has the value of `name`_by_seed."""
    for line in lines:
        yield {**line, "seed": "all"}
        for k, seed in enumerate(seeds):
            values = {name.removesuffix("_by_seed"): line[name][k] for name in line if name.endswith("_by_seed")}
            yield {**line, **values, "seed": str(seed)}


def cell(value: float | Sequence[float] | None, digits: int = 4) -> str:
    """A number, or a gain (mean, low, high), as text."""
    if isinstance(value, Sequence):
        return "{} [{}, {}]".format(*(f"{number:+.{digits}f}" for number in value))
    return "–" if value is None else f"{value:.{digits}f}"


def write(folder: RunFolder, numbers: dict[str, Any], report: Report) -> dict[str, Any]:
    """Write ablation.json, ablation.md, ablation.csv, the plots and report.html, and finish the stage `ablation`.
    Returns what ablation.json holds. `numbers` have a `protocol` with the `seeds`."""
    folder.write_json("ablation.json", numbers)
    tables = [report.table, *([report.contrasts] if report.contrasts else [])]
    write_atomic(folder / "ablation.md", "\n".join(table.markdown() for table in tables))
    write_atomic(folder / "ablation.csv", (report.csv or report.table).csv())
    words = {"title": report.title, "about": report.about, "arms": report.arms, "protocol": numbers["protocol"]}
    write_report(folder, "ablation.html", report.plots, tables=tables, **words)
    folder.finish("ablation")
    return folder.load_json("ablation.json")
