"""Report of tree searches: tables, plots, and a page that shows the trees."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import cv2
import numpy as np
from PIL import Image

from experiments.common.episode_viewer import describe
from experiments.common.html import data_uri, jpeg_uri, write_report
from experiments.common.plots import new_axes, new_figure, png
from experiments.common.run_folder import RunFolder, write_atomic
from experiments.common.tables import Table, interval, number
from experiments.tree_search.metrics import COSTS, Condition, Record, column, labelled
from search.budget import AXES
from search.episode import action_to_json, check_action
from search.tree import Tree
from segenv import metrics, statistics
from segenv.geometry.rle import decode_mask, encode_mask
from segenv.records import reader
from segenv.types import Task, object_of

SHOWN_STEPS = ("1", "2", "3")  # of the shares of clicks on a true error
SIDE = 320  # pixels of a thumbnail's longer side; the page shows it smaller, and larger where it is chosen
Results = Mapping[Condition, Sequence[Record]]


def write(
    folder: RunFolder, results: Results, numbers: dict[str, Any], about: dict[str, Any], load: Callable[[str], Task]
) -> None:
    """Write tables, plots and report.html. `load` gives the task of an id."""
    compared, equal, steps = comparison(numbers), equal_cost_table(numbers), steps_table(numbers)
    write_atomic(folder / "table.txt", text(numbers) + "\n")
    write_atomic(folder / "table.md", "\n".join(table.markdown() for table in (compared, equal, steps) if table.rows))
    write_atomic(folder / "table.csv", all_digits(numbers).csv())
    protocol, column = numbers["protocol"], compared.header.index("budget")
    bounded, free = (
        Table(compared.header, [row for row in compared.rows if (row[column] == "none") is unbounded], "<")
        for unbounded in (False, True)
    )
    named = {"At equal budgets": bounded, "K > 1 and as many replies without branching": equal}
    named |= {"Greedy search by steps": steps, "Without a budget": free}
    title = f"Tree search over {protocol['agent']} with {protocol['tool']} on {protocol['data']}"
    trees = forest(folder.records("trees.jsonl", read_tree), load, list(results))
    context = {"title": title, "numbers": numbers, "tables": named, "manifest": about, "forest": trees}
    write_report(folder, "tree_search.html", plot_all(results, numbers), **context)


def comparison(numbers: Mapping) -> Table:
    """Compare all conditions, the oracle's last, as they compete with none."""
    header = ["search", "value", "K", "depth", "budget", "mIoU", "interval", "to K = 1", "interval", "to greedy"]
    header += ["interval", "to last mask", "interval", "best in tree", "regret to oracle", "interval", "place"]
    header += ["best on path", "first click", *(f"on error @{k}" for k in SHOWN_STEPS)]
    rows = sorted(numbers["conditions"], key=lambda row: (row["privileged"], row["depth"], row["budget"], row["value"]))
    cells = [
        [
            row["algorithm"],
            labelled(row["value"]),
            str(row["k"]),
            str(row["depth"]),
            row["budget"],
            f"{row['miou']:.4f}",
            interval(row["interval"]),
            *_signed(row["gain"]),
            *_signed(row["over_greedy"]),
            *_signed(row["over_last"]),
            f"{row['in_tree']:.4f}",
            *_signed(row["regret"]),
            "" if row["place"] is None else f"{row['place'][0]} of {row['place'][1]}",
            number(row["on_path"]),
            number(row["first_click_in_object"], 3),
            *(number((row["clicks_on_error"] or {}).get(k), 3) for k in SHOWN_STEPS),
            *(f"{row['spent'][axis]:.{2 if axis == 'seconds' else 1}f}" for axis in AXES),
        ]
        for row in rows
    ]
    return Table([*header, *COSTS.values()], cells, "<")


