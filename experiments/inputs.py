"""Measure which inputs an agent uses: image, instruction, mask.

    python -m experiments.inputs --agent mllm --limit 500

plays the same procedural scenes several times, paired: as they are (the annotator and random positive clicks beside
it), with the instruction exchanged for one that names another object of the scene, and with the mask hidden from the
agent. One who reads the instruction follows it to the other object; one who looks at the mask does worse without it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import agents
from agents.base import Agent
from experiments.common import cli
from experiments.common.config import OutFile, RunError, check
from experiments.common.run_folder import write_atomic
from experiments.common.tables import Table, interval, number
from experiments.evaluate.episodes.click_quality import first_click_inside
from search.episode import Episode
from search.executors import set_threads
from search.rollout import rollout
from segenv import data, metrics, statistics, tools
from segenv.mdp import Observation, SegMDP
from segenv.ranges import Count, Processes, Seed
from segenv.types import Task, object_of

Number = dict[str, Any]  # {"value", "interval", "episodes"}


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    agent: str = "mllm"
    data: str = "synthetic:val"
    """scenes whose tasks carry `instances` and `others` in their meta, as the procedural ones do"""
    tool: str = "sam"
    codec: str | None = None
    limit: Count = 500
    max_steps: Count = 7
    seed: Seed = 0
    batch_size: Count = 32
    threads: Processes = 1
    out: OutFile | None = None
    """also write the numbers to this JSON file"""


class Blindfolded(Agent):
    """An agent that is always shown an empty mask."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.codec)
        self.agent, self.spec = agent, f"{agent.spec} without masks"

    def _act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        hidden = [replace(item, mask=np.zeros_like(item.mask)) for item in observations]
        return self.agent.act(hidden, seeds)


def run(args: Args) -> dict[str, Any]:
    """Measure the use of each input: `measures` by name, and the protocol."""
    check(args)
    with cli.setting_up(f"data {args.data!r}, tool {args.tool!r}, agent {args.agent!r}"):
        dataset, tool = data.make(args.data), tools.make(args.tool)
        agent = agents.make(args.agent, args.codec, seed=args.seed)
    if agent.privileged:
        raise RunError(f"agent {args.agent!r} reads the target; ask this of agents that only see observations")
    set_threads(args.threads)
    tasks = [dataset[k] for k in range(min(args.limit, len(dataset)))]
    if not all({"instances", "others"} <= task.meta.keys() for task in tasks):
        raise RunError(f"the tasks of {args.data!r} do not say what else is in their scenes; take synthetic:val")
    others = [other for task in tasks if (other := exchanged(task)) is not None]

    def play(player: Agent, chosen: Sequence[Task], steps: int, name: str) -> list[Episode]:
        mdp = SegMDP(tool, steps)
        played = rollout(mdp, player, chosen, seed=args.seed, batch_size=args.batch_size)
        return list(cli.progress(len(chosen), "episode", name=name, items=played))

    plain = play(agent, tasks, args.max_steps, "as it is")
    expert = play(agents.make("annotator"), tasks, args.max_steps, "annotator")
    random = play(agents.make("random:p=1"), tasks, 1, "random")
    swapped = play(agent, others, args.max_steps, "other instruction")
    hidden = play(Blindfolded(agent), tasks, args.max_steps, "mask hidden")
    clicked, at_random = (
        [first_click_inside(*pair) for pair in zip(episodes, tasks, strict=True)] for episodes in (plain, random)
    )
    final, best, blind = ([episode.final_iou for episode in episodes] for episodes in (plain, expert, hidden))
    second, blind_second = ([iou_at(episode, 2) for episode in episodes] for episodes in (plain, hidden))
    gains, blind_gains = ([second_gain(episode) for episode in episodes] for episodes in (plain, hidden))
    ratio = {"value": sum(final) / sum(best), "interval": list(statistics.bootstrap_ratio(final, best))}
    measures = {
        "first click in the object": _mean(clicked),
        "first click in the object, random": _mean(at_random),
        "final mIoU": _mean(final),
        "final mIoU, annotator": _mean(best),
        "final mIoU, share of the annotator's": {**ratio, "episodes": len(final)},
        "other instruction: mask goes to the other object": _mean(_followed(swapped, others)),
        "IoU@2, mask seen - hidden, paired": _difference(second, blind_second),
        "second click's gain, mask seen - hidden, paired": _difference(gains, blind_gains),
        "final mIoU, mask seen - hidden, paired": _difference(final, blind),
    }
    protocol = {
        **{key: value for key, value in vars(args).items() if key != "out"},
        "agent": agent.settings,
        "intervals": "95 % percentile bootstrap over episodes",
        "other instruction": "the first other object that a sentence picks out; the mask went to it if the last mask's "
        "IoU with it exceeds that with the object first asked for",
        "second click's gain": "IoU after two actions minus IoU after one; without masks the first action is the same",
    }
    return {"measures": measures, "protocol": protocol}


def exchanged(task: Task) -> Task | None:
    """Exchange the instruction of `task` for another object's, or return None where no sentence picks out another; the
    first object is `meta["first"]`, bool [H, W]."""
    if not task.meta["others"]:
        return None
    text, number = task.meta["others"][0]
    target = task.meta["instances"] == number
    return replace(task, target=target, instruction=text, meta={**task.meta, "first": object_of(task.target)})


def iou_at(episode: Episode, k: int) -> float:
    """IoU after k actions, or after the last one."""
    return episode.ious[min(k, len(episode.ious)) - 1]


def second_gain(episode: Episode) -> float:
    """ΔIoU of the second action, 0 where there is none."""
    return iou_at(episode, 2) - iou_at(episode, 1)


def _mean(values: Sequence[float]) -> Number:
    return {"value": float(np.mean(values)), "interval": list(statistics.bootstrap(values)), "episodes": len(values)}


def _followed(swapped: Sequence[Episode], others: Sequence[Task]) -> list[float]:
    """Whether each mask went to the object that the exchanged instruction names."""
    return [
        float(metrics.iou(task.target, mask) > metrics.iou(task.meta["first"], mask))
        for mask, task in zip((episode.mask(len(episode.steps)) for episode in swapped), others, strict=True)
    ]


def _difference(first: Sequence[float], second: Sequence[float]) -> Number:
    difference, *ends = statistics.bootstrap_difference(first, second)
    return {"value": difference, "interval": ends, "episodes": len(first)}


def text(numbers: dict[str, Any]) -> str:
    """Format the measures for a terminal."""
    rows = []
    for name, measure in numbers["measures"].items():
        sign = "+" if "paired" in name else ""
        cells = number(measure["value"], sign=sign), interval(measure["interval"], sign=sign)
        rows.append([name, *cells, str(measure["episodes"])])
    return Table(("measure", "value", "95 % interval", "episodes"), rows).text()


def show(args: Args) -> str:
    """Measure, write the JSON file, and return the measures for a terminal."""
    numbers = run(args)
    if args.out is not None:
        write_atomic(args.out, json.dumps(numbers, indent=1, default=str) + "\n")
    return text(numbers)


main = partial(cli.main, "inputs", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
