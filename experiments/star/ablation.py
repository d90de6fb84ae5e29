"""The ablation of StaR: S_0, a control that trains on D_0 alone, another whose D_0 is judged as rollouts are, whole
trajectories (star), corrected actions (star+), and going on from the last policy instead of S_0 (continue), on the same
held-out tasks, in several seeds.

Each arm of each seed is a run of its own under the ablation's folder, `seed0/star+` and so on, with a report of its
own. Arms of a seed share D_0, S_0 and the first rollouts with its star+ run, and where S_0 is a checkpoint as it is,
all seeds share round 0: what is shared is made once, and its files are linked.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.config import RunError, create_or_resume, plain
from experiments.common.html import data_uri, write_html
from experiments.common.plots import figure_and_axes, png, whiskers
from experiments.common.run_folder import RunFolder, disk_errors, hide_home, manifest, write_atomic
from experiments.common.tables import columns, markdown
from experiments.star import train
from experiments.star.config import RESUMABLE, Args, check, stages, with_defaults
from experiments.star.stages import read_episodes
from experiments.star.train import Star
from search.episode import Episode
from search.executors import run_parallel
from segenv import statistics


@dataclass(frozen=True)
class Policy:
    """A line of the table: a policy of an arm's run."""

    name: str
    arm: str
    round: int
    about: str