def equal_cost_table(numbers: Mapping) -> Table:
    """Compare searches of K > 1 with their controls that spend as many replies without branching, costs beside."""
    header = ["search", "value", "K", "mIoU", "replies", "tool calls", "control", "mIoU", "replies", "tool calls"]
    header += ["difference", "interval"]
    rows = {(row["search"], row["depth"]): row for row in numbers["conditions"]}
    cells = []
    for line in numbers["equal_cost"]:
        row, control = rows[line["search"], line["depth"]], rows[line["control_search"], line["control_depth"]]
        own, others = (
            [f"{one['miou']:.4f}", *(f"{one['spent'][axis]:.1f}" for axis in ("policy_calls", "tool_calls"))]
            for one in (row, control)
        )
        names = [row["algorithm"], labelled(row["value"]), str(row["k"])]
        cells.append([*names, *own, line["control"], *others, *_signed(line["difference"])])
    return Table(header, cells, "<")


def steps_table(numbers: Mapping) -> Table:
    """Compare greedy searches by number of steps."""
    header = ["steps", "K", "value", "last mask", "interval", "best-valued so far", "interval", "to last mask"]
    header += ["interval", "to K = 1", "interval"]
    rows = []
    for row in sorted(
        numbers["steps"], key=lambda row: (row["value"] == "oracle", row["k"], row["value"], row["step"])
    ):
        cells = [str(row["step"]), str(row["k"]), labelled(row["value"]), f"{row['last']:.4f}"]
        cells.append(interval(row["last_interval"]))
        if "chosen" in row:
            cells += [f"{row['chosen']:.4f}", interval(row["chosen_interval"]), *_signed(row["gain"])]
            cells += _signed(row.get("over_one"))
        rows.append(cells + [""] * (len(header) - len(cells)))
    return Table(header, rows, "<")


def _signed(difference: Sequence[float] | None) -> list[str]:
    return ["", ""] if difference is None else [number(difference[0], sign="+"), interval(difference[1:], sign="+")]


def text(numbers: Mapping) -> str:
    """Format the tables for a terminal."""
    parts = [f"{numbers['tasks']} tasks, each searched under {len(numbers['conditions'])} conditions"]
    parts.append(comparison(numbers).text())
    if numbers["equal_cost"]:
        parts.append("K > 1 and as many replies without branching\n" + equal_cost_table(numbers).text())
    if numbers["steps"]:
        parts.append("greedy search by steps\n" + steps_table(numbers).text())
    return "\n\n".join(parts)


def all_digits(numbers: Mapping) -> Table:
    """Compare all conditions by numbers with all their digits, one row a condition, for a CSV file."""
    triples = {"miou": "interval"} | dict.fromkeys(("gain", "over_greedy", "over_last", "regret"))
    header = ["search", "algorithm", "k", "depth", "value", "budget", "privileged"]
    header += [f"{key}{end}" for key in triples for end in ("", "_low", "_high")]
    header += ["in_tree", "place", "steps", "deepest", "nodes", *AXES]
    rows = []
    for row in numbers["conditions"]:
        cells = {**row, **row["spent"], "place": row["place"] and row["place"][0]}
        for key, ends in triples.items():
            found = [row[key], *row[ends]] if ends else row[key] or [None] * 3
            cells |= dict(zip((key, f"{key}_low", f"{key}_high"), found, strict=True))
        rows.append([cells[name] for name in header])
    return Table(header, rows)


def plot_all(results: Results, numbers: Mapping) -> dict[str, bytes]:
    """Plot the ranks and the cost curves of each depth, budget and value source, and the steps; PNGs by name."""
    plots = {"steps": plot_steps(numbers["steps"])} if numbers["steps"] else {}
    costs = {}
    groups: dict[tuple[int, str, str], list[Condition]] = {}
    for condition in results:
        parsed = condition.parsed
        if not condition.privileged and parsed.value != "none" and parsed.config.limits.finite():
            groups.setdefault((condition.depth, condition.budget, parsed.value), []).append(condition)
    for (depth, budget, value), group in groups.items():
        if len(group) == 1:  # the control of another depth
            continue
        name = "".join(sign if sign.isalnum() else "_" for sign in f"{value}_{depth}_{budget}")
        title = f"value {value}, {depth} steps, budget {budget}"
        plots[f"places_{name}"] = plot_ranks(results, group, title)
        costs[f"costs_{name}"] = plot_costs(results, group, title)
    return plots | costs


