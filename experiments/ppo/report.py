"""The numbers, plots and page of trainings with PPO."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from experiments.common import html, plots
from experiments.common.run_folder import RunFolder, as_expected, write_atomic
from experiments.common.tables import Table, interval, number
from experiments.ppo.config import Args
from experiments.ppo.tasks import BEST, BOX, STOP, Ground
from segenv import statistics

LEVELS = (STOP, "random", BOX, BEST, "annotator on the grid", "annotator")
HEADROOM = 0.05  # of the best single action over the start, that a task of the suite has at least
OVER = ("clone", "random", STOP)  # what a trained policy is compared with
METRIC_DEFINITIONS = {
    "miou": "mean IoU of the final masks on the test tasks",
    "random": "uniform among the actions that the mask of actions allows",
    BEST: "oracle: the best of the start and of what each allowed action makes of it, by the true IoU",
    BOX: "the tool's mask of the object's bounding box, whatever the start",
    "annotator on the grid": "clicks the cell whose middle lies deepest in an error; reads the target",
    "annotator": "clicks the deepest pixel of the error; reads the target",
    "headroom": f"{BEST} over {STOP}; docs/results refuses a task where it is {HEADROOM:g} or less",
    "clone": "what the training began with: behaviour cloning of the annotator on the grid, or fresh weights",
    "intervals": "95 %: of controls percentile bootstrap over tasks, of policies and differences seeds and tasks as "
    "crossed random effects (segenv.statistics.random_effects)",
}
Played = Mapping[str, Mapping[str, list]]


def write(folder: RunFolder, args: Args, ground: Ground, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write metrics.json, table.md, plots/ and report.html; returns the numbers."""
    played: dict[str, list[Played]] = {
        name: [folder.load_json(f"seed{seed}/{name}/test.json") for seed in args.seeds] for name in args.algorithms
    }
    levels = folder.load_json("levels-test.json")
    with as_expected(folder / "levels-test.json, or test.json of a policy", "IoUs of tasks"):
        numbers = summarise(levels, played, about["protocol"])
    folder.write_json("metrics.json", numbers)
    numbers = folder.load_json("metrics.json")
    made = table(numbers)
    write_atomic(folder / "table.md", f"{made.markdown()}\n{differences(numbers).markdown()}")
    curves: dict[str, list[list[Mapping[str, Any]]]] = {
        name: [list(folder.records(f"seed{seed}/{name}/curve.jsonl")) for seed in args.seeds]
        for name in args.algorithms
    }
    means = {name: float(np.mean(values)) for name, values in folder.load_json("levels-val.json").items()}
    pictures = {"curve": plot_curve(curves, means), "learning": plot_learning(curves)}
    title = f"PPO on {about['protocol']['suite']}: {ground.task.about}"
    context = {"numbers": numbers, "table": made, "pairs_table": differences(numbers), "manifest": folder.manifest()}
    html.write_report(folder, "ppo.html", pictures, title=title, **context)
    return numbers


