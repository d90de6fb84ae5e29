"""Figures in one style, with intervals."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def figure_and_axes() -> tuple[Any, Any]:
    """A figure in the house style, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def whiskers(middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths of error bars below and above for matplotlib, which takes none below 0; rounding may make one."""
    return np.maximum(0, np.stack([middle - low, high - middle]))


def plot_intervals(groups: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], xlabel: str) -> bytes:
    """Plot means with their intervals, of `names` from above, as a PNG; a group has (mean, low, high) of each, and its
    label where there are several."""
    figure, axes = figure_and_axes()
    heights = np.arange(len(names))[::-1]
    for k, (label, rows) in enumerate(groups.items()):
        middle, low, high = np.array(rows).T
        y = heights + 0.16 * ((len(groups) - 1) / 2 - k)
        axes.errorbar(middle, y, xerr=whiskers(middle, low, high), fmt="o", capsize=3, color=f"C{k}", label=label)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set(yticks=heights, yticklabels=names, xlabel=xlabel)
    if len(groups) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(groups))
    return png(figure)


def plot_lines(lines: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, **settings: Any) -> bytes:
    """Plot lines through points (x, y) by their labels, as a PNG."""
    figure, axes = figure_and_axes()
    for label, points in lines.items():
        axes.plot(*np.array(points).T, marker="o", markersize=3.5, linewidth=1.6, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, **settings)
    axes.legend(frameon=False)
    return png(figure)


def png(figure: Any) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()
