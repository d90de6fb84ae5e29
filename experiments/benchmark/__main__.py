"""Time the fast paths and the plain ways side by side in one run.

    python -m experiments.benchmark [--only iou] [--photos index:DIR] [--out runs/benchmark]

Each comparison first checks that both ways give the same result, and then times them in turns on one thread, so that
a busy machine slows both; the fastest turn of each counts. Environments and the embedded SAM are timed on processor
time. Ratios carry over to other machines, milliseconds do not. Prints each row when it is known, and writes
`benchmark.json` and `benchmark.png`.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
from rich.console import Console
from rich.table import Table

from experiments.benchmark import environments
from experiments.benchmark.cases import BENCHMARKS
from experiments.benchmark.timing import Timing
from experiments.common import cli, plots
from experiments.common.config import OutPath
from experiments.common.run_folder import manifest, write_atomic, write_json
from segenv.ranges import Positive

Part = Literal[
    "iou", "next-click", "overlay", "branch", "parser", "geometry", "tool", "sam", "service", "rollout", "tree"
]
EnvironmentPart = Literal["step", "vector", "memory", "large", "photos"]
VERDICTS = {None: "", True: "[green]ok[/]", False: "[red]missed[/]"}


@dataclass
class Args:
    """Flags of the command line."""

    only: Part | EnvironmentPart | None = None
    """One comparison; all of them by default."""
    photos: str | None = None
    """Photographs for the steps and IoUs that are timed on some: a data spec, such as index:DIR."""
    out: OutPath = Path("runs/benchmark")
    """Folder for benchmark.json and benchmark.png."""
    seconds: Positive = 0.5
    """Time for each comparison."""


def measured(args: Args) -> Iterator[Timing]:
    """Yield the rows that are asked for."""
    for name, measure in BENCHMARKS.items():
        if args.only in (None, name):
            yield from measure(args.seconds)
    if args.only in (None, "photos"):
        yield from environments.photos(args.photos, args.seconds)


def show(args: Args) -> str:
    """Time the comparisons; print each row when it is known, and keep all so far in benchmark.json; draw their
    ratios."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which is imported by the tools that need it
    cv2.setNumThreads(1)
    console, rows = Console(), []
    about = manifest(0, {"seconds": args.seconds, "threads": 1, "photos": args.photos}, {})
    console.print(line("what, case", "plain ms", "fast ms", "ratio", "goal", "", "plain | fast, fastest turn of each"))
    for row in measured(args):
        rows.append(row)
        numbers = ("" if value is None else f"{value:.3g}" for value in (row.plain_ms, row.fast_ms))
        ratio = "" if row.ratio is None else f"{row.ratio:{'.3f' if row.ratio < 2 else '.3g'}}x"
        console.print(line(f"{row.name}, {row.case}", *numbers, ratio, row.goal, VERDICTS[row.passed], row.note))
        result = {"rows": [{**asdict(row), "ratio": row.ratio} for row in rows], "manifest": about}
        write_json(args.out / "benchmark.json", result)
    write_atomic(args.out / "benchmark.png", plot(rows))
    return f"written to {args.out / 'benchmark.json'} and benchmark.png"


def line(*cells: str) -> Table:
    """One row of a table whose end is not known yet."""
    shown = Table.grid(padding=(0, 1))
    for width in (44, 8, 8, 7, 11, 6):
        shown.add_column(width=width)
    shown.add_column()
    shown.add_row(*cells)
    return shown


def plot(rows: Sequence[Timing]) -> bytes:
    """Plot the ratio of each row as a bar, and its goal as a stroke, as a PNG."""
    shown = [row for row in reversed(rows) if row.ratio is not None]
    colours = {None: "0.6", True: "C0", False: "C3"}
    axes = plots.new_axes(plots.new_figure(8.0, 1.2 + 0.24 * max(len(shown), 1)), 1, 1, 1)
    axes.barh(range(len(shown)), [row.ratio for row in shown], color=[colours[row.passed] for row in shown])
    for height, row in enumerate(shown):
        if row.goal[:1] in ("≥", "≤"):
            axes.plot([float(row.goal[1:])] * 2, [height - 0.4, height + 0.4], color="black", linewidth=1.4)
    axes.axvline(1, color="0.4", linewidth=0.8)
    labels = [f"{row.name}, {row.case}" for row in shown]
    settings: dict[str, Any] = {"yticks": range(len(shown)), "yticklabels": labels}
    return plots.png(axes, xscale="log", xlabel="ratio of plain to fast; strokes are goals, red is missed", **settings)


main = partial(cli.main, "benchmark", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
