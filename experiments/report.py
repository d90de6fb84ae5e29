"""Reports for persons: plots, and HTML pages that need nothing but themselves.

`write_html` renders a template of `experiments/templates` (every text escaped; a model's replies are not to be
trusted). `payload` is what the episode browser of `_episodes.html` shows of an episode.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from experiments.runs import RunFolder, write_atomic
from experiments.summary import Outcome, curves
from search.rollout import Episode, Step, clicks_of, encode_mask
from segenv import metrics
from segenv.seeds import seed_of
from segenv.types import Task, ignored_of, object_of

SIDE = 448  # pixels of a picture's longer side in a report
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


def write_html(path: Path, template: str, **context: Any) -> None:
    """Render `template` to `path`. Texts in `context` are escaped, also within scripts (`tojson`)."""
    write_atomic(path, _environment().get_template(template).render(**context).encode("utf-8", "replace"))


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


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


def columns(rows: Sequence[Sequence[str]], right: bool = True) -> str:
    """Rows of cells as text in columns: the first to the left, the others to the right, or to the left too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if k and right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------------------------------------------------------- plots


def plot_curves(named: dict[str, np.ndarray]) -> bytes:
    """Mean IoU over actions with its 95 % band, as a PNG; `named` are [episodes, steps] each."""
    figure, axes = figure_and_axes()
    for name, values in named.items():
        x = np.arange(1, values.shape[1] + 1)
        low, high = np.array([metrics.bootstrap(column) for column in values.T]).T
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
    """Lengths below and above for matplotlib, which takes none below 0; rounding may make one."""
    return np.maximum(0, np.stack([middle - low, high - middle]))


def plot_intervals(groups: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], xlabel: str) -> bytes:
    """Means with their intervals, of `names` from above, as a PNG; a group has (mean, low, high) of each, and its label
    where there are several."""
    figure, axes = figure_and_axes()
    places = np.arange(len(names))[::-1]
    for k, (label, rows) in enumerate(groups.items()):
        middle, low, high = np.array(rows).T
        beside = places + 0.16 * ((len(groups) - 1) / 2 - k)
        axes.errorbar(middle, beside, xerr=whiskers(middle, low, high), fmt="o", capsize=3, color=f"C{k}", label=label)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set(yticks=places, yticklabels=names, xlabel=xlabel)
    if len(groups) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(groups))
    return png(figure)


def png(figure: Any) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


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


def payload(task: Task, episode: Episode, group: str) -> dict[str, Any]:
    """What the episode browser shows of an episode: pictures at most `SIDE` pixels long, masks as run lengths of that
    size."""
    scale = min(1.0, SIDE / max(task.height, task.width))
    width, height = max(1, round(task.width * scale)), max(1, round(task.height * scale))
    image = cv2.resize(task.image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else task.image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=82)

    def small(mask: np.ndarray) -> str:
        return encode_mask(cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT))

    ignored = ignored_of(task.target)
    return {
        "id": task.id,
        "sample": episode.sample,
        "group": group,
        "instruction": task.instruction,
        "size": [task.width, task.height],
        "shown": [width, height],
        "image": data_uri(buffer.getvalue(), "image/jpeg"),
        "target": small(object_of(task.target)),
        "ignored": None if ignored is None else small(ignored),
        "start": {"iou": episode.start_iou, "mask": small(episode.mask(0))},
        "stopped": episode.stopped,
        "steps": [_step(step, small(episode.mask(k)), episode.steps[:k]) for k, step in enumerate(episode.steps, 1)],
    }


def _step(step: Step, mask: str, so_far: Iterable[Step]) -> dict[str, Any]:
    return {
        "text": step.text,
        "action": describe(step.action),
        "kind": step.action["type"],
        "positive": step.action.get("positive"),
        "iou": step.iou,
        "reward": step.reward,
        "score": step.score,
        "stated": step.stated_iou,
        "error": step.error,
        "mask": mask,
        "clicks": [[click.x, click.y, click.positive] for click in clicks_of(so_far)],
    }


def describe(action: dict[str, Any]) -> str:
    """An action of `rollout.action_to_json` in words."""
    kind = action["type"]
    if kind == "click":
        return f"{'positive' if action['positive'] else 'negative'} click at x = {action['x']}, y = {action['y']}"
    if kind == "box":
        return f"box from ({action['x0']:g}, {action['y0']:g}) to ({action['x1']:g}, {action['y1']:g})"
    return f"invalid reply: {action['reason']}" if kind == "invalid" else kind
