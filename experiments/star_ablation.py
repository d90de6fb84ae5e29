"""The ablation of StaR: S_0, a control that trains on D_0 alone, whole trajectories (star), corrected actions (star+),
and going on from the last policy instead of S_0 (continue), on the same held-out tasks, in several seeds.

Each arm of each seed is a run of its own under the ablation's folder, `seed0/star+` and so on, with a report of its
own. Arms of a seed share D_0, S_0 and the first rollouts, which are copied from its star+ run.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from typing import Any

import numpy as np

from experiments import star
from experiments.report import data_uri, figure_and_axes, png, write_html
from experiments.runs import RunError, RunFolder, hide_home, manifest, plain, write_atomic
from experiments.star_options import FREE, Args
from experiments.star_stages import episodes
from search.executors import WorkerError, start_worker
from search.rollout import Episode
from segenv import metrics


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
}
OWN = ("variant", "rounds", "start_from", "stop_on_plateau")  # what each arm has of its own, whatever the flags say
SHARED = {"continue": ("round0", "round1"), "star": ("round0", "rollout"), "control": ("round0",)}
POLICIES = (
    Policy("S_0", "star+", 0, "the policy to improve"),
    Policy("control", "control", 1, "as many steps on D_0 alone"),
    Policy("star", "star", 1, "whole trajectories, D_1 alone"),
    Policy("star+", "star+", 1, "corrected actions, D_0 and D_1, from S_0"),
    Policy("star+, round 2", "star+", 2, "D_0 and D_2 (rollouts of S_1), from S_0"),
    Policy("continue, round 2", "continue", 2, "D_0 and D_2 (rollouts of S_1), from S_1"),
)


def run(args: Args) -> dict[str, Any]:
    """All arms in all seeds; returns what ablation.json holds."""
    if args.ablation_seeds < 1:
        raise RunError(f"ablation_seeds is {args.ablation_seeds}; expected 1 or more")
    this = star.prepare(replace(args, **{name: getattr(Args(), name) for name in OWN}))
    out = args.resume or args.out
    assert out is not None  # prepare asks for it
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        folder.keep_manifest(manifest(args.seed, star.protocol(this), star.hashes(this)))
        seeds = range(args.seed, args.seed + args.ablation_seeds)
        _in_parallel(args, [_arm(args, folder, seed, "star+") for seed in seeds])
        for seed in seeds:
            for arm in SHARED:
                _share(folder, seed, arm)
        _in_parallel(args, [_arm(args, folder, seed, arm) for seed in seeds for arm in SHARED])
        numbers = results(args, folder, seeds)
        folder.write_json("ablation.json", numbers)
        write(folder, numbers)
        folder.finish("ablation")
        return folder.read_json("ablation.json")


def _arm(args: Args, folder: RunFolder, seed: int, arm: str) -> Args:
    """The settings of one run."""
    path = folder / f"seed{seed}" / arm
    begun = (path / "config.yaml").exists()
    where: dict[str, Any] = {"resume": str(path) if begun else None, "out": None if begun else str(path)}
    same: dict[str, Any] = {"ablation": False, "executor": "serial", "stop_on_plateau": False}
    return replace(args, seed=seed, **same, **where, **ARMS[arm])


def _in_parallel(args: Args, runs: Sequence[Args]) -> None:
    """Make runs that are not finished, `workers` at a time; each goes on where it was cut."""
    waiting = [each for each in runs if not RunFolder(each.resume or each.out or "").done("star")]
    if args.executor == "serial" or args.workers < 2:
        for each in waiting:
            _make(each)
        return
    pool = ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker)
    try:
        for future in [pool.submit(_make, each) for each in waiting]:
            future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise WorkerError(
            f"one of {args.workers} trainings died (killed, or out of memory?); go on with --resume DIR, with fewer "
            "--workers if memory was short"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()


def _make(args: Args) -> None:
    print(f"[{args.resume or args.out}]", file=sys.stderr)
    star.run(args)


def _share(folder: RunFolder, seed: int, arm: str) -> None:
    """Copy the stages that an arm has in common with the star+ run of its seed, before it begins."""
    source, target = folder / f"seed{seed}" / "star+", folder / f"seed{seed}" / arm
    if target.exists():
        return
    copy = target.with_name(f".{arm}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    for part in SHARED[arm]:
        if part == "rollout":
            (copy / "round1").mkdir(parents=True, exist_ok=True)
            for path in (source / "round1").glob("rollout.*"):
                shutil.copy2(path, copy / "round1")
        else:
            shutil.copytree(source / part, copy / part)
    copy.rename(target)


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
        lines.append(line)
    protocol = {
        "seeds": list(seeds),
        "held_out_tasks": len(ious["S_0", seeds[0]]),
        "intervals": "95 % bootstrap over held-out tasks, paired; pooled lines average each task over seeds first",
        "steps": "optimiser steps after S_0",
        "between seeds": "sampling of rollouts and training order differ; the training tasks, and S_0 where it is the "
        "agent itself, are the same; intervals hold nothing of the spread over seeds",
        "arms": ARMS,
        **{key: value for key, value in plain(args).items() if key not in FREE | {"out", "resume", "ablation", *OWN}},
        "sft_steps": args.start_steps,
    }
    return {"policies": lines, "protocol": hide_home(protocol)}


def _played(folder: RunFolder, policy: Policy, seed: int) -> list[Episode]:
    run_folder = RunFolder(folder / f"seed{seed}" / policy.arm)
    played = list(episodes(run_folder, f"round{policy.round}/evaluate.jsonl"))
    if not played:
        raise RunError(f"{run_folder.path} holds no evaluation of round {policy.round}; remove it, and --resume")
    return played


def _steps(args: Args, policy: Policy) -> int:
    return args.round_steps * (policy.round if policy.arm == "continue" else min(policy.round, 1))


def _mean(values: np.ndarray) -> tuple[float, list[float]]:
    return float(values.mean()), [float(bound) for bound in metrics.bootstrap(values)]


def _gain(values: np.ndarray, reference: np.ndarray) -> list[float]:
    """Paired difference of means, and its interval."""
    return [float(number) for number in metrics.bootstrap_difference(values, reference)]


# --------------------------------------------------------------------------------------------------------------- report


def text(numbers: dict[str, Any]) -> str:
    """The table for a terminal."""
    seeds = numbers["protocol"]["seeds"]
    lines = [f"{numbers['protocol']['held_out_tasks']} held-out tasks, seeds {', '.join(map(str, seeds))}"]
    lines.append(f"{'':<20}{'steps':>6}{'mIoU':>8}  {'gain over S_0':<26}{'over control':<26}")
    for line in numbers["policies"]:
        cells = [_cell(line[key], line["policy"] == reference) for key, reference in _COLUMNS]
        lines.append(f"{line['policy']:<20}{line['steps']:>6}{line['miou']:>8.4f}  {cells[0]:<26}{cells[1]:<26}")
        for k, seed in enumerate(seeds):
            cells = [_cell(line[f"{key}_by_seed"][k], line["policy"] == reference) for key, reference in _COLUMNS]
            lines.append(f"{f'  seed {seed}':<20}{'':>6}{line['miou_by_seed'][k]:>8.4f}  {cells[0]:<26}{cells[1]:<26}")
    return "\n".join(line.rstrip() for line in lines)


_COLUMNS = (("gain", "S_0"), ("over_control", "control"))


def _cell(gain: Sequence[float], itself: bool) -> str:
    return "" if itself else "{:+.4f}  [{:+.4f}, {:+.4f}]".format(*gain)


def table(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record for each policy and seed ("all": pooled)."""
    rows = []
    for line in numbers["policies"]:
        for k, seed in enumerate(["all", *numbers["protocol"]["seeds"]]):
            row = {"policy": line["policy"], "seed": seed, "steps": line["steps"]}
            row["miou"] = line["miou_by_seed"][k - 1] if k else line["miou"]
            for key, name in (("gain", "gain_over_s0"), ("over_control", "gain_over_control")):
                gain = line[f"{key}_by_seed"][k - 1] if k else line[key]
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), gain, strict=True))
            rows.append(row)
    return rows


