"""The numbers, plots, pictures and page of a GSPO training."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from experiments.common import html, plots
from experiments.common.run_folder import write_atomic
from experiments.evaluate.polygon_metrics import Record, by_task, measures
from experiments.evaluate.polygon_report import picture
from segenv import statistics

if TYPE_CHECKING:
    from experiments.gspo.answers import Run

MODES = (("greedy", False), ("sampled", True))
ROWS = (("giou", "gIoU", 4), ("boundary_f", "boundary F", 4), ("valid", "valid", 4), ("tokens", "tokens", 1))
LOGGED = {  # the trainer's names, and those of metrics.csv
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "groups_without_spread",
    "completions/valid": "valid",
    "completions/clipped_ratio": "truncated",
    "completions/mean_length": "length",
    "completions/std_length": "length_std",
    "clip_ratio/region_mean": "clipped",
    "entropy": "entropy",
    "grad_norm": "gradient",
    "learning_rate": "learning_rate",
}
PART = "reward/"  # what the log calls a part of the reward


def write(this: Run) -> dict[str, Any]:
    """metrics.json, metrics.csv, plots/ and report.html of a run that has trained; returns the numbers."""
    from experiments.gspo.answers import protocol, replies

    folder, found = this.folder, replies(this.folder)
    last = this.args.train.steps
    log = read_log(this)
    numbers = {**results(found[0], found[last]), "curve": curve(found, this.args.probe), "protocol": protocol(this)}
    folder.write_json("metrics.json", numbers)
    numbers = folder.read_json("metrics.json")
    write_atomic(folder / "metrics.csv", as_csv(log, numbers["curve"]))
    middle = min(found, key=lambda step: (abs(step - last / 2), step))
    pictures = {"held_out": plot_curve(numbers["curve"])}
    if log:
        pictures |= {"reward": plot_log(log, parts(log)), "lengths": plot_lengths(log), "shares": plot_shares(log)}
    pictures["panel"] = panel(this, {step: found[step] for step in sorted({0, middle, last})})
    for name, content in pictures.items():
        write_atomic(folder / "plots" / f"{name}.png", content)
    html.write_html(
        folder / "report.html",
        "gspo.html",
        title=f"{numbers['protocol']['method'].upper()} of {numbers['protocol']['agent']} on "
        f"{numbers['protocol']['data']}",
        numbers=numbers,
        rows=table(numbers),
        plots={name: html.data_uri(content, "image/png") for name, content in pictures.items()},
        manifest=folder.read_json("manifest.json"),
    )
    return numbers


def results(before: Sequence[Record], after: Sequence[Record]) -> dict[str, Any]:
    """Measures of the policies before and after, of greedy replies and of drawn ones, and the paired gains in gIoU
    with their intervals over tasks."""
    numbers: dict[str, Any] = {"before": {}, "after": {}, "gain": {}}
    for mode, drawn in MODES:
        pair = [sorted((one for one in some if bool(one.sample) is drawn), key=_place) for some in (before, after)]
        numbers["before"][mode], numbers["after"][mode] = (measures(some) for some in pair)
        first, second = (by_task(some, lambda one: one.iou) for some in pair)
        numbers["gain"][mode] = list(statistics.bootstrap_difference(second, first))
    return numbers


def _place(one: Record) -> tuple[str, int]:
    return one.task, one.sample


def curve(found: Mapping[int, Sequence[Record]], probe: int) -> list[dict[str, Any]]:
    """gIoU, valid share and length of each measured policy on the first `probe` held-out tasks."""
    chosen = set(list(dict.fromkeys(one.task for one in found[0]))[:probe])
    points = []
    for step in sorted(found):
        point: dict[str, Any] = {"step": step}
        for mode, drawn in MODES:
            some = [one for one in found[step] if one.task in chosen and bool(one.sample) is drawn]
            point[mode] = float(np.mean([one.iou for one in some]))
            point[f"{mode}_valid"] = float(np.mean([one.error is None for one in some]))
            point[f"{mode}_tokens"] = float(np.mean([one.tokens for one in some]))
        points.append(point)
    return points


def read_log(this: Run) -> list[dict[str, Any]]:
    """The trainer's measures of each round; none of the supervised control."""
    summary = json.loads((this.folder / "policy" / f"{this.args.method}.json").read_text())
    return [entry for entry in summary["log"] if isinstance(entry, dict)]


