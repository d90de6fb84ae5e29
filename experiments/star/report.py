"""What a StaR run found: a table, `metrics.csv`, TensorBoard scalars, plots, and a page that shows episodes before and
after. The numbers are those of `star_measures`."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.common.episode_viewer import describe, payload
from experiments.common.html import data_uri, save_plots, write_html
from experiments.common.run_folder import RunFolder, finite, write_atomic
from experiments.star import plots as star_plots
from experiments.star.metrics import METRIC_DEFINITIONS, acceptance, policies
from search.episode import Episode, clicks_of
from segenv import render
from segenv.seeds import seed_of
from segenv.types import Click, Task, object_of

__all__ = ["METRIC_DEFINITIONS", "acceptance", "policies", "scalars", "table", "text", "write"]

MEASURES = (  # (key in metrics.json, name, digits, what is better)
    ("miou", "mIoU", 4, "higher"),
    ("best_iou", "best IoU", 4, "higher"),
    ("boundary_iou", "boundary IoU", 4, "higher"),
    ("noc/85", "clicks to 0.85 IoU (NoC@85)", 2, "lower"),
    ("nof_never/85", "episodes never at 0.85 IoU", 0, "lower"),
    ("first_click_in_object", "first click in the object", 3, "higher"),
    ("stop_rate", "stopped by itself", 3, ""),
    ("stop_accuracy", "stop accuracy", 3, "higher"),
    ("stop_precision", "stops that were due (precision)", 3, "higher"),
    ("stop_recall", "due stops that were made (recall)", 3, "higher"),
    ("stop_accuracy_at_iou", "stop accuracy by IoU alone", 3, "higher"),
    ("invalid_rate", "invalid replies", 3, "lower"),
)
FRAME = 224  # pixels of the longer side of a step's picture


class Scalar(NamedTuple):
    """A row of metrics.csv. `value` and the ends of its 95 % interval are None where they are not defined."""

    round: int
    measure: str
    value: float | None
    low: float | None
    high: float | None


# --------------------------------------------------------------------------------------------------------------- tables


def scalars(numbers: dict[str, Any]) -> list[Scalar]:
    """Every measure of every policy and round of lessons with its interval: what metrics.csv and TensorBoard hold."""
    rows = []
    for group, prefix in (("policies", "held_out"), ("lessons", "lessons")):
        for entry in numbers[group]:
            values = {key: value for key, value in entry.items() if key not in ("round", "intervals", "seconds")}
            for measure, value, interval in _leaves(values, entry.get("intervals", {}), prefix):
                rows.append(Scalar(entry["round"], measure, value, *interval))
    return rows


def _leaves(values: Mapping, intervals: Mapping, prefix: str) -> Iterator[tuple[str, Any, Sequence[Any]]]:
    """Values of a tree with their intervals from a tree of the same keys, by path."""
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, intervals.get(key, {}), name)
        else:
            yield name, value, intervals.get(key, (None, None))


def table(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each measure: its name, what is better, and for each policy the value, its interval, and what
    changed against S_0 where that is paired; "" for what is not defined."""
    policies = [
        {measure: (value, interval) for measure, value, interval in _leaves(policy, policy["intervals"], "")}
        for policy in numbers["policies"]
    ]
    rows = []
    for key, name, digits, better in MEASURES:
        cells = []
        for n, policy in enumerate(policies):
            value, interval = policy[f"/{key}"]
            gain, ends = policy.get("/gain" if key == "miou" else f"/gains/{key}", (None, (None, None)))
            cell = {
                "value": "" if value is None else f"{value:.{digits}f}",
                "interval": "" if interval[0] is None else "{:.{d}f} – {:.{d}f}".format(*interval, d=digits),
                "gain": "" if not n or gain is None else f"{gain:+.{digits}f}",
                "between": "" if not n or ends[0] is None else "{:+.{d}f} to {:+.{d}f}".format(*ends, d=digits),
                "verdict": _verdict(ends, better),
            }
            cells.append(cell)
        rows.append({"name": name, "better": better, "cells": cells})
    return rows


