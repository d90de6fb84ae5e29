"""Annotation filtering: the agent judges given masks, and those that it finds good are kept (SegAgent, §4).

    python -m experiments.evaluate --task filter --agent mllm --filter.threshold 0.75 --out runs/filter

Every task's target is given `--filter.masks` masks, made by the tool of random positive and negative points in the
target's box, as in `segenv/Filter-v0`. The agent states their IoU; the tool's own estimate stands beside it. The run's
folder holds masks.jsonl (every mask and what was stated of it), metrics.json, plots/ and report.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.evaluate import iou_report
from experiments.evaluate.clicks import make_player
from experiments.evaluate.config import Args
from experiments.evaluate.iou_estimates import READINGS, TOOL, iou_estimate_metrics
from search.executors import Player
from search.labelled_masks import LabelledMask, observation_of, point_masks
from segenv.envs.filter import POINTS
from segenv.mdp import Observation
from segenv.statistics import METRIC_DEFINITIONS, acceptance
from segenv.types import Task

RESUMABLE = frozenset({"report_episodes"})
IouEstimator = Callable[[Sequence[Observation]], dict[str, list[float | None]]]


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Estimate the IoU of masks of the tasks, in the folder of `args`; returns what metrics.json holds."""
    player = make_player(args)
    options = args.filter
    if options.masks < 1 or not 0 <= options.threshold <= 1:
        raise RunError(f"filter: masks {options.masks} must be 1 or more, and threshold {options.threshold} in 0..1")
    if args.executor != "serial" or player.search is not None:
        raise RunError("the task filter plays no episode: leave out --executor and --search")
    judge, how = iou_estimator(player)
    data = player.dataset[: args.limit]
    if not len(data):
        raise RunError(f"data {args.data!r} holds no task; nothing to judge")
    about = manifest(
        args.seed,
        {
            "task": "filter",
            "data": args.data,
            "limit": args.limit,
            "tool": player.tool.spec,
            **player.agent.settings,
            "reading": how,
            "masks": options.masks,
            "points": f"1 to {POINTS} in the target's box, the first positive, the others of either sign",
            "threshold": options.threshold,
            "seed": args.seed,
            "threads": args.threads,
            "batch_size": args.batch_size,
            **METRIC_DEFINITIONS,
            "precision": "share of the masks kept that are as good as the threshold",
            "recall": "share of the masks as good as the threshold that are kept",
        },
        {"data": data.fingerprint, "tool": player.tool.fingerprint, "agent": player.agent.settings.get("weights")},
    )
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(about)
        have = {record["task"] for record in folder.records("masks.jsonl")}
        with folder.appending("masks.jsonl") as file, cli.progress(len(data), "task", len(have), quiet=quiet) as bar:
            for start in range(0, len(data), args.batch_size):
                group = data[start : start + args.batch_size]
                if have.issuperset(group.ids):
                    continue
                for record in estimate_masks(list(group), player, options.masks, args.seed, judge):
                    if record["task"] not in have:
                        file.add(record)
                        bar.update()
        return _write_results(folder, args, about, player)


def iou_estimator(player: Player) -> tuple[IouEstimator, str]:
    """What the agent states of observed masks, by reading, and how it is asked: a language model here is read, another
    agent's text is searched for a statement."""
    from agents.mllm import MllmAgent
    from search.prm import IouReader, expected_iou

    agent = player.agent
    if agent.privileged:
        raise RunError(f"agent {agent.spec!r} reads the target, and states nothing; take one that judges, such as mllm")
    if isinstance(agent, MllmAgent):
        reader = IouReader(agent)

        def read(seen: Sequence[Observation]) -> dict[str, list[float | None]]:
            greedy, shares = reader.both(seen)
            return {"greedy": greedy.tolist(), "mean": expected_iou(shares).tolist()}

        return read, "greedy: the likeliest number behind `Current IOU: `; mean: the expectation over 0 .. 100"

    def ask(seen: Sequence[Observation]) -> dict[str, list[float | None]]:
        return {"greedy": [agent.codec.stated_iou(text) for text in agent.act(seen, [0] * len(seen))]}

    return ask, "greedy: what a whole reply states; 0 where it states nothing"


