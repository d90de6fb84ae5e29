"""The ablation of StaR: S_0, and its controls (S_0 stopped at the step that is best on training tasks; as many steps on
D_0 alone, or on a D_0 that is filtered as rollouts are; as many of the annotator's actions on new tasks), whole
trajectories (star), corrected actions (star+), and resuming from the last policy instead of S_0 (continue).

Arms of a seed share D_0, S_0 and the first rollouts with its star+ run, and where S_0 is a checkpoint as it is, all
seeds share round 0: each is made once, and its files are linked.
"""

from collections.abc import Mapping, Sequence
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
from experiments.star import controls, train
from experiments.star.config import RESUMABLE, Args, check, stages, with_defaults
from experiments.star.controls import Played
from experiments.star.metrics import METRIC_DEFINITIONS
from experiments.star.stages import read_episodes
from experiments.star.train import Star
from search.episode import Episode
from segenv import statistics
from segenv.data.base import Dataset


@dataclass(frozen=True)
class Policy:
    """A line of the table: a policy of an arm's run."""

    name: str
    arm: str
    round: int
    about: str
    cut: bool = False  # every episode ends after a fixed number of actions


ROUNDS = 2  # from base and continue are equal in the first
ARMS: dict[str, dict[str, Any]] = {
    "star+": {"variant": "star+", "rounds": ROUNDS, "start_from": "base"},
    "continue": {"variant": "star+", "rounds": ROUNDS, "start_from": "previous"},
    "star": {"variant": "star", "rounds": 1, "start_from": "base"},
    "control": {"variant": "control", "rounds": 1, "start_from": "base"},
    "demonstrations": {"variant": "demonstrations", "rounds": 1, "start_from": "base"},
    "judged": {"variant": "control", "rounds": 1, "start_from": "base", "expert": "judged"},
}
OWN = ("variant", "rounds", "start_from", "expert")  # of each arm, whatever the flags say
SHARED = {  # files of star+ that another arm begins with; judged makes examples of its own from the episodes
    "continue": ("round0/**/*", "round1/**/*"),
    "star": ("round0/**/*", "round1/rollout.*"),
    "control": ("round0/**/*",),
    "demonstrations": ("round0/**/*", "round1/rollout.*"),
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
    "on error @2": ("on_error_2", 3),
    "invalid": ("invalid_rate", 3),
    "queries": ("queries", 0),
}
POLICIES = (
    Policy("S_0", "star+", 0, "the policy to improve"),
    Policy("S_0, cut", "star+", 0, "S_0, ended after the number of actions that is best on training tasks", cut=True),
    Policy("control", "control", 1, "as many steps on D_0 alone"),
    Policy("judged control", "judged", 1, "the same, with stops where none of the annotator's later clicks gains"),
    Policy(
        "demonstrations", "demonstrations", 1, "D_0 and as many of the annotator's actions on new tasks as star+ asks"
    ),
    Policy("star", "star", 1, "whole trajectories, D_1 alone"),
    Policy("star+", "star+", 1, "corrected actions, D_0 and D_1, from S_0"),
    Policy("star+, round 2", "star+", 2, "D_0 and D_2 (rollouts of S_1), from S_0"),
    Policy("continue, round 2", "continue", 2, "D_0 and D_2 (rollouts of S_1), from S_1"),
)
REFERENCES = {"gain": "S_0", "over_control": "control"}
CLAIM, FIRST_CONTROL = "star+", "S_0, cut"  # the primary endpoint is the claim's final mIoU over that control's
CONTROLS = ("S_0", FIRST_CONTROL, "control", "judged control", "demonstrations")
MEASURED = ("first_click_in_object", "stop_rate", "stop_accuracy", "invalid_rate")


def arms(args: Args) -> dict[str, dict[str, Any]]:
    """The arms' own settings: without a second round, star+ ends after its first, and continue is left out."""
    return {
        name: own | {"rounds": min(own["rounds"], args.ablation_rounds)}
        for name, own in ARMS.items()
        if name != "continue" or args.ablation_rounds > 1
    }


