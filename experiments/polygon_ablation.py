"""What the data of outlines decides: one choice varied at a time, all else equal (SimpleSeg's ablations in miniature).

    python -m experiments.polygon_ablation --vary order --out runs/order          # or vertices, codec

trains one model for each value of the choice in each of the `--seeds`, `--steps` steps from the same checkpoint over
the same scenes, and lets each outline the same held-out tasks. `order` is how the vertices of a ring stand; `vertices`
how many an outline has at most (dense ones are not simplified before), and so how many tokens a reply; `codec` how
parts and holes are written, whose effect depends on how well the start draws already (`--base`). Each training is a
folder of its own in the run's, and goes on where it was cut with `--resume DIR`. The table's differences are paired
with the first arm's.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

import agents
from agents.mllm import EMBEDDED, parse
from agents.training.checkpoints import identity
from agents.training.polygon_examples import RATIO
from experiments.common.config import RunError, check_seeds, create_or_resume, parse_args
from experiments.common.html import data_uri, write_html
from experiments.common.plots import figure_and_axes, plot_intervals, png, whiskers
from experiments.common.run_folder import RunFolder, manifest, write_atomic
from experiments.common.tables import columns, markdown
from experiments.evaluate.polygon_answers import answers
from experiments.evaluate.polygon_metrics import METRIC_DEFINITIONS, PARTS, TOPOLOGIES, Record, measures
from experiments.sft import polygons
from experiments.sft.trainer import tiny_checkpoint
from search.executors import run_parallel
from segenv import statistics
from segenv.data.synthetic.scenes import Synthetic
from segenv.types import SegenvError

RESUMABLE = frozenset({"workers", "lesson_workers", "threads"})
GROUP = 50  # replies at a time, fixed, as a model's last bits depend on it
REPLIES = "replies.jsonl"
SEVERAL_RINGS = "several parts or holes"  # the two topologies that take more than one ring
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
    seeds: tuple[int, ...] = (0,)
    """Of the trainings: the lessons, and the weights that the start does not have."""
    workers: int = 0
    """Arms that are trained at once, by default one on a GPU and otherwise two, which take 2 GB each; no number depends
    on it."""
    lesson_workers: int = 1
    """Processes that make lessons for each of them; 0: the training makes them itself."""
    threads: int = 1


def run(args: Args) -> dict[str, Any]:
    """Train and measure every arm; returns what ablation.json holds."""
    check(args)
    if not args.resume:
        tiny_checkpoint(args.base)  # what is wrong is said before anything is written
    out = args.resume or args.out or f"runs/polygon-{args.vary}"
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        hashes = {"data": _data(args).fingerprint, "base": identity(parse(args.base)[0])}
        folder.keep_manifest(manifest(args.seeds[0], {}, hashes))
        jobs = [(args, arm_folder(folder.path, seed, arm), seed, arm) for seed in args.seeds for arm in ARMS[args.vary]]
        waiting = [job for job in jobs if not _finished(args, job[1])]
        run_parallel(_make, waiting, args.workers)
        found: dict[str, list[list[Record]]] = {}
        for _, path, _, arm in jobs:
            found.setdefault(arm, []).append(_replies(args, path))
        numbers = results(args, found)
        folder.write_json("ablation.json", numbers)
        _write(folder, numbers)
        folder.finish("ablation")
        return folder.read_json("ablation.json")


def check(args: Args) -> None:
    """Raise RunError where settings cannot be run with."""
    for name, least in {"steps": 1, "tasks": 1, "workers": 0, "lesson_workers": 0}.items():
        if getattr(args, name) < least:
            raise RunError(f"{name} is {getattr(args, name)}; expected {least} or more")
    check_seeds(args.seeds)
    for seed in args.seeds:
        for arm in ARMS[args.vary]:
            polygons.check(settings(args, seed, arm))


def settings(args: Args, seed: int, arm: str) -> polygons.Args:
    """The settings of an arm's training."""
    shared = polygons.Args(
        base=args.base,
        draw_steps=args.steps,
        cooldown=args.steps // 2,
        ratio=args.ratio,
        lessons=args.lessons,
        seed=seed,
        workers=args.lesson_workers,
        threads=args.threads,
        measure_every=args.steps,
    )
    return replace(shared, **ARMS[args.vary][arm])


