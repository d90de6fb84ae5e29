"""Report of an evaluation by polygons: tables, plots, and a page that shows replies."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from experiments.common import html, served
from experiments.common.plots import new_axes, png
from experiments.common.run_folder import RunFolder
from experiments.common.tables import Table, interval, number
from experiments.evaluate import protocols
from experiments.evaluate.answers import reply_diagnosis
from experiments.evaluate.answers.polygon_metrics import SIZES, Record, rasterize
from experiments.evaluate.episodes import diagnosis
from segenv import queries, render
from segenv.codec.polygons import PolygonCodec
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


def table(numbers: Mapping[str, Any]) -> Table:
    """Measures with their values, 95 % intervals, values of sampled replies where there are any, and directions."""
    sampled, found = numbers["sampled"], numbers["no_target"]
    lines = [
        (name, numbers[key], numbers["intervals"][key], sampled and sampled[key], better, digits)
        for key, name, better, digits in ROWS
    ]
    if "inside" in numbers:
        other = sampled and sampled["giou"]
        lines.insert(0, ("Inside the mask", numbers["inside"], numbers["intervals"]["inside"], other, "higher", 4))
    if found is not None:
        other = sampled and sampled["no_target"]["accuracy"]
        name = f"N-acc ({found['tasks']} tasks without an object)"
        lines.append((name, found["accuracy"], found["intervals"]["accuracy"], other, "higher", 4))
        lines.append(
            ("T-acc", numbers["t_acc"], numbers["intervals"]["t_acc"], sampled and sampled["t_acc"], "higher", 4)
        )
    rows = [
        [name, number(value, digits), interval(ends, digits), *([number(other, digits)] if sampled else []), better]
        for name, value, ends, other, better, digits in lines
    ]
    return Table(("measure", "value", "95 % interval", *(["sampled"] if sampled else []), "better"), rows)


def groups(numbers: Mapping[str, Any]) -> Table:
    """`COLUMNS` by size and by topology of the object, gIoU with its interval."""
    rows = []
    for name, found in {**numbers["by_size"], **numbers["by_topology"]}.items():
        cells = [number(found[key], digits) for key, _, digits in COLUMNS]
        low, high = found["intervals"]["giou"]
        rows.append([name, str(found["tasks"]), f"{cells[0]} [{low:.3f}, {high:.3f}]", *cells[1:]])
    return Table(["", "tasks", *(name for _, name, _ in COLUMNS)], rows)


def text(numbers: Mapping[str, Any]) -> str:
    """Format the numbers for a terminal."""
    sampled, skipped = numbers["sampled"], numbers["skipped"]
    head = f"{numbers['tasks']} tasks" + (f", {len(skipped)} bad items skipped" if skipped else "")
    if sampled:
        replies = sampled["replies"] // sampled["tasks"]
        head += f"; {replies} sampled replies each at temperature {numbers['protocol']['temperature']:g}"
    quantiles = f"token quantiles: {_quantiles(numbers)}"
    lines = [diagnosis.text(numbers)] if numbers.get("decomposed") else []
    return "\n".join([head, table(numbers).text(), quantiles, groups(numbers).text(), *lines, *served.told(numbers)])


def _quantiles(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{share} % {value:g}" for share, value in numbers["token_quantiles"].items())


def plot_ious(records: Sequence[Record]) -> bytes:
    """Plot a histogram of IoU in twentieths, as a PNG; invalid replies in another colour."""
    axes = new_axes()
    valid = [one.iou for one in records if one.error is None]
    other = [one.iou for one in records if one.error is not None]
    labels = [f"valid ({len(valid)})", f"no answer ({len(other)})"]
    axes.hist([valid, other], np.linspace(0, 1, 21), stacked=True, label=labels, color=["C0", "C3"])
    return png(axes, "outside lower center", xlabel="IoU", ylabel="replies", xlim=(0, 1))


def plot_sizes(records: Sequence[Record]) -> bytes:
    """Plot IoU over the object's share of the image, as a PNG: dots, and means of eight equally filled bins."""
    groups = {}
    for size in SIZES:
        if some := [one for one in records if one.size == size]:
            label = f"{size} ({len(some)}): {np.mean([one.iou for one in some]):.3f}"
            groups[label] = [(one.share, one.iou) for one in some]
    return _scatter(groups, ("C0", "C1", "C2"), xlabel="object's share of the image", xscale="log")


