"""Page of a comparison: the table, the paired differences, and the tasks on which the runs disagree most."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from experiments.common.config import RunError, read_yaml
from experiments.common.html import jpeg_uri, save_plots, write_html
from experiments.common.plots import new_axes, plot_intervals, plot_iou_over_actions
from experiments.common.run_folder import write_atomic, write_json
from experiments.common.tables import Table, number
from experiments.compare.compare import letters, shared, table
from experiments.compare.values import Item, Values, images_of, moments
from experiments.evaluate.answers import polygon_answers
from experiments.evaluate.answers.polygon_metrics import rasterize
from experiments.evaluate.finished import Run
from experiments.results import command_line
from search.episode import clicks_of
from segenv import codec, data, queries, render, statistics
from segenv.data import Dataset
from segenv.types import SegenvError, Task

SIDE = 300  # pixels of a picture's longer side
COUNTS = ("tokens", "vertices", "NoC@85", "NoC@90")  # no shares, so they have no place in a plot with those


def write(out: Path, runs: Sequence[Run], values: Sequence[Values], result: dict[str, Any], limit: int) -> None:
    """Write report.html, comparison.json, table.md and plots/ to `out`, with at most `limit` tasks."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", result)
    write_atomic(out / "table.md", table(result).markdown())
    names = letters(result)
    better = [
        [f"{names[0]} against {other}", *(str(one[key]) for key in ("higher", "equal", "lower"))]
        for other, one in zip(names[1:], result["better"], strict=True)
    ]
    named = [
        [letter, run.name, str(len(one.result)), command_line("evaluate", run.about) or "begun from Python"]
        for letter, run, one in zip(names, runs, values, strict=True)
    ]
    write_html(
        out / "report.html",
        "compare.html",
        title=f"{len(runs)} runs on {runs[0].protocol['data']}",
        result=result,
        table=table(result),
        better=Table(("result", "higher", "equal", "lower"), better, "<>"),
        runs=Table(("run", "name", "items", "command"), named, "<<><"),
        plots=save_plots(out, plots(runs, values, result)),
        letters=names,
        cards=gallery(out, runs, values, limit),
        judged=runs[0].task == "filter",
    )


def plots(runs: Sequence[Run], values: Sequence[Values], result: dict[str, Any]) -> dict[str, bytes]:
    """Plot the differences from the first run, and of episodes of clicks the IoU over actions, on the shared items."""
    first, *others = letters(result)
    shares = [name for name, row in result["measures"].items() if name not in COUNTS and row["tasks"]]
    groups = {}
    for k, other in enumerate(others):
        rows = [result["measures"][name]["differences"][k] for name in shares]
        groups[f"{first} − {other}"] = [(row["difference"], *row["interval"]) for row in rows]
    found = {"differences": plot_intervals(groups, shares, "paired difference, 95 % interval")}
    if {run.task for run in runs} == {"segment"}:
        found["iou_over_actions"] = _plot_curves(runs, values, letters(result))
    return found


def _plot_curves(runs: Sequence[Run], values: Sequence[Values], names: Sequence[str]) -> bytes:
    items = shared(values)
    images = images_of(runs, items)
    measured = {}
    for letter, one in zip(names, values, strict=True):
        columns = {name[4:]: column for name, column in one.by_measure.items() if name.startswith("IoU@")}
        points = {k: np.array([column[item] for item in items]) for k, column in columns.items()}
        ends = {k: list(statistics.bootstrap(column, images=images)) for k, column in points.items()}
        means = {k: float(column.mean()) for k, column in points.items()}
        measured[letter] = {"iou_at": means, "intervals": {"iou_at": ends}}
    return plot_iou_over_actions(new_axes(), measured, "outside lower center", ylim=(0, 1), xlim=(0.5, None))