def policies(args: Args) -> list[Policy]:
    """The lines of the table."""
    return [policy for policy in POLICIES if policy.round <= args.ablation_rounds]


def prepare(args: Args) -> Star:
    """Prepare a run of any arm; RunError where one of the arms cannot be run."""
    for own in arms(args).values():
        check(replace(args, **own))
    return Star.prepare(replace(args, **{name: getattr(Args(), name) for name in OWN}))


def run(args: Args) -> dict[str, Any]:
    """Run all arms in all seeds; returns what ablation.json holds."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    with open_run(args, RESUMABLE) as folder:
        folder.keep_manifest(manifest(args.seed, this.protocol(), this.hashes()), METRIC_DEFINITIONS)
        later_arms = [arm for arm in arms(args) if arm in SHARED]
        first, *later = seeds = range(args.seed, args.seed + args.ablation_seeds)
        base = {seed: ablation.arm_folder(folder.path, seed, "star+") for seed in seeds}
        workers = 1 if args.executor == "serial" else args.workers
        if later and _one_start(args):
            ablation.run_arms(train.begin, "round0/greedy", [_arm(args, folder, first, "star+")], 1)
            for seed in later:
                ablation.share(base[first], base[seed], ["round0/**/*"])
        ablation.run_arms(train.begin, "round0/greedy", [_arm(args, folder, seed, "star+") for seed in seeds], workers)
        ablation.run_arms(train.run, "star", [_arm(args, folder, seed, "star+") for seed in seeds], workers)
        for seed in seeds:
            for arm in later_arms:
                ablation.share(base[seed], ablation.arm_folder(folder.path, seed, arm), SHARED[arm])
        others = [_arm(args, folder, seed, arm) for seed in seeds for arm in later_arms]
        ablation.run_arms(train.run, "star", others, workers)
        numbers = results(args, folder, seeds, this.eval_data)
        return ablation.write(folder, numbers, report(numbers))


def plan(args: Args) -> str:
    """Describe the ablation for a dry run; tool and agent are loaded to see that they can be."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    this.player(this.train_data, args.agent)
    seeds = range(args.seed, args.seed + args.ablation_seeds)
    starts = 1 if _one_start(args) else len(seeds)
    tasks, held_out = len(this.train_indices), len(this.eval_indices)
    rolled = min(args.rollout_tasks, tasks)
    played = {"expert": tasks, "rollout": rolled * args.samples, "evaluate": held_out, "greedy": rolled}
    titles = {f"round 0, {'once' if starts == 1 else 'for each seed'}": {0: [*stages("star+", 0), "greedy"]}}
    titles |= {f"{arm}, for each seed": _own_stages(arm, own) for arm, own in arms(args).items()}
    lines, total, steps = [], 0, 0
    number = f"{len(arms(args))} arms x {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    for title, rounds in titles.items():
        parts = []
        for n, names in rounds.items():
            times, each = (len(seeds), args.round_steps) if n else (starts, args.start_steps)
            counts = {"train": f" ({each} steps)"} | {name: f" ({count})" for name, count in played.items()}
            if n:
                counts["expert"] = " (new tasks)"
            parts.append(f"round {n}: " * bool(n) + ", ".join(name + counts.get(name, "") for name in names))
            total += times * sum(played.get(name, 0) for name in names if not n or name != "expert")
            steps += times * names.count("train") * each
        lines.append(f"  {title}: {'; '.join(parts)}")
    return "\n".join(
        [
            f"ablation of {args.agent} with {args.tool} on {args.data}, into {this.folder.path}:",
            f"  {number}; stages with their episodes (of at most {args.max_steps} actions) and optimiser steps (of "
            f"{args.batch_rows} rows)",
            *lines,
            f"  in all {total} episodes and {steps} optimiser steps, and on new tasks as many of the annotator's",
            "  actions as star+ asks for",
            "nothing was written (--dry-run)",
        ]
    )


def _own_stages(arm: str, own: Mapping[str, Any]) -> dict[int, list[str]]:
    """The stages after round 0 that an arm shares with no other before it, by round."""
    shared, variant = SHARED.get(arm, ()), own["variant"]
    return {
        n: [name for name in stages(variant, n) if f"round{n}/{name}.*" not in shared]
        for n in range(1, own["rounds"] + 1)
        if f"round{n}/**/*" not in shared
    }


