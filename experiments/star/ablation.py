"""The ablation of StaR: S_0, a control that trains on D_0 alone, another whose D_0 is filtered as rollouts are, whole
trajectories (star), corrected actions (star+), and resuming from the last policy instead of S_0 (continue).

Arms of a seed share D_0, S_0 and the first rollouts with its star+ run, and where S_0 is a checkpoint as it is, all
seeds share round 0: each is made once, and its files are linked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.mllm import checkpoint
from experiments.common import ablation
from experiments.common.cli import open_run
from experiments.common.config import RunError, choices, create_or_resume
from experiments.common.plots import plot_intervals
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.common.tables import Table
from experiments.star import train
from experiments.star.config import RESUMABLE, Args, check, stages, with_defaults
from experiments.star.metrics import METRIC_DEFINITIONS
from experiments.star.stages import read_episodes
from experiments.star.train import Star
from segenv import statistics


@dataclass(frozen=True)
class Policy:
    """A line of the table: a policy of an arm's run."""

    name: str
    arm: str
    round: int
    about: str


ROUNDS = 2  # from base and continue are equal in the first
ARMS: dict[str, dict[str, Any]] = {
    "star+": {"variant": "star+", "rounds": ROUNDS, "start_from": "base"},
    "continue": {"variant": "star+", "rounds": ROUNDS, "start_from": "previous"},
    "star": {"variant": "star", "rounds": 1, "start_from": "base"},
    "control": {"variant": "control", "rounds": 1, "start_from": "base"},
    "judged": {"variant": "control", "rounds": 1, "start_from": "base", "expert": "judged"},
}
OWN = ("variant", "rounds", "start_from", "expert")  # of each arm, whatever the flags say
SHARED = {  # files of star+ that another arm begins with; judged makes examples of its own from the episodes
    "continue": ("round0/**/*", "round1/**/*"),
    "star": ("round0/**/*", "round1/rollout.*"),
    "control": ("round0/**/*",),
    "judged": ("round0/expert.*json*", "round0/train.*", "round0/evaluate.*", "round0/policy/**/*"),
}
FIELDS = ("policy", "seed", "steps")
COLUMNS = {  # name in the table: key in ablation.json, and digits
    "mIoU": ("miou", 4),
    "gain over S_0": ("gain", 4),
    "gain over control": ("over_control", 4),
    "best IoU": ("best_iou", 3),
    "first click": ("first_click_in_object", 3),
    "stopped": ("stop_rate", 3),
    "stop acc.": ("stop_accuracy", 3),
    "invalid": ("invalid_rate", 3),
}
POLICIES = (
    Policy("S_0", "star+", 0, "the policy to improve"),
    Policy("control", "control", 1, "as many steps on D_0 alone"),
    Policy("judged control", "judged", 1, "the same, with stops where none of the annotator's later clicks gains"),
    Policy("star", "star", 1, "whole trajectories, D_1 alone"),
    Policy("star+", "star+", 1, "corrected actions, D_0 and D_1, from S_0"),
    Policy("star+, round 2", "star+", 2, "D_0 and D_2 (rollouts of S_1), from S_0"),
    Policy("continue, round 2", "continue", 2, "D_0 and D_2 (rollouts of S_1), from S_1"),
)
REFERENCES = {"gain": "S_0", "over_control": "control"}


def prepare(args: Args) -> Star:
    """Prepare a run of any arm; RunError where one of the arms cannot be run."""
    for own in ARMS.values():
        check(replace(args, **own))
    return Star.prepare(replace(args, **{name: getattr(Args(), name) for name in OWN}))


