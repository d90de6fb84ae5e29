"""The report about replies that draw objects: tables, plots, and pictures with the outlines of reply and target."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from experiments.common import html, tables
from experiments.common import plots as common_plots
from experiments.common.run_folder import RunFolder, write_atomic
from experiments.evaluate.polygon_metrics import SIZES, Record, drawn
from segenv import queries, render
from segenv.codec.polygons import PolygonCodec
from segenv.seeds import seed_of
from segenv.types import Click, Polygons, Task

SIDE = 256  # pixels of a picture's longer side
ROWS = (  # key in metrics.json, name, what is better, digits
    ("giou", "gIoU", "higher", 4),
    ("ciou", "cIoU", "higher", 4),
    ("precision_at_50", "IoU ≥ 0.5", "higher", 4),
    ("acc_at_50", "Acc@0.5 (box)", "higher", 4),
    ("boundary_f", "Boundary F", "higher", 4),
    ("valid", "Valid", "higher", 4),
    ("truncated", "Truncated", "lower", 4),
    ("missed", "Missed", "lower", 4),
    ("tokens", "Tokens", "", 1),
    ("vertices", "Vertices", "", 1),
)
COLUMNS = (
    *((key, name, digits) for key, name, _, digits in ROWS if key in ("giou", "ciou", "boundary_f", "valid")),
    ("tokens", "Tokens", 1),
)


def table(numbers: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a summary: name, value, 95 % interval, and the drawn replies' value, as text."""
    rows = []
    for key, name, better, digits in ROWS:
        drawn = numbers["sampled"] and numbers["sampled"][key]
        rows.append(_row(name, numbers[key], numbers["intervals"][key], drawn, better, digits))
    if (found := numbers["no_target"]) is not None:
        drawn = numbers["sampled"] and numbers["sampled"]["no_target"]["accuracy"]
        interval = found["intervals"]["accuracy"]
        rows.append(_row(f"No target ({found['tasks']})", found["accuracy"], interval, drawn, "higher", 4))
    return rows


def _row(
    name: str, value: float | None, interval: Sequence[float | None], drawn: float | None, better: str, digits: int
) -> dict[str, str]:
    def show(number: float | None) -> str:
        return "–" if number is None else f"{number:.{digits}f}"

    between = "" if None in interval else " – ".join(map(show, interval))
    return {"name": name, "value": show(value), "interval": between, "sampled": show(drawn), "better": better}


