"""The ablation of StaR: S_0, a control that trains on D_0 alone, another whose D_0 is filtered as rollouts are, whole
trajectories (star), corrected actions (star+), and resuming from the last policy instead of S_0 (continue).

Arms of a seed share D_0, S_0 and the first rollouts with its star+ run, and where S_0 is a checkpoint as it is, all
seeds share round 0: each is made once, and its files are linked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.mllm import checkpoint
from experiments.common.ablation import (
    Report,
    arm_folder,
    averaged,
    by_seed,
    gain_cell,
    paired_gains,
    run_arms,
    share,
    write,
)
from experiments.common.cli import open_run
from experiments.common.config import RunError, create_or_resume, plain
from experiments.common.plots import plot_intervals
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.common.tables import Table
from experiments.star import train
from experiments.star.config import RESUMABLE, Args, check, stages, with_defaults
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
ROUND = "round{}/**/*"
ROLLOUT = "round1/rollout.*"
SHARED = {  # files of star+ that another arm begins with; judged makes examples of its own from the episodes
    "continue": (ROUND.format(0), ROUND.format(1)),
    "star": (ROUND.format(0), ROLLOUT),
    "control": (ROUND.format(0),),
    "judged": ("round0/expert.*json*", "round0/train.*", "round0/evaluate.*", "round0/policy/**/*"),
}
METRICS = (  # (key in metrics.json, name in the table); miou and its gains have columns of their own
    ("best_iou", "best IoU"),
    ("first_click_in_object", "first click"),
    ("stop_rate", "stopped"),
    ("stop_accuracy", "stop acc."),
    ("invalid_rate", "invalid"),
)
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
        folder.keep_manifest(manifest(args.seed, this.protocol(), this.hashes()))
        first, *others = seeds = range(args.seed, args.seed + args.ablation_seeds)
        base = {seed: arm_folder(folder.path, seed, "star+") for seed in seeds}
        if others and _one_start(args):
            if not RunFolder(base[first]).done("round0/evaluate"):
                run_arms(train.begin, [_arm(args, folder, first, "star+")], 1)
            for seed in others:
                share(base[first], base[seed], (ROUND.format(0),))
        _run(args, [_arm(args, folder, seed, "star+") for seed in seeds])
        for seed in seeds:
            for arm, patterns in SHARED.items():
                share(base[seed], arm_folder(folder.path, seed, arm), patterns)
        _run(args, [_arm(args, folder, seed, arm) for seed in seeds for arm in SHARED])
        numbers = results(args, folder, seeds)
        return write(folder, numbers, report(numbers))


def plan(args: Args) -> str:
    """Describe the ablation for a dry run; tool and agent are loaded to see that they can be."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    this.player(this.train_data, args.agent)
    seeds = range(args.seed, args.seed + args.ablation_seeds)
    starts = 1 if _one_start(args) else len(seeds)
    tasks, held_out = len(this.train_indices), len(this.eval_indices)
    played = {"expert": tasks, "rollout": min(args.rollout_tasks, tasks) * args.samples, "evaluate": held_out}

    def describe(names: Sequence[str], steps: int) -> str:
        counts = {"train": f" ({steps} steps)"} | {name: f" ({count})" for name, count in played.items()}
        return ", ".join(name + counts.get(name, "") for name in names)

    lines = [
        f"ablation of {args.agent} with {args.tool} on {args.data}, into {this.folder.path}:",
        f"  {len(ARMS)} arms x {len(seeds)} seeds ({', '.join(map(str, seeds))}); stages with their episodes (of at "
        f"most {args.max_steps} actions) and optimiser steps (of {args.batch_rows} rows)",
        f"  round 0, {'once' if starts == 1 else 'for each seed'}: " + describe(stages("star+", 0), args.start_steps),
    ]
    total, steps = starts * (tasks + held_out), starts * args.start_steps
    for arm in ARMS:
        own = _own_stages(arm)
        rounds = "; ".join(f"round {n}: {describe(names, args.round_steps)}" for n, names in own.items())
        lines.append(f"  {arm}, for each seed: {rounds}")
        names = [name for each in own.values() for name in each]
        total += len(seeds) * sum(played.get(name, 0) for name in names)
        steps += len(seeds) * names.count("train") * args.round_steps
    lines.append(f"  in all {total} episodes and {steps} optimiser steps")
    return "\n".join([*lines, "nothing was written (--dry-run)"])


def _own_stages(arm: str) -> dict[int, list[str]]:
    """The stages after round 0 that an arm shares with no other before it, by round."""
    shared, variant = SHARED.get(arm, ()), ARMS[arm]["variant"]
    return {
        n: [name for name in stages(variant, n) if f"round{n}/{name}.*" not in shared]
        for n in range(1, ARMS[arm]["rounds"] + 1)
        if ROUND.format(n) not in shared
    }


def _one_start(args: Args) -> bool:
    """Whether round 0 is equal in all seeds: nothing in it is sampled where S_0 is a checkpoint as it is."""
    return not args.start_steps and checkpoint(args.agent) is not None