ROUNDS = 2  # from base and continue are the same in the first
ARMS: dict[str, dict[str, Any]] = {
    "star+": {"variant": "star+", "rounds": ROUNDS, "start_from": "base"},
    "continue": {"variant": "star+", "rounds": ROUNDS, "start_from": "previous"},
    "star": {"variant": "star", "rounds": 1, "start_from": "base"},
    "control": {"variant": "control", "rounds": 1, "start_from": "base"},
    "judged": {"variant": "control", "rounds": 1, "start_from": "base", "expert": "judged"},
}
OWN = ("variant", "rounds", "start_from", "expert")  # what each arm has of its own, whatever the flags say
SHARED = {
    "continue": ("round0", "round1"),
    "star": ("round0", "rollout"),
    "control": ("round0",),
    "judged": ("played",),
}
LESSONS = ("rows.jsonl", "rates.json", "expert.DONE")  # of round 0: what is made of what was played
MEASURES = (  # (key in metrics.json, name in the table); miou and its gains have columns of their own
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


def prepare(args: Args) -> Star:
    """Prepare a run of any arm; RunError where one of the arms cannot be run."""
    for own in ARMS.values():
        check(replace(args, **own))
    return Star.prepare(replace(args, **{name: getattr(Args(), name) for name in OWN}))


def run(args: Args) -> dict[str, Any]:
    """All arms in all seeds; returns what ablation.json holds."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    out = this.folder.path
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        folder.keep_manifest(manifest(args.seed, this.protocol(), this.hashes()))
        first, *others = seeds = range(args.seed, args.seed + args.ablation_seeds)
        if others and _one_start(args):
            begun = _arm(args, folder, first, "star+")
            if not RunFolder(folder / f"seed{first}" / "star+").done("round0/evaluate"):
                _make(begun, train.begin)
            for seed in others:
                _share(folder / f"seed{first}" / "star+", folder / f"seed{seed}" / "star+", ("round0",))
        _in_parallel(args, [_arm(args, folder, seed, "star+") for seed in seeds])
        for seed in seeds:
            for arm, parts in SHARED.items():
                _share(folder / f"seed{seed}" / "star+", folder / f"seed{seed}" / arm, parts)
        _in_parallel(args, [_arm(args, folder, seed, arm) for seed in seeds for arm in SHARED])
        numbers = results(args, folder, seeds)
        folder.write_json("ablation.json", numbers)
        write(folder, numbers)
        folder.finish("ablation")
        return folder.read_json("ablation.json")


def plan(args: Args) -> str:
    """What the ablation would do, for a dry run; tool and agent are loaded to see that they can be."""
    this = prepare(args := with_defaults(replace(args, ablation=True)))
    this.player(this.train_data, args.agent)
    seeds = range(args.seed, args.seed + args.ablation_seeds)
    starts = 1 if _one_start(args) else len(seeds)
    tasks, held_out = len(this.train_indices), len(this.eval_indices)
    played = {"expert": tasks, "rollout": min(args.rollout_tasks, tasks) * args.samples, "evaluate": held_out}

    def told(name: str, steps: int) -> str:
        return f"train ({steps} steps)" if name == "train" else f"{name} ({played[name]})" if name in played else name

    first = ", ".join(told(name, args.start_steps) for name in stages("star+", 0))
    lines = [
        f"ablation of {args.agent} with {args.tool} on {args.data}, into {this.folder.path}:",
        f"  {len(ARMS)} arms x {len(seeds)} seeds ({', '.join(map(str, seeds))}); stages with their episodes (of at "
        f"most {args.max_steps} actions) and optimiser steps (of {args.batch_rows} rows)",
        f"  round 0, {'once' if starts == 1 else 'for each seed'}: {first}",
    ]
    episodes, steps = starts * (tasks + held_out), starts * args.start_steps
    for arm in ARMS:
        own = _own_stages(arm)
        rounds = "; ".join(
            f"round {n}: {', '.join(told(name, args.round_steps) for name in names)}" for n, names in own.items()
        )
        lines.append(f"  {arm}, for each seed: {rounds}")
        names = [name for each in own.values() for name in each]
        episodes += len(seeds) * sum(played.get(name, 0) for name in names)
        steps += len(seeds) * names.count("train") * args.round_steps
    lines.append(f"  in all {episodes} episodes and {steps} optimiser steps")
    return "\n".join([*lines, "nothing was written (--dry-run)"])


def _own_stages(arm: str) -> dict[int, list[str]]:
    """The stages after round 0 that an arm shares with no other before it, by round."""
    done, variant = SHARED.get(arm, ()), ARMS[arm]["variant"]
    return {
        n: [name for name in stages(variant, n) if n > 1 or name not in done]
        for n in range(1, ARMS[arm]["rounds"] + 1)
        if f"round{n}" not in done
    }


def _one_start(args: Args) -> bool:
    """Whether round 0 is the same for every seed: nothing in it is drawn where S_0 is a checkpoint as it is."""
    from agents.mllm import checkpoint

    return not args.start_steps and checkpoint(args.agent) is not None


def _arm(args: Args, folder: RunFolder, seed: int, arm: str) -> Args:
    """The settings of one run."""
    where = create_or_resume(folder / f"seed{seed}" / arm)
    same: dict[str, Any] = {"ablation": False, "expert": "trajectory", "executor": "serial"}
    return replace(args, **{**same, **where, **ARMS[arm], "seed": seed})


def _in_parallel(args: Args, runs: Sequence[Args]) -> None:
    """Make runs that are not finished, `workers` at a time; each goes on where it was cut."""
    waiting = [each for each in runs if not RunFolder(each.resume or each.out or "").done("star")]
    run_parallel(_make, waiting, 1 if args.executor == "serial" else args.workers)


def _make(args: Args, what: Callable[[Args], Any] = train.run) -> None:
    print(f"[{args.resume or args.out}]", file=sys.stderr)
    what(args)


def _share(source: Path, target: Path, parts: Sequence[str]) -> None:
    """Give a run that has not begun the finished stages `parts` of another. Their files are linked: a stage that is
    done is never written to again."""
    if target.exists():
        return
    beside = target.with_name(f".{target.name}.linked")
    shutil.rmtree(beside, ignore_errors=True)
    with disk_errors(target):
        for part in parts:
            if part == "rollout":
                (beside / "round1").mkdir(parents=True, exist_ok=True)
                for path in (source / "round1").glob("rollout.*"):
                    _link(path, beside / "round1" / path.name)
            elif part == "played":
                without = shutil.ignore_patterns(*LESSONS)
                shutil.copytree(source / "round0", beside / "round0", copy_function=_link, ignore=without)
            else:
                shutil.copytree(source / part, beside / part, copy_function=_link)
        beside.rename(target)


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for a file; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def results(args: Args, folder: RunFolder, seeds: Sequence[int]) -> dict[str, Any]:
    """The content of ablation.json. Gains are paired over tasks; the pooled ones average a task over seeds first."""
    ious = {
        (policy.name, seed): np.array([episode.final_iou for episode in _played(folder, policy, seed)])
        for policy in POLICIES
        for seed in seeds
    }
    lines = []
    for policy in POLICIES:
        own = [ious[policy.name, seed] for seed in seeds]
        line: dict[str, Any] = {"policy": policy.name, "about": policy.about, "steps": _steps(args, policy)}
        line["miou"], line["miou_interval"] = _mean(np.mean(own, axis=0))
        line["miou_by_seed"] = [float(values.mean()) for values in own]
        for key, reference in (("gain", "S_0"), ("over_control", "control")):
            pairs = [(ious[policy.name, seed], ious[reference, seed]) for seed in seeds]
            line[key] = _gain(*np.mean(pairs, axis=0))
            line[f"{key}_by_seed"] = [_gain(*pair) for pair in pairs]
        measured = [_measured(folder, policy, seed) for seed in seeds]
        for key, _ in MEASURES:
            line[f"{key}_by_seed"] = [each[key] for each in measured]
            known = [value for value in line[f"{key}_by_seed"] if value is not None]
            line[key] = float(np.mean(known)) if known else None
        lines.append(line)
    protocol = {
        "seeds": list(seeds),
        "held_out_tasks": len(ious["S_0", seeds[0]]),
        "intervals": "95 % bootstrap over held-out tasks, paired; pooled lines average each task over seeds first",
        "steps": "optimiser steps after S_0",
        "all seeds": "of best IoU, first clicks, stops and invalid replies the mean of the seeds' figures, without "
        "those that have none; what they are is said in the runs' reports",
        "between seeds": "sampling of rollouts and training order differ; the training tasks, and S_0 where it is the "
        "agent itself, are the same; intervals hold nothing of the spread over seeds",
        "arms": ARMS,
        **{
            key: value
            for key, value in plain(args).items()
            if key not in RESUMABLE | {"out", "resume", "ablation", *OWN}
        },
        "sft_steps": args.start_steps,
    }
    return {"policies": lines, "protocol": hide_home(protocol)}


def _played(folder: RunFolder, policy: Policy, seed: int) -> list[Episode]:
    run_folder = _folder(folder, policy, seed)
    played = list(read_episodes(run_folder, f"round{policy.round}/evaluate"))
    if not played:
        raise RunError(f"{run_folder.path} holds no evaluation of round {policy.round}; remove it, and --resume")
    return played


def _measured(folder: RunFolder, policy: Policy, seed: int) -> dict[str, Any]:
    return _folder(folder, policy, seed).read_json("metrics.json")["policies"][policy.round]


def _folder(folder: RunFolder, policy: Policy, seed: int) -> RunFolder:
    return RunFolder(folder / f"seed{seed}" / policy.arm)


def _steps(args: Args, policy: Policy) -> int:
    return args.round_steps * (policy.round if policy.arm == "continue" else min(policy.round, 1))


def _mean(values: np.ndarray) -> tuple[float, list[float]]:
    return float(values.mean()), [float(bound) for bound in statistics.bootstrap(values)]


def _gain(values: np.ndarray, reference: np.ndarray) -> list[float]:
    """Paired difference of means, and its interval."""
    return [float(number) for number in statistics.bootstrap_difference(values, reference)]


# --------------------------------------------------------------------------------------------------------------- report


def table(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record for each policy and seed ("all": pooled)."""
    rows = []
    for line in numbers["policies"]:
        for k, seed in enumerate(["all", *numbers["protocol"]["seeds"]]):

            def of(key, line=line, k=k):
                return line[f"{key}_by_seed"][k - 1] if k else line[key]

            row = {"policy": line["policy"], "seed": seed, "steps": line["steps"], "miou": of("miou")}
            for key, name in (("gain", "gain_over_s0"), ("over_control", "gain_over_control")):
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), of(key), strict=True))
            rows.append(row | {key: of(key) for key, _ in MEASURES})
    return rows