def groups(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the tables by size and by topology: name, tasks, and `COLUMNS`, gIoU with its interval."""
    rows = []
    for name, found in {**numbers["by_size"], **numbers["by_topology"]}.items():
        cells = [f"{found[key]:.{digits}f}" for key, _, digits in COLUMNS]
        low, high = found["intervals"]["giou"]
        rows.append([name, str(found["tasks"]), f"{cells[0]} [{low:.3f}, {high:.3f}]", *cells[1:]])
    return rows


def text(numbers: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    sampled, skipped = numbers["sampled"], numbers["skipped"]
    head = f"{numbers['tasks']} tasks" + (f", {len(skipped)} bad items skipped" if skipped else "")
    if sampled:
        drawn = sampled["replies"] // sampled["tasks"]
        head += f"; the last column: {drawn} drawn replies each at temperature {numbers['protocol']['temperature']:g}"
    lines = [head]
    for row in table(numbers):
        line = f"{row['name']:<16} {row['value']:>9}   {row['interval']:<18}"
        lines.append((line + (f"{row['sampled']:>9}" if sampled else "")).rstrip())
    lines.append(f"token quantiles: {_quantiles(numbers)}")
    header = ["", "tasks", "gIoU", *(name for _, name, _ in COLUMNS[1:])]
    return "\n".join([*lines, tables.columns([header, *groups(numbers)])])


def _quantiles(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{share} % {value:g}" for share, value in numbers["token_quantiles"].items())


# ---------------------------------------------------------------------------------------------------------------- plots


def plot_ious(records: Sequence[Record]) -> bytes:
    """How many replies have an IoU in each twentieth, as a PNG; those that are no answer stand apart in colour."""
    figure, axes = common_plots.figure_and_axes()
    valid = [one.iou for one in records if one.error is None]
    other = [one.iou for one in records if one.error is not None]
    labels = [f"valid ({len(valid)})", f"no answer ({len(other)})"]
    axes.hist([valid, other], np.linspace(0, 1, 21), stacked=True, label=labels, color=["C0", "C3"])
    axes.set(xlabel="IoU", ylabel="replies", xlim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    return common_plots.png(figure)


def plot_sizes(records: Sequence[Record]) -> bytes:
    """IoU over the object's share of the image, as a PNG: dots, and the mean in each of eight equally filled bins."""
    figure, axes = common_plots.figure_and_axes()
    shown = [one for one in records if one.has_object]
    shares, ious = np.array([one.share for one in shown]), np.array([one.iou for one in shown])
    for size in SIZES:
        chosen = np.array([one.size == size for one in shown])
        if chosen.any():
            label = f"{size} ({chosen.sum()}): {ious[chosen].mean():.3f}"
            axes.scatter(shares[chosen], ious[chosen], s=9, alpha=0.5, linewidth=0, label=label)
    _trend(axes, shares, ious)
    axes.set(xlabel="object's share of the image", ylabel="IoU", xscale="log", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower right")
    return common_plots.png(figure)


def plot_tokens(records: Sequence[Record]) -> bytes:
    """IoU over the reply's length in tokens, as a PNG, like `plot_sizes`."""
    figure, axes = common_plots.figure_and_axes()
    for cut, color, label in ((False, "C0", "whole"), (True, "C3", "truncated or no answer")):
        some = [one for one in records if (one.truncated or one.error is not None) is cut]
        if some:
            x, y = np.array([(one.tokens, one.iou) for one in some]).T
            axes.scatter(x, y, s=9, alpha=0.5, linewidth=0, color=color, label=f"{label} ({len(some)})")
    _trend(axes, *np.array([(one.tokens, one.iou) for one in records], float).T)
    axes.set(xlabel="tokens of the reply", ylabel="IoU", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower right")
    return common_plots.png(figure)


def _trend(axes: Any, x: np.ndarray, y: np.ndarray, bins: int = 8) -> None:
    """A line through the means of equally filled bins."""
    parts = [part for part in np.array_split(np.argsort(x, kind="stable"), bins) if len(part)]
    if len(parts) == bins:
        axes.plot(
            [x[part].mean() for part in parts], [y[part].mean() for part in parts], color="0.25", marker="o", ms=3.5
        )


# ------------------------------------------------------------------------------------------------------------- pictures


def choose(records: Sequence[Record], limit: int) -> dict[int, str]:
    """At most `limit` records to show: a third the worst, a third the best, the rest drawn; place to the group's
    name."""
    ranked = sorted(range(len(records)), key=lambda k: (records[k].iou, records[k].task))
    third = limit // 3
    chosen = dict.fromkeys(ranked[:third], "worst")
    chosen |= dict.fromkeys(reversed(ranked[max(third, len(ranked) - third) :]), "best")
    for k in sorted(ranked, key=lambda k: seed_of("report", records[k].task)):
        if len(chosen) < limit:
            chosen.setdefault(k, "random")
    return chosen


def picture(one: Record, task: Task, codec: PolygonCodec, asked: str) -> np.ndarray:
    """The image with what the reply covers in blue, its outline, and the target's in yellow; uint8 [h, w, 3]."""
    answer = queries.read(one.text, task, codec, asked)
    clicks = (answer,) if isinstance(answer, Click) else ()
    words = f"IoU {one.iou:.2f}, {one.tokens} tokens" + (", truncated" if one.truncated else "")
    shown = render.frame(
        task.image, drawn(answer, task), clicks, task.target, words if not one.error else "invalid", SIDE
    )
    scale = SIDE / max(task.height, task.width)
    for ring in answer.rings if isinstance(answer, Polygons) else ():
        vertices = np.round((ring * scale - 0.5) * 16).astype(np.int32)
        cv2.polylines(shown, [vertices], True, render.MASK, 1, cv2.LINE_AA, shift=4)
        for vertex in vertices:
            cv2.circle(shown, vertex.tolist(), 24, render.MASK, -1, cv2.LINE_AA, shift=4)
    return shown


def examples(
    records: Sequence[Record], task: Callable[[str], Task], codec: PolygonCodec, asked: str, limit: int
) -> dict[str, list[dict[str, str]]]:
    """Pictures of some replies, by group."""
    shown: dict[str, list[dict[str, str]]] = {}
    for k, group in choose(records, limit).items():
        one, own = records[k], task(records[k].task)
        buffer = io.BytesIO()
        Image.fromarray(picture(one, own, codec, asked)).save(buffer, "JPEG", quality=85)
        shown.setdefault(group, []).append(
            {
                "picture": html.data_uri(buffer.getvalue(), "image/jpeg"),
                "title": own.instruction or own.id,
                "reply": one.text,
                "error": one.error or "",
            }
        )
    return shown


# ----------------------------------------------------------------------------------------------------------------- page


def write(
    folder: RunFolder,
    numbers: Mapping[str, Any],
    about: Mapping[str, Any],
    records: Sequence[Record],
    codec: PolygonCodec,
    task: Callable[[str], Task],
    limit: int,
) -> None:
    """The plots and report.html of an evaluation of greedy `records`, at most `limit` of which are shown. `task` gives
    the task of an id."""
    plots = {"iou": plot_ious(records), "iou_by_size": plot_sizes(records), "iou_by_tokens": plot_tokens(records)}
    for name, content in plots.items():
        write_atomic(folder / "plots" / f"{name}.png", content)
    protocol = numbers["protocol"]
    html.write_html(
        folder / "report.html",
        "polygons.html",
        title=f"Outlines by {protocol['agent']} in {protocol['codec']} on {protocol['data']}",
        numbers=numbers,
        rows=table(numbers),
        columns=["tasks", *(name for _, name, _ in COLUMNS)],
        groups=groups(numbers),
        quantiles=_quantiles(numbers),
        plots={name: html.data_uri(content, "image/png") for name, content in plots.items()},
        examples=examples(records, task, codec, protocol["asked"], limit),
        manifest=about,
    )
