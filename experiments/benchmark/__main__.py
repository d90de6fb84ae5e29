"""Time the fast paths and the plain ways side by side in one run.

    python -m experiments.benchmark [--only iou] [--out runs/benchmark]

Each comparison first checks that both ways give the same result, and then times them in turns on one thread, so that
a busy machine slows both; the fastest turn of each counts. Ratios carry over to other machines, milliseconds do not.
Prints a table and writes `benchmark.json`.
"""

import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
from rich.console import Console
from rich.table import Table

from experiments.benchmark.cases import BENCHMARKS
from experiments.benchmark.timing import Timing
from experiments.common import cli
from experiments.common.config import OutPath
from experiments.common.run_folder import manifest, write_json
from segenv.ranges import Positive


@dataclass
class Args:
    """Flags of the command line."""

    only: Literal["iou", "next-click", "overlay", "branch", "parser", "geometry", "tool", "rollout", "tree"] | None = (
        None
    )
    """One comparison; all of them by default."""
    out: OutPath = Path("runs/benchmark")
    """Folder for benchmark.json."""
    seconds: Positive = 0.5
    """Time for each comparison."""


def show(args: Args) -> str:
    """Time the comparisons, print their table, write benchmark.json, and return where it is."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which is imported by the tools that need it
    cv2.setNumThreads(1)
    rows: list[Timing] = []
    for name, measure in BENCHMARKS.items():
        if args.only in (None, name):
            rows += list(measure(args.seconds))
    Console().print(table(rows))
    result = {
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
        "manifest": manifest(0, {"seconds": args.seconds, "threads": 1}, {}),
    }
    write_json(args.out / "benchmark.json", result)
    return f"written to {args.out / 'benchmark.json'}"


def table(rows: list[Timing]) -> Table:
    """The table of all timings."""
    shown = Table(
        "what", "case", "plain ms", "fast ms", "ratio", "", "plain | fast", title="one run, fastest turn of each"
    )
    for row in rows:
        numbers = ("" if value is None else f"{value:.3g}" for value in (row.plain_ms, row.fast_ms))
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}x"
        mark = {None: "", True: "[green]ok[/]", False: "[red]too slow[/]"}[row.passed]
        shown.add_row(row.name, row.case, *numbers, ratio, mark, row.note)
    return shown


main = partial(cli.main, "benchmark", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