def plot_tokens(records: Sequence[Record]) -> bytes:
    """Plot IoU over the reply's length in tokens, as a PNG, like `plot_sizes`."""
    groups = {}
    for cut, label in ((False, "whole"), (True, "truncated or no answer")):
        some = [one for one in records if (one.truncated or one.error is not None) is cut]
        groups[f"{label} ({len(some)})"] = [(one.tokens, one.iou) for one in some]
    return _scatter(groups, ("C0", "C3"), xlabel="tokens of the reply")


def _scatter(groups: Mapping[str, Sequence[tuple[float, float]]], colors: Sequence[str], **options: Any) -> bytes:
    """Plot IoU over a measure, a colour for each group, and a line through the means of eight equally filled bins."""
    axes = new_axes()
    for color, (label, points) in zip(colors, groups.items(), strict=False):
        if points:
            style = {"s": float(np.clip(4000 / len(points), 8, 40)), "alpha": 0.6, "linewidth": 0, "color": color}
            axes.scatter(*np.array(points).T, label=label, clip_on=False, **style)
    x, y = np.array([point for points in groups.values() for point in points], float).reshape(-1, 2).T
    if len(x) >= 8:
        bins = np.digitize(x, np.unique(np.quantile(x, np.arange(1, 8) / 8)))  # equal ones are in one bin
        means = np.array([(x[bins == k].mean(), y[bins == k].mean()) for k in np.unique(bins)])
        axes.plot(*means.T, color="0.25", marker="o", ms=3.5)
    return png(axes, "outside lower center", ylabel="IoU", ylim=(0, 1.02), **options)


def picture(one: Record, task: Task, codec: PolygonCodec, output_type: str) -> np.ndarray:
    """The image with the reply's mask and polygons in blue, and the target's boundary in yellow; uint8 [h, w, 3]."""
    answer = queries.read(one.text, task, codec, output_type)
    clicks = (answer,) if isinstance(answer, Click) else ()
    words = f"IoU {one.iou:.2f}, {one.tokens} tokens" + (", truncated" if one.truncated else "")
    mask, caption = rasterize(answer, task), "invalid" if one.error else words
    shown = render.frame(task.image, mask, clicks, task.target, caption, SIDE)
    scale = SIDE / max(task.height, task.width)
    for ring in answer.rings if isinstance(answer, Polygons) else ():
        vertices = np.round((ring * scale - 0.5) * 16).astype(np.int32)
        cv2.polylines(shown, [vertices], True, render.MASK, 1, cv2.LINE_AA, shift=4)
        for vertex in vertices:
            cv2.circle(shown, vertex.tolist(), 24, render.MASK, -1, cv2.LINE_AA, shift=4)
    return shown


def write(
    folder: RunFolder,
    numbers: Mapping[str, Any],
    about: Mapping[str, Any],
    records: Sequence[Record],
    episodes: Mapping[str, Any],
) -> None:
    """Write plots and report.html of greedy `records`, with `episodes` of `reply_page.write`."""
    plots = {"iou": plot_ious(records), "iou_by_size": plot_sizes(records), "iou_by_tokens": plot_tokens(records)}
    protocol = numbers["protocol"]
    title = f"Outlines by {protocol['agent']} in {protocol['codec']} on {protocol['data']}"
    tables = {"table": table(numbers), "groups": groups(numbers), "quantiles": _quantiles(numbers)}
    context = {"title": title, "numbers": numbers, "manifest": about, "episodes": episodes}
    html.write_report(
        folder,
        "polygons.html",
        plots,
        **tables,
        **context,
        sections=[*protocols.section(numbers), *reply_diagnosis.sections(numbers)],
    )
