"""The numbers, plots, pictures and page of a GSPO training."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from experiments.common import html, plots
from experiments.common.ablation import cell
from experiments.common.run_folder import write_atomic
from experiments.common.tables import Table
from experiments.evaluate.answers.polygon_metrics import Record, measures
from experiments.evaluate.answers.polygon_report import picture
from experiments.gspo.answers import MODES, Replies, Run, of_mode, read_replies, tasks_of, values
from segenv import statistics

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
PART = "reward/"  # in the log, before the name of a part of the reward
SHARES = ("clip_ratio/region_mean", "completions/clipped_ratio", "frac_reward_zero_std", "completions/valid")
LENGTHS = {"completions/mean_length": "mean", "completions/std_length": "standard deviation"}


def write(run: Run) -> dict[str, Any]:
    """Write metrics.json, metrics.csv, plots/ and report.html of a run that has trained; returns the numbers."""
    folder, replies, last = run.folder, read_replies(run.folder), run.args.train.steps
    log = [one for one in folder.load_json(f"policy/{run.args.method}.json")["log"] if isinstance(one, dict)]
    points = curve(replies, run.args.probe)  # the supervised control logs no measures
    tasks = tasks_of(replies[0])
    images = dict(zip(tasks, run.held_out.images_of(tasks), strict=True))
    measured = {**results(replies[0], replies[last], images), "curve": points, "protocol": run.protocol()}
    folder.write_json("metrics.json", measured)
    numbers = folder.load_json("metrics.json")
    write_atomic(folder / "metrics.csv", measured_steps(log, numbers["curve"]).csv())
    lines = {mode: [(one["step"], one[mode]) for one in numbers["curve"]] for mode, _ in MODES}
    pictures = {"held_out": plots.plot_lines(lines, "steps", "gIoU on held-out tasks")}
    if log:
        parts = {name: name.removeprefix(PART) for name in log[0] if name.startswith(PART)}
        shares = {name: LOGGED[name].replace("_", " ") for name in SHARES if name in log[0]}
        pictures["reward"] = plot_log(log, parts, "reward")
        pictures["lengths"] = plot_log(log, LENGTHS, "tokens of a reply", (0, None))
        pictures["shares"] = plot_log(log, shares, "share", (-0.02, 1.02))
    middle = min(replies, key=lambda step: (abs(step - last / 2), step))
    pictures["panel"] = panel(run, {step: replies[step] for step in sorted({0, middle, last})})
    protocol = numbers["protocol"]
    title = f"{protocol['method'].upper()} of {protocol['agent']} on {protocol['data']}"
    context = {"numbers": numbers, "table": table(numbers), "manifest": folder.manifest()}
    html.write_report(folder, "gspo.html", pictures, title=title, **context)
    return numbers


def results(
    before: Sequence[Record], after: Sequence[Record], images: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Measures of the policies before and after, of greedy replies and of sampled ones, and the paired gains in gIoU
    with their intervals over `images`, the image of each task."""
    of_tasks = None if images is None else [images[task] for task in tasks_of(before)]
    numbers: dict[str, Any] = {"before": {}, "after": {}, "gain": {}}
    for mode, sampled in MODES:
        for when, records in (("before", before), ("after", after)):
            numbers[when][mode] = measures(of_mode(records, sampled), images)
        pair = values(after, sampled), values(before, sampled)
        numbers["gain"][mode] = list(statistics.bootstrap_difference(*pair, images=of_tasks))
    return numbers


def curve(replies: Replies, count: int) -> list[dict[str, Any]]:
    """gIoU, valid share and length of each measured policy on the first `count` held-out tasks."""
    tasks = set(list(dict.fromkeys(one.task for one in replies[0]))[:count])
    points = []
    for step in sorted(replies):
        point: dict[str, Any] = {"step": step}
        for mode, sampled in MODES:
            some = [one for one in replies[step] if one.task in tasks and bool(one.sample) is sampled]
            point[mode] = float(np.mean([one.iou for one in some]))
            point[f"{mode}_valid"] = float(np.mean([one.error is None for one in some]))
            point[f"{mode}_tokens"] = float(np.mean([one.tokens for one in some]))
        points.append(point)
    return points


def measured_steps(log: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each step that was logged or measured on held-out tasks."""
    lines: dict[int, dict[str, Any]] = {}
    for entry in log:
        line = {short: entry.get(name) for name, short in LOGGED.items()}
        line |= {name.replace(PART, "reward_"): entry.get(name) for name in log[0] if name.startswith(PART)}
        lines[entry["step"]] = {"step": entry["step"], **line}
    for point in points:
        held_out = {f"held_out_{name}": value for name, value in point.items() if name != "step"}
        lines[point["step"]] = {"step": point["step"], **lines.get(point["step"], {}), **held_out}
    steps = sorted(lines)
    names = list(dict.fromkeys(name for step in steps for name in lines[step]))
    return Table(names, [[lines[step].get(name) for name in names] for step in steps])


def table(numbers: Mapping[str, Any]) -> Table:
    """Measures before and after; gIoU with its paired gain."""
    rows = []
    for mode, _ in MODES:
        for key, name, digits in ROWS:
            cells = [f"{numbers[when][mode][key]:.{digits}f}" for when in ("before", "after")]
            gain = cell(numbers["gain"][mode]) if key == "giou" else ""
            rows.append([f"{mode} {name}", *cells, gain])
    return Table(("held-out tasks", "before", "after", "gain, paired 95 % interval"), rows)


def text(numbers: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    head = f"{numbers['before']['greedy']['tasks']} held-out tasks, {numbers['protocol']['train']['steps']} steps"
    return f"{head}\n{table(numbers).text()}"


def plot_log(log: Sequence[Mapping[str, Any]], labels: Mapping[str, str], ylabel: str, limits: Any = None) -> bytes:
    """Measures of the trainer's log over steps, faint, and their moving means, as a PNG."""
    axes = plots.new_axes()
    for k, (name, label) in enumerate(labels.items()):
        steps, values = np.array([(entry["step"], entry[name]) for entry in log], float).T
        width = max(1, len(values) // 20)
        axes.plot(steps, values, color=f"C{k}", alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        axes.plot(steps[width - 1 :], smooth, color=f"C{k}", linewidth=1.8, label=label)
    return plots.png(axes, "outside lower center", xlabel="steps", ylabel=ylabel, ylim=limits)


def panel(run: Run, replies: Mapping[int, Sequence[Record]]) -> bytes:
    """Greedy replies to the same tasks, a row each, of the policies in `replies`, a column each, as a PNG."""
    rows = []
    for name in list(dict.fromkeys(one.task for one in replies[0]))[: min(run.args.panel, run.args.probe)]:
        task = run.held_out.by_id(name)
        greedy = [next(one for one in some if one.task == name and not one.sample) for some in replies.values()]
        rows.append(np.hstack([picture(one, task, run.agent.codec, "mask") for one in greedy]))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.vstack(padded)).save(buffer, "PNG")
    return buffer.getvalue()