def plot_ranks(results: Results, group: Sequence[Condition], title: str) -> bytes:
    """Plot each search's mIoU with its interval, the best on top, and its oracle's beside it."""
    ious = {condition: column(results[condition], "iou") for condition in group}
    ordered = sorted(group, key=lambda condition: ious[condition].mean())
    axes = new_axes(new_figure(6.4, 1.4 + 0.3 * len(ordered)))
    for y, condition in enumerate(ordered):
        low, high = statistics.bootstrap(ious[condition])
        axes.plot([low, high], [y, y], color="#1f6feb", linewidth=1.8)
        axes.plot(ious[condition].mean(), y, "o", color="#1f6feb", label=None if y else "the search, 95 % interval")
        bound = condition.like(value="oracle")
        if bound in results:
            label = None if y else "the same with oracle (reads the target)"
            axes.plot(column(results[bound], "iou").mean(), y, "D", mfc="none", color="#66707a", label=label)
    axes.set_title(title, fontsize=10)
    axes.set_yticks(range(len(ordered)), [f"{c.name}, K = {c.k}" for c in ordered])
    return png(axes, "outside lower center", 8, xlabel="mean IoU")


def plot_costs(results: Results, group: Sequence[Condition], title: str) -> bytes:
    """Plot the mean IoU of the best-valued mask so far over each cost: a line for each search at its largest K and for
    greedy at its smallest, and the best that any oracle search has by then."""
    most = max(condition.k for condition in group)
    lines = [condition for condition in group if condition.k in (most, 1)]
    bounds = [c.like(value="oracle") for c in lines if c.like(value="oracle") in results]
    shown = [axis for axis in AXES if max(column([r["spent"] for r in results[c]], axis).max() for c in lines) > 0]
    rows, columns = -(-len(shown) // 3), min(3, len(shown))
    figure = new_figure(4.2 * columns, 3.4 * rows + 0.8)
    for index, axis in enumerate(shown):
        axes = new_axes(figure, rows, columns, index + 1)
        end = max(float(np.mean([record["spent"][axis] for record in results[c]])) for c in lines)
        grid = np.linspace(0, end, 61)
        heights = [column(results[c], "iou").mean() for c in (*lines, *bounds)]
        if bounds:
            bound = np.max([curve(results[c], axis, grid) for c in bounds], axis=0)
            axes.step(grid, bound, "--", where="post", color="#66707a", label="best with oracle (reads the target)")
        for condition in lines:
            style = ":" if condition.k == 1 else "-"
            label = f"{condition.name}, K = {condition.k}"
            axes.step(grid, curve(results[condition], axis, grid), style, where="post", linewidth=1.6, label=label)
        span = max(max(heights) - min(heights), 0.02)  # the start, an empty mask, lies far below and is not shown
        axes.set(xlabel=f"{COSTS[axis]} a task", ylabel="mean IoU", ylim=(min(heights) - span, max(heights) + span / 2))
        if not index:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return png(axes)


def curve(records: Sequence[Record], axis: str, grid: np.ndarray) -> np.ndarray:
    """Mean over tasks of the IoU that a search would return if it were stopped once it has spent so much, [grid]."""
    ious = np.zeros((len(records), len(grid)))
    for i, record in enumerate(records):
        trace = np.array(record["trace"], np.float64)
        spent = trace[:, AXES.index(axis)]
        ious[i] = trace[np.maximum(np.searchsorted(spent, grid, side="right") - 1, 0), len(AXES)]
    return ious.mean(0)


def plot_steps(rows: Sequence[Mapping]) -> bytes:
    """Plot greedy search by steps: the best-valued mask so far, for each value source and K, and the last mask
    (dotted). At K = 1 the last mask is the policy's own whatever the values, and is plotted once."""
    axes = new_axes()
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
    ticks = sorted({row["step"] for row in rows})
    return png(axes, "outside lower center", 8, xlabel="steps", ylabel="mean IoU", xticks=ticks)


class NodeRecord(TypedDict):
    """A node of a line of trees.jsonl."""

    parent: int
    step: int
    action: dict | None
    text: str | None
    error: str | None
    value: float | None
    prior: float | None
    visits: int
    iou: float
    mask: str | None


class TreeRecord(TypedDict):
    """A line of trees.jsonl."""

    search: str
    depth: int
    task: str
    nodes: list[NodeRecord]
    best: int
    last: int
    spent: dict[str, float]


def read_tree(value: Any) -> TreeRecord:
    """Read a line of trees.jsonl. Raises ValueError where it is another thing."""
    tree = reader(TreeRecord)(value)
    for k, node in enumerate(tree["nodes"]):
        if not -1 <= node["parent"] < k or (node["mask"] is None and node["parent"] < 0):
            raise ValueError(f"nodes[{k}] has parent {node['parent']}, which is none before it")
        if node["action"] is not None:
            check_action(node["action"])
    return tree


def tree_to_json(condition: Condition, tree: Tree) -> dict[str, Any]:
    """Convert a tree to JSON. A node has a mask where it differs from the parent's."""
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
    """Data of the page: the tasks' pictures, every mask once, and the trees in the order of the conditions."""
    page: dict[str, Any] = {"tasks": {}, "masks": [], "trees": []}
    known: dict[tuple[str, str], int] = {}  # index in `masks`, by task and run lengths

    def index_of(task: Task, counts: str) -> int:
        if (task.id, counts) not in known:
            known[task.id, counts] = len(page["masks"])
            page["masks"].append(mask_uri(decode_mask(counts, task.height, task.width), (32, 200, 90)))
        return known[task.id, counts]

    tasks: dict[str, Task] = {}
    for tree in trees:
        task = tasks.setdefault(tree["task"], load(tree["task"]))
        if task.id not in page["tasks"]:
            page["tasks"][task.id] = picture(task)
        nodes: list[dict[str, Any]] = []
        for node in tree["nodes"]:
            mask = nodes[node["parent"]]["mask"] if node["mask"] is None else index_of(task, node["mask"])
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
        page["trees"].append({**tree, **about, "nodes": nodes})
    page["trees"].sort(key=lambda tree: tree["order"])
    return page


def picture(task: Task) -> dict[str, Any]:
    """A task's image and its target's boundary, for the page."""
    shape = _small(task.height, task.width)
    inside = cv2.resize(object_of(task.target).astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST_EXACT)
    boundary = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)
    return {
        "instruction": task.instruction,
        "size": [task.width, task.height],
        "image": jpeg_uri(cv2.resize(task.image, shape, interpolation=cv2.INTER_AREA)),
        "target": mask_uri(boundary, (255, 214, 0), 255),
    }


def _small(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def mask_uri(mask: np.ndarray, colour: tuple[int, int, int], alpha: int = 140) -> str:
    """A bool mask [H, W] as a PNG of two colours, nothing and `colour`, at most `SIDE` pixels long."""
    picture = Image.fromarray(
        cv2.resize(mask.astype(np.uint8), _small(*mask.shape), interpolation=cv2.INTER_NEAREST_EXACT), "P"
    )
    picture.putpalette([0, 0, 0, *colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", bits=1, transparency=bytes([0, alpha]), optimize=True)
    return data_uri(buffer.getvalue(), "image/png")
