"""The state of a GSPO run, and the replies of its policies to held-out tasks: sampled, kept, and read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from experiments.common.config import plain
from experiments.common.run_folder import RunFolder, hide_home
from experiments.evaluate.polygon_answers import answers
from experiments.evaluate.polygon_metrics import METRIC_DEFINITIONS, Record, by_task
from experiments.gspo.config import RESUMABLE, Args
from segenv.data.base import Dataset
from segenv.seeds import seed_of

ANSWERS = "answers.jsonl"
MODES = (("greedy", False), ("sampled", True))
Replies = dict[int, list[Record]]  # by the step of the policy, in the order in which they were written


@dataclass
class Run:
    """The settings, folder, policy and tasks of a run."""

    args: Args
    folder: RunFolder
    agent: Any
    data: Dataset
    held_out: Dataset
    train_indices: Sequence[int]
    eval_indices: Sequence[int]

    def __post_init__(self) -> None:
        self.held_out_task = lru_cache(maxsize=self.args.probe)(self.held_out.__getitem__)
        self.held_out_ids = {self.held_out.ids[index]: index for index in self.eval_indices}

    def hashes(self) -> dict[str, str | None]:
        """Hashes of the data and the model."""
        weights = self.agent.settings["weights"]
        return {"data": self.data.fingerprint, "eval_data": self.held_out.fingerprint, "agent": weights}

    def protocol(self) -> dict[str, Any]:
        """Every choice that changes a number."""
        elsewhere = RESUMABLE | {"out", "resume", "ablation", "seeds", "checkpoints"}
        chosen = {key: value for key, value in plain(self.args).items() if key not in elsewhere}
        chosen |= {"codec": self.agent.codec.name, "prompt": self.agent.prompt_style}
        chosen |= {"training_tasks": len(self.train_indices), "held_out_tasks": len(self.eval_indices)}
        return hide_home({**chosen, **METRIC_DEFINITIONS})

    def measure(self, agent: Any, step: int, count: int | None = None) -> None:
        """Append the replies of `agent`, the policy after so many steps, to the first `count` held-out tasks: greedy,
        and sampled. Replies that are in the file are not sampled again."""
        args, indices = self.args, self.eval_indices[:count]
        have = {(one["step"], one["task"], one["sample"]) for one in self.folder.records(ANSWERS)}
        with self.folder.appending(ANSWERS) as file:
            for start in range(0, len(indices), args.eval_batch):  # fixed groups: a model's last bits depend on them
                tasks = [self.held_out_task(index) for index in indices[start : start + args.eval_batch]]
                for sample in range(1 + args.samples):
                    if have.issuperset((step, task.id, sample) for task in tasks):
                        continue
                    seeds = [seed_of("held out", task.id, sample) for task in tasks]  # equal for each policy
                    for one in answers(agent, tasks, seeds, args.train.temperature if sample else 0.0, sample=sample):
                        if (step, one.task, sample) not in have:
                            file.add({"step": step, **asdict(one)})


def read_replies(folder: RunFolder) -> Replies:
    """The measured replies."""
    found: Replies = {}
    for one in folder.records(ANSWERS):
        found.setdefault(one.pop("step"), []).append(Record(**one))
    return found


def of_mode(records: Sequence[Record], sampled: bool) -> list[Record]:
    """The greedy replies, or the sampled ones, sorted by task and sample."""
    return sorted((one for one in records if bool(one.sample) is sampled), key=lambda one: (one.task, one.sample))


def ious(records: Sequence[Record], sampled: bool) -> np.ndarray:
    """IoU of each task, [tasks], the mean of its replies in a mode."""
    return by_task(of_mode(records, sampled), lambda one: one.iou)
