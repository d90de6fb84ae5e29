"""Report of an evaluation by clicks: numbers for a terminal, plots, and a page that shows episodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import served
from experiments.common.html import write_report
from experiments.common.plots import new_axes, plot_iou_over_actions, png
from experiments.common.run_folder import RunFolder
from experiments.common.tables import Table, interval, number
from experiments.evaluate import protocols, sensitivity
from experiments.evaluate.episodes import click_quality, diagnosis
from experiments.evaluate.episodes.metrics import UNSOLVED, Outcome, curves, finish_reasons
from experiments.evaluate.exclusion import UNSOLVED_FILE

ROWS = (  # key in metrics.json, name, what is better
    ("ciou", "cIoU", "higher"),
    ("boundary_iou", "Boundary IoU", "higher"),
    ("acc_at_50", "Acc@0.5 (box)", "higher"),
    ("best_iou", "Best IoU", "higher"),
    ("regret", "Regret", "lower"),
    ("start_gain", "Gain over the initial mask", "higher"),
    ("parse_rate", "Parse rate", "higher"),
    ("exact_rate", "Exact rate", "higher"),
    ("stop_rate", "Stop rate", ""),
)
ABSENT_ROWS = (  # of tasks without an object, where there are some; as `ROWS`, and digits
    ("n_acc", "N-acc", "higher", 4),
    ("t_acc", "T-acc", "higher", 4),
    ("absent_steps", "Steps on absent objects", "lower", 2),
)
SHOWN_CLICKS = (1, 3, 5, 7, 10, 20)
SHOWN_CLICKS_ON_ERROR = (1, 2, 3, 5, 7)
SHOWN_THRESHOLDS = ("80", "85", "90", "95")


def write(
    folder: RunFolder,
    numbers: dict[str, Any],
    about: dict[str, Any],
    outcomes: Sequence[Outcome],
    episodes: Mapping[str, Any],
) -> None:
    """Write plots and report.html with `episodes` of `episode_page.write`."""
    protocol, by_step = numbers["protocol"], curves(outcomes, len(numbers["iou_at"])).astype(np.float32)
    label, limits = f"{protocol['agent']} (n = {numbers['episodes']})", {"ylim": (0, 1), "xlim": (0.5, None)}
    pictures = {
        "iou_over_clicks": plot_iou_over_actions(new_axes(), {label: numbers}, "outside lower center", **limits),
        "noc": plot_clicks({t: by_step >= np.float32(t) for t in (0.50, 0.70, 0.80, 0.85, 0.90)}),
    }
    title = f"{protocol['agent']} with {protocol['tool']} on {protocol['data']}"
    context = {"title": title, "numbers": numbers, "table": table(numbers), "manifest": about}
    context["replies"] = replies(outcomes)
    context["sections"] = sections(numbers)
    write_report(folder, "evaluate.html", pictures, episodes=episodes, **context)


def table(numbers: dict[str, Any]) -> Table:
    """Measures with their values, 95 % intervals and better directions."""
    intervals = numbers["intervals"]
    rows = [_row("mIoU (gIoU)", numbers["miou"], intervals["miou"], "higher")]
    for k in map(str, SHOWN_CLICKS):
        if k in numbers["iou_at"]:
            rows.append(_row(f"IoU@{k}", numbers["iou_at"][k], intervals["iou_at"][k], "higher"))
    rows += [_row(f"NoC@{t}", numbers["noc"][t], intervals["noc"][t], "lower", 2) for t in SHOWN_THRESHOLDS]
    for t in SHOWN_THRESHOLDS:
        rows.append([f"NoF@{t}", number(numbers["nof"][t], 0), f"{numbers['nof_never'][t]} never", "lower"])
    rows += [_row(name, numbers[key], intervals[key], better) for key, name, better in ROWS]
    if numbers["no_target"]:
        rows += [_row(name, numbers[key], intervals[key], better, k) for key, name, better, k in ABSENT_ROWS]
    rows += [_row(*row, "higher") for row in click_quality.rows(numbers, SHOWN_CLICKS_ON_ERROR)]
    return Table(("measure", "value", "95 % interval", "better"), rows, "<>><")


def sections(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts of the page below the measures: each a title, notes, and a table or None."""
    found = protocols.section(numbers)
    if numbers.get("decomposed"):
        found += diagnosis.sections(numbers)
    found += sensitivity.section(numbers)
    if numbers.get("unsolved"):
        rows = [[name, number(iou)] for name, iou in sorted(numbers["unsolved"].items(), key=lambda pair: pair[1])]
        notes = [
            f"Best IoU below {UNSOLVED:g}: a hard task, or a wrong label. {UNSOLVED_FILE} lists them for --exclude."
        ]
        table = Table(("task", "best IoU"), rows)
        found.append({"title": f"Tasks not solved ({len(rows)})", "notes": notes, "table": table, "folded": True})
    return found


def _row(name: str, value: float, ends: Sequence[float], better: str, digits: int = 4) -> list[str]:
    return [name, number(value, digits), interval(ends, digits), better]


def text(numbers: dict[str, Any]) -> str:
    """Format the numbers for a terminal."""
    times = ", ".join(f"{part} {1000 * s:.1f}" for part, s in numbers["seconds"]["per_click"].items() if s is not None)
    skipped = f", {len(numbers['skipped'])} bad items skipped" if numbers["skipped"] else ""
    excluded = numbers["protocol"].get("exclude")
    excluded = f", {excluded['tasks']} tasks excluded" if excluded else ""
    unsolved = f", {len(numbers['unsolved'])} tasks not solved" if numbers.get("unsolved") else ""
    head = f"{numbers['episodes']} episodes{skipped}{excluded}{unsolved}"
    costs = served.told(numbers)
    lines = [diagnosis.text(numbers)] if numbers.get("decomposed") else []
    lines += [part["table"].text() for part in sensitivity.section(numbers)]
    return "\n".join([head, table(numbers).text(), *lines, f"ms per click   {times or 'no click was made'}", *costs])


def replies(outcomes: Sequence[Outcome]) -> str:
    """Say how the replies ended, how long they are, and what the codec read beside what was asked."""
    tokens = [one for item in outcomes for one in item.tokens]
    parts = [f"{count} ended by {reason}" for reason, count in finish_reasons(outcomes).items()]
    parts += [f"{sum(tokens) / len(tokens):.1f} tokens on average, {max(tokens)} at most"] if tokens else []
    for what, count in (("further actions", "extra"), ("clicks without a sign, read as positive", "unsigned")):
        total = sum(getattr(item, count) for item in outcomes)
        parts += [f"{total} {what}"] if total else []
    return ", ".join(parts)


def plot_clicks(reached: dict[float, np.ndarray]) -> bytes:
    """Plot the share of episodes that reached each threshold within so many actions; bool [episodes, steps] each."""
    axes = new_axes()
    for threshold, hits in reached.items():
        share = np.maximum.accumulate(hits, axis=1).mean(0)
        label = f"IoU ≥ {threshold:.2f}: {share[-1]:.0%}"
        axes.step(np.arange(1, len(share) + 1), share, where="post", linewidth=1.8, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    limits = {"ylim": (0, 1.02), "xlim": (0.5, None)}
    return png(axes, "outside lower center", xlabel="actions", ylabel="share of episodes that reached it", **limits)
