"""Report of a StaR run: a table, `metrics.csv`, TensorBoard scalars, plots, and a page that shows episodes before and
after."""

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.common.episode_viewer import describe, payload, write_episodes
from experiments.common.html import data_uri, write_report
from experiments.common.run_folder import RunFolder, finite, write_atomic
from experiments.common.tables import Table, interval
from experiments.star import plots as star_plots
from search.episode import Episode, clicks_of
from segenv import render
from segenv.seeds import seed_of
from segenv.types import Click, Task, object_of

MEASURES = (  # (key in metrics.json, name, digits, what is better)
    ("miou", "mIoU", 4, "higher"),
    ("best_iou", "best IoU", 4, "higher"),
    ("boundary_iou", "boundary IoU", 4, "higher"),
    ("noc/85", "clicks to 0.85 IoU (NoC@85)", 2, "lower"),
    ("nof_never/85", "episodes never at 0.85 IoU", 0, "lower"),
    ("first_click_in_object", "first click in the object", 3, "higher"),
    ("clicks_on_error/1", "clicks on a true error, step 1", 3, "higher"),
    ("clicks_on_error/2", "clicks on a true error, step 2", 3, "higher"),
    ("clicks_on_error/3", "clicks on a true error, step 3", 3, "higher"),
    ("clicks_on_error/all", "clicks on a true error", 3, "higher"),
    ("stop_rate", "stopped by itself", 3, ""),
    ("stop_accuracy", "stop accuracy", 3, "higher"),
    ("stop_precision", "stops that were due (precision)", 3, "higher"),
    ("stop_recall", "due stops that were made (recall)", 3, "higher"),
    ("stop_accuracy_at_iou", "stop accuracy by IoU alone", 3, "higher"),
    ("invalid_rate", "invalid replies", 3, "lower"),
)
FRAME = 224  # pixels of the longer side of a step's picture


class Scalar(NamedTuple):
    """A row of metrics.csv. `value` and the ends of its 95 % interval are None where they are not defined."""

    round: int
    measure: str
    value: float | None
    low: float | None
    high: float | None


def scalars(numbers: dict[str, Any]) -> list[Scalar]:
    """List every measure of every policy and round with its interval, for metrics.csv and TensorBoard."""
    rows = []
    for group, prefix in (("policies", "held_out"), ("lessons", "lessons")):
        for entry in numbers[group]:
            values = {key: value for key, value in entry.items() if key not in ("round", "intervals", "seconds")}
            for measure, value, bounds in _leaves(values, entry.get("intervals", {}), prefix):
                rows.append(Scalar(entry["round"], measure, value, *bounds))
    return rows


def _leaves(values: Mapping, intervals: Mapping, prefix: str) -> Iterator[tuple[str, Any, Sequence[Any]]]:
    """Yield the leaves of a tree by path, each with its interval from a tree of the same keys."""
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, intervals.get(key, {}), name)
        else:
            yield name, value, intervals.get(key, (None, None))