def summarise(
    levels: Mapping[str, Sequence[float]], played: Mapping[str, Sequence[Played]], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """Means with their intervals, and the paired differences of the trained policies from what they have to beat."""
    room = statistics.bootstrap_difference(levels[BEST], levels[STOP])
    numbers: dict[str, Any] = {"levels": {}, "policies": {}, "differences": {f"{BEST} over {STOP}": list(room)}}
    for name in LEVELS:
        values = np.array(levels[name])
        numbers["levels"][name] = {"miou": float(values.mean()), "interval": list(statistics.bootstrap(values))}
    for name, seeds in played.items():
        table = {when: np.array([one[when]["iou"] for one in seeds]) for when in ("begin", "end")}
        for label, when in ((f"clone, {name}", "begin"), (name, "end")):
            mean, *ends = statistics.random_effects(table[when])
            numbers["policies"][label] = {
                "miou": mean,
                "interval": ends,
                "seeds": table[when].mean(1).tolist(),
                "steps": float(np.mean([one[when]["steps"] for one in seeds])),
                "stop_rate": float(np.mean([one[when]["stopped"] for one in seeds])),
            }
        for other in OVER:
            less = table["begin"] if other == "clone" else np.array(levels[other])[None]
            numbers["differences"][f"{name} over {other}"] = list(statistics.random_effects(table["end"] - less))
    for one, other in combinations(played, 2):
        pair = [np.array([seed["end"]["iou"] for seed in played[name]]) for name in (one, other)]
        numbers["differences"][f"{one} over {other}"] = list(statistics.random_effects(pair[0] - pair[1]))
    return {**numbers, "tasks": len(levels[STOP]), "protocol": protocol}


def table(numbers: Mapping[str, Any]) -> Table:
    """Controls and policies, one a line."""
    rows = [
        [name, number(one["miou"], 3), interval(one["interval"], 3), "", "", ""]
        for name, one in numbers["levels"].items()
    ]
    rows += [
        [
            *(name, number(one["miou"], 3), interval(one["interval"], 3)),
            *(" ".join(number(seed, 3) for seed in one["seeds"]), number(one["steps"], 2), number(one["stop_rate"], 2)),
        ]
        for name, one in numbers["policies"].items()
    ]
    return Table((f"policy{_where(numbers)}", "mIoU", "95 % interval", "of each seed", "steps", "stopped"), rows)


def differences(numbers: Mapping[str, Any]) -> Table:
    """Paired differences of the trained policies, one a line."""
    rows = [
        [name, number(mean, 3, "+"), interval(ends, 3, "+")] for name, (mean, *ends) in numbers["differences"].items()
    ]
    return Table((f"difference in mIoU{_where(numbers)}", "mean", "95 % interval"), rows)


def _where(numbers: Mapping[str, Any]) -> str:
    """The suite and the task, for the head of a table."""
    suite = numbers["protocol"].get("suite")
    return f" ({suite})" if suite else ""


def text(numbers: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    return f"{table(numbers).text()}\n\n{differences(numbers).text()}"


def plot_curve(curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], levels: Mapping[str, float]) -> bytes:
    """Plot the IoU of greedy episodes on validation tasks over steps, each seed thin, with the controls as lines."""
    axes = plots.new_axes()
    for k, (name, seeds) in enumerate(curves.items()):
        lines = [[(one["steps"], one["val_iou"]) for one in seed if "val_iou" in one] for seed in seeds]
        for line in lines:
            axes.plot(*np.array(line).T, color=f"C{k}", linewidth=0.7, alpha=0.5)
        axes.plot(*np.mean(lines, 0).T, color=f"C{k}", linewidth=2, marker="o", markersize=3, label=name)
    for k, name in enumerate(LEVELS):
        axes.axhline(levels[name], color=f"C{2 + k}", linewidth=1, linestyle="--", label=name)
    legend = "outside right upper"
    return plots.png(axes, legend, "small", xlabel="steps, from the clone at 0", ylabel="mean IoU, validation tasks")


def plot_learning(curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> bytes:
    """Plot the final IoU and the number of steps of the sampled training episodes of each update."""
    figure = plots.new_figure(8.0, 3.4)
    for place, (key, label) in enumerate((("iou", "mean IoU, training episodes"), ("length", "steps of an episode"))):
        axes = plots.new_axes(figure, 1, 2, place + 1)
        for k, (name, seeds) in enumerate(curves.items()):
            for i, seed in enumerate(seeds):
                points = [(one["steps"], one[key]) for one in seed if one.get(key) is not None]
                if points:
                    axes.plot(*np.array(points).T, color=f"C{k}", linewidth=0.9, label=name if not i else None)
        axes.set(xlabel="steps", ylabel=label)
    return plots.png(axes, "best" if curves else "")
