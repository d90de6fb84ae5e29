"""Replies to the held-out tasks of a GSPO run: asked for, kept, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from experiments.common.config import plain
from experiments.common.run_folder import RunFolder, hide_home
from experiments.evaluate.polygon_metrics import Record
from experiments.gspo.config import RESUMABLE, Args
from segenv.data.base import Dataset
from segenv.seeds import seed_of
from segenv.types import Task

ANSWERS = "answers.jsonl"


@dataclass
class Run:
    """What the stages share."""

    args: Args
    folder: RunFolder
    agent: Any
    data: Dataset
    held_out: Dataset
    train_places: Sequence[int]
    eval_places: Sequence[int]

    def __post_init__(self) -> None:
        self.held_out_task = lru_cache(maxsize=self.args.probe)(self.held_out.__getitem__)
        self.held_out_ids = {self.held_out.ids[place]: place for place in self.eval_places}


def hashes(this: Run) -> dict[str, str | None]:
    """What identifies the data and the model of a run."""
    return {
        "data": this.data.fingerprint,
        "eval_data": this.held_out.fingerprint,
        "agent": this.agent.settings["weights"],
    }


def protocol(this: Run) -> dict[str, Any]:
    """Every choice that changes a number."""
    from experiments.evaluate.polygon_metrics import METRIC_DEFINITIONS

    args = plain(this.args)
    elsewhere = RESUMABLE | {"out", "resume", "ablation", "seeds", "checkpoints"}
    chosen = {key: args[key] for key in args if key not in elsewhere}
    chosen |= {"codec": this.agent.codec.name, "prompt": this.agent.prompt_style}
    chosen |= {"training_tasks": len(this.train_places), "held_out_tasks": len(this.eval_places)}
    return hide_home({**chosen, **METRIC_DEFINITIONS})


def measure(this: Run, agent: Any, step: int, places: Sequence[int]) -> None:
    """Append the replies of `agent`, the policy after so many steps, to held-out tasks: greedy, and drawn. Those that
    are there already are not asked for again."""
    from experiments.evaluate.polygon_answers import answers

    args = this.args
    have = {(one["step"], one["task"], one["sample"]) for one in this.folder.records(ANSWERS)}
    with this.folder.appending(ANSWERS) as file:
        for start in range(0, len(places), args.eval_batch):  # fixed groups: a model's last bits depend on them
            tasks: list[Task] = [this.held_out_task(place) for place in places[start : start + args.eval_batch]]
            for sample in range(1 + args.samples):
                if have.issuperset((step, task.id, sample) for task in tasks):
                    continue
                seeds = [seed_of("held out", task.id, sample) for task in tasks]  # the same for each policy
                for one in answers(agent, tasks, seeds, args.train.temperature if sample else 0.0, sample=sample):
                    if (step, one.task, sample) not in have:
                        file.add({"step": step, **asdict(one)})


def replies(folder: RunFolder) -> dict[int, list[Record]]:
    """The measured replies, by the step of the policy, in the order in which they were written."""
    found: dict[int, list[Record]] = {}
    for one in folder.records(ANSWERS):
        found.setdefault(one.pop("step"), []).append(Record(**one))
    return found