def _one_start(args: Args) -> bool:
    """Whether round 0 is equal in all seeds: nothing in it is sampled where S_0 is a checkpoint as it is."""
    return not args.start_steps and checkpoint(args.agent) is not None


def _arm(args: Args, folder: RunFolder, seed: int, arm: str) -> Args:
    """The settings of one run."""
    where = create_or_resume(ablation.arm_folder(folder.path, seed, arm))
    same: dict[str, Any] = {"ablation": False, "expert": "trajectory", "executor": "serial"}
    return replace(args, **{**same, **where, **arms(args)[arm], "seed": seed})


def results(args: Args, folder: RunFolder, seeds: Sequence[int], eval_data: Dataset) -> dict[str, Any]:
    """The content of ablation.json: a line for each policy, and the claim's contrasts with its controls. Differences
    are paired over tasks, and seeds are a random effect."""
    episodes = [_episodes(folder, policy, seed, "evaluate") for policy in policies(args) for seed in seeds]
    images = eval_data.images_of(episode.task for episode in episodes[0])
    measured = list(controls.read_played(episodes, args.max_steps, eval_data.by_id))
    steps = [_cut(args, folder, seed) for seed in seeds]
    played: dict[str, list[Played]] = {}
    for k, policy in enumerate(policies(args)):
        own = measured[k * len(seeds) : (k + 1) * len(seeds)]
        cut = [one.cut(step) for one, step in zip(own, steps, strict=True)]
        played[policy.name] = cut if policy.cut else own
    lines = [_line(args, folder, policy, seeds, played, images) for policy in policies(args)]
    contrasts = [
        {"claim": CLAIM, "control": name, **controls.compare(played[CLAIM], played[name], images)} for name in CONTROLS
    ]
    protocol = {
        "seeds": list(seeds),
        "held_out_tasks": len(images),
        "held_out_images": len(set(images)),
        "intervals": ablation.INTERVALS,
        "primary endpoint": f"{controls.ENDPOINTS[controls.PRIMARY]} of {CLAIM} less {FIRST_CONTROL}",
        "clicks on a true error": "difference of the shares of clicks on a true error of the mask before, of the right "
        "sign, over the steps of an episode at which both policies click",
        "cut": {str(seed): step for seed, step in zip(seeds, steps, strict=True)},
        "chosen": "the cut by the mean IoU after each action of S_0, played greedily on the training tasks "
        f"({min(args.rollout_tasks, args.limit)} of {args.data}); nothing on the held-out tasks",
        "queries": "the annotator's actions asked for after round 0",
        "steps": "optimiser steps after S_0",
        "all seeds": "of first clicks, stops and invalid replies the mean of the seeds' figures, without "
        "those that have none; what they are is said in the runs' reports",
        "between seeds": "sampling of rollouts and training order differ; the training tasks, and S_0 where it is the "
        "agent itself, are the same",
        "arms": arms(args),
        **choices(args, RESUMABLE | {"ablation", *OWN}),
        "sft_steps": args.start_steps,
    }
    return {"policies": lines, "contrasts": contrasts, "protocol": hide_home(protocol)}


def _line(
    args: Args,
    folder: RunFolder,
    policy: Policy,
    seeds: Sequence[int],
    played: Mapping[str, Sequence[Played]],
    images: Sequence[str],
) -> dict[str, Any]:
    """The numbers of one policy."""
    values, own = [one.final for one in played[policy.name]], played[policy.name]
    steps = args.round_steps * (policy.round if policy.arm == "continue" else min(policy.round, 1))
    line: dict[str, Any] = {"policy": policy.name, "about": policy.about, "steps": steps}
    mean, *ends = statistics.random_effects(values, images)
    line |= {"miou": mean, "miou_interval": ends, "miou_by_seed": [float(each.mean()) for each in values]}
    for key, reference in REFERENCES.items():
        line |= ablation.paired_gains(values, [one.final for one in played[reference]], key, images)
    runs = [RunFolder(ablation.arm_folder(folder.path, seed, policy.arm)).load_json("metrics.json") for seed in seeds]
    for key in MEASURED:
        of_runs = [run["policies"][policy.round][key] for run in runs]
        line |= ablation.averaged(key, [None] * len(seeds) if policy.cut else of_runs)
    line |= ablation.averaged("best_iou", [float(one.best.mean()) for one in own])
    clicks = [one.right[:, 1] for one in own if one.right.shape[1] > 1]
    shares = [float(np.nanmean(right)) if not np.isnan(right).all() else None for right in clicks]
    line |= ablation.averaged("on_error_2", shares or [None] * len(seeds))
    asked = [sum(each.get("queries", 0) for each in run["lessons"][: policy.round + 1]) for run in runs]
    return line | ablation.averaged("queries", asked)


