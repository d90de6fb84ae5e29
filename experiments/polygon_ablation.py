"""Ablations of polygon data: vary one choice at a time, all else equal (SimpleSeg's ablations in miniature).

    python -m experiments.polygon_ablation --vary order --out runs/order          # or vertices, codec

trains one model for each value of the choice in each of the `--seeds`, `--steps` steps from the same checkpoint over
the same scenes, and lets each answer the same held-out tasks. `order` is how the vertices of a ring stand; `vertices`
how many a polygon has at most (dense ones are not simplified before), and so how many tokens a reply; `codec` how
parts and holes are written, whose effect depends on the quality of the start's polygons (`--base`). Differences are
paired with the first arm's.
"""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2

import agents
from agents.base import EMBEDDED
from agents.training.polygon_examples import RATIO
from experiments.common import cli, config
from experiments.common.ablation import INTERVALS, Report, arm_folder, cell, paired_gains, run_arms, write
from experiments.common.config import (
    InFolder,
    OutFolder,
    ProcessesOrNone,
    Seeds,
    create_or_resume,
)
from experiments.common.plots import plot_intervals
from experiments.common.run_folder import RunFolder, manifest
from experiments.common.splits import HEADLINE
from experiments.common.tables import Table
from experiments.evaluate.answers.polygon_answers import answers
from experiments.evaluate.answers.polygon_metrics import METRIC_DEFINITIONS, PARTS, TOPOLOGIES, Record, measures
from experiments.evaluate.episodes.records import append_groups
from experiments.sft import config as sft_config
from experiments.sft.config import PolygonArgs
from segenv import data as datasets
from segenv.data.base import unique
from segenv.ranges import Count, Processes, Range
from segenv.records import reader
from segenv.types import Task

RESUMABLE = frozenset({"workers", "lesson_workers", "threads"})
GROUP = 50  # replies at a time, fixed, as a model's last bits depend on it
REPLIES = "replies.jsonl"
SEVERAL_RINGS = "several parts or holes"  # the two topologies that take more than one ring
ARMS: dict[str, dict[str, dict[str, Any]]] = {  # the first of each is what the others are compared with
    "order": {name: {"order": name} for name in ("canonical", "reversed", "random-start", "random")},
    "vertices": {"middle": {"vertices": 12}, "sparse": {"vertices": 5}, "dense": {"vertices": 40, "ratio": 0.0}},
    "codec": {name: {"codec": name} for name in ("simpleseg", "simpleseg:contour=edges", "rings")},
}


