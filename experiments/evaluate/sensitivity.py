"""Sensitivity of a model to the words of its prompt, and to how many of its own actions it is told: the same tasks
again with each of three prompts and of three histories, paired."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agents.base import Agent
from agents.prompted import PROMPTS
from experiments.common.config import RunError, create_or_resume
from experiments.common.run_folder import RunFolder
from experiments.common.tables import Table, interval, number
from experiments.evaluate.config import Args
from experiments.evaluate.episodes.metrics import Outcome, outcome_of, read_episode
from segenv import statistics

HISTORIES = (0, 1, 4)  # earlier actions in the prompt
Arm = tuple[str, int]  # prompt and history


def arms(agent: Agent) -> list[Arm]:
    """The agent's own prompt and history, and each other one with all else as it is. RunError for an agent that has
    no prompt."""
    prompt, history = getattr(agent, "prompt_style", None), getattr(agent, "history", 0)
    if prompt is None:
        raise RunError(f"agent {agent.spec!r} has no prompt; leave out --sensitivity, or take a model")
    others = [(name, history) for name in PROMPTS] + [(prompt, length) for length in HISTORIES]
    return list(dict.fromkeys([(prompt, history), *others]))


def measure(
    folder: RunFolder,
    args: Args,
    agent: Agent,
    own: Sequence[Outcome],
    images: Sequence[str],
    run: Callable[[Args, bool], Any],
    quiet: bool,
) -> list[dict[str, Any]]:
    """Evaluate each arm in a folder of its own below the run's, which is resumed where it was begun, and measure its
    episodes and their differences to `own`, the outcomes of the run itself on `images`. `run` evaluates."""
    found: list[dict[str, Any]] = []
    for prompt, history in arms(agent):
        outcomes = {item.task: item for item in own}
        if found:  # the first is the run itself
            path = folder / "sensitivity" / f"{len(found)}"
            arm = replace(args, prompt=prompt, history=history, sensitivity=False)
            run(replace(arm, report_episodes=0, **create_or_resume(path)), quiet)
            played = RunFolder(path).records("episodes.jsonl", read_episode)
            outcomes = {episode.task: outcome_of(episode) for episode in played}
        shared = [k for k, item in enumerate(own) if item.task in outcomes]
        pairs = [(outcomes[own[k].task], own[k]) for k in shared]
        found.append({"prompt": prompt, "history": history, **_row(pairs, [images[k] for k in shared])})
    return found


def _row(pairs: Sequence[tuple[Outcome, Outcome]], images: Sequence[str]) -> dict[str, Any]:
    """Measures of an arm, and of its differences to the run itself, paired by task."""
    arm, own = ([one.final_iou for one in side] for side in zip(*pairs, strict=True)) if pairs else ([], [])
    replies = [len(one.ious) for one, _ in pairs]
    valid = [len(one.ious) - one.invalid for one, _ in pairs]
    difference, *ends = statistics.bootstrap_difference(arm, own, images=images)
    return {
        "episodes": len(pairs),
        "parse_rate": sum(valid) / sum(replies) if replies else None,
        "iou_at_1": float(np.mean([one.ious[0] for one, _ in pairs])) if pairs else None,
        "miou": float(np.mean(arm)) if pairs else None,
        "difference": difference,
        "interval": ends,
    }


def section(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The part of a report that shows the arms, if they were played."""
    if not numbers.get("sensitivity"):
        return []
    rows = []
    for k, one in enumerate(numbers["sensitivity"]):
        cells = [number(one[key]) for key in ("parse_rate", "iou_at_1", "miou")]
        apart = ["", ""] if not k else [number(one["difference"], sign="+"), interval(one["interval"], sign="+")]
        rows.append([one["prompt"], str(one["history"]), str(one["episodes"]), *cells, *apart])
    header = ("prompt", "history", "episodes", "valid replies", "IoU@1", "final IoU", "difference", "95 % interval")
    notes = ["Each row changes the prompt, or how many earlier actions it tells; differences are paired by task."]
    return [{"title": "Sensitivity to prompt and history", "notes": notes, "table": Table(header, rows, "<>")}]