def table(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one row for each measure: its name, which direction is better, and for each policy the value, its interval,
    and the paired change against S_0; "" where one is not defined."""
    policies = [
        {measure: (value, bounds) for measure, value, bounds in _leaves(policy, policy["intervals"], "")}
        for policy in numbers["policies"]
    ]

    def cell(n: int, key: str, digits: int, better: str) -> dict[str, str]:
        value, bounds = policies[n].get(f"/{key}", (None, (None, None)))  # an episode may have fewer steps
        gain, ends = policies[n].get("/gain" if key == "miou" else f"/gains/{key}", (None, (None, None)))
        return {
            "value": "" if value is None else f"{value:.{digits}f}",
            "interval": interval(bounds, digits),
            "gain": "" if not n or gain is None else f"{gain:+.{digits}f}",
            "between": "" if not n or ends[0] is None else "{:+.{d}f} to {:+.{d}f}".format(*ends, d=digits),
            "verdict": _verdict(ends, better),
        }

    return [
        {"name": name, "better": better, "cells": [cell(n, key, digits, better) for n in range(len(policies))]}
        for key, name, digits, better in MEASURES
    ]


def _verdict(bounds: Sequence[float | None], better: str) -> str:
    """ "best" or "worst" where a difference is surely for the better or for the worse, else ""."""
    low, high = bounds
    if low is None or high is None or not better or low <= 0 <= high:
        return ""
    return "best" if (low > 0) == (better == "higher") else "worst"


def text(numbers: dict[str, Any]) -> str:
    """Format the results for a terminal."""
    rows = []
    for row in table(numbers):
        rows.append([row["name"], *(_beside(cell["value"], cell["interval"]) for cell in row["cells"])])
        if row["name"] == "mIoU":
            gains = [_beside(cell["gain"], cell["between"]) for cell in row["cells"][1:]]
            rows.append(["gain over S_0, paired", "", *gains])
    header = ["", *(f"S_{policy['round']}" for policy in numbers["policies"])]
    head = f"{numbers['policies'][0]['episodes']} held-out episodes, 95 % intervals"
    shown = [_examples_text(each) for each in numbers["lessons"] if each["rows"] or each["round"]]
    return "\n".join([head, Table(header, rows).text(), *shown])


def _beside(value: str, bounds: str) -> str:
    return f"{value or '–'}  [{bounds}]" if bounds else value or "–"


def _examples_text(examples: dict[str, Any]) -> str:
    rows = f"D_{examples['round']}: {examples['rows']} rows"
    if not examples.get("actions"):
        return rows
    shares = []
    for name in ("accepted", "corrected", "dropped"):
        low, high = examples["intervals"][name]
        shares.append(f"{100 * examples[name]:.1f} % [{100 * low:.1f} – {100 * high:.1f}] {name}")
    return f"{rows} of {examples['actions']} actions: {', '.join(shares)}"


def write(
    folder: RunFolder,
    numbers: dict[str, Any],
    ends: Sequence[Sequence[Episode]],
    load: Callable[[str], Task],
    limit: int,
) -> None:
    """Write metrics.csv, tensorboard/, plots/ and report.html. `ends` are the held-out episodes of the first and of the
    last policy, in the same order; the page shows at most `limit` tasks."""
    numbers = finite(numbers)
    about = folder.manifest()
    logs = {}
    for policy in numbers["policies"]:
        trained = folder.read_json(f"round{policy['round']}/policy/sft.json") or {}
        logs[policy["round"]] = trained.get("log") or []
    write_atomic(folder / "metrics.csv", Table(Scalar._fields, scalars(numbers)).csv())
    write_tensorboard(folder, numbers, logs)
    plots = star_plots.draw(numbers, [[episode.final_iou for episode in episodes] for episodes in ends], logs)
    names = ("S_0", f"S_{numbers['policies'][-1]['round']}")
    pairs = {before.task: (before, after) for before, after in zip(*ends, strict=True)}
    groups = choose(ends, limit)
    shown = {name: load(name) for name in groups}
    protocol = numbers["protocol"]
    title = f"{protocol['variant']} of {protocol['agent']} on {protocol['data']}"
    strips = [strip(shown[name], pairs[name], names, groups[name]) for name in groups]
    episodes = [payload(shown[name], pairs[name][k], names[k]) for k in (0, 1) for name in groups]
    context = {"title": title, "numbers": numbers, "rows": table(numbers), "manifest": about, "names": names}
    view = write_episodes(folder.path, episodes, len(episodes))
    write_report(folder, "star.html", plots, strips=strips, episodes=view, **context)


def write_tensorboard(folder: RunFolder, numbers: dict[str, Any], logs: Mapping[int, Sequence]) -> None:
    """Write tensorboard/ anew, so that a resumed run has every value once: measures by round with their intervals, and
    for each policy the IoU by action and `logs` of its training, [step, loss] pairs."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("no tensorboard/ in the run: the package is not installed; pip install tensorboard", file=sys.stderr)
        return
    board = folder / "tensorboard"
    shutil.rmtree(board, ignore_errors=True)
    tags = {name: f"held_out/{key}" for key, name, *_ in (*MEASURES, ("gain", "gain over S_0, paired"))}
    margins = {name: ["Margin", [tag, f"low/{tag}", f"high/{tag}"]] for name, tag in tags.items()}
    with SummaryWriter(str(board / "rounds")) as writer:
        for row in scalars(numbers):
            for prefix, value in (("", row.value), ("low/", row.low), ("high/", row.high)):
                if value is not None:
                    writer.add_scalar(prefix + row.measure, value, row.round)
        writer.add_custom_scalars({"held-out tasks by round, 95 % intervals": margins})
    for policy in numbers["policies"]:
        with SummaryWriter(str(board / f"S_{policy['round']}")) as writer:
            for k, value in policy["iou_at"].items():
                writer.add_scalar("iou_by_action", value, int(k))
            for step, loss in logs[policy["round"]]:
                writer.add_scalar("training_loss", loss, int(step))
    for path in board.glob("*/events.out.tfevents.*"):
        path.rename(path.with_name("events.out.tfevents.0"))  # without the name of the machine


def choose(ends: Sequence[Sequence[Episode]], limit: int) -> dict[str, str]:
    """Choose at most `limit` tasks to show, by the gain from the first policy to the last: up to a third that gained
    most, up to a third that lost most, and the rest sampled; id to the group's name."""
    gains = {first.task: last.final_iou - first.final_iou for first, last in zip(*ends, strict=True)}
    ranked = sorted(gains, key=lambda name: (-gains[name], name))
    groups = {name: "gained most" for name in ranked[: limit // 3] if gains[name] > 0}
    groups |= {name: "lost most" for name in ranked[::-1][: limit // 3] if gains[name] < 0}
    sampled = [name for name in sorted(gains, key=lambda name: seed_of("report", name)) if name not in groups]
    return groups | dict.fromkeys(sampled[: limit - len(groups)], "drawn at random")


def strip(task: Task, pair: Sequence[Episode], names: Sequence[str], group: str) -> dict[str, Any]:
    """Collect for the page a task's target, and each step's picture, reply and IoU of two episodes."""
    first, last = pair
    start = first.mask(0)
    plays: list[dict[str, Any]] = []
    for name, episode in zip(names, pair, strict=True):
        steps = [_moment(task, episode, k) for k in range(1, len(episode.steps) + 1)]
        plays.append({"name": name, "final": episode.final_iou, "stopped": episode.stopped, "steps": steps})
    return {
        "id": task.id,
        "group": group,
        "instruction": task.instruction,
        "gain": last.final_iou - first.final_iou,
        "start_iou": first.start_iou if start.any() else None,
        "target": _picture(task, object_of(task.target), start),
        "plays": plays,
    }


def _moment(task: Task, episode: Episode, k: int) -> dict[str, Any]:
    """Collect step `k` (from 1) of an episode."""
    step = episode.steps[k - 1]
    before = episode.ious[k - 2] if k > 1 else episode.start_iou
    return {
        "picture": _picture(task, episode.mask(k), episode.mask(k), clicks_of(episode.steps[:k])),
        "text": step.text,
        "action": describe(step.action),
        "kind": step.action["type"],
        "iou": step.iou,
        "change": step.iou - before,
    }


def _picture(task: Task, lit: np.ndarray, mask: np.ndarray, clicks: Sequence[Click] = ()) -> str:
    """Render mask, clicks and the target's boundary over the image, dimmed outside `lit`, as a data URL."""
    image = np.where(lit[..., None], task.image, task.image // 5 * 2)
    picture = render.frame(image, mask, clicks, task.target, size=FRAME)[: -render.CAPTION]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=80)
    return data_uri(buffer.getvalue(), "image/webp")