def arm_folder(out: Path, seed: int, arm: str) -> Path:
    """Where the training of an arm lies in the run `out`, with its `model`."""
    return out / f"seed{seed}" / arm.replace(":", "-")


def _data(args: Args) -> Any:
    return Synthetic("val")[: args.tasks]


def _make(job: tuple[Args, Path, int, str]) -> None:
    """Train an arm, unless it is trained, and let it reply to the held-out tasks that it has not replied to."""
    args, path, seed, arm = job
    print(f"[{path}]", file=sys.stderr)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    own = settings(args, seed, arm)
    if not RunFolder(path).done("sft"):
        polygons.run(replace(own, **create_or_resume(path)))
    with RunFolder.resume(path, own, polygons.RESUMABLE) as training:
        have = {one["task"] for one in training.records(REPLIES)}
        data, agent = _data(args), agents.make(f"mllm:{path / 'model'}")
        with training.appending(REPLIES) as file:
            for start in range(0, len(data), GROUP):
                group = data[start : start + GROUP]
                if not have.issuperset(group.ids):
                    for one in answers(agent, list(group), [0] * len(group)):
                        if one.task not in have:
                            file.add(asdict(one))


def _replies(args: Args, path: Path) -> list[Record]:
    """The replies of an arm, in the order of the data; those that are not there are left out."""
    records = {one["task"]: Record(**one) for one in RunFolder(path).records(REPLIES)}
    return [records[name] for name in _data(args).ids if name in records]


def _finished(args: Args, path: Path) -> bool:
    return RunFolder(path).done("sft") and len(_replies(args, path)) == args.tasks


def results(args: Args, found: dict[str, list[list[Record]]]) -> dict[str, Any]:
    """The measures of each arm, and its paired differences with the first one: of all tasks, and by topology. `found`
    has the replies of each arm in each seed, in the same order; each task is averaged over seeds first."""
    first, arms = next(iter(found)), {}
    for arm, by_seed in found.items():
        together = [one for records in by_seed for one in records]
        numbers = measures(together)
        kinds = {"all": TOPOLOGIES, **{kind: (kind,) for kind in numbers["by_topology"]}}
        if kinds.keys() >= set(TOPOLOGIES[1:]):
            kinds[SEVERAL_RINGS] = TOPOLOGIES[1:]
            pooled = measures([one for one in together if one.topology in TOPOLOGIES[1:]])
            numbers["by_topology"][SEVERAL_RINGS] = {key: pooled[key] for key in ("tasks", *PARTS)}
        gains, gains_by_seed = {}, {}
        for kind, names in kinds.items():
            own, other = (
                np.array([[one.iou for one in records if one.topology in names] for records in found[name]])
                for name in (arm, first)
            )
            gains[kind] = list(statistics.bootstrap_difference(own.mean(0), other.mean(0)))
            gains_by_seed[kind] = [
                list(statistics.bootstrap_difference(*pair)) for pair in zip(own, other, strict=True)
            ]
        arms[arm] = {"settings": ARMS[args.vary][arm], **numbers, "gain": gains, "gain_by_seed": gains_by_seed}
    protocol = {
        "data": f"synthetic:val, the first {args.tasks} tasks",
        "steps": f"{args.steps} steps of {args.lessons} scenes from {Path(args.base).name}, the same in every arm",
        "replies": "greedy",
        "gain": f"difference of gIoU to {first}, paired over tasks, each averaged over the seeds first, with its 95 % "
        "bootstrap interval; nothing of the spread over training seeds",
        "between seeds": "the lessons and the weights that the start does not have differ; the start and the held-out "
        "tasks are the same. All other measures are means over the seeds too",
        "seeds": list(args.seeds),
        "ratio": args.ratio,
        "topology": f"{METRIC_DEFINITIONS['topology']}; {SEVERAL_RINGS}: the tasks of both lines",
    }
    return {"vary": args.vary, "arms": arms, "protocol": protocol}