def _cut(args: Args, folder: RunFolder, seed: int) -> int:
    """The number of actions after which S_0's masks are best on training tasks."""
    episodes = _episodes(folder, POLICIES[0], seed, "greedy")
    curves = controls.iou_curves(episodes, args.max_steps)
    return Played(curves, np.zeros((len(curves), args.max_steps))).best_step()


def _episodes(folder: RunFolder, policy: Policy, seed: int, name: str) -> list[Episode]:
    """The episodes of a policy, in the order of their tasks."""
    arm = RunFolder(ablation.arm_folder(folder.path, seed, policy.arm))
    played = list(read_episodes(arm, f"round{policy.round}/{name}"))
    if not played:
        raise RunError(f"{arm.path} holds no episodes of round {policy.round}, {name}; remove it, and --resume")
    return played


def table(numbers: dict[str, Any]) -> Table:
    """A row for each policy and seed ("all": pooled); a policy has no gain over itself."""

    def cells(line: dict[str, Any]) -> list[str]:
        own = {key for key, reference in REFERENCES.items() if reference == line["policy"]}
        return ["" if key in own else ablation.cell(line[key], digits) for key, digits in COLUMNS.values()]

    lines = ablation.by_seed(numbers["policies"], numbers["protocol"]["seeds"])
    return Table([*FIELDS, *COLUMNS], [[*(line[name] for name in FIELDS), *cells(line)] for line in lines])


def contrasts(numbers: dict[str, Any]) -> Table:
    """A row for each control: what the claim has more, by endpoint."""
    header = [f"{CLAIM} less", *controls.ENDPOINTS.values()]
    rows = []
    for line in numbers["contrasts"]:
        name = line["control"]
        if name == FIRST_CONTROL:
            cuts = sorted(set(numbers["protocol"]["cut"].values()))
            name += f" after {', '.join(map(str, cuts))} actions (primary: {controls.ENDPOINTS[controls.PRIMARY]})"
        differences = [line[key] for key in controls.ENDPOINTS]
        known = [None if any(end is None or end != end for end in each) else each for each in differences]
        rows.append([name, *map(ablation.cell, known)])
    return Table(header, rows)


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
        f"{protocol['held_out_tasks']} held-out tasks of {protocol['eval_data']}, of at most {protocol['max_steps']} "
        f"actions. Intervals: {protocol['intervals']}. Primary endpoint: {protocol['primary endpoint']}. Chosen: "
        f"{protocol['chosen']}. First click: share of episodes whose first action is a positive click in the "
        "object; stopped: by the policy itself; stop acc.: share of right decisions to stop or to click; on error @2: "
        "share of second clicks on a true error; invalid: share of replies that are no action; queries: "
        f"{protocol['queries']}.",
        table(numbers),
        {"ablation": plot_intervals(groups, [line["policy"] for line in lines[1:]], "gain of held-out mIoU over S_0")},
        {line["policy"]: line["about"] for line in lines},
        records(numbers),
        contrasts(numbers),
    )


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    protocol = numbers["protocol"]
    head = f"{protocol['held_out_tasks']} held-out tasks of {protocol['eval_data']}; paired gains, 95 % intervals"
    primary = f"primary endpoint: {protocol['primary endpoint']}"
    return "\n".join([head, table(numbers).text(), primary, contrasts(numbers).text()])
