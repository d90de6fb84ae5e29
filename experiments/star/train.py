"""Stages of a StaR run, in order, and the numbers that come of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from experiments.common.config import RunError, plain
from experiments.common.run_folder import RunFolder, disk_errors, hide_home, manifest
from experiments.common.splits import split
from experiments.star import report
from experiments.star.config import RESUMABLE, Args, with_defaults
from experiments.star.stages import Run, episodes, player_of, read_rows, stages
from search.episode import Episode
from search.executors import Skipped


def check(args: Args) -> None:
    """Raise RunError where the settings cannot be run with."""
    counts = ("rounds", "limit", "rollout_tasks", "samples", "eval_limit", "round_steps", "max_steps", "batch_rows")
    for name in (*counts, "batch_size", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise RunError(f"{name} is {getattr(args, name)}; expected 1 or more")
    if args.sft_steps is not None and args.sft_steps < 0:
        raise RunError(f"sft_steps is {args.sft_steps}; expected 0 or more")
    if args.per_task_cap < 0:
        raise RunError(f"per_task_cap is {args.per_task_cap}; expected 0 (all) or more")
    if args.variant == "star" and args.go_on_from == "correction":
        raise RunError(
            "variant star judges the policy's own trajectories; --go-on-from correction needs --variant star+"
        )
    if args.resume is None and args.out is None:
        raise RunError("a run needs a folder: give out, or resume")


def prepare(args: Args) -> Run:
    """Settings that hold, data that can be read and an agent that can be trained; RunError says what is wrong."""
    check(args := with_defaults(args))
    try:
        import agents.training.sft  # noqa: F401  # needs an extra, and is asked for only after the first stage
        from agents.mllm import checkpoint

        checkpoint(args.agent)
        return Run(
            args,
            RunFolder(args.resume or args.out or ""),
            *split(args.data, args.eval_data, args.limit, args.eval_limit, args.skip_bad),
        )
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up data {args.data!r} and agent {args.agent!r}: {error}") from error


def dry_run(this: Run) -> str:
    """What a run would do, for a dry run; tool and agent are loaded to see that they can be."""
    args, player = this.args, player_of(this.setup(this.train, this.args.agent))
    train, held_out = len(this.train_places), len(this.eval_places)
    lines = [
        f"{args.agent} ({player.agent.codec.name}) with {args.tool} on {args.data}, into {this.folder.path}:",
        f"  D_0: the annotator plays {train} training tasks of at most {args.max_steps} actions",
        f"  S_0: {args.start_steps} steps of {args.batch_rows} rows from {args.agent}" * bool(args.start_steps)
        or f"  S_0: {args.agent} as it is",
        f"  evaluation: {held_out} held-out tasks, for S_0 and each round",
    ]
    rolled = min(args.rollout_tasks, train)
    for n in range(1, args.rounds + 1):
        if args.variant != "control":
            lines.append(f"  D_{n}: {rolled} tasks x {args.samples} rollouts, filtered by {args.variant}")
        lessons = {"star": f"D_{n}", "control": "D_0"}.get(args.variant, f"D_0 + D_{n}")
        start = f"S_{n - 1 if args.start_from == 'previous' else 0}"
        lines.append(f"  S_{n}: {args.round_steps} steps of {args.batch_rows} rows from {start} on {lessons}")
    return "\n".join([*lines, "nothing was written (--dry-run)"])


@contextmanager
def open_run(args: Args) -> Iterator[Run]:
    """The run of `args`, with its folder open to write to."""
    this = prepare(args := with_defaults(args))
    made_of = hashes(this)
    out = this.folder.path
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        this.folder = folder
        folder.keep_manifest(manifest(args.seed, protocol(this), made_of))
        yield this


def begin(args: Args) -> None:
    """Round 0 alone: D_0, S_0 and what it does on the held-out tasks. `run` goes on from there."""
    with open_run(args) as this:
        play_round(this, 0)


def run(args: Args) -> dict[str, Any]:
    """All stages, in the folder of `args`; returns what metrics.json holds."""
    with open_run(args) as this:
        folder = this.folder
        played: list[list[Episode]] = []
        for n in range(args.rounds + 1):
            played.append(play_round(this, n))
            if n and args.stop_on_plateau and _mean_iou(played[-1]) <= _mean_iou(played[-2]):
                print(f"[round{n}] no better than the round before: the last round", file=sys.stderr)
                break
        numbers = results(this, played)
        folder.write_json("metrics.json", numbers)
        report.write(folder, numbers, [played[0], played[-1]], this.held_out_task, args.report_episodes)
        folder.finish("star")
        return folder.read_json("metrics.json")


def hashes(this: Run) -> dict[str, str | None]:
    """What identifies the data and the models of a run."""
    player = player_of(this.setup(this.train, this.args.agent))
    found: dict[str, str | None] = {"data": this.train.fingerprint, "eval_data": this.held_out.fingerprint}
    return found | {"tool": player.tool.fingerprint, "agent": player.agent.settings["weights"]}


def play_round(this: Run, n: int) -> list[Episode]:
    """The stages of round n; returns the held-out episodes of S_n."""
    for name, work in stages(this.args.variant, n):
        stage(this, n, name, work)
    return list(episodes(this.folder, f"round{n}/evaluate.jsonl"))


def stage(this: Run, n: int, name: str, work: Any) -> None:
    """Do a stage of round n unless it is done."""
    key = f"round{n}/{name}"
    if this.folder.done(key):
        print(f"[{key}] done before", file=sys.stderr)
        return
    (this.folder / key).parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with disk_errors(this.folder.path):
        work(this, n)
    this.folder.finish(key)
    print(f"[{key}] {time.perf_counter() - began:.1f} s", file=sys.stderr)


def results(this: Run, played: Sequence[Sequence[Episode]]) -> dict[str, Any]:
    """The content of metrics.json: measures of each policy, from its held-out episodes, and lessons of each round."""
    empty = {"visited": 0, "expert": 0.0, "policy": 0.0, "corrected": 0.0}  # the control plays nothing
    lessons = [
        {"round": n, "rows": len(read_rows(this, n)), **(this.folder.read_json(f"round{n}/rates.json") or empty)}
        for n in range(len(played))
    ]
    skipped: Skipped = {}
    for path in sorted(this.folder.path.glob("round*/*.skipped.json")):
        skipped |= this.folder.read_json(str(path.relative_to(this.folder.path)))
    policies = report.policies(played, this.args.max_steps, this.held_out_task, this.args.rules)
    return {"policies": policies, "lessons": lessons, "skipped": hide_home(skipped), "protocol": protocol(this)}


def protocol(this: Run) -> dict[str, Any]:
    """Every choice that changes a number."""
    args = plain(this.args)
    chosen = {key: args[key] for key in args if key not in RESUMABLE | {"out", "resume"}}
    chosen["sft_steps"] = this.args.start_steps
    counts = {"training_tasks": len(this.train_places), "held_out_tasks": len(this.eval_places)}
    return hide_home(chosen | counts | report.METRIC_DEFINITIONS)


def _mean_iou(played: Sequence[Episode]) -> float:
    return float(np.mean([episode.final_iou for episode in played]))
