"""Rank finished evaluations under one protocol: a page, and a table in Markdown.

    python -m experiments.leaderboard runs/annotator runs/random runs/mllm --out runs/leaderboard

Runs are of experiments.evaluate. Agents, tools, codecs, prompts and searches may differ; runs that differ in anything
else that changes a number are refused, and the difference is named. A named protocol that allows masks by clicks and by
one reply has both in one table. Each row has its means with 95 % intervals over images, its costs and its command. An
agent that reads the target is marked, and so are items that were skipped. To say that one run is better than another,
compare them paired, with experiments.compare.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import tyro

from agents import replies
from experiments.common import cli
from experiments.common.config import OutPath, RunError
from experiments.common.html import save_plots, write_html
from experiments.common.plots import new_axes, plot_intervals, plot_iou_over_actions
from experiments.common.run_folder import as_expected, hidden, write_atomic, write_json
from experiments.common.tables import Table
from experiments.evaluate.finished import Run, check_alike, read
from experiments.results import command_line
from search.episode import PARTS

COLUMNS: dict[str, dict[str, str]] = {  # of a task: measures with their places in metrics.json, the first ranks
    "segment": {
        **{"mIoU": "miou", "IoU@1": "iou_at.1", "IoU@3": "iou_at.3", "NoC@90": "noc.90", "best IoU": "best_iou"},
        **{"exact": "exact_rate", "valid": "parse_rate", "stopped": "stop_rate"},
    },
    "polygon": {"gIoU": "giou", "cIoU": "ciou", "boundary F": "boundary_f", "valid": "valid", "tokens": "tokens"},
    "filter": {
        **{f"{name}": f"readings.greedy.{name}" for name in ("mae", "bias", "pearson", "spearman", "ece")},
        **{name: f"acceptance.greedy.{name}" for name in ("precision", "recall")},
    },
}
LESS = ("NoC", "NoF", "never", "mae", "ece", "regret")  # beginnings of measures of which less is better
COSTS = {"seconds": "s an episode", "requests": "requests", "tokens": "tokens of replies"}


@dataclass(frozen=True)
class Args:
    """Finished runs, and where the leaderboard goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders of experiments.evaluate"""
    out: OutPath
    """folder of report.html, leaderboard.md and leaderboard.json"""


def rank(paths: Sequence[Path]) -> tuple[list[Run], list[dict[str, Any]]]:
    """Read runs, and their rows, the best first. Raises RunError where their protocols differ."""
    if not paths:
        raise RunError("got no run; expected one or more folders of experiments.evaluate")
    runs = read(paths)
    check_alike(runs, ("prompt",), "a leaderboard is of one protocol: leave the other run out, or play it again")
    with as_expected(f"metrics.json of {' or '.join(map(str, paths))}", "metrics of experiments.evaluate"):
        pairs = sorted(((run, row_of(run)) for run in runs), key=lambda pair: _rank_key(pair[1]))
    return [run for run, _ in pairs], [row for _, row in pairs]


def row_of(run: Run) -> dict[str, Any]:
    """A run's measures with `value` and `interval`, its costs and how it was made."""
    numbers, protocol = run.numbers, run.protocol
    measures = dict(numbers.get("headline") or {})  # of a named protocol
    for name, place in COLUMNS[run.task].items():
        head, _, last = place.rpartition(".")
        inner = f"{head}.intervals.{last}" if run.task == "filter" else f"intervals.{place}"
        measures.setdefault(name, {"value": _at(numbers, place), "interval": _at(numbers, inner)})
    return {
        "name": run.name,
        "privileged": bool(protocol.get("privileged")),
        "items": numbers.get("episodes") or numbers.get("tasks"),
        "skipped": len(numbers.get("skipped") or ()),
        "measures": measures,
        "costs": costs(run),
        "command": command_line("evaluate", run.about) or "begun from Python",
        "versions": {name: run.about["versions"][name] for name in ("segenv",) if name in run.about["versions"]},
    }


def costs(run: Run) -> dict[str, float | None]:
    """Costs of a run: seconds of an episode, and requests to the model with the tokens of its replies, where known."""
    numbers, episodes = run.numbers, run.numbers.get("episodes")
    seconds = numbers.get("seconds")
    spent = numbers.get("spent")
    if spent is None and (run.folder / "replies.jsonl").exists():
        spent = replies.ReplyLog(run.folder.records("replies.jsonl", replies.check)).usage
    known = spent or {}
    return {
        "seconds": sum(seconds[part] or 0.0 for part in PARTS) / episodes if seconds and episodes else None,
        "requests": known.get("requests"),
        "tokens": known.get("tokens") or None,
    }


