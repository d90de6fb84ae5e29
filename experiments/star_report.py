"""The numbers, the plots and the page of a StaR run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import summary
from experiments.report import data_uri, figure_and_axes, payload, png, write_html
from experiments.runs import RunFolder, write_atomic
from search.rollout import Episode
from segenv import metrics
from segenv.seeds import seed_of
from segenv.types import Task, object_of

MEASURES = (  # (key, name, digits)
    ("miou", "mIoU", 4),
    ("gain", "gain over S_0, paired", 4),
    ("best_iou", "best IoU", 4),
    ("first_click_in_object", "first click in the object", 3),
    ("boundary_iou", "boundary IoU", 4),
    ("stop_rate", "stopped by itself", 3),
    ("parse_rate", "replies that are actions", 3),
)


PROTOCOL = {
    "evaluation": "every policy plays the same held-out tasks, greedily, from an empty mask or the task's initial one",
    "gain": "paired difference of the final IoU to S_0; 95 % bootstrap over tasks, nothing of the spread over seeds",
    **summary.PROTOCOL,
}


def policies(played: Sequence[Sequence[Episode]], max_steps: int, load: Callable[[str], Task]) -> list[dict[str, Any]]:
    """The measures of each policy S_0, S_1, … from its held-out episodes, given in the same order of tasks."""
    measured = []
    base = [episode.final_iou for episode in played[0]]
    for n, episodes in enumerate(played):
        numbers = summary.summarise([summary.outcome(episode) for episode in episodes], max_steps, {})
        gain, low, high = metrics.bootstrap_difference([episode.final_iou for episode in episodes], base)
        inside = [first_click_inside(episode, load(episode.task)) for episode in episodes]
        numbers |= {"gain": gain, "first_click_in_object": sum(inside) / len(inside)}
        numbers["intervals"] |= {"gain": [low, high], "first_click_in_object": list(metrics.bootstrap(inside))}
        del numbers["protocol"]
        measured.append({"round": n, **numbers})
    return measured


def first_click_inside(episode: Episode, task: Task) -> float:
    """1 if the first action is a positive click on the object, else 0."""
    action = episode.steps[0].action
    return float(action["type"] == "click" and action["positive"] and object_of(task.target)[action["y"], action["x"]])


def table(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each measure: its name, and value and interval for each policy."""
    rows = []
    for key, name, digits in MEASURES:
        cells = []
        for policy in numbers["policies"]:
            low, high = policy["intervals"][key]
            interval = "" if low is None else f"{low:.{digits}f} – {high:.{digits}f}"
            cells.append({"value": f"{policy[key]:.{digits}f}", "interval": interval})
        rows.append({"name": name, "cells": cells})
    return rows


def text(numbers: dict[str, Any]) -> str:
    """The results for a terminal."""
    names = "".join(f"{'S_' + str(policy['round']):>30}" for policy in numbers["policies"])
    lines = [f"{numbers['policies'][0]['episodes']} held-out episodes", f"{'':<26}{names}"]
    for row in table(numbers):
        cells = "".join("{:>30}".format(f"{cell['value']}  [{cell['interval']}]") for cell in row["cells"])
        lines.append(f"{row['name']:<26}{cells}")
    for lesson in numbers["lessons"]:
        shares = ", ".join(
            f"{100 * lesson[name]:.0f} % {name}" for name in ("expert", "policy", "corrected") if lesson[name]
        )
        lines.append(f"D_{lesson['round']}: {lesson['rows']} rows ({shares or 'none'})")
    return "\n".join(lines)


def write(
    folder: RunFolder,
    numbers: dict[str, Any],
    ends: Sequence[Sequence[Episode]],
    load: Callable[[str], Task],
    limit: int,
) -> None:
    """Plots and report.html. `ends` are the held-out episodes of the first and of the last policy; at most `limit`
    tasks are shown."""
    plots = {"miou_by_round": plot_rounds(numbers), "iou_over_clicks": plot_clicks(numbers)}
    logs = {
        n: (folder.read_json(f"round{n}/policy/sft.json") or {}).get("log") for n in range(len(numbers["policies"]))
    }
    if any(logs.values()):
        plots["loss"] = plot_loss({n: log for n, log in logs.items() if log})
    for name, content in plots.items():
        write_atomic(folder / "plots" / f"{name}.png", content)
    names = sorted({episode.task for episode in ends[0]}, key=lambda name: seed_of("report", name))[:limit]
    shown = []
    for group, episodes in zip(("S_0", f"S_{numbers['policies'][-1]['round']}"), ends, strict=True):
        for name in names:
            found = next(episode for episode in episodes if episode.task == name)
            shown.append(payload(load(name), found, group))
    write_html(
        folder / "report.html",
        "star.html",
        title=f"{numbers['protocol']['variant']} of {numbers['protocol']['agent']} on {numbers['protocol']['data']}",
        numbers=numbers,
        rows=table(numbers),
        plots={name: data_uri(content, "image/png") for name, content in plots.items()},
        manifest=folder.read_json("manifest.json"),
        episodes=shown,
    )


def plot_rounds(numbers: dict[str, Any]) -> bytes:
    """Held-out mIoU of each policy with its interval."""
    figure, axes = figure_and_axes()
    rounds = [policy["round"] for policy in numbers["policies"]]
    means = np.array([policy["miou"] for policy in numbers["policies"]])
    low, high = np.array([policy["intervals"]["miou"] for policy in numbers["policies"]]).T
    axes.errorbar(rounds, means, yerr=[means - low, high - means], marker="o", capsize=4, linewidth=1.8)
    axes.set(
        xlabel="policy", ylabel="held-out mIoU", ylim=(0, 1), xticks=rounds, xticklabels=[f"S_{n}" for n in rounds]
    )
    return png(figure)


def plot_clicks(numbers: dict[str, Any]) -> bytes:
    """Held-out mean IoU over actions, for each policy."""
    figure, axes = figure_and_axes()
    for policy in numbers["policies"]:
        steps = [int(k) for k in policy["iou_at"]]
        low, high = np.array(list(policy["intervals"]["iou_at"].values())).T
        (line,) = axes.plot(
            steps, list(policy["iou_at"].values()), marker="o", markersize=3.5, label=f"S_{policy['round']}"
        )
        axes.fill_between(steps, low, high, alpha=0.18, color=line.get_color(), linewidth=0)
    axes.set(xlabel="actions", ylabel="mean IoU", ylim=(0, 1))
    axes.legend(frameon=False, loc="lower right")
    return png(figure)


def plot_loss(logs: dict[int, Sequence[tuple[int, float]]]) -> bytes:
    """Training loss of each policy, [step, loss] pairs by round."""
    figure, axes = figure_and_axes()
    for n, log in logs.items():
        steps, losses = np.array(log).T
        axes.plot(steps, losses, linewidth=1.4, label=f"S_{n}")
    axes.set(xlabel="optimiser steps", ylabel="loss of the replies", yscale="log")
    axes.legend(frameon=False)
    return png(figure)
