"""Reports for persons: plots, and HTML pages that need nothing but themselves.

`write_html` renders a template of `experiments/common/templates` (every text escaped; a model's replies are not to be
trusted). `payload` is what the episode browser of `_episodes.html` shows of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.episode_viewer import payload
from experiments.common.html import data_uri, write_html
from experiments.common.plots import figure_and_axes, png
from experiments.common.run_folder import RunFolder, write_atomic
from experiments.evaluate.metrics import Outcome, curves
from search.episode import Episode
from segenv import statistics
from segenv.seeds import seed_of
from segenv.types import Task

ROWS = (  # key in metrics.json, name, what is better
    ("ciou", "cIoU", "higher"),
    ("boundary_iou", "Boundary IoU", "higher"),
    ("acc_at_50", "Acc@0.5 (box)", "higher"),
    ("best_iou", "Best IoU", "higher"),
    ("regret", "Regret", "lower"),
    ("parse_rate", "Parse rate", "higher"),
    ("stop_rate", "Stop rate", ""),
)
SHOWN_CLICKS = (1, 3, 5, 7, 10, 20)
SHOWN_THRESHOLDS = ("80", "85", "90", "95")


def write(
    folder: RunFolder,
    numbers: dict[str, Any],
    about: dict[str, Any],
    outcomes: Sequence[Outcome],
    load: Callable[[str], Task],
    limit: int,
) -> None:
    """The plots and report.html of an evaluation. `load` gives the task of an id, and at most `limit` episodes are
    shown."""
    steps = len(numbers["iou_at"])
    by_step = curves(outcomes, steps)
    pictures = {
        "iou_over_clicks": plot_curves({numbers["protocol"]["agent"]: by_step}),
        "noc": plot_clicks({t: by_step.astype(np.float32) >= np.float32(t) for t in (0.50, 0.70, 0.80, 0.85, 0.90)}),
    }
    for name, content in pictures.items():
        write_atomic(folder / "plots" / f"{name}.png", content)
    groups = choose(outcomes, limit)
    shown = {}
    for record in folder.records("episodes.jsonl"):
        if (key := (record["task"], record["sample"])) in groups:
            shown[key] = payload(load(record["task"]), Episode.from_json(record), groups[key])
    write_html(
        folder / "report.html",
        "evaluate.html",
        title=f"{numbers['protocol']['agent']} with {numbers['protocol']['tool']} on {numbers['protocol']['data']}",
        numbers=numbers,
        rows=table(numbers),
        plots={name: data_uri(content, "image/png") for name, content in pictures.items()},
        manifest=about,
        episodes=[shown[key] for key in groups if key in shown],
    )


# -------------------------------------------------------------------------------------------------------------- numbers


def table(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of a summary: name, value and 95 % interval as text."""
    intervals = numbers["intervals"]
    rows = [_row("mIoU (gIoU)", numbers["miou"], intervals["miou"], "higher")]
    for k in SHOWN_CLICKS:
        if str(k) in numbers["iou_at"]:
            rows.append(_row(f"IoU@{k}", numbers["iou_at"][str(k)], intervals["iou_at"][str(k)], "higher"))
    rows += [_row(f"NoC@{t}", numbers["noc"][t], intervals["noc"][t], "lower", 2) for t in SHOWN_THRESHOLDS]
    for t in SHOWN_THRESHOLDS:
        failures = _row(f"NoF@{t}", numbers["nof"][t], None, "lower", 0)
        rows.append(failures | {"interval": f"{numbers['nof_never'][t]} never"})
    return rows + [_row(name, numbers[key], intervals[key], better) for key, name, better in ROWS]


def _row(name: str, value: float, interval: Sequence[float] | None, better: str, digits: int = 4) -> dict[str, str]:
    known = interval is not None and None not in interval
    between = f"{interval[0]:.{digits}f} – {interval[1]:.{digits}f}" if interval is not None and known else ""
    return {"name": name, "value": f"{value:.{digits}f}", "interval": between, "better": better}


def text(numbers: dict[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [f"{row['name']:<14} {row['value']:>9}   {row['interval']}".rstrip() for row in table(numbers)]
    spent = ", ".join(f"{part} {1000 * s:.1f}" for part, s in numbers["seconds"]["per_click"].items() if s is not None)
    skipped = f", {len(numbers['skipped'])} bad items skipped" if numbers["skipped"] else ""
    return "\n".join(
        [f"{numbers['episodes']} episodes{skipped}", *lines, f"ms per click   {spent or 'no click was made'}"]
    )


# --------------------------------------------------------------------------------------------------------------- tables


# ---------------------------------------------------------------------------------------------------------------- plots


def plot_curves(named: dict[str, np.ndarray]) -> bytes:
    """Mean IoU over actions with its 95 % band, as a PNG; `named` are [episodes, steps] each."""
    figure, axes = figure_and_axes()
    for name, values in named.items():
        x = np.arange(1, values.shape[1] + 1)
        low, high = np.array([statistics.bootstrap(column) for column in values.T]).T
        (line,) = axes.plot(
            x, values.mean(0), marker="o", markersize=3.5, linewidth=1.8, label=f"{name} (n = {len(values)})"
        )
        axes.fill_between(x, low, high, alpha=0.18, color=line.get_color(), linewidth=0)
    axes.set(xlabel="actions", ylabel="mean IoU", ylim=(0, 1), xlim=(0.5, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="lower right")
    return png(figure)


def plot_clicks(reached: dict[float, np.ndarray]) -> bytes:
    """The share of episodes that reached each threshold within so many actions, as a PNG; `reached` are bool
    [episodes, steps] each."""
    figure, axes = figure_and_axes()
    for threshold, hits in reached.items():
        share = np.maximum.accumulate(hits, axis=1).mean(0)
        label = f"IoU ≥ {threshold:.2f}: {share[-1]:.0%}"
        axes.step(np.arange(1, len(share) + 1), share, where="post", linewidth=1.8, label=label)
    axes.set(xlabel="actions", ylabel="share of episodes that reached it", ylim=(0, 1.02), xlim=(0.5, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left")
    return png(figure)


# ------------------------------------------------------------------------------------------------------------- episodes


def choose(outcomes: Sequence[Outcome], limit: int) -> dict[tuple[str, int], str]:
    """At most `limit` episodes to show: a third the worst, a third the best, the rest drawn; (task, sample) to the
    group's name."""
    ranked = sorted(outcomes, key=lambda item: (item.final_iou, item.task, item.sample))
    third = limit // 3
    chosen = {(item.task, item.sample): "worst" for item in ranked[:third]}
    for item in reversed(ranked[max(third, len(ranked) - third) :]):
        chosen[item.task, item.sample] = "best"
    drawn = sorted(ranked, key=lambda item: seed_of("report", item.task, item.sample))
    for item in drawn:
        if len(chosen) >= limit:
            break
        chosen.setdefault((item.task, item.sample), "random")
    return chosen