def gallery(out: Path, runs: Sequence[Run], values: Sequence[Values], limit: int) -> list[dict[str, Any]]:
    """The items on which the runs' results lie farthest apart, each with its target and a picture by each run."""
    items = shared(values)
    apart = {item: max(column) - min(column) for item in items if (column := [one.result[item] for one in values])}
    chosen = sorted((item for item in items if apart[item] > 0), key=lambda item: (-apart[item], item))[:limit]
    found = [dict(moments(run, set(chosen))) for run in runs]
    tasks, cards = _dataset(runs[0]), []
    for item in chosen:
        task = _task(tasks, item[0])
        parts = [
            {**_shown(run, moment[item], task), "value": number(one.result[item], 3), "link": _link(out, run, item)}
            for run, moment, one in zip(runs, found, values, strict=True)
        ]
        target = None if task is None else jpeg_uri(_picture(task, None))
        name = item[0] + (f", sample {item[1]}" if item[1] and runs[0].task == "segment" else "")
        words = {"id": name, "instruction": task.instruction if task else "", "apart": number(apart[item], 3)}
        cards.append({**words, "target": target, "parts": parts})
    return cards


def _dataset(run: Run) -> Dataset | None:
    """The data of a run, for pictures; None where it cannot be read, which stderr says."""
    config = read_yaml(run.folder / "config.yaml")
    try:
        return data.make(config["data"], skip_bad=False, follow_links=bool(config.get("follow_links")))
    except (SegenvError, ValueError, OSError, KeyError) as error:
        print(f"no pictures on the page: the data of {run.place} cannot be read: {error}", file=sys.stderr)
        return None


def _task(tasks: Dataset | None, name: str) -> Task | None:
    try:
        return None if tasks is None else tasks.by_id(name)
    except (SegenvError, KeyError, OSError):
        return None


def _picture(task: Task, mask: Any, clicks: Sequence[Any] = ()) -> np.ndarray:
    return render.frame(task.image, mask, clicks, task.target, size=SIDE)[: -render.CAPTION]


def _shown(run: Run, moment: Mapping[str, Any], task: Task | None) -> dict[str, Any]:
    """An item as a run left it: picture, reply and a few words."""
    mask, clicks, words, reply = None, [], "", ""
    if (episode := moment.get("episode")) is not None:
        mask, clicks = episode.mask(len(episode.steps)), clicks_of(episode.steps)
        reply = "\n".join(step.text for step in episode.steps)
        words = f"{len(episode.steps)} actions, best {number(episode.best_iou, 3)}"
    elif (answer := moment.get("answer")) is not None:
        mask, reply = _drawn(run, answer.text, task), answer.text
        words = answer.error or f"{answer.vertices} vertices, {answer.tokens} tokens"
    else:
        mask = moment["judged"].pixels
        words = f"true IoU {number(moment['judged'].iou, 3)}"
    fits = task is not None and (mask is None or mask.shape == task.target.shape)
    picture = jpeg_uri(_picture(task, mask, clicks)) if task is not None and fits else None
    return {"picture": picture, "words": words, "reply": reply}


def _drawn(run: Run, reply: str, task: Task | None) -> Any:
    """The mask of a reply with polygons; None where it is no answer, or its codec needs a model's processor."""
    if task is None:
        return None
    try:
        spoken = polygon_answers.polygon_codec(codec.make(run.protocol["codec"]), str(run.protocol["agent"]))
        return rasterize(queries.read(reply, task, spoken, run.protocol.get("asked") or "mask"), task)
    except (SegenvError, RunError, ValueError, KeyError, TypeError):
        return None


def _link(out: Path, run: Run, item: Item) -> str | None:
    """The address of an episode in the page of its run, from the page in `out`."""
    if run.task != "segment" or not (run.folder / "report.html").exists():
        return None
    page = Path(os.path.relpath(run.folder / "report.html", out)).as_posix()
    return f"{quote(page)}#{urlencode({'task': item[0], **({'sample': item[1]} if item[1] else {})})}"
