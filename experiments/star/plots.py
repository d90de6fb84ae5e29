"""Plots of a StaR run as PNGs: measures of each policy on held-out tasks, and shares of its filtered rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.plots import new_axes, new_figure, plot_iou_over_actions, png, whiskers

Log = Sequence[Sequence[float]]  # [step, loss] pairs
RATES = (  # (key in metrics.json, name, marker)
    ("first_click_in_object", "first click in the object", "o"),
    ("stop_accuracy", "stop accuracy", "s"),
    ("stop_precision", "stops that were due", "^"),
    ("stop_recall", "due stops that were made", "v"),
    ("invalid_rate", "invalid replies", "x"),
)
SHARES = (  # (path in a round of "lessons", name, colour)
    (("accepted",), "accepted", "#2a8a4a"),
    (("faults", "no_gain"), "corrected: no gain", "#c4432b"),
    (("faults", "stopped_too_early"), "corrected: stopped too early", "#dd7a4e"),
    (("faults", "went_on_too_long"), "corrected: went on too long", "#c98a2b"),
    (("faults", "invalid_reply"), "corrected: invalid reply", "#7d5ba6"),
    (("faults", "undo"), "corrected: undo", "#a083c4"),
    (("dropped",), "dropped", "#9aa3ab"),
)


def draw(numbers: dict[str, Any], ends: Sequence[Sequence[float]], logs: Mapping[int, Log]) -> dict[str, bytes]:
    """Draw all plots by name, of the content of metrics.json without NaN, the final IoUs of the first and of the last
    policy on the same episodes, and each policy's log of its training. A plot without data is left out."""
    policies = numbers["policies"]
    ious = [f"{policy['miou']:.3f}" for policy in policies]
    changes = [
        f"{policy['gain']:+.3f}\n{policy['against_S_0']['better']} up, {policy['against_S_0']['worse']} down"
        for policy in policies[1:]
    ]
    clicks = [f"{policy['noc']['85']:.2f}\n{policy['nof_never']['85']} never" for policy in policies]
    budget = len(policies[0]["iou_at"])
    gain = ("Gain over $S_0$ on the same episodes", "difference of final IoU")
    plots = {
        "iou_by_round": plot_by_round(policies, ("miou",), "Mean IoU of the final masks", "held-out mIoU", ious),
        "gain_by_round": plot_by_round(policies, ("gain",), *gain, ["", *changes]),
        "iou_before_after": plot_pairs(ends[0], ends[1], policies[-1]["round"]),
        "iou_over_clicks": plot_iou_over_actions(
            _axes(),
            {_name(one["round"]): one for one in policies},
            "outside right center",
            title="Mean IoU over actions",
        ),
        "noc_by_round": plot_by_round(
            policies, ("noc", "85"), f"Clicks to 0.85 IoU ({budget} where never)", "NoC@85", clicks, span=1
        ),
        "rates_by_round": plot_rates(policies),
    }
    rounds = [each for each in numbers["lessons"] if each.get("actions")]
    if rounds:
        plots["acceptance_by_round"] = plot_acceptance(rounds)
    curves = {n: log for n, log in logs.items() if len(log) > 1}
    if curves:
        plots["loss"] = plot_loss(curves)
    return plots


def plot_by_round(
    policies: Sequence[Mapping], path: Sequence[str], title: str, label: str, notes: Sequence[str], span: float = 0.1
) -> bytes:
    """Plot a measure of each policy with its interval, and a note under each; `span` is the least that y shows."""
    axes = _axes()
    if path == ("gain",):
        axes.axhline(0, color="0.45", linewidth=1)
    _points(axes, policies, path)
    _rounds(axes, policies, notes, span)
    return png(axes, title=title, ylabel=label)


def plot_pairs(before: Sequence[float], after: Sequence[float], last: int) -> bytes:
    """Plot the final IoU of each episode under the first policy and under the last."""
    axes = _axes()
    axes.plot([0, 1], [0, 1], color="0.45", linewidth=1)
    x, y = np.array(before), np.array(after)
    for chosen, colour, name in ((y > x, "#2a8a4a", "better"), (y == x, "0.45", "equal"), (y < x, "#c4432b", "worse")):
        style = {"s": 22, "alpha": 0.65, "color": colour, "edgecolors": "none", "clip_on": False}
        axes.scatter(x[chosen], y[chosen], label=f"{name}: {chosen.sum()}", **style)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Each held-out episode")
    return png(axes, "outside right center", xlabel="final IoU under $S_0$", ylabel=f"final IoU under {_name(last)}")