def run(args: Args) -> dict[str, Any]:
    """Run all arms in all seeds; returns what ablation.json holds."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    with open_run(args, RESUMABLE) as folder:
        folder.keep_manifest(manifest(args.seed, this.protocol(), this.hashes()), METRIC_DEFINITIONS)
        first, *later = seeds = range(args.seed, args.seed + args.ablation_seeds)
        base = {seed: ablation.arm_folder(folder.path, seed, "star+") for seed in seeds}
        if later and _one_start(args):
            ablation.run_arms(train.begin, "round0/evaluate", [_arm(args, folder, first, "star+")], 1)
            for seed in later:
                ablation.share(base[first], base[seed], ["round0/**/*"])
        workers = 1 if args.executor == "serial" else args.workers
        ablation.run_arms(train.run, "star", [_arm(args, folder, seed, "star+") for seed in seeds], workers)
        for seed in seeds:
            for arm, patterns in SHARED.items():
                ablation.share(base[seed], ablation.arm_folder(folder.path, seed, arm), patterns)
        others = [_arm(args, folder, seed, arm) for seed in seeds for arm in SHARED]
        ablation.run_arms(train.run, "star", others, workers)
        numbers = results(args, folder, seeds)
        return ablation.write(folder, numbers, report(numbers))


def plan(args: Args) -> str:
    """Describe the ablation for a dry run; tool and agent are loaded to see that they can be."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    this.player(this.train_data, args.agent)
    seeds = range(args.seed, args.seed + args.ablation_seeds)
    starts = 1 if _one_start(args) else len(seeds)
    tasks, held_out = len(this.train_indices), len(this.eval_indices)
    played = {"expert": tasks, "rollout": min(args.rollout_tasks, tasks) * args.samples, "evaluate": held_out}
    titles = {f"round 0, {'once' if starts == 1 else 'for each seed'}": {0: stages("star+", 0)}}
    titles |= {f"{arm}, for each seed": _own_stages(arm) for arm in ARMS}
    lines, total, steps = [], 0, 0
    for title, rounds in titles.items():
        parts = []
        for n, names in rounds.items():
            times, each = (len(seeds), args.round_steps) if n else (starts, args.start_steps)
            counts = {"train": f" ({each} steps)"} | {name: f" ({count})" for name, count in played.items()}
            parts.append(f"round {n}: " * bool(n) + ", ".join(name + counts.get(name, "") for name in names))
            total += times * sum(played.get(name, 0) for name in names)
            steps += times * names.count("train") * each
        lines.append(f"  {title}: {'; '.join(parts)}")
    return "\n".join(
        [
            f"ablation of {args.agent} with {args.tool} on {args.data}, into {this.folder.path}:",
            f"  {len(ARMS)} arms x {len(seeds)} seeds ({', '.join(map(str, seeds))}); stages with their episodes (of "
            f"at most {args.max_steps} actions) and optimiser steps (of {args.batch_rows} rows)",
            *lines,
            f"  in all {total} episodes and {steps} optimiser steps",
            "nothing was written (--dry-run)",
        ]
    )


def _own_stages(arm: str) -> dict[int, list[str]]:
    """The stages after round 0 that an arm shares with no other before it, by round."""
    shared, variant = SHARED.get(arm, ()), ARMS[arm]["variant"]
    return {
        n: [name for name in stages(variant, n) if f"round{n}/{name}.*" not in shared]
        for n in range(1, ARMS[arm]["rounds"] + 1)
        if f"round{n}/**/*" not in shared
    }


def _one_start(args: Args) -> bool:
    """Whether round 0 is equal in all seeds: nothing in it is sampled where S_0 is a checkpoint as it is."""
    return not args.start_steps and checkpoint(args.agent) is not None


def _arm(args: Args, folder: RunFolder, seed: int, arm: str) -> Args:
    """The settings of one run."""
    where = create_or_resume(ablation.arm_folder(folder.path, seed, arm))
    same: dict[str, Any] = {"ablation": False, "expert": "trajectory", "executor": "serial"}
    return replace(args, **{**same, **where, **ARMS[arm], "seed": seed})


