"""The state of a GSPO run, and the replies of its policies to held-out tasks: sampled, kept, and read again."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.common.config import choices
from experiments.common.run_folder import RunFolder, hide_home
from experiments.evaluate.answers.polygon_answers import answers
from experiments.evaluate.answers.polygon_metrics import METRIC_DEFINITIONS, VALUES, Record, by_task
from experiments.evaluate.episodes.records import append_groups
from experiments.gspo.config import RESUMABLE, Args
from segenv.data.base import Dataset
from segenv.records import reader
from segenv.seeds import seed_of
from segenv.types import Task

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

    def hashes(self) -> dict[str, str | None]:
        """Hashes of the data and the model."""
        weights = self.agent.settings["weights"]
        return {"data": self.data.fingerprint, "eval_data": self.held_out.fingerprint, "agent": weights}

    def protocol(self) -> dict[str, Any]:
        """Every choice that changes a number."""
        chosen = choices(self.args, RESUMABLE | {"ablation", "seeds", "checkpoints", "control_tasks"})
        chosen |= {"codec": self.agent.codec.name, "prompt": self.agent.prompt_style}
        chosen |= {"training_tasks": len(self.train_indices), "held_out_tasks": len(self.eval_indices)}
        return hide_home({**chosen, **METRIC_DEFINITIONS})

    def measure(self, agent: Any, step: int, count: int | None = None) -> None:
        """Append the replies of `agent`, the policy after so many steps, to the first `count` held-out tasks: greedy,
        and sampled. Replies that are in the file are not sampled again."""
        args, samples = self.args, range(1 + self.args.samples)

        def reply(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
            for sample in samples:
                seeds = [seed_of("held out", task.id, sample) for task in tasks]  # equal for each policy
                temperature = args.train.temperature if sample else 0.0
                for one in answers(agent, tasks, seeds, temperature, sample=sample):
                    yield {"step": step, **asdict(one)}

        tasks = self.held_out.select(self.eval_indices[:count])
        append_groups(
            self.folder, ANSWERS, tasks, args.eval_batch, reply, samples, quiet=True, read=read_reply, step=step
        )


def read_reply(value: Any) -> tuple[int, Record]:
    """Read a line: the step of the measured policy, and its reply. Raises ValueError where it is another thing."""
    record = reader(dict)(value)
    return reader(int)(record.get("step")), reader(Record)({key: one for key, one in record.items() if key != "step"})


def read_replies(folder: RunFolder) -> Replies:
    """The measured replies."""
    replies: Replies = {}
    for step, one in folder.records(ANSWERS, read_reply):
        replies.setdefault(step, []).append(one)
    return replies


def of_mode(records: Sequence[Record], sampled: bool) -> list[Record]:
    """The greedy replies, or the sampled ones, sorted by task and sample."""
    return sorted((one for one in records if bool(one.sample) is sampled), key=lambda one: (one.task, one.sample))


def values(records: Sequence[Record], sampled: bool, name: str = "giou") -> np.ndarray:
    """A measure of `VALUES` for each task, [tasks], the mean of its replies in a mode; tasks are sorted by id."""
    return by_task(of_mode(records, sampled), VALUES[name])


def tasks_of(records: Sequence[Record]) -> list[str]:
    """The tasks of `values`, in their order."""
    return sorted({one.task for one in records})
