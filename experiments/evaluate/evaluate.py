"""Dispatch of an evaluation to the page of its task."""

from dataclasses import replace
from typing import Any

from experiments.common.config import RunError, check
from experiments.evaluate import protocols, shards
from experiments.evaluate.answers import filter, polygon_report, polygons
from experiments.evaluate.config import Args
from experiments.evaluate.episodes import clicks, report


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Evaluate as `args` say, in the folder `out` or `resume`, and return the content of metrics.json."""
    check(args)
    if args.start is not None and args.task != "segment":
        raise RunError(f"--start {args.start} is of episodes of clicks; leave it out, or take --task segment")
    if args.sensitivity and args.task != "segment":
        raise RunError("--sensitivity is of episodes of clicks; leave it out, or take --task segment")
    if args.shard is not None:
        shards.parse(args.shard)
        if args.task != "segment":
            raise RunError(f"--shard {args.shard} is of episodes of clicks; leave it out, or take --task segment")
    args = _spelled_out(args)
    return {"segment": clicks.run, "filter": filter.run, "polygon": polygons.run}[args.task](args, quiet)


def text(task: str, numbers: dict[str, Any]) -> str:
    """The numbers of a finished evaluation for a terminal."""
    found = {"segment": report.text, "filter": filter.text}.get(task, polygon_report.text)(numbers)
    parts = [
        [*part["notes"], *([part["table"].text()] if part["table"] else [])] for part in protocols.section(numbers)
    ]
    return "\n".join([*(line for part in parts for line in part), found])


def _spelled_out(args: Args) -> Args:
    """`args` with the tasks box and point as what they are short for: the task polygon, asked for one of them."""
    if args.task not in ("box", "point"):
        return args
    if args.polygon.asked not in ("mask", args.task):
        raise RunError(f"--task is {args.task} and --polygon.asked {args.polygon.asked}; leave out one of them")
    return replace(args, task="polygon", polygon=replace(args.polygon, asked=args.task))