def _verdict(interval: Sequence[float | None], better: str) -> str:
    """ "best" or "worst" where a difference is surely for the better or for the worse, else ""."""
    low, high = interval
    if low is None or high is None or not better or low <= 0 <= high:
        return ""
    return "best" if (low > 0) == (better == "higher") else "worst"


def text(numbers: dict[str, Any]) -> str:
    """The results for a terminal."""
    names = "".join(f"{'S_' + str(policy['round']):>30}" for policy in numbers["policies"])
    lines = [f"{numbers['policies'][0]['episodes']} held-out episodes, 95 % intervals", f"{'':<34}{names}"]
    for row in table(numbers):
        cells = "".join(f"{_beside(cell['value'], cell['interval']):>30}" for cell in row["cells"])
        lines.append(f"{row['name']:<34}{cells}".rstrip())
        if row["name"] == "mIoU":
            gains = "".join(f"{_beside(cell['gain'], cell['between']):>30}" for cell in row["cells"][1:])
            lines.append(f"{'gain over S_0, paired':<34}{'':>30}{gains}".rstrip())
    return "\n".join(lines + [_of_lesson(lesson) for lesson in numbers["lessons"] if lesson["rows"] or lesson["round"]])


def _beside(value: str, interval: str) -> str:
    return f"{value or '–'}  [{interval}]" if interval else value or "–"


def _of_lesson(lesson: dict[str, Any]) -> str:
    if not lesson.get("actions"):
        return f"D_{lesson['round']}: {lesson['rows']} rows"
    shares = []
    for name in ("accepted", "corrected", "dropped"):
        low, high = lesson["intervals"][name]
        shares.append(f"{100 * lesson[name]:.1f} % [{100 * low:.1f} – {100 * high:.1f}] {name}")
    return f"D_{lesson['round']}: {lesson['rows']} rows of {lesson['actions']} actions: {', '.join(shares)}"


# ---------------------------------------------------------------------------------------------------------------- files


def write(
    folder: RunFolder,
    numbers: dict[str, Any],
    ends: Sequence[Sequence[Episode]],
    load: Callable[[str], Task],
    limit: int,
) -> None:
    """metrics.csv, tensorboard/, plots/ and report.html. `ends` are the held-out episodes of the first and of the last
    policy, in the same order; at most `limit` tasks are shown."""
    numbers = finite(numbers)
    about = folder.read_json("manifest.json")
    logs = {}
    for policy in numbers["policies"]:
        trained = folder.read_json(f"round{policy['round']}/policy/sft.json") or {}
        logs[policy["round"]] = trained.get("log") or []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Scalar._fields)
    writer.writerows(scalars(numbers))
    write_atomic(folder / "metrics.csv", buffer.getvalue())
    write_tensorboard(folder, numbers, logs, about["started"])
    plots = star_plots.draw(numbers, [[episode.final_iou for episode in episodes] for episodes in ends], logs)
    names = ("S_0", f"S_{numbers['policies'][-1]['round']}")
    pairs = {before.task: (before, after) for before, after in zip(*ends, strict=True)}
    groups = choose(ends, limit)
    shown = {name: load(name) for name in groups}
    write_html(
        folder / "report.html",
        "star.html",
        title=f"{numbers['protocol']['variant']} of {numbers['protocol']['agent']} on {numbers['protocol']['data']}",
        numbers=numbers,
        rows=table(numbers),
        plots=save_plots(folder.path, plots),
        manifest=about,
        names=names,
        strips=[strip(shown[name], pairs[name], names, groups[name]) for name in groups],
        episodes=[payload(shown[name], pairs[name][k], names[k]) for k in (0, 1) for name in groups],
    )


