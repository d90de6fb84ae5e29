"""Report of predicted IoUs: tables, reliability plots, and a page with masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.common.html import jpeg_uri, save_plots, write_html
from experiments.common.plots import new_axes, png
from experiments.common.run_folder import RunFolder
from experiments.common.tables import Table, number
from search.labelled_masks import SOURCES, LabelledMask
from segenv import render
from segenv.seeds import seed_of
from segenv.types import Task

SIDE = 208  # pixels of a picture's longer side
COLUMNS = (  # key, name, better
    ("mae", "MAE", "lower"),
    ("mse", "MSE", "lower"),
    ("bias", "bias", ""),
    ("pearson", "Pearson", "higher"),
    ("spearman", "Spearman", "higher"),
    ("ece", "ECE", "lower"),
    ("ranking", "ranking", "higher"),
)
ARROWS = {"lower": "↓", "higher": "↑", "": ""}
PARTS = ("all", "balanced", *SOURCES)


@dataclass(frozen=True)
class MaskSet:
    """Masks of a dataset for a page, with their `predicted` IoUs, [N] by reading, and their tasks."""

    data: str
    masks: Sequence[LabelledMask]
    predicted: Mapping[str, Any]
    task: Callable[[str], Task]


def table(readings: Mapping[str, Mapping[str, Any]], name: str = "") -> Table:
    """Calibration of each reading of the part `name`, with 95 % intervals of MAE and Pearson."""
    rows = []
    for reading, found in readings.items():
        cells = [reading, str(found["masks"])]
        for key, *_ in COLUMNS:
            ends = found["intervals"].get(key) if key in ("mae", "pearson") else None
            known = ends is not None and None not in ends
            cells.append(number(found[key]) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends and known else ""))
        rows.append(cells)
    return Table([name, "masks", *(f"{column} {ARROWS[better]}".rstrip() for _, column, better in COLUMNS)], rows)


def text(numbers: Mapping[str, Any]) -> str:
    """Format the numbers of a PRM's training for a terminal."""
    training, lines = numbers["training"], []
    if training:
        lines = [f"{training['rows']} masks learned from, {training['steps']} steps, {training['seconds']:.0f} s"]
    for data, found in numbers["data"].items():
        for part in ("all", "balanced"):
            if part in found["readings"]:
                lines += [f"{data}, {part} masks", table(found["readings"][part]).text("  ")]
        for model, acts in found["replies"].items():
            if acts["replies"]:
                lines.append(f"  {model}: {_acts(acts)}")
    return "\n".join(lines)


def _acts(acts: Mapping[str, Any]) -> str:
    """Describe the actions of a model in words."""
    placed = "" if acts["placed"] is None else f", {acts['placed']:.1%} of {acts['clicks']} clicks are on an error"
    return (
        f"of {acts['replies']} replies {acts['parsed']:.1%} are actions and {acts['agree']:.1%} state what was read"
        f"{placed}, {acts['stops']:.1%} stop just where they should"
    )


