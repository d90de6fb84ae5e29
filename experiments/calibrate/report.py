"""Report of a calibration: where the targets were and where the numbers fall, for each size, and every reply."""

import json
from pathlib import Path

import numpy as np

from experiments.calibrate.calibrate import Result, summary
from experiments.calibrate.fit import FittedFrame, describe
from experiments.common.html import save_plots, write_html
from experiments.common.plots import new_axes, new_figure, png
from experiments.common.tables import Table


def write_report(out: str | None, result: Result) -> None:
    """Write plots/ and report.html into the run folder."""
    folder = Path(out or ".")
    plots = {"readings": plot(result)} if result.frames else {}
    frames = [[describe(frame), f"{frame.error:.1%}"] for frame in result.frames]
    best = result.frame or (result.frames[0] if result.frames else None)
    write_html(
        folder / "report.html",
        "calibrate.html",
        title=f"Calibration: {'unsure' if result.frame is None else describe(result.frame)}",
        result=summary(result),
        frames=Table(("the numbers are", "error"), frames),
        replies=replies(result, best),
        plots=save_plots(folder, plots),
    )


def replies(result: Result, frame: FittedFrame | None) -> Table:
    """Every reply with the place that it should state, and the place that it states in the best frame."""
    rows = []
    for record in result.records:
        found = "none" if record["numbers"] is None else ", ".join(f"{number:.6g}" for number in record["numbers"])
        place = "" if frame is None or record["numbers"] is None else _place(frame, record)
        target = ", ".join(f"{side:.0f}" for side in record["target"])
        rows.append([record["task"], target, place, found, json.dumps(record["reply"][:200], ensure_ascii=False)])
    return Table(("picture", "target, px", "read, px", "numbers", "reply"), rows, "<>>><")


def _place(frame: FittedFrame, record: dict) -> str:
    [pixel] = frame.read(*(np.array([record[name]], float) for name in ("numbers", "size", "sent")))
    return ", ".join(f"{side:.0f}" for side in pixel)


def plot(result: Result) -> bytes:
    """Targets, and lines to where the best frame reads the numbers, for each size."""
    frame = result.frame or result.frames[0]
    read = [record for record in result.records if record["numbers"] is not None]
    sizes = sorted({tuple(record["size"]) for record in read})
    figure = new_figure(3.4 * len(sizes), 3.6)
    for k, size in enumerate(sizes):
        axes = new_axes(figure, 1, len(sizes), k + 1)
        some = [record for record in read if tuple(record["size"]) == size]
        columns = (np.array([record[name] for record in some], float) for name in ("numbers", "size", "sent"))
        found, targets = frame.read(*columns), np.array([record["target"] for record in some])
        axes.plot(*np.stack([targets, found]).transpose(2, 0, 1), color="#8a949e", linewidth=1)
        labels = ("target", "read") if k == 0 else (None, None)
        axes.scatter(*targets.T, s=36, facecolors="none", edgecolors="#1f6feb", label=labels[0])
        axes.scatter(*found.T, s=14, color="#c4432b", label=labels[1])
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="equal", title=f"{size[0]} x {size[1]}")
    return png(figure.axes[0], legend="outside lower center")
