"""Annotation filtering: the agent predicts the IoU of masks, and those above a threshold are kept (SegAgent, §4).

    python -m experiments.evaluate --task filter --agent mllm --filter.threshold 0.75 --out runs/filter

The tool makes `--filter.masks` masks of every task from random positive and negative points in the target's box, as in
`segenv/Filter-v0`. The agent predicts their IoU; the tool's own estimate stands beside it. The run's folder holds
masks.jsonl (every mask and its predictions), metrics.json, plots/ and report.html.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from experiments.common import cli, served
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, manifest, of_tasks
from experiments.evaluate import exclusion
from experiments.evaluate.answers import iou_report
from experiments.evaluate.answers.iou_estimates import READINGS, TOOL, iou_estimate_metrics
from experiments.evaluate.config import Args
from experiments.evaluate.episodes import records
from experiments.evaluate.episodes.clicks import make_player
from search.executors import Player
from search.labelled_masks import LabelledMask, observation_of, point_masks
from segenv.data import Dataset
from segenv.envs.filter import POINTS
from segenv.mdp import Observation
from segenv.records import reader
from segenv.statistics import METRIC_DEFINITIONS, acceptance
from segenv.types import AgentError, Task

RESUMABLE = frozenset({"report_episodes", "server", "budget"})
DEFINITIONS = {
    **METRIC_DEFINITIONS,
    "precision": "share of the masks kept that are as good as the threshold",
    "recall": "share of the masks as good as the threshold that are kept",
}


class MaskRecord(TypedDict):
    """A line of masks.jsonl: the masks of a task; the readings of `READINGS` stand beside, one number a mask."""

    task: str
    masks: list[LabelledMask]
    greedy: list[float | None]


def read_masks(record: Any) -> MaskRecord:
    """Read a line of masks.jsonl. Raises ValueError where it is another thing."""
    masks = reader(MaskRecord)(record)
    for name in READINGS:
        if name in record and len(reader(list[float | None])(record[name])) != len(masks["masks"]):
            raise ValueError(f"{name} has {len(record[name])} numbers for {len(masks['masks'])} masks")
    return masks


IouEstimator = Callable[[Sequence[Observation]], dict[str, list[float | None]]]


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Estimate the IoU of masks of the tasks, in the folder of `args`; returns the content of metrics.json."""
    player = make_player(args)
    options = args.filter
    if args.executor != "serial" or player.search is not None:
        raise RunError("the task filter plays no episode: leave out --executor and --search")
    estimator, how = iou_estimator(player)
    chosen = exclusion.choose(player.dataset, args, quiet)
    data = player.dataset.select(chosen.positions)
    if not len(data):
        raise RunError(f"data {args.data!r} holds no task; nothing to judge")
    protocol = {
        "task": "filter",
        **records.settings(args, chosen),
        "tool": player.tool.spec,
        **player.agent.settings,
        "reading": how,
        "masks": options.masks,
        "points": f"1 to {POINTS} in the target's box, the first positive, the others of either sign",
        "threshold": options.threshold,
        **DEFINITIONS,
    }
    hashes = {"data": data.fingerprint, "tool": player.tool.fingerprint, "agent": protocol.get("weights")}
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(manifest(args.seed, protocol, hashes), DEFINITIONS)

        def estimate(tasks: list[Task]) -> list[dict[str, Any]]:
            skip = data.skip if args.skip_bad else None
            return estimate_masks(tasks, player, options.masks, args.seed, estimator, skip)

        check = of_tasks(read_masks, records.indices(data))
        with served.kept_replies(folder, player.agent):
            records.append_groups(folder, "masks.jsonl", data, args.batch_size, estimate, quiet=quiet, read=check)
        return _write_results(folder, args, about, data, served.spent(player.agent))


def iou_estimator(player: Player) -> tuple[IouEstimator, str]:
    """Make a function from observed masks to predicted IoUs, by reading (logits or text), and describe the reading."""
    from agents.mllm import MllmAgent
    from search.prm import IouReader, expected_iou

    agent = player.agent
    if agent.privileged:
        raise RunError(f"agent {agent.spec!r} reads the target, and states nothing; take one that judges, such as mllm")
    if isinstance(agent, MllmAgent):
        reader = IouReader(agent)

        def read(observed: Sequence[Observation]) -> dict[str, list[float | None]]:
            greedy, shares = reader.both(observed)
            return {"greedy": greedy.tolist(), "mean": expected_iou(shares).tolist()}

        return read, "greedy: the likeliest number behind `Current IOU: `; mean: the expectation over 0 .. 100"

    def ask(observed: Sequence[Observation]) -> dict[str, list[float | None]]:
        return {"greedy": [agent.codec.stated_iou(text) for text in agent.act(observed, [0] * len(observed))]}

    return ask, "greedy: what a whole reply states; 0 where it states nothing"