def plot_reliability(readings: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Plot mean true IoU over mean predicted IoU, in tenths of the predicted one, as a PNG; bars are quartiles."""
    axes = new_axes()
    axes.plot([0, 1], [0, 1], color="0.45", linewidth=1)
    for k, (name, found) in enumerate(readings.items()):
        bins = found["reliability"]
        x, y = np.array([[one["stated"], one["true"]] for one in bins]).T
        low, high = np.array([one["quartiles"] for one in bins]).T
        label = f"{name}: MAE {found['mae']:.3f}, ECE {found['ece']:.3f}"
        (line,) = axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.6, label=label)
        axes.vlines(x + 0.003 * k, low, high, color=line.get_color(), alpha=0.35, linewidth=2)
    return png(axes, "outside lower center", 8, xlabel="predicted IoU", ylabel="true IoU", xlim=(0, 1), ylim=(0, 1))


def plot_density(predicted: Sequence[float], true: Sequence[float], name: str) -> bytes:
    """Plot the number of masks by predicted and true IoU, as a PNG."""
    axes = new_axes()
    counts = np.histogram2d(predicted, true, 25, ((0, 1), (0, 1)))[0]
    style = {"origin": "lower", "extent": (0, 1, 0, 1), "aspect": "auto", "interpolation": "nearest"}
    shown = axes.imshow(np.log1p(counts.T), cmap="Blues", **style)
    axes.plot([0, 1], [0, 1], color="0.45", linewidth=1)
    axes.figure.colorbar(shown, ax=axes, label="log(1 + masks)")
    return png(axes, xlabel=f"predicted IoU ({name})", ylabel="true IoU")


def write(
    folder: RunFolder, numbers: Mapping[str, Any], about: Mapping[str, Any], shown: Sequence[MaskSet], limit: int
) -> None:
    """Write plots and report.html of a PRM's training; at most `limit` masks of each dataset are shown."""
    sections = []
    for k, one in enumerate(shown):
        found = numbers["data"][one.data]
        section = section_of(folder, one, found["readings"], f"{k}_", limit, "mean")
        section["notes"] = [f"{model}: {_acts(acts)}" for model, acts in found["replies"].items() if acts["replies"]]
        sections.append(section)
    training, agent = numbers["training"], numbers["protocol"]["agent"]
    learned = training and f"{agent} learned from {training['rows']} masks in {training['steps']} steps."
    lead = learned or f"{agent} as it is."
    page(folder, f"IoU predicted by {agent}", lead, sections, numbers["protocol"], about)


def section_of(
    folder: RunFolder, one: MaskSet, readings: Mapping[str, Mapping[str, Any]], prefix: str, limit: int, reading: str
) -> dict[str, Any]:
    """Section of a page about one dataset, whose plots are also written into the run: a table for each part of the
    masks, plots of `readings["all"]`, and masks with the largest errors of `reading` and at random."""
    filled = [k for k, mask in enumerate(one.masks) if mask.pixels.any()]
    predicted, true = [one.predicted[reading][k] for k in filled], [one.masks[k].iou for k in filled]
    plots = {"reliability": plot_reliability(readings["all"]), "density": plot_density(predicted, true, reading)}
    return {
        "name": one.data,
        "tables": [table(readings[part], part) for part in PARTS if part in readings],
        "plots": save_plots(folder.path, plots, prefix),
        "examples": examples(one, filled, reading, limit),
        "notes": [],
    }


def examples(one: MaskSet, filled: Sequence[int], reading: str, limit: int) -> list[dict[str, str]]:
    """Pictures of masks with their predicted and true IoU, half with the largest errors, the others at random."""
    worst = sorted(filled, key=lambda k: -abs(one.predicted[reading][k] - one.masks[k].iou))[: limit // 2]
    sampled = sorted(filled, key=lambda k: seed_of("report", one.masks[k].task, one.masks[k].number))
    chosen = list(dict.fromkeys([*worst, *sampled]))[:limit]
    pictures = []
    for k in chosen:
        mask, task = one.masks[k], one.task(one.masks[k].task)
        picture = jpeg_uri(render.frame(task.image, mask.pixels, (), task.target, size=SIDE)[: -render.CAPTION])
        words = f"predicted {one.predicted[reading][k]:.2f}, true {mask.iou:.2f}"
        title, group = f"{words}: {task.instruction or task.id} ({mask.source})", "worst" if k in worst else "random"
        pictures.append({"picture": picture, "group": group, "title": title})
    return pictures


def page(
    folder: RunFolder, title: str, lead: str, sections: Sequence[Mapping], protocol: Mapping, about: Mapping
) -> None:
    """Write report.html."""
    context = {"title": title, "lead": lead, "sections": sections, "protocol": protocol, "manifest": about}
    write_html(folder / "report.html", "judged.html", **context)
