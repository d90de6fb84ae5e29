"""What the data of outlines decides: one choice varied at a time, all else equal (SimpleSeg's ablations in miniature).

    python -m experiments.polygon_ablation --vary order --out runs/order          # or vertices, codec

trains one model for each value of the choice, `--steps` steps from the same checkpoint over the same scenes, and lets
each outline the same held-out tasks. `order` is how the vertices of a ring stand; `vertices` how many an outline has at
most (dense ones are not simplified before), and so how many tokens a reply; `codec` how parts and holes are written,
whose effect depends on how well the start draws already (`--base`). Each training is a folder of its own in the run's,
and goes on where it was cut with `--resume DIR`. The table's differences are paired with the first arm's.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import agents
from agents.mllm import EMBEDDED, parse
from agents.outlines import RATIO
from agents.sft import identity
from experiments import sft_polygon
from experiments.polygons import Record, answers, measures
from experiments.report import columns, data_uri, figure_and_axes, markdown, png, write_html
from experiments.runs import RunError, RunFolder, manifest, parse_args, write_atomic
from experiments.sft_trainer import tiny_checkpoint
from segenv import metrics
from segenv.data.synthetic import Synthetic
from segenv.types import SegenvError

FREE = frozenset({"workers", "threads"})
GROUP = 50  # replies at a time, fixed, as a model's last bits depend on it
ARMS: dict[str, dict[str, dict[str, Any]]] = {  # the first of each is what the others are compared with
    "order": {name: {"order": name} for name in ("canonical", "reversed", "random-start", "random")},
    "vertices": {
        "middle": {"vertices": 12},
        "sparse": {"vertices": 5},
        "dense": {"vertices": 40, "ratio": 0.0},
    },
    "codec": {name: {"codec": name} for name in ("simpleseg", "simpleseg:contour=edges", "rings")},
}


@dataclass
class Args:
    """Vary one choice of the polygon data."""

    vary: Literal["order", "vertices", "codec"] = "order"
    """What the arms differ in."""
    out: str | None = None
    """folder of a new run; by default runs/polygon-VARY"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
    base: str = str(EMBEDDED)
    """Folder of the tiny checkpoint that every arm starts from, or the name of an embedded one; by default the embedded
    click policy."""
    steps: int = 1_500
    ratio: float = RATIO
    """As in experiments.sft; but 0 for dense outlines."""
    lessons: int = 8
    """Scenes a step."""
    tasks: int = 500
    """Held-out tasks of synthetic:val."""
    seed: int = 0
    workers: int = 1
    """Processes that make lessons; 0: the training makes them itself."""
    threads: int = 1


def run(args: Args) -> dict[str, Any]:
    """Train and measure every arm; returns what ablation.json holds."""
    if args.steps < 1 or args.tasks < 1:
        raise RunError(f"steps is {args.steps} and tasks {args.tasks}; expected 1 or more")
    for own in ARMS[args.vary].values():
        sft_polygon.check(settings(args, own))
    if not args.resume:
        tiny_checkpoint(args.base)  # what is wrong is said before anything is written
    out = args.resume or args.out or f"runs/polygon-{args.vary}"
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        data = Synthetic("val")[: args.tasks]
        folder.keep_manifest(manifest(args.seed, {}, {"data": data.fingerprint, "base": identity(parse(args.base)[0])}))
        records = {arm: _arm(args, folder, arm, own, data) for arm, own in ARMS[args.vary].items()}
        numbers = results(args, records)
        folder.write_json("ablation.json", numbers)
        _write(folder, numbers)
        folder.finish("ablation")
        return folder.read_json("ablation.json")


def settings(args: Args, own: dict[str, Any]) -> sft_polygon.Args:
    """The settings of an arm's training."""
    shared = sft_polygon.Args(
        base=args.base,
        draw_steps=args.steps,
        cooldown=args.steps // 2,
        ratio=args.ratio,
        lessons=args.lessons,
        seed=args.seed,
        workers=args.workers,
        threads=args.threads,
        measure_every=args.steps,
    )
    return replace(shared, **own)


