"""The plots of tree searches, and a page that shows the trees themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from experiments.common.episode_viewer import describe
from experiments.common.html import data_uri, write_html
from experiments.common.plots import figure_and_axes, png
from experiments.common.run_folder import RunFolder, write_atomic
from experiments.tree_search import tables
from experiments.tree_search.metrics import COSTS, Condition, Record, column, labelled
from search.budget import AXES
from search.episode import action_to_json, decode_mask
from search.tree import Tree
from segenv import metrics, statistics
from segenv.data.trajectories.record import encode_mask
from segenv.types import Task, object_of

SIDE = 320  # pixels of a thumbnail's longer side; the page shows it smaller, and larger where it is chosen
Results = Mapping[Condition, Sequence[Record]]


def write(
    folder: RunFolder,
    results: Results,
    numbers: dict[str, Any],
    about: dict[str, Any],
    load: Callable[[str], Task],
) -> None:
    """Tables, plots and report.html. `load` gives the task of an id."""
    write_atomic(folder / "table.txt", tables.text(numbers) + "\n")
    write_atomic(folder / "table.md", tables.markdown(numbers))
    write_atomic(folder / "table.csv", tables.comma_separated(numbers))
    plots = draw(results, numbers)
    for name, content in plots.items():
        write_atomic(folder / "plots" / f"{name}.png", content)
    protocol = numbers["protocol"]
    compared, place = tables.table(numbers), tables.HEADERS.index("budget")
    write_html(
        folder / "report.html",
        "tree_search.html",
        title=f"Tree search over {protocol['agent']} with {protocol['tool']} on {protocol['data']}",
        numbers=numbers,
        tables=[
            {"name": name, "headers": headers, "rows": rows}
            for name, headers, rows in (
                ("At equal budgets", tables.HEADERS, [row for row in compared if row[place] != "none"]),
                ("Greedy search by steps", tables.STEP_HEADERS, tables.steps_table(numbers)),
                ("Without a budget", tables.HEADERS, [row for row in compared if row[place] == "none"]),
            )
        ],
        plots={name: data_uri(content, "image/png") for name, content in plots.items()},
        manifest=about,
        forest=forest(folder.records("trees.jsonl"), load, list(results)),
    )


# --------------------------------------------------------------------------------------------------------------- plots


def draw(results: Results, numbers: Mapping) -> dict[str, bytes]:
    """All plots by name: for each depth, budget and value source the places and the cost curves, and the steps."""
    plots = {"steps": plot_steps(numbers["steps"])} if numbers["steps"] else {}
    costs = {}
    groups: dict[tuple[int, str, str], list[Condition]] = {}
    for condition in results:
        parsed = condition.parsed
        if not condition.privileged and parsed.value != "none" and parsed.config.limits.finite():
            groups.setdefault((condition.depth, condition.budget, parsed.value), []).append(condition)
    for (depth, budget, value), group in groups.items():
        name = "".join(sign if sign.isalnum() else "_" for sign in f"{value}_{depth}_{budget}")
        title = f"value {value}, {depth} steps, budget {budget}"
        plots[f"places_{name}"] = plot_places(results, group, title)
        costs[f"costs_{name}"] = plot_costs(results, group, title)
    return plots | costs


def plot_places(results: Results, group: Sequence[Condition], title: str) -> bytes:
    """Each search's mIoU with its interval, the best on top, and its oracle's beside it."""
    figure, axes = figure_and_axes()
    ious = {condition: column(results[condition], "iou") for condition in group}
    ordered = sorted(group, key=lambda condition: ious[condition].mean())
    figure.set_size_inches(6.4, 1.4 + 0.3 * len(ordered))
    for y, condition in enumerate(ordered):
        low, high = statistics.bootstrap(ious[condition])
        axes.plot([low, high], [y, y], color="#1f6feb", linewidth=1.8)
        axes.plot(ious[condition].mean(), y, "o", color="#1f6feb", label=None if y else "the search, 95 % interval")
        ceiling = condition.like(value="oracle")
        if ceiling in results:
            label = None if y else "the same with oracle (reads the target)"
            axes.plot(column(results[ceiling], "iou").mean(), y, "D", mfc="none", color="#66707a", label=label)
    axes.set(yticks=range(len(ordered)), yticklabels=[f"{c.name}, K = {c.k}" for c in ordered], xlabel="mean IoU")
    axes.set_title(title, fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return png(figure)


def plot_costs(results: Results, group: Sequence[Condition], title: str) -> bytes:
    """Mean IoU of the best-valued mask so far over each cost: a line for each search at its largest K and for greedy at
    its smallest, and the best that any oracle search has by then."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(condition.k for condition in group)
    lines = [condition for condition in group if condition.k in (most, 1)]
    ceilings = [c.like(value="oracle") for c in lines if c.like(value="oracle") in results]
    shown = [axis for axis in AXES if max(column([r["spent"] for r in results[c]], axis).max() for c in lines) > 0]
    figure = Figure(figsize=(4.2 * min(3, len(shown)), 3.4 * -(-len(shown) // 3) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    for place, axis in enumerate(shown):
        axes = figure.add_subplot(-(-len(shown) // 3), min(3, len(shown)), place + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        end = max(float(np.mean([record["spent"][axis] for record in results[c]])) for c in lines)
        grid = np.linspace(0, end, 61)
        heights = [column(results[c], "iou").mean() for c in (*lines, *ceilings)]
        if ceilings:
            ceiling = np.max([curve(results[c], axis, grid) for c in ceilings], axis=0)
            axes.step(grid, ceiling, "--", where="post", color="#66707a", label="best with oracle (reads the target)")
        for condition in lines:
            style = ":" if condition.k == 1 else "-"
            label = f"{condition.name}, K = {condition.k}"
            axes.step(grid, curve(results[condition], axis, grid), style, where="post", linewidth=1.6, label=label)
        span = max(max(heights) - min(heights), 0.02)  # the start, an empty mask, lies far below and is not shown
        axes.set(xlabel=f"{COSTS[axis]} a task", ylabel="mean IoU", ylim=(min(heights) - span, max(heights) + span / 2))
        if not place:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return png(figure)


def curve(records: Sequence[Record], axis: str, grid: np.ndarray) -> np.ndarray:
    """Mean over tasks of the IoU that a search would return if it were stopped once it has spent so much, [grid]."""
    ious = np.zeros((len(records), len(grid)))
    for i, record in enumerate(records):
        trace = np.array(record["trace"], np.float64)
        spent = trace[:, AXES.index(axis)]
        ious[i] = trace[np.maximum(np.searchsorted(spent, grid, side="right") - 1, 0), len(AXES)]
    return ious.mean(0)


def plot_steps(rows: Sequence[Mapping]) -> bytes:
    """Greedy search by steps: the best-valued mask so far, for each value source and K, and the last mask (dotted). At
    K = 1 the last mask is the policy's own whatever the values, and is drawn once."""
    figure, axes = figure_and_axes()
    plain = any(row["value"] == "none" for row in rows)
    for value, k in dict.fromkeys((row["value"], row["k"]) for row in rows):
        part = [row for row in rows if (row["value"], row["k"]) == (value, k)]
        steps, privileged = [row["step"] for row in part], value == "oracle"
        colour = None
        if value != "none":
            label = f"best by {labelled(value)}, K = {k}"
            chosen, style = [row["chosen"] for row in part], "--" if privileged else "-"
            (line,) = axes.plot(steps, chosen, style, marker="o", label=label)
            colour = line.get_color()
        if value == "none" or not privileged and (k > 1 or not plain):
            label = f"last mask, K = {k}" + (f", by {value}" if value != "none" else "")
            axes.plot(steps, [row["last"] for row in part], ":", marker=".", color=colour or "#3b434b", label=label)
    axes.set(xlabel="steps", ylabel="mean IoU", xticks=sorted({row["step"] for row in rows}))
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return png(figure)


# --------------------------------------------------------------------------------------------------------------- trees


def kept(condition: Condition, tree: Tree) -> dict[str, Any]:
    """A tree as what JSON holds. A mask is told where it differs from the parent's."""
    nodes = []
    for node in tree.nodes:
        above = node.parent
        same = above is not None and above.state.packed is node.state.packed
        nodes.append(
            {
                "parent": -1 if above is None else above.index,
                "step": node.state.step,
                "action": None if node.action is None else action_to_json(node.action),
                "text": node.text,
                "error": node.state.error,
                "value": node.value,
                "prior": node.prior,
                "visits": node.visits,
                "iou": float(metrics.iou(tree.task.target, node.state.mask)),
                "mask": None if same else encode_mask(node.state.mask),
            }
        )
    last = tree.last or tree.root
    chosen = {"best": tree.best.index, "last": last.index, "spent": vars(tree.budget.spent)}
    return {"search": condition.search, "depth": condition.depth, "task": tree.task.id, "nodes": nodes, **chosen}


def forest(trees: Any, load: Callable[[str], Task], order: Sequence[Condition]) -> dict[str, Any]:
    """What the page draws: the tasks' pictures, every mask once, and the trees in the order of the conditions."""
    found: dict[str, Any] = {"tasks": {}, "masks": [], "trees": []}
    known: dict[tuple[str, str], int] = {}  # of a task and a mask's run lengths: where it is in `masks`

    def place(task: Task, counts: str) -> int:
        if (task.id, counts) not in known:
            known[task.id, counts] = len(found["masks"])
            found["masks"].append(mask_uri(decode_mask(counts, task.height, task.width), (32, 200, 90)))
        return known[task.id, counts]

    tasks: dict[str, Task] = {}
    for tree in trees:
        task = tasks.setdefault(tree["task"], load(tree["task"]))
        if task.id not in found["tasks"]:
            found["tasks"][task.id] = picture(task)
        nodes: list[dict[str, Any]] = []
        for node in tree["nodes"]:
            mask = nodes[node["parent"]]["mask"] if node["mask"] is None else place(task, node["mask"])
            action = node["action"]
            dot = [action["x"], action["y"], action["positive"]] if action and action["type"] == "click" else None
            words = "start" if action is None else describe(action)
            nodes.append({**node, "mask": mask, "action": words, "click": dot})
        condition = Condition(tree["search"], tree["depth"])
        value = labelled(condition.parsed.value)
        label = (
            f"{condition.name}, K = {condition.k}, value {value}, {condition.depth} steps, budget {condition.budget}"
        )
        about = {"label": label, "order": order.index(condition), "privileged": condition.privileged}
        found["trees"].append({**tree, **about, "nodes": nodes})
    found["trees"].sort(key=lambda tree: tree["order"])
    return found


def picture(task: Task) -> dict[str, Any]:
    """A task's image and its target's outline, for the page."""
    shape = _small(task)
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(task.image, shape, interpolation=cv2.INTER_AREA)).save(buffer, "JPEG", quality=82)
    inside = cv2.resize(object_of(task.target).astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST_EXACT)
    outline = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)
    return {
        "instruction": task.instruction,
        "size": [task.width, task.height],
        "image": data_uri(buffer.getvalue(), "image/jpeg"),
        "target": mask_uri(outline, (255, 214, 0), 255),
    }


def _small(task: Task) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(task.height, task.width))
    return max(1, round(task.width * scale)), max(1, round(task.height * scale))


def mask_uri(mask: np.ndarray, colour: tuple[int, int, int], alpha: int = 140) -> str:
    """A bool mask [H, W] as a PNG of two colours, nothing and `colour`, at most `SIDE` pixels long."""
    height, width = mask.shape
    scale = min(1.0, SIDE / max(height, width))
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(cv2.resize(mask.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST_EXACT), "P")
    picture.putpalette([0, 0, 0, *colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", bits=1, transparency=bytes([0, alpha]), optimize=True)
    return data_uri(buffer.getvalue(), "image/png")
