"""What outlines can say at best: every target written in each codec within a budget, read back and compared.

    python -m experiments.polygons_ceiling --data synthetic:val --limit 300

prints mean IoU by codec, by budget and by topology of the object, and the paired differences of the first codec from
each other one with 95 % bootstrap intervals over tasks: no model that learns from such replies can be expected to do
better.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import finite
from experiments.common.tables import columns
from experiments.evaluate.polygon_answers import OracleAgent, answers, polygon_codec
from experiments.evaluate.polygon_metrics import NONE, TOPOLOGIES, Record
from segenv import codec as codecs
from segenv import data as datasets
from segenv import statistics
from segenv.types import SegenvError


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's tables."""

    data: str = "synthetic:val"
    limit: int | None = None
    """use the first N tasks only"""
    codecs: tuple[str, ...] = ("rings", "simpleseg", "simpleseg:contour=edges")
    """the first is compared with each other one"""
    budgets: tuple[int, ...] = (64, 128, 256, 512)
    unit: Literal["tokens", "vertices", "characters"] = "tokens"
    """what a budget counts; tokens are those of the tiny model that writes polygons"""
    skip_bad: bool = False
    json: Path | None = None
    """also write the tables to this file"""


def upper_bounds(args: Args) -> list[dict[str, Any]]:
    """A row for each codec, budget and topology ("all" too): tasks, `iou`, `boundary_f`, `tokens`, and behind the first
    codec's its `difference` of IoU from this one, with the interval."""
    if not args.codecs or not args.budgets:
        raise RunError("nothing to compare: give --codecs and --budgets")
    cv2.setNumThreads(1)  # the images are too small for more
    made = [polygon_codec(codecs.get(spec), "annotator") for spec in args.codecs]
    data = datasets.make(args.data, skip_bad=args.skip_bad)[: args.limit]
    agents = {(codec.name, budget): OracleAgent(codec, budget, args.unit) for budget in args.budgets for codec in made}
    found: dict[tuple[str, int], list[Record]] = {key: [] for key in agents}
    try:
        for task in cli.progress(len(data), "task", items=data):
            replies = {key: answers(agent, [task], [0]) for key, agent in agents.items()}
            for key, records in replies.items():
                found[key] += records
    except KeyboardInterrupt:
        print("interrupted: these are the tables of the tasks so far", file=sys.stderr)
    if not found[args.codecs[0], args.budgets[0]]:
        raise RunError(f"data {args.data!r} holds no task that could be read")
    return [row for budget in args.budgets for row in _rows(args, budget, found)]


def _rows(args: Args, budget: int, found: dict[tuple[str, int], list[Record]]) -> Iterator[dict[str, Any]]:
    for topology in ("all", *TOPOLOGIES):
        parts = {
            spec: [one for one in found[spec, budget] if topology in ("all", one.topology) and one.topology != NONE]
            for spec in args.codecs
        }
        first = [one.iou for one in parts[args.codecs[0]]]
        for spec, records in parts.items() if first else ():
            ious = [one.iou for one in records]
            difference = None if spec == args.codecs[0] else statistics.bootstrap_difference(first, ious)
            yield {
                "budget": budget,
                "topology": topology,
                "codec": spec,
                "tasks": len(records),
                "iou": float(np.mean(ious)),
                "boundary_f": float(np.mean([one.boundary_f for one in records])),
                "tokens": float(np.mean([one.tokens for one in records])),
                "fits": float(np.mean([one.error is None for one in records])),
                "difference": difference and difference[0],
                "interval": difference and list(difference[1:]),
            }


def text(rows: Sequence[dict[str, Any]], args: Args) -> str:
    """The tables for a terminal."""
    cells = [
        [args.unit, "topology", "codec", "tasks", "IoU", "boundary F", "tokens", "fits", f"{args.codecs[0]} less it"]
    ]
    for row in rows:
        low, high = row["interval"] or (None, None)
        between = "" if low is None else f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        cells.append(
            [
                *(str(row[key]) for key in ("budget", "topology", "codec", "tasks")),
                *(f"{row[key]:.4f}" for key in ("iou", "boundary_f")),
                f"{row['tokens']:.0f}",
                f"{row['fits']:.1%}",
                between,
            ]
        )
    return columns(cells)


def show(args: Args) -> str:
    """Measure the upper bounds, write the JSON file, and return the tables for a terminal."""
    rows = upper_bounds(args)
    if args.json is not None:
        args.json.write_text(json.dumps(finite(rows), indent=1) + "\n")
    return text(rows, args)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return cli.main("polygons_ceiling", Args, show, __doc__, argv, errors=(SegenvError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