HEADER = ("policy", "seed", "steps", "mIoU", "gain over S_0", "gain over control", *(name for _, name in MEASURES))


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """`table` as text, in the order of HEADER; a policy has no gain over itself."""
    lines = []
    for row in table(numbers):
        line = [row["policy"], str(row["seed"]), str(row["steps"]), f"{row['miou']:.4f}"]
        for name, itself in (("gain_over_s0", "S_0"), ("gain_over_control", "control")):
            gain = [row[key] for key in (name, f"{name}_low", f"{name}_high")]
            line.append("" if row["policy"] == itself else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*gain))
        lines.append(line + ["–" if row[key] is None else f"{row[key]:.3f}" for key, _ in MEASURES])
    return lines


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    head = f"{numbers['protocol']['held_out_tasks']} held-out tasks; gains are paired, with 95 % intervals"
    return "\n".join([head, columns([HEADER, *cells(numbers)], right=False)])


def write(folder: RunFolder, numbers: dict[str, Any]) -> None:
    """ablation.csv, ablation.md, the plot and report.html."""
    rows = table(numbers)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "ablation.csv", buffer.getvalue())
    write_atomic(folder / "ablation.md", markdown(HEADER, cells(numbers)))
    picture = plot(numbers)
    write_atomic(folder / "plots" / "ablation.png", picture)
    write_html(
        folder / "report.html",
        "ablation.html",
        title=f"Ablation of StaR for {numbers['protocol']['agent']} on {numbers['protocol']['data']}",
        numbers=numbers,
        header=HEADER,
        rows=cells(numbers),
        plot=data_uri(picture, "image/png"),
    )


def plot(numbers: dict[str, Any]) -> bytes:
    """Gains over S_0 with intervals: pooled, and each seed beside it."""
    figure, axes = figure_and_axes()
    lines = numbers["policies"][1:]
    for place, line in enumerate(reversed(lines)):
        for k, gain in enumerate([line["gain"], *line["gain_by_seed"]]):
            middle, low, high = np.array(gain)[:, None]
            axes.errorbar(
                middle,
                place - 0.14 * k,
                xerr=whiskers(middle, low, high),
                marker="o" if k == 0 else ".",
                color="C0" if k == 0 else "0.6",
                capsize=3,
            )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set(yticks=range(len(lines)), yticklabels=[line["policy"] for line in reversed(lines)])
    axes.set(xlabel="gain of held-out mIoU over S_0 (blue: all seeds; grey: each)")
    return png(figure)