def header(numbers: dict[str, Any]) -> list[str]:
    """The names of the columns."""
    seeds = numbers["protocol"]["seeds"]
    by_seed = [f"gain, seed {seed}" for seed in seeds] if len(seeds) > 1 else []
    return ["arm", "gIoU", "gain", *by_seed, "boundary F", "valid", "tokens", "vertices"]


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table as text, in the order of `header`; where codecs vary, with a line for each topology under its arm."""
    lines = []
    for arm, own in numbers["arms"].items():
        parts = {"all": own, **(own["by_topology"] if numbers["vary"] == "codec" else {})}
        for kind, part in parts.items():
            gains = [own["gain"][kind], *(own["gain_by_seed"][kind] if len(numbers["protocol"]["seeds"]) > 1 else [])]
            first = arm == next(iter(numbers["arms"]))
            told = ["" if first else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*one) for one in gains]
            rest = [f"{part['boundary_f']:.3f}", f"{part['valid']:.3f}", f"{part['tokens']:.1f}"]
            name, vertices = (arm, f"{own['vertices']:.1f}") if part is own else (f"  {kind} ({part['tasks']})", "")
            lines.append([name, f"{part['giou']:.4f}", *told, *rest, vertices])
    return lines


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    head = f"{numbers['protocol']['data']}; {numbers['protocol']['steps']}"
    return "\n".join([head, columns([header(numbers), *cells(numbers)], right=False)])


def _write(folder: RunFolder, numbers: dict[str, Any]) -> None:
    """ablation.csv, ablation.md, the plot and report.html."""
    rows, names = cells(numbers), header(numbers)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([names, *rows])
    write_atomic(folder / "ablation.csv", buffer.getvalue())
    write_atomic(folder / "ablation.md", markdown(names, rows))
    about, plot = PLOTS[numbers["vary"]]
    picture = plot(numbers["arms"])
    write_atomic(folder / "plots" / "ablation.png", picture)
    write_html(
        folder / "report.html",
        "polygon_ablation.html",
        title=f"Outlines: {numbers['vary']} varied",
        numbers=numbers,
        header=names,
        rows=rows,
        plot=data_uri(picture, "image/png"),
        about=about,
    )


def plot_arms(arms: dict[str, Any]) -> bytes:
    """gIoU of each arm with its interval."""
    rows = [(own["giou"], *own["intervals"]["giou"]) for own in arms.values()]
    return plot_intervals({"gIoU": rows}, list(arms), "gIoU, greedy")


def plot_tokens(arms: dict[str, Any]) -> bytes:
    """gIoU of each arm against the mean tokens of its replies, with intervals."""
    figure, axes = figure_and_axes()
    for arm, own in arms.items():
        middle, low, high = np.array([own["giou"], *own["intervals"]["giou"]])[:, None]
        axes.errorbar([own["tokens"]], middle, yerr=whiskers(middle, low, high), marker="o", capsize=3, label=arm)
    axes.set(xlabel="tokens of a reply, mean", ylabel="gIoU, greedy", ylim=(0, None))
    axes.legend(frameon=False)
    return png(figure)


def plot_gains(arms: dict[str, Any]) -> bytes:
    """The paired gain of each later arm over the first, with its interval: of all tasks, and by topology."""
    first, *later = arms
    groups = {arm: list(arms[arm]["gain"].values()) for arm in later}
    return plot_intervals(groups, list(arms[first]["gain"]), f"gain of gIoU over {first}, greedy")


PLOTS = {
    "order": ("gIoU of each order", plot_arms),
    "vertices": ("gIoU against the tokens of a reply", plot_tokens),
    "codec": ("gains by topology", plot_gains),
}


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