def estimate_masks(
    tasks: Sequence[Task], player: Player, count: int, seed: int, judge: IouEstimator
) -> list[dict[str, Any]]:
    """One record for each task: its masks, and what was stated of them."""
    made = point_masks(player.mdp, tasks, count, seed)
    seen = [observation_of(one, task) for task, masks in zip(tasks, made, strict=True) for one in masks]
    stated = judge(seen)
    return [
        {
            "task": task.id,
            "masks": [one.to_json() for one in masks],
            **{name: values[k * count : (k + 1) * count] for name, values in stated.items()},
        }
        for k, (task, masks) in enumerate(zip(tasks, made, strict=True))
    ]


def _write_results(folder: RunFolder, args: Args, about: dict[str, Any], player: Player) -> dict[str, Any]:
    data, records = player.dataset[: args.limit], list(folder.records("masks.jsonl"))
    skipped = dict(player.dataset.skipped)
    if not records:
        raise RunError(f"all {len(skipped)} items of {args.data!r} are bad: {next(iter(skipped.values()), '')}")
    places = {name: place for place, name in enumerate(data.ids)}
    records.sort(key=lambda record: places[record["task"]])
    masks = [LabelledMask(**one) for record in records for one in record["masks"]]
    said = {name: [v for record in records for v in record[name]] for name in READINGS if name in records[0]}
    silent = sum(value is None for value in said["greedy"])
    if silent == len(masks):
        raise RunError(f"agent {args.agent!r} states no IoU of any mask; take one that judges, such as mllm")
    stated = {name: [0.0 if value is None else value for value in values] for name, values in said.items()}
    found = iou_estimate_metrics(masks, stated, args.seed)
    true, scores = [one.iou for one in masks], [one.score for one in masks if one.score is not None]
    rivals = {**stated, **({TOOL: scores} if len(scores) == len(masks) else {})}
    numbers = {
        "tasks": len(records),
        "masks": len(masks),
        "silent": silent,
        "iou": found["iou"],
        "readings": found["readings"]["all"],
        "acceptance": {name: acceptance(values, true, args.filter.threshold) for name, values in rivals.items()},
        "skipped": hide_home(skipped),
        "protocol": about["protocol"],
    }
    folder.write_json("metrics.json", numbers)
    numbers = folder.read_json("metrics.json")
    shown = iou_report.MaskSet(args.data, masks, stated, lambda name: data[places[name]])
    section = iou_report.section_of(folder, shown, {"all": numbers["readings"]}, "", args.report_episodes, "greedy")
    section["notes"] = [f"{name}: {_acceptance_text(found)}" for name, found in numbers["acceptance"].items()]
    title = f"{args.agent} as a judge of masks by {args.tool} on {args.data}"
    lead = f"{len(masks)} masks of {len(records)} tasks, of random points in the target's box."
    iou_report.page(folder, title, lead, [section], numbers["protocol"], about)
    folder.finish("evaluate")
    return numbers


def text(numbers: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    skipped = f", {len(numbers['skipped'])} bad items skipped" if numbers["skipped"] else ""
    lines = [
        f"{numbers['masks']} masks of {numbers['tasks']} tasks{skipped}",
        iou_report.table(numbers["readings"]).text("  "),
    ]
    lines += [f"  {name}: {_acceptance_text(found)}" for name, found in numbers["acceptance"].items()]
    return "\n".join(lines)


def _acceptance_text(found: Mapping[str, Any]) -> str:
    """What a filter does, in words."""

    def show(name: str) -> str:
        return "–" if found[name] is None or np.isnan(found[name]) else f"{found[name]:.3f}"

    return (
        f"at IoU {found['threshold']:g} precision {show('precision')}, recall {show('recall')}; keeps {show('kept')} "
        f"of all ({show('good')} are good), mean IoU {show('iou_all')} before and {show('iou_kept')} after"
    )
