"""Plan a run of many episodes from what a small one has cost.

    python -m experiments.evaluate --tool sam --agent annotator --limit 200 --out runs/small
    python -m experiments.plan runs/small --episodes 1000000 100000000 --workers 64

prints time and disk of so many episodes, and the parts to cut them into (`--shard`). Seconds are wall-clock seconds of
the small run, so measure it on a machine that is otherwise idle and of the kind that the large run will have.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from experiments.common import cli
from experiments.common.config import Counts, OutFile, RunError
from experiments.common.run_folder import RunFolder, as_expected, write_json
from experiments.common.tables import Table
from search.episode import PARTS
from segenv.ranges import Count, Processes

LISTED = ("episodes", "replies")  # files of records


@dataclass(frozen=True)
class Args:
    """A finished run of experiments.evaluate, and what is planned."""

    run: tyro.conf.Positional[Path]
    """folder of the small run"""
    episodes: Counts = (1_000_000, 100_000_000)
    """episodes to plan for"""
    workers: Processes = 64
    """processes that play at the same time, on all machines"""
    part: Count = 100_000
    """episodes of one part"""
    json: OutFile | None = None
    """also write the plan to this file"""


def plan(args: Args) -> dict[str, Any]:
    """Costs of an episode in the run (`seconds` by part, `bytes`, `clicks`), and for each number of episodes `hours` of
    all workers and of the run, `gigabytes` and `parts`. Raises RunError where the run is not finished."""
    folder = RunFolder(args.run)
    if not folder.done("evaluate"):
        raise RunError(f"{args.run} is no finished run of experiments.evaluate; give one, or go on with it by --resume")
    numbers = folder.load_json("metrics.json")
    with as_expected(args.run / "metrics.json", "metrics of experiments.evaluate"):
        count = numbers["episodes"]
        seconds = {name: numbers["seconds"][name] / count for name in PARTS}
        clicks = numbers["seconds"]["clicks"] / count
    size = sum(path.stat().st_size for name in LISTED for path in args.run.glob(f"{name}*.jsonl")) / count
    whole = sum(seconds.values())
    planned = {
        number: {
            "worker_hours": number * whole / 3600,
            "hours": number * whole / 3600 / args.workers,
            "gigabytes": number * size / 1e9,
            "parts": math.ceil(number / args.part),
        }
        for number in args.episodes
    }
    return {"measured": count, "seconds": seconds, "clicks": clicks, "bytes": size, "episodes": planned}


def show(args: Args) -> str:
    """Plan, and return the tables for a terminal."""
    found = plan(args)
    if args.json is not None:
        write_json(args.json, found)
    costs = [[name, f"{1000 * value:.2f} ms"] for name, value in found["seconds"].items()]
    costs += [
        ["all", f"{1000 * sum(found['seconds'].values()):.2f} ms"],
        ["records on disk", f"{found['bytes'] / 1000:.2f} kB"],
    ]
    rows = [
        [
            f"{number:,}",
            f"{one['worker_hours']:,.1f}",
            f"{one['hours']:,.1f}",
            f"{one['gigabytes']:,.1f}",
            f"{one['parts']:,}",
        ]
        for number, one in found["episodes"].items()
    ]
    head = ("episodes", "worker hours", f"hours of {args.workers} workers", "GB of records", f"parts of {args.part:,}")
    return "\n".join(
        [
            f"an episode of {args.run}, of {found['measured']:,}, with {found['clicks']:.1f} clicks:",
            Table(("part", "cost"), costs, "<>").text(),
            "",
            Table(head, rows, ">>>>>").text(),
        ]
    )


main = partial(cli.main, "plan", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