def plot_rates(policies: Sequence[Mapping]) -> bytes:
    """Plot first clicks, stops and invalid replies of each policy with their intervals."""
    axes = _axes()
    for k, (key, name, marker) in enumerate(RATES):
        shift = 0.06 * (k - (len(RATES) - 1) / 2)  # beside each other, so that no bar hides another
        label = name if any(policy[key] is not None for policy in policies) else f"{name}: no case"
        _points(axes, policies, (key,), shift, marker, label)
    _rounds(axes, policies)
    settings = {"title": "First clicks, stops and replies", "ylabel": "share", "ylim": (-0.03, 1.03)}
    return png(axes, "outside lower center", **settings)


def plot_acceptance(rounds: Sequence[Mapping]) -> bytes:
    """Plot how the filter labelled the actions in each round's rollouts, and the interval of the accepted share."""
    axes = _axes()
    bottom = np.zeros(len(rounds))
    x = np.arange(len(rounds))
    for path, name, colour in SHARES:
        shares = np.array([_at(each, path) for each in rounds], float)
        if not shares.any():
            continue
        axes.bar(x, shares, 0.55, bottom, color=colour, label=name)
        for middle, share, start in zip(x, shares, bottom, strict=True):
            if share >= 0.05:
                style = {"ha": "center", "va": "center", "color": "white", "fontsize": 9}
                axes.text(middle, start + share / 2, f"{share:.0%}", **style)
        bottom += shares
    accepted = np.array([each["accepted"] for each in rounds])
    ends = np.array([each["intervals"]["accepted"] for each in rounds], float).T
    axes.errorbar(x + 0.2, accepted, whiskers(accepted, *ends), fmt="none", ecolor="black", capsize=4, linewidth=1.2)
    names = [f"$D_{{{each['round']}}}$\n{each['actions']} actions" for each in rounds]
    axes.set(xticks=x, xticklabels=names, xlim=(-0.7, len(rounds) - 0.3))
    axes.grid(False, axis="x")
    settings = {"title": "What the filter did with the rollouts", "ylabel": "share of actions", "ylim": (0, 1)}
    return png(axes, "outside lower center", **settings)


def plot_loss(logs: Mapping[int, Log]) -> bytes:
    """Plot the training loss of each policy."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axes = _axes()
    for n, log in logs.items():
        steps, losses = np.array(log, float).T
        axes.plot(steps, losses, linewidth=1.4, marker="o", markersize=3, label=_name(n))
    axes.set(title="Training", xlabel="optimiser steps", ylabel="loss of the replies", yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 10 * low else NullFormatter())
    return png(axes, "outside lower center")


def _axes() -> Any:
    """Axes smaller than an evaluation's: more figures stand in a row, and their text comes out larger."""
    return new_axes(new_figure(5.4, 3.6))


def _points(
    axes: Any, policies: Sequence[Mapping], path: Sequence[str], shift: float = 0.0, marker: str = "o", label: str = ""
) -> None:
    """Draw the measure at `path` of each policy with its interval over rounds."""
    middle = np.array([_at(policy, path) for policy in policies], float)
    ends = np.array([_at(policy["intervals"], path) for policy in policies], float).T
    x = np.array([policy["round"] for policy in policies]) + shift
    style = {"marker": marker, "markersize": 6, "capsize": 4, "linewidth": 1.6, "label": label}
    axes.errorbar(x, middle, whiskers(middle, *ends), **style)


def _rounds(axes: Any, policies: Sequence[Mapping], notes: Sequence[str] = (), span: float = 0.0) -> None:
    """Label the x axis with the policies and a note under each; `span` is the least that y shows."""
    rounds = [policy["round"] for policy in policies]
    names = [_name(n) for n in rounds]
    names = [f"{name}\n{note}" for name, note in zip(names, notes, strict=True)] if notes else names
    axes.set(xticks=rounds, xticklabels=names, xlim=(rounds[0] - 0.4, rounds[-1] + 0.4))
    low, high = axes.get_ylim()
    if high - low < span:
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _name(n: int) -> str:
    return f"$S_{{{n}}}$"


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