@dataclass
class Args:
    """Vary one choice of the polygon data."""

    vary: Literal["order", "vertices", "codec"] = "order"
    """What the arms differ in."""
    out: OutFolder | None = None
    """folder of a new run; by default runs/polygon-VARY-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
    base: str = EMBEDDED.name
    """Folder of the tiny checkpoint that every arm starts from, or the name of an embedded one; by default the embedded
    click policy."""
    steps: Count = 1_500
    ratio: Annotated[float, Range(0, below=1)] = RATIO
    """As in experiments.sft; but 0 for dense polygons."""
    lessons: Count = 8
    """Scenes a step."""
    tasks: Count = 500
    """Held-out tasks of synthetic:test, from index 6,000 on."""
    seeds: Seeds = (0,)
    """Of the trainings: the examples, and the weights that the start does not have."""
    workers: ProcessesOrNone = 0
    """Arms that are trained at once, by default one on a GPU and otherwise two, which take 2 GB each; no number depends
    on it."""
    lesson_workers: ProcessesOrNone = 1
    """Processes that make examples for each of them; 0: the training makes them itself."""
    threads: Processes = 1


def run(args: Args) -> dict[str, Any]:
    """Train and measure every arm; returns what ablation.json holds."""
    from agents.mllm import parse
    from agents.training.checkpoints import identity
    from experiments.sft.trainer import tiny_checkpoint

    check(args)
    if not args.resume:
        tiny_checkpoint(args.base)  # an error is raised before anything is written
    with cli.open_run(args, RESUMABLE) as folder:
        hashes = {"data": _data(args.tasks).fingerprint, "base": identity(parse(args.base)[0])}
        folder.keep_manifest(manifest(args.seeds[0], {}, hashes))
        paths = {(seed, arm): arm_folder(folder.path, seed, arm) for seed in args.seeds for arm in ARMS[args.vary]}
        runs = [replace(settings(args, *one), **create_or_resume(path)) for one, path in paths.items()]
        run_arms(partial(_train_and_reply, args.tasks), "replies", runs, args.workers)
        replies: dict[str, list[list[Record]]] = {arm: [] for arm in ARMS[args.vary]}
        for (_, arm), path in paths.items():
            replies[arm].append(_replies(args.tasks, path))
        numbers = results(args, replies)
        return write(folder, numbers, report(numbers))


def check(args: Args) -> None:
    """Raise RunError where settings cannot be run with."""
    from experiments.sft import polygons

    config.check(args)
    for seed in args.seeds:
        for arm in ARMS[args.vary]:
            polygons.check(settings(args, seed, arm))


def settings(args: Args, seed: int, arm: str) -> PolygonArgs:
    """The settings of an arm's training."""
    shared = PolygonArgs(
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


def _data(tasks: int) -> Any:
    return datasets.make(HEADLINE)[:tasks]


def _train_and_reply(tasks: int, args: PolygonArgs) -> None:
    """Train an arm, unless it is trained, and let it reply to the held-out tasks that it has not replied to."""
    import torch

    from experiments.sft import polygons

    path = Path(args.resume or args.out or "")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    if not RunFolder(path).done("sft"):
        polygons.run(args)
    agent = agents.make(f"mllm:{path / 'model'}")

    def reply(group: list[Task]) -> list[dict[str, Any]]:
        return [asdict(one) for one in answers(agent, group, [0] * len(group))]

    with RunFolder.resume(path, args, sft_config.RESUMABLE) as folder:
        append_groups(folder, REPLIES, _data(tasks), GROUP, reply, quiet=True)
        folder.finish("replies")


def _replies(tasks: int, path: Path) -> list[Record]:
    """The replies of an arm, in the order of the data."""
    found = list(RunFolder(path).records(REPLIES, reader(Record)))
    unique((one.task for one in found), "replies to the task", path / REPLIES)
    records = {one.task: one for one in found}
    return [records[name] for name in _data(tasks).ids]


def results(args: Args, replies: dict[str, list[list[Record]]]) -> dict[str, Any]:
    """The measures of each arm, and its paired differences with the first one: of all tasks, and by topology. `replies`
    has the replies of each arm in each seed, in equal order."""
    first, arms = next(iter(replies)), {}
    for arm, by_seed in replies.items():
        together = [one for records in by_seed for one in records]
        numbers = measures(together)
        kinds = {"all": TOPOLOGIES, **{kind: (kind,) for kind in numbers["by_topology"]}}
        if kinds.keys() >= set(TOPOLOGIES[1:]):
            kinds[SEVERAL_RINGS] = TOPOLOGIES[1:]
            pooled = measures([one for one in together if one.topology in TOPOLOGIES[1:]])
            numbers["by_topology"][SEVERAL_RINGS] = {key: pooled[key] for key in ("tasks", *PARTS)}
        numbers |= {"settings": ARMS[args.vary][arm], "gain": {}, "gain_by_seed": {}}
        for kind, names in kinds.items():
            values, reference = (
                [[one.iou for one in records if one.topology in names] for records in replies[name]]
                for name in (arm, first)
            )
            for key, gain in paired_gains(values, reference).items():
                numbers[key][kind] = gain
        arms[arm] = numbers
    protocol = {
        "data": f"{HEADLINE}, the first {args.tasks} tasks",
        "chosen": "nothing on these tasks",
        "steps": f"{args.steps} steps of {args.lessons} scenes from {Path(args.base).name}, the same in every arm",
        "replies": "greedy",
        "gain": f"difference of gIoU to {first}, paired over tasks",
        "intervals": INTERVALS,
        "between seeds": "the lessons and the weights that the start does not have differ; the start and the held-out "
        "tasks are the same. All other measures are means over the seeds too",
        "seeds": list(args.seeds),
        "ratio": args.ratio,
        "topology": f"{METRIC_DEFINITIONS['topology']}; {SEVERAL_RINGS}: the tasks of both lines",
    }
    return {"vary": args.vary, "arms": arms, "protocol": protocol}


def table(numbers: dict[str, Any]) -> Table:
    """A row for each arm; where codecs vary, also for each topology."""
    seeds, first = numbers["protocol"]["seeds"], next(iter(numbers["arms"]))
    by_seed = [f"gain, seed {seed}" for seed in seeds] if len(seeds) > 1 else []
    rows = []
    for arm, line in numbers["arms"].items():
        parts = {"all": line, **(line["by_topology"] if numbers["vary"] == "codec" else {})}
        for kind, part in parts.items():
            gains = [line["gain"][kind], *line["gain_by_seed"][kind]][: 1 + len(by_seed)]
            cells = ["" if arm == first else cell(gain) for gain in gains]
            cells += [f"{part['boundary_f']:.3f}", f"{part['valid']:.3f}", f"{part['tokens']:.1f}"]
            name, vertices = (arm, f"{line['vertices']:.1f}") if part is line else (f"  {kind} ({part['tasks']})", "")
            rows.append([name, f"{part['giou']:.4f}", *cells, vertices])
    return Table(["arm", "gIoU", "gain", *by_seed, "boundary F", "valid", "tokens", "vertices"], rows)


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    return f"{numbers['protocol']['data']}; {numbers['protocol']['steps']}\n{table(numbers).text()}"


def report(numbers: dict[str, Any]) -> Report:
    """The table, and the plot of gains over the first arm: of all tasks, and by topology."""
    arms, protocol = numbers["arms"], numbers["protocol"]
    first, *later = arms
    groups = {arm: list(arms[arm]["gain"].values()) for arm in later}
    return Report(
        f"Polygons: {numbers['vary']} varied",
        f"{protocol['data']}; {protocol['steps']}. Gain: {protocol['gain']}. Intervals: {protocol['intervals']}.",
        table(numbers),
        {"ablation": plot_intervals(groups, list(arms[first]["gain"]), f"gain of gIoU over {first}, greedy")},
    )


def show(args: Args) -> str:
    """Run the ablation and return its table for a terminal."""
    return text(run(args))


main = partial(cli.main, "polygon_ablation", Args, show, __doc__, folder=lambda args: f"polygon-{args.vary}")

if __name__ == "__main__":
    sys.exit(main())