def _arm(args: Args, folder: RunFolder, seed: int, arm: str) -> Args:
    """The settings of one run."""
    where = create_or_resume(arm_folder(folder.path, seed, arm))
    same: dict[str, Any] = {"ablation": False, "expert": "trajectory", "executor": "serial"}
    return replace(args, **{**same, **where, **ARMS[arm], "seed": seed})


def _run(args: Args, runs: Sequence[Args]) -> None:
    waiting = [each for each in runs if not RunFolder(each.resume or each.out or "").done("star")]
    run_arms(train.run, waiting, 1 if args.executor == "serial" else args.workers)


def results(args: Args, folder: RunFolder, seeds: Sequence[int]) -> dict[str, Any]:
    """The content of ablation.json. Gains are paired over tasks; the pooled ones average a task over seeds first."""
    ious = {policy.name: [_ious(folder, policy, seed) for seed in seeds] for policy in POLICIES}
    lines = []
    for policy in POLICIES:
        own = ious[policy.name]
        steps = args.round_steps * (policy.round if policy.arm == "continue" else min(policy.round, 1))
        line: dict[str, Any] = {"policy": policy.name, "about": policy.about, "steps": steps}
        pooled = np.mean(own, axis=0)
        line |= {"miou": float(pooled.mean()), "miou_interval": list(statistics.bootstrap(pooled))}
        line["miou_by_seed"] = [float(values.mean()) for values in own]
        for key, reference in REFERENCES.items():
            line |= paired_gains(own, ious[reference], key)
        runs = [RunFolder(arm_folder(folder.path, seed, policy.arm)).read_json("metrics.json") for seed in seeds]
        for key, _ in METRICS:
            line |= averaged(key, [each["policies"][policy.round][key] for each in runs])
        lines.append(line)
    settings = plain(args)
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
        **{key: settings[key] for key in settings if key not in RESUMABLE | {"out", "resume", "ablation", *OWN}},
        "sft_steps": args.start_steps,
    }
    return {"policies": lines, "protocol": hide_home(protocol)}


def _ious(folder: RunFolder, policy: Policy, seed: int) -> np.ndarray:
    """IoU of each held-out task, [tasks]."""
    arm = RunFolder(arm_folder(folder.path, seed, policy.arm))
    played = list(read_episodes(arm, f"round{policy.round}/evaluate"))
    if not played:
        raise RunError(f"{arm.path} holds no evaluation of round {policy.round}; remove it, and --resume")
    return np.array([episode.final_iou for episode in played])


def table(numbers: dict[str, Any], exact: bool = False) -> Table:
    """A row for each policy and seed ("all": pooled): as text, where a policy has no gain over itself, or `exact`."""
    bounds = [f"{gain}{end}" for gain in ("gain_over_s0", "gain_over_control") for end in ("", "_low", "_high")]
    rows = []
    for line in numbers["policies"]:
        for seed, own in by_seed(line, numbers["protocol"]["seeds"]):
            row, metrics = [line["policy"], seed, line["steps"]], [own[key] for key, _ in METRICS]
            if exact:
                rows.append([*row, own["miou"], *own["gain"], *own["over_control"], *metrics])
                continue
            gains = ["" if line["policy"] == other else gain_cell(own[key]) for key, other in REFERENCES.items()]
            rows.append([*row, f"{own['miou']:.4f}", *gains, *("–" if x is None else f"{x:.3f}" for x in metrics)])
    if exact:
        return Table(["policy", "seed", "steps", "miou", *bounds, *(key for key, _ in METRICS)], rows)
    names = ("gain over S_0", "gain over control", *(name for _, name in METRICS))
    return Table(["policy", "seed", "steps", "mIoU", *names], rows)


def report(numbers: dict[str, Any]) -> Report:
    """The table, the plot of gains over S_0, and the words of the page."""
    lines, protocol = numbers["policies"], numbers["protocol"]
    groups: dict[str, list[Any]] = {"all": []}
    for line in lines[1:]:
        for seed, own in by_seed(line, protocol["seeds"]):
            groups.setdefault(seed, []).append(own["gain"])
    return Report(
        f"Ablation of StaR for {protocol['agent']} on {protocol['data']}",
        f"{protocol['held_out_tasks']} held-out tasks of at most {protocol['max_steps']} actions. Intervals: "
        f"{protocol['intervals']}. First click: share of episodes whose first action is a positive click in the "
        "object; stopped: by the policy itself; stop acc.: share of right decisions to stop or to click; invalid: "
        "share of replies that are no action.",
        table(numbers),
        {"ablation": plot_intervals(groups, [line["policy"] for line in lines[1:]], "gain of held-out mIoU over S_0")},
        {line["policy"]: line["about"] for line in lines},
        table(numbers, exact=True),
    )


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    head = f"{numbers['protocol']['held_out_tasks']} held-out tasks; gains are paired, with 95 % intervals"
    return f"{head}\n{table(numbers).text()}"