def write(folder: RunFolder, numbers: dict[str, Any]) -> None:
    """ablation.csv, ablation.md, the plot and report.html."""
    rows = table(numbers)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "ablation.csv", buffer.getvalue())
    lines = ["| policy | steps | mIoU | gain over S_0 | gain over control |", "|---|---|---|---|---|"]
    for line in numbers["policies"]:
        cells = [_cell(line[key], line["policy"] == reference) for key, reference in _COLUMNS]
        lines.append(f"| {line['policy']} | {line['steps']} | {line['miou']:.4f} | {cells[0]} | {cells[1]} |")
    write_atomic(folder / "ablation.md", "\n".join(lines) + "\n")
    picture = plot(numbers)
    write_atomic(folder / "plots" / "ablation.png", picture)
    write_html(
        folder / "report.html",
        "ablation.html",
        title=f"Ablation of StaR for {numbers['protocol']['agent']} on {numbers['protocol']['data']}",
        numbers=numbers,
        cell=_cell,
        plot=data_uri(picture, "image/png"),
    )


def plot(numbers: dict[str, Any]) -> bytes:
    """Gains over S_0 with intervals: pooled, and each seed beside it."""
    figure, axes = figure_and_axes()
    lines = numbers["policies"][1:]
    for place, line in enumerate(reversed(lines)):
        for k, gain in enumerate([line["gain"], *line["gain_by_seed"]]):
            middle, low, high = gain
            axes.errorbar(
                middle,
                place - 0.14 * k,
                xerr=[[middle - low], [high - middle]],
                marker="o" if k == 0 else ".",
                color="C0" if k == 0 else "0.6",
                capsize=3,
            )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set(yticks=range(len(lines)), yticklabels=[line["policy"] for line in reversed(lines)])
    axes.set(xlabel="gain of held-out mIoU over S_0 (blue: all seeds; grey: each)")
    return png(figure)