def _arm(args: Args, folder: RunFolder, arm: str, own: dict[str, Any], data: Any) -> list[Record]:
    """Train one arm, unless it is trained, and its greedy reply to each held-out task, unless it has replied."""
    name = arm.replace(":", "-")
    path, replies = folder / name, f"{name}.jsonl"
    print(f"[{path}]", file=sys.stderr)
    if not RunFolder(path).done("sft"):
        where: dict[str, Any] = {"resume": str(path)} if (path / "config.yaml").exists() else {"out": str(path)}
        sft_polygon.run(replace(settings(args, own), **where))
    have = [Record(**one) for one in folder.records(replies)]
    if len(have) < len(data):
        agent = agents.make(f"mllm:{path / 'model'}")
        with folder.appending(replies) as file:
            for start in range(len(have) // GROUP * GROUP, len(data), GROUP):
                tasks = list(data[start : start + GROUP])
                for one in answers(agent, tasks, [0] * len(tasks))[max(0, len(have) - start) :]:
                    file.add(asdict(one))
                    have.append(one)
    return have


def results(args: Args, records: dict[str, list[Record]]) -> dict[str, Any]:
    """The measures of each arm, and its paired differences with the first one: of all tasks, and by topology."""
    first = next(iter(records.values()))
    arms = {}
    for arm, own in records.items():
        groups = {"all": range(len(own))}
        for kind in sorted({one.topology for one in own}):
            groups[kind] = [k for k, one in enumerate(own) if one.topology == kind]  # type: ignore[assignment]
        gains = {
            kind: list(metrics.bootstrap_difference([own[k].iou for k in places], [first[k].iou for k in places]))
            for kind, places in groups.items()
        }
        arms[arm] = {"settings": ARMS[args.vary][arm], **measures(own), "gain": gains}
    protocol = {
        "data": f"synthetic:val, the first {args.tasks} tasks",
        "steps": f"{args.steps} steps of {args.lessons} scenes from {Path(args.base).name}, the same in every arm",
        "replies": "greedy",
        "gain": f"difference of gIoU to {next(iter(records))}, paired over tasks, with its 95 % bootstrap interval; "
        "nothing of the spread over training seeds",
        "seed": args.seed,
    }
    return {"vary": args.vary, "arms": arms, "protocol": protocol}


HEADER = ("arm", "gIoU", "gain", "boundary F", "valid", "tokens", "vertices")


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table as text, in the order of HEADER, with a line for each topology under its arm."""
    lines = []
    for arm, own in numbers["arms"].items():
        first = arm == next(iter(numbers["arms"]))
        gain = {
            kind: "" if first else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*found) for kind, found in own["gain"].items()
        }
        rest = [f"{own[key]:.3f}" for key in ("boundary_f", "valid")] + [
            f"{own[key]:.1f}" for key in ("tokens", "vertices")
        ]
        lines.append([arm, f"{own['giou']:.4f}", gain["all"], *rest])
        if numbers["vary"] == "codec":
            for kind, part in own["by_topology"].items():
                few = [f"{part['boundary_f']:.3f}", f"{part['valid']:.3f}", f"{part['tokens']:.1f}", ""]
                lines.append([f"  {kind} ({part['tasks']})", f"{part['giou']:.4f}", gain[kind], *few])
    return lines


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    head = f"{numbers['protocol']['data']}; {numbers['protocol']['steps']}"
    return "\n".join([head, columns([HEADER, *cells(numbers)], right=False)])


def _write(folder: RunFolder, numbers: dict[str, Any]) -> None:
    """ablation.csv, ablation.md, the plot and report.html."""
    rows = cells(numbers)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([HEADER, *rows])
    write_atomic(folder / "ablation.csv", buffer.getvalue())
    write_atomic(folder / "ablation.md", markdown(HEADER, rows))
    picture = plot_gains(numbers["arms"]) if numbers["vary"] == "codec" else plot(numbers["arms"])
    write_atomic(folder / "plots" / "ablation.png", picture)
    write_html(
        folder / "report.html",
        "polygon_ablation.html",
        title=f"Outlines: {numbers['vary']} varied",
        numbers=numbers,
        header=HEADER,
        rows=rows,
        plot=data_uri(picture, "image/png"),
    )


def plot(arms: dict[str, Any]) -> bytes:
    """gIoU of each arm against the mean tokens of its replies, with intervals."""
    figure, axes = figure_and_axes()
    for arm, own in arms.items():
        low, high = own["intervals"]["giou"]
        middle, tokens = own["giou"], own["tokens"]
        axes.errorbar(tokens, middle, yerr=[[middle - low], [high - middle]], marker="o", capsize=3, label=arm)
    axes.set(xlabel="tokens of a reply, mean", ylabel="gIoU, greedy", ylim=(0, None))
    axes.legend(frameon=False)
    return png(figure)


def plot_gains(arms: dict[str, Any]) -> bytes:
    """The paired gain of each later arm over the first, with its interval: of all tasks, and by topology."""
    figure, axes = figure_and_axes()
    first, *later = arms
    kinds = list(arms[first]["gain"])
    for k, arm in enumerate(later):
        middle, low, high = np.array([arms[arm]["gain"][kind] for kind in kinds]).T
        places = np.arange(len(kinds)) + 0.16 * (k - (len(later) - 1) / 2)
        spread = [middle - low, high - middle]
        axes.errorbar(places, middle, yerr=spread, fmt="o", capsize=3, color=f"C{k + 1}", label=arm)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set(xticks=range(len(kinds)), xticklabels=kinds, ylabel=f"gain of gIoU over {first}, greedy")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(later))
    return png(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    try:
        numbers = run(parse_args(Args, argv, __doc__))
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; go on with --resume DIR", file=sys.stderr)
        return 130
    print(text(numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
