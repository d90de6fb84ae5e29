"""Upper bound of each polygon codec: encode every target within a token budget, decode it, report the IoU.

    python -m experiments.polygons_ceiling --data synthetic:val --limit 300

prints mean IoU by codec, by budget and by topology of the object, and the paired differences of the first codec from
each other one with 95 % bootstrap intervals over images: no model that learns from such replies can be expected to do
better.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np

from experiments.common import cli
from experiments.common.config import Counts, Names, OutFile, RunError
from experiments.common.run_folder import write_json
from experiments.common.tables import Table, number
from experiments.evaluate.answers.polygon_answers import OracleAgent, answers, polygon_codec
from experiments.evaluate.answers.polygon_metrics import NONE, TOPOLOGIES, Record
from segenv import codec as codecs
from segenv import data as datasets
from segenv import statistics
from segenv.data import Dataset
from segenv.ranges import Count
from segenv.types import SegenvError


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    data: str = "synthetic:val"
    limit: Count | None = None
    """use the first N tasks only"""
    codecs: Names = ("rings", "simpleseg", "simpleseg:contour=edges")
    """the first is compared with each other one"""
    budgets: Counts = (64, 128, 256, 512)
    unit: Literal["tokens", "vertices", "characters"] = "tokens"
    """what a budget counts; tokens are those of the tiny model that writes polygons"""
    skip_bad: bool = False
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    json: OutFile | None = None
    """also write the tables to this file"""


def upper_bounds(args: Args) -> list[dict[str, Any]]:
    """Measure each codec, budget and topology ("all" too), a row each: tasks, `iou`, `boundary_f`, `tokens`, and for
    all codecs but the first the `difference` of the first one's IoU from this one's, with the interval."""
    if not args.codecs or not args.budgets:
        raise RunError("nothing to compare: give --codecs and --budgets")
    cv2.setNumThreads(1)  # the images are too small for more
    chosen = [polygon_codec(codecs.make(spec), "annotator") for spec in args.codecs]
    data = datasets.make(args.data, skip_bad=args.skip_bad, follow_links=args.follow_links)[: args.limit]
    pairs = [(codec, budget) for budget in args.budgets for codec in chosen]
    agents = {(codec.name, budget): OracleAgent(codec, budget, args.unit) for codec, budget in pairs}
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
    return [row for budget in args.budgets for row in _rows(args, budget, found, data)]


def _rows(
    args: Args, budget: int, found: dict[tuple[str, int], list[Record]], data: Dataset
) -> Iterator[dict[str, Any]]:
    for topology in ("all", *TOPOLOGIES):
        parts = {
            spec: [one for one in found[spec, budget] if topology in ("all", one.topology) and one.topology != NONE]
            for spec in args.codecs
        }
        first = [one.iou for one in parts[args.codecs[0]]]
        images = data.images_of(one.task for one in parts[args.codecs[0]])
        for spec, records in parts.items() if first else ():
            ious = [one.iou for one in records]
            other = None if spec == args.codecs[0] else ious
            difference = None if other is None else statistics.bootstrap_difference(first, other, images=images)
            yield {
                **{"budget": budget, "topology": topology, "codec": spec, "tasks": len(records)},
                "iou": float(np.mean(ious)),
                "boundary_f": float(np.mean([one.boundary_f for one in records])),
                "tokens": float(np.mean([one.tokens for one in records])),
                "fits": float(np.mean([one.error is None for one in records])),
                "difference": difference and difference[0],
                "interval": difference and list(difference[1:]),
            }


def text(rows: Sequence[dict[str, Any]], args: Args) -> str:
    """Format the tables for a terminal."""
    measures = ("topology", "codec", "tasks", "IoU", "boundary F", "tokens", "fits")
    header = [args.unit, *measures, f"{args.codecs[0]} less it"]
    cells = []
    for row in rows:
        names = [str(row[key]) for key in ("budget", "topology", "codec", "tasks")]
        values = [number(row["iou"]), number(row["boundary_f"]), number(row["tokens"], 0), f"{row['fits']:.1%}"]
        ends = row["interval"] or (0, 0)
        between = "{:+.4f} [{:+.4f}, {:+.4f}]".format(row["difference"] or 0, *ends) if row["interval"] else ""
        cells.append([*names, *values, between])
    return Table(header, cells).text()


def show(args: Args) -> str:
    """Measure the upper bounds, write the JSON file, and return the tables for a terminal."""
    rows = upper_bounds(args)
    if args.json is not None:
        write_json(args.json, rows)
    return text(rows, args)


main = partial(cli.main, "polygons_ceiling", Args, show, __doc__, errors=(SegenvError, ValueError))

if __name__ == "__main__":
    sys.exit(main())