def parts(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the log says of parts of the reward."""
    return [name for name in log[0] if name.startswith(PART)]


def as_csv(log: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> str:
    """A line for each step that was logged or measured on held-out tasks."""
    lines: dict[int, dict[str, Any]] = {}
    for entry in log:
        line = {short: entry.get(name) for name, short in LOGGED.items()}
        line |= {name.replace(PART, "reward_"): entry.get(name) for name in parts(log)}
        lines[entry["step"]] = {"step": entry["step"], **line}
    for point in points:
        held_out = {f"held_out_{name}": value for name, value in point.items() if name != "step"}
        lines[point["step"]] = {"step": point["step"], **lines.get(point["step"], {}), **held_out}
    names = list(dict.fromkeys(name for step in sorted(lines) for name in lines[step]))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[step] for step in sorted(lines))
    return buffer.getvalue()


def table(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the summary: measure, before, after; gIoU with its paired gain."""
    rows = []
    for mode, _ in MODES:
        for key, name, digits in ROWS:
            cells = [f"{numbers[when][mode][key]:.{digits}f}" for when in ("before", "after")]
            gain = "{:+.4f}  [{:+.4f}, {:+.4f}]".format(*numbers["gain"][mode]) if key == "giou" else ""
            rows.append([f"{mode} {name}", *cells, gain])
    return rows


def text(numbers: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    head = f"{numbers['before']['greedy']['tasks']} held-out tasks, {numbers['protocol']['train']['steps']} steps"
    lines = [head, f"{'':<20}{'before':>9}{'after':>9}  gain, paired 95 % interval"]
    lines += [f"{name:<20}{before:>9}{after:>9}  {gain}".rstrip() for name, before, after, gain in table(numbers)]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- plots


def plot_curve(points: Sequence[Mapping[str, Any]]) -> bytes:
    """gIoU on held-out tasks over steps, as a PNG."""
    figure, axes = plots.figure_and_axes()
    for mode, _ in MODES:
        axes.plot([one["step"] for one in points], [one[mode] for one in points], marker="o", ms=3.5, label=mode)
    axes.set(xlabel="steps", ylabel="gIoU on held-out tasks")
    axes.legend(frameon=False, loc="lower right")
    return plots.png(figure)


def plot_log(log: Sequence[Mapping[str, Any]], names: Sequence[str], label: str = "reward") -> bytes:
    """Measures of the trainer's log over steps, with a moving mean, as a PNG."""
    figure, axes = plots.figure_and_axes()
    for place, name in enumerate(names):
        _line(axes, log, name, name.removeprefix(PART), f"C{place}")
    axes.set(xlabel="steps", ylabel=label)
    axes.legend(frameon=False)
    return plots.png(figure)


def plot_shares(log: Sequence[Mapping[str, Any]]) -> bytes:
    """What is clipped, truncated and without spread, as a PNG."""
    figure, axes = plots.figure_and_axes()
    shown = ("clip_ratio/region_mean", "completions/clipped_ratio", "frac_reward_zero_std", "completions/valid")
    for place, name in enumerate(shown):
        if name in log[0]:
            _line(axes, log, name, LOGGED[name].replace("_", " "), f"C{place}")
    axes.set(xlabel="steps", ylabel="share", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    return plots.png(figure)


def plot_lengths(log: Sequence[Mapping[str, Any]]) -> bytes:
    """Mean length of drawn replies, with a band of one standard deviation, as a PNG."""
    figure, axes = plots.figure_and_axes()
    steps = [entry["step"] for entry in log]
    mean, std = (np.array([entry[f"completions/{name}_length"] for entry in log]) for name in ("mean", "std"))
    axes.fill_between(steps, mean - std, mean + std, alpha=0.15, linewidth=0)
    _line(axes, log, "completions/mean_length", "mean", "C0")
    axes.set(xlabel="steps", ylabel="tokens of a reply", ylim=(0, None))
    return plots.png(figure)


def _line(axes: Any, log: Sequence[Mapping[str, Any]], name: str, label: str, colour: str) -> None:
    """The values, faint, and their moving mean."""
    steps, values = np.array([(entry["step"], entry[name]) for entry in log], float).T
    width = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(width) / width, "valid")
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps[width - 1 :], smooth, color=colour, linewidth=1.8, label=label)


def panel(this: Run, found: Mapping[int, Sequence[Record]]) -> bytes:
    """Greedy replies to the same tasks, a row each, of the policies in `found`, a column each, as a PNG."""
    rows = []
    for name in list(dict.fromkeys(one.task for one in found[0]))[: min(this.args.panel, this.args.probe)]:
        task = this.held_out_task(this.held_out_ids[name])
        own = [next(one for one in some if one.task == name and not one.sample) for some in found.values()]
        rows.append(np.hstack([picture(one, task, this.agent.codec, "mask") for one in own]))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.vstack(padded)).save(buffer, "PNG")
    return buffer.getvalue()