def _at(tree: Any, place: str) -> Any:
    for key in place.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _rank_key(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    name, first = next(iter(row["measures"].items()))
    value = first["value"] or 0.0
    return (first["value"] is None, value if name.startswith(LESS) else -value, row["name"])


def cell(one: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A value with its interval in brackets."""
    if one is None or one["value"] is None:
        return "–"
    text, ends = f"{one['value']:.{digits}f}", one.get("interval")
    if not ends or None in ends:
        return text
    return f"{text} [{ends[0]:.{digits}f},\N{NO-BREAK SPACE}{ends[1]:.{digits}f}]"  # wraps before the bracket


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run: rank, name, measures and costs, without columns that no run has."""
    names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    names = [name for name in names if any((row["measures"].get(name) or {}).get("value") is not None for row in rows)]
    paid = [name for name in COSTS if any(row["costs"][name] is not None for row in rows)]
    lines = []
    for place, row in enumerate(rows, 1):
        spent = [row["costs"][name] for name in paid]
        name = row["name"] + (" (reads the target)" if row["privileged"] else "")
        measured = [cell(row["measures"].get(one), 2 if one.startswith(("NoC", "tokens")) else 3) for one in names]
        costly = ["–" if one is None else f"{one:.2f}" if isinstance(one, float) else f"{one:,}" for one in spent]
        items = str(row["items"]) + (f" ({row['skipped']} skipped)" if row["skipped"] else "")
        lines.append([str(place), name, items, *measured, *costly])
    return Table(["", "run", "items", *names, *(COSTS[name] for name in paid)], lines, "><>")


def markdown(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown: the table, and the command of each run."""
    made = "".join(f"{place}. `{row['command']}`\n" for place, row in enumerate(rows, 1))
    note = "Means with 95 % bootstrap intervals over images. Written by `python -m experiments.leaderboard`."
    return f"# {title}\n\n{table(rows).markdown()}\n{note}\n\n## Commands\n\n{made}"


def plots(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Plot the measure that ranks, and of episodes of clicks the IoU over actions."""
    measure = next(iter(rows[0]["measures"]))
    places = [str(place) for place in range(1, len(rows) + 1)]
    points = [row["measures"].get(measure) or {"value": None} for row in rows]
    found = {}
    if all(one["value"] is not None and one.get("interval") and None not in one["interval"] for one in points):
        bars = {"": [(one["value"], *one["interval"]) for one in points]}
        found["rank"] = plot_intervals(bars, places, f"{measure}, 95 % interval")
    measured = {place: run.numbers for place, run in zip(places, runs, strict=True) if run.task == "segment"}
    if measured:
        limits = {"ylim": (0, 1), "xlim": (0.5, None)}
        found["iou_over_actions"] = plot_iou_over_actions(new_axes(), measured, "outside right center", **limits)
    return found


def run(args: Args) -> str:
    """Write the leaderboard, and return its table for a terminal."""
    runs, rows = rank(args.runs)
    protocol = runs[0].protocol
    named = f"{protocol['name']}: " if protocol.get("name") else ""
    tasks = " and ".join(dict.fromkeys(run.task for run in runs))
    title = hidden(f"{named}{tasks} on {protocol['data']}")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "leaderboard.json", {"title": title, "rows": rows})
    write_atomic(args.out / "leaderboard.md", markdown(title, rows))
    links = []
    for one in runs:
        page = Path(os.path.relpath(one.folder / "report.html", args.out)).as_posix()
        links.append(quote(page) if (one.folder / "report.html").exists() else None)
    choices = {
        name: hidden(value) if isinstance(value, str) else value
        for name, value in protocol.items()
        if name not in PARTS and not isinstance(value, dict) and all(run.protocol.get(name) == value for run in runs)
    }
    write_html(
        args.out / "report.html",
        "leaderboard.html",
        title=title,
        table=table(rows),
        rows=rows,
        links=links,
        plots=save_plots(args.out, plots(runs, rows)),
        limit=protocol.get("limit"),
        start=protocol.get("start"),
        max_steps=protocol.get("max_steps"),
        choices=choices,
    )
    return f"{table(rows).text()}\nreport: {args.out}/report.html"


main = partial(cli.main, "leaderboard", Args, run, __doc__)

if __name__ == "__main__":
    sys.exit(main())