def results(args: Args, folder: RunFolder, seeds: Sequence[int]) -> dict[str, Any]:
    """The content of ablation.json. Gains are paired over tasks; the pooled ones average a task over seeds first."""
    ious = {policy.name: [_ious(folder, policy, seed) for seed in seeds] for policy in POLICIES}
    lines = []
    for policy in POLICIES:
        values = ious[policy.name]
        steps = args.round_steps * (policy.round if policy.arm == "continue" else min(policy.round, 1))
        line: dict[str, Any] = {"policy": policy.name, "about": policy.about, "steps": steps}
        pooled = np.mean(values, axis=0)
        line |= {"miou": float(pooled.mean()), "miou_interval": list(statistics.bootstrap(pooled))}
        line["miou_by_seed"] = [float(each.mean()) for each in values]
        for key, reference in REFERENCES.items():
            line |= ablation.paired_gains(values, ious[reference], key)
        runs = [RunFolder(ablation.arm_folder(folder.path, seed, policy.arm)) for seed in seeds]
        measured = [each.load_json("metrics.json")["policies"][policy.round] for each in runs]
        for key, _ in list(COLUMNS.values())[3:]:
            line |= ablation.averaged(key, [each[key] for each in measured])
        lines.append(line)
    protocol = {
        "seeds": list(seeds),
        "held_out_tasks": len(ious["S_0"][0]),
        "intervals": "95 % bootstrap over held-out tasks, paired; pooled lines average each task over seeds first",
        "steps": "optimiser steps after S_0",
        "all seeds": "of best IoU, first clicks, stops and invalid replies the mean of the seeds' figures, without "
        "those that have none; what they are is said in the runs' reports",
        "between seeds": "sampling of rollouts and training order differ; the training tasks, and S_0 where it is the "
        "agent itself, are the same; intervals hold nothing of the spread over seeds",
        "arms": ARMS,
        **choices(args, RESUMABLE | {"ablation", *OWN}),
        "sft_steps": args.start_steps,
    }
    return {"policies": lines, "protocol": hide_home(protocol)}


def _ious(folder: RunFolder, policy: Policy, seed: int) -> np.ndarray:
    """IoU of each held-out task, [tasks]."""
    arm = RunFolder(ablation.arm_folder(folder.path, seed, policy.arm))
    played = list(read_episodes(arm, f"round{policy.round}/evaluate"))
    if not played:
        raise RunError(f"{arm.path} holds no evaluation of round {policy.round}; remove it, and --resume")
    return np.array([episode.final_iou for episode in played])


def table(numbers: dict[str, Any]) -> Table:
    """A row for each policy and seed ("all": pooled); a policy has no gain over itself."""

    def cells(line: dict[str, Any]) -> list[str]:
        own = {key for key, reference in REFERENCES.items() if reference == line["policy"]}
        return ["" if key in own else ablation.cell(line[key], digits) for key, digits in COLUMNS.values()]

    lines = ablation.by_seed(numbers["policies"], numbers["protocol"]["seeds"])
    return Table([*FIELDS, *COLUMNS], [[*(line[name] for name in FIELDS), *cells(line)] for line in lines])


def records(numbers: dict[str, Any]) -> Table:
    """All digits of the table, with the ends of intervals in other columns."""
    keys = [key for key, _ in COLUMNS.values()]
    gains = [f"{gain}{end}" for gain in ("gain_over_s0", "gain_over_control") for end in ("", "_low", "_high")]
    rows = []
    for line in ablation.by_seed(numbers["policies"], numbers["protocol"]["seeds"]):
        values = [line[key] if key in REFERENCES else [line[key]] for key in (*FIELDS, *keys)]
        rows.append([number for group in values for number in group])
    return Table([*FIELDS, keys[0], *gains, *keys[3:]], rows)


def report(numbers: dict[str, Any]) -> ablation.Report:
    """The table, the plot of gains over S_0, and the words of the page."""
    lines, protocol = numbers["policies"], numbers["protocol"]
    groups: dict[str, list[Any]] = {}
    for line in ablation.by_seed(lines[1:], protocol["seeds"]):
        groups.setdefault(line["seed"], []).append(line["gain"])
    return ablation.Report(
        f"Ablation of StaR for {protocol['agent']} on {protocol['data']}",
        f"{protocol['held_out_tasks']} held-out tasks of at most {protocol['max_steps']} actions. Intervals: "
        f"{protocol['intervals']}. First click: share of episodes whose first action is a positive click in the "
        "object; stopped: by the policy itself; stop acc.: share of right decisions to stop or to click; invalid: "
        "share of replies that are no action.",
        table(numbers),
        {"ablation": plot_intervals(groups, [line["policy"] for line in lines[1:]], "gain of held-out mIoU over S_0")},
        {line["policy"]: line["about"] for line in lines},
        records(numbers),
    )


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    head = f"{numbers['protocol']['held_out_tasks']} held-out tasks; gains are paired, with 95 % intervals"
    return f"{head}\n{table(numbers).text()}"