def write_tensorboard(
    folder: RunFolder, numbers: dict[str, Any], logs: Mapping[int, Sequence[Sequence[float]]], started: str
) -> None:
    """The same numbers for TensorBoard: measures by round with their intervals, and for each policy the IoU by action
    and `logs` of its training, [step, loss] pairs.

    Each file is written whole under a name of its own, so that a run that goes on has every value once, and the same
    bytes. Times are the start of the run.
    """
    try:
        from torch.utils.tensorboard import summary as proto
    except ImportError:
        print("no tensorboard/ in the run: the package is not installed; pip install tensorboard", file=sys.stderr)
        return
    by_round: list[tuple[int, Any]] = []
    margins = {}
    for row in scalars(numbers):
        for tag, value in (
            (row.measure, row.value),
            (f"low/{row.measure}", row.low),
            (f"high/{row.measure}", row.high),
        ):
            if value is not None:
                by_round.append((row.round, proto.scalar(tag, value)))
    for key, name, *_ in (*MEASURES, ("gain", "gain over S_0, paired")):
        tag = f"held_out/{key}"
        margins[name] = ("Margin", [tag, f"low/{tag}", f"high/{tag}"])
    by_round.append((0, proto.custom_scalars({"held-out tasks by round, 95 % intervals": margins})))
    files = {"rounds": by_round}
    for policy in numbers["policies"]:
        steps = [(int(k), proto.scalar("iou_by_action", value)) for k, value in policy["iou_at"].items()]
        loss = [(int(step), proto.scalar("training_loss", value)) for step, value in logs[policy["round"]]]
        files[f"S_{policy['round']}"] = steps + loss
    at = datetime.strptime(started, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    for name, summaries in files.items():
        write_atomic(folder / "tensorboard" / name / "events.out.tfevents.0", _events(summaries, at))


def _events(summaries: Iterable[tuple[int, Any]], at: float) -> bytes:
    """A TensorBoard file of (step, summary) pairs."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=at, file_version="brain.Event:2").SerializeToString(deterministic=True))
    for step, content in summaries:
        event = Event(wall_time=at, step=step, summary=content)
        writer.write(event.SerializeToString(deterministic=True))
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------- episodes


def choose(ends: Sequence[Sequence[Episode]], limit: int) -> dict[str, str]:
    """At most `limit` tasks to show, by the gain from the first policy to the last: up to a third that gained most, up
    to a third that lost most, and the rest drawn; id to the group's name."""
    gains = {first.task: last.final_iou - first.final_iou for first, last in zip(*ends, strict=True)}
    ranked = sorted(gains, key=lambda name: (-gains[name], name))
    groups = {name: "gained most" for name in ranked[: limit // 3] if gains[name] > 0}
    groups |= {name: "lost most" for name in ranked[::-1][: limit // 3] if gains[name] < 0}
    drawn = [name for name in sorted(gains, key=lambda name: seed_of("report", name)) if name not in groups]
    return groups | dict.fromkeys(drawn[: limit - len(groups)], "drawn at random")


def strip(task: Task, pair: Sequence[Episode], names: Sequence[str], group: str) -> dict[str, Any]:
    """What the page shows of a task: the target, and for each of two episodes each step's picture, reply and IoU."""
    first, last = pair
    start = first.mask(0)
    return {
        "id": task.id,
        "group": group,
        "instruction": task.instruction,
        "gain": last.final_iou - first.final_iou,
        "start_iou": first.start_iou if start.any() else None,
        "target": _picture(task, object_of(task.target), start),
        "plays": [
            {
                "name": name,
                "final": episode.final_iou,
                "stopped": episode.stopped,
                "steps": [_moment(task, episode, k) for k in range(1, len(episode.steps) + 1)],
            }
            for name, episode in zip(names, pair, strict=True)
        ],
    }


def _moment(task: Task, episode: Episode, k: int) -> dict[str, Any]:
    """Step `k` (from 1) of an episode."""
    step = episode.steps[k - 1]
    before = episode.ious[k - 2] if k > 1 else episode.start_iou
    return {
        "picture": _picture(task, episode.mask(k), episode.mask(k), clicks_of(episode.steps[:k])),
        "text": step.text,
        "action": describe(step.action),
        "kind": step.action["type"],
        "iou": step.iou,
        "change": step.iou - before,
    }


def _picture(task: Task, lit: np.ndarray, mask: np.ndarray, clicks: Sequence[Click] = ()) -> str:
    """Mask and clicks over the image, with the target's outline, as a data URL. What is not `lit` is dimmed, so that a
    mask is seen on an object of its colour too."""
    image = np.where(lit[..., None], task.image, task.image // 5 * 2)
    picture = render.frame(image, mask, clicks, task.target, size=FRAME)[: -render.CAPTION]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=80)
    return data_uri(buffer.getvalue(), "image/webp")
