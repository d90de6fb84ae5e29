"""Figures in one style, with intervals."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def new_figure(width: float = 6.4, height: float = 3.8) -> Any:
    """An empty figure, of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Any = None, *position: int) -> Any:
    """Axes in the house style, alone in a new figure, or at a `position` of matplotlib's grid in a figure."""
    axes = (figure or new_figure()).add_subplot(*position)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def png(axes: Any, legend: str = "", fontsize: Any = "medium", **settings: Any) -> bytes:
    """The figure of `axes` as a PNG, with their `settings` (labels, limits) and a legend at matplotlib's `loc`."""
    axes.set(**settings)
    if legend:
        place = axes.figure if legend.startswith("outside") else axes
        place.legend(frameon=False, loc=legend, fontsize=fontsize, ncols=2 if legend == "outside lower center" else 1)
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def whiskers(middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths of error bars below and above for matplotlib, which takes none below 0; rounding may make one."""
    return np.maximum(0, np.stack([middle - low, high - middle]))


def plot_intervals(groups: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], xlabel: str) -> bytes:
    """Plot (mean, low, high) of `names` from above, as a PNG, for each group; labels are shown of several groups."""
    axes = new_axes()
    heights = np.arange(len(names))[::-1]
    for k, (label, rows) in enumerate(groups.items()):
        middle, low, high = np.array(rows).T
        y = heights + 0.16 * ((len(groups) - 1) / 2 - k)
        axes.errorbar(middle, y, xerr=whiskers(middle, low, high), fmt="o", capsize=3, color=f"C{k}", label=label)
    axes.axvline(0, color="0.4", linewidth=0.8)
    if len(groups) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(groups))
    return png(axes, yticks=heights, yticklabels=names, xlabel=xlabel)


def plot_lines(lines: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, **settings: Any) -> bytes:
    """Plot lines through points (x, y) by their labels, as a PNG."""
    axes = new_axes()
    for label, points in lines.items():
        axes.plot(*np.array(points).T, marker="o", markersize=3.5, linewidth=1.6, label=label)
    return png(axes, "outside lower center", xlabel=xlabel, ylabel=ylabel, **settings)


def plot_iou_over_actions(axes: Any, measured: Mapping[str, Mapping[str, Any]], legend: str, **settings: Any) -> bytes:
    """Plot the mean IoU after each action with its 95 % band, as a PNG, from metrics of evaluations by their labels."""
    for label, numbers in measured.items():
        steps, means = [int(k) for k in numbers["iou_at"]], list(numbers["iou_at"].values())
        low, high = np.array([numbers["intervals"]["iou_at"][k] for k in numbers["iou_at"]], float).T
        (line,) = axes.plot(steps, means, marker="o", markersize=3.5, linewidth=1.8, label=label)
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return png(axes, legend, xlabel="actions", ylabel="mean IoU", **settings)