def estimate_masks(
    tasks: Sequence[Task],
    player: Player,
    count: int,
    seed: int,
    estimator: IouEstimator,
    skip: Callable[[str, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Sample `count` masks of each task, and estimate their IoU; one record a task. Where the model behind the agent
    fails, `skip` is told of the task and the reason, and the task is left out; without it AgentError ends the run."""
    sampled = point_masks(player.mdp, tasks, count, seed)
    return _estimated(list(zip(tasks, sampled, strict=True)), estimator, skip)


def _estimated(
    pairs: Sequence[tuple[Task, Sequence[LabelledMask]]],
    estimator: IouEstimator,
    skip: Callable[[str, str], None] | None,
) -> list[dict[str, Any]]:
    """Estimate the IoU of as many masks of each task. Replies that came are in the agent's log, and not asked for
    again."""
    if not pairs:
        return []
    count = len(pairs[0][1])
    try:
        estimates = estimator([observation_of(mask, task) for task, masks in pairs for mask in masks])
    except AgentError as error:
        if skip is None:
            raise
        if not error.of and len(pairs) > 1:  # which of them it is
            return [record for pair in pairs for record in _estimated([pair], estimator, skip)]
        lost = {k // count: one for k, one in error.of.items()} or {0: error}
        for k, one in lost.items():
            skip(pairs[k][0].id, str(one))
        return _estimated([pair for k, pair in enumerate(pairs) if k not in lost], estimator, skip)
    entries = []
    for k, (task, masks) in enumerate(pairs):
        predicted = {name: values[k * count : (k + 1) * count] for name, values in estimates.items()}
        entries.append({"task": task.id, "masks": [mask.to_json() for mask in masks], **predicted})
    return entries


def _write_results(
    folder: RunFolder, args: Args, about: dict[str, Any], data: Dataset, spent: Mapping[str, Any]
) -> dict[str, Any]:
    indices, skipped = records.indices(data), dict(data.skipped)
    entries: list[Any] = sorted(folder.records("masks.jsonl", read_masks), key=lambda record: indices[record["task"]])
    records.check_any(entries, args.data, skipped)
    masks = [one for record in entries for one in record["masks"]]
    replies = {name: [v for record in entries for v in record[name]] for name in READINGS if name in entries[0]}
    silent = sum(value is None for value in replies["greedy"])
    if silent == len(masks):
        raise RunError(f"agent {args.agent!r} states no IoU of any mask; take one that judges, such as mllm")
    predicted = {name: [0.0 if value is None else value for value in values] for name, values in replies.items()}
    calibrated = iou_estimate_metrics(masks, predicted, args.seed, data.images_of)
    true, scores = [one.iou for one in masks], [one.score for one in masks if one.score is not None]
    rivals = {**predicted, **({TOOL: scores} if len(scores) == len(masks) else {})}
    numbers: dict[str, Any] = {
        "tasks": len(entries),
        "masks": len(masks),
        "silent": silent,
        "iou": calibrated["iou"],
        "readings": calibrated["readings"]["all"],
        "acceptance": {name: acceptance(values, true, args.filter.threshold) for name, values in rivals.items()},
        **spent,
        "protocol": about["protocol"],
    }
    numbers = records.write_metrics(folder, numbers, skipped)
    shown = iou_report.MaskSet(args.data, masks, predicted, data.by_id)
    limit = 24 if args.report_episodes is None else args.report_episodes
    section = iou_report.section_of(folder, shown, {"all": numbers["readings"]}, "", limit, "greedy")
    section["notes"] = [f"{name}: {_acceptance_text(found)}" for name, found in numbers["acceptance"].items()]
    title = f"{args.agent} as a judge of masks by {args.tool} on {args.data}"
    lead = f"{len(masks)} masks of {len(entries)} tasks, of random points in the target's box."
    lead += f" {len(skipped)} bad items were passed over." if skipped else ""
    iou_report.page(folder, title, lead, [section], numbers["protocol"], about)
    folder.finish("evaluate")
    return numbers


def text(numbers: Mapping[str, Any]) -> str:
    """Format the numbers for a terminal."""
    skipped = f", {len(numbers['skipped'])} bad items skipped" if numbers["skipped"] else ""
    head = f"{numbers['masks']} masks of {numbers['tasks']} tasks{skipped}"
    lines = [f"  {name}: {_acceptance_text(found)}" for name, found in numbers["acceptance"].items()]
    return "\n".join([head, iou_report.table(numbers["readings"]).text("  "), *lines])


def _acceptance_text(found: Mapping[str, Any]) -> str:
    """Describe the effect of a filter in words."""

    def show(name: str) -> str:
        return "–" if found[name] is None or np.isnan(found[name]) else f"{found[name]:.3f}"

    return (
        f"at IoU {found['threshold']:g} precision {show('precision')}, recall {show('recall')}; keeps {show('kept')} "
        f"of all ({show('good')} are good), mean IoU {show('iou_all')} before and {show('iou_kept')} after"
    )
