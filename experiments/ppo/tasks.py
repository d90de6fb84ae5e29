"""Environments, tasks and controls of a task of the suite."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.base import Agent
from experiments.common.suite import TASKS, RlTask
from experiments.ppo.config import Args
from search.executors import Player, Setup
from search.rollout import rollout
from segenv import data as datasets
from segenv import tools
from segenv.adapters.sb3 import SegVecEnv
from segenv.data.pool import Pool
from segenv.envs import starts
from segenv.envs.numbers import GridActions
from segenv.mdp import SegMDP
from segenv.metrics import iou
from segenv.seeds import seed_of
from segenv.tools.base import SegTool
from segenv.types import Task

ENVIRONMENT = "segenv/HLMATGrid-v0"
CONTROLS = {  # name in the tables: agent
    "random": "random:grid={grid}",
    "annotator on the grid": "annotator:grid:cells={grid}",
    "annotator": "annotator",
}
STOP, BEST, BOX = "stop at once", "best single action", "box only"


@dataclass
class Ground:
    """The one tool of a run, and its tasks with their initial masks, which every policy and control begins from."""

    args: Args
    task: RlTask = field(init=False)
    tool: SegTool = field(init=False)

    def __post_init__(self) -> None:
        self.task = TASKS[self.args.task]
        self._envs: SegVecEnv | None = None
        self.tool = tools.make(self.task.tool)
        self.mdp = SegMDP(self.tool, self.task.max_steps)
        self.val = self._tasks(self.task.val, self.args.val_tasks)
        self.test = self._tasks(self.task.test, self.args.test_tasks or self.task.test_tasks)
        self.numbering = GridActions(self.task.grid)

    def _tasks(self, data: str, count: int) -> list[Task]:
        """The first tasks of `data`, begun as `python -m experiments.evaluate --start` begins them."""
        player = Player(Setup(data, self.tool, "annotator", start=self.task.start, threads=self.args.threads))
        return list(player.started(player.dataset[:count]))

    def envs(self) -> SegVecEnv:
        """The batched environment of the training tasks, made once."""
        if self._envs is None:
            options = {name: getattr(self.task, name) for name in ("start", "max_steps", "observe", "grid", "size")}
            data = Pool(datasets.make(self.task.train), self.args.pool)
            self._envs = SegVecEnv(ENVIRONMENT, self.args.num_envs, tool=self.tool, data=data, **options)
            data.check_room(self.tool)
        return self._envs

    def play(self, agent: Agent, tasks: Sequence[Task]) -> dict[str, list]:
        """Final IoU, number of steps and whether the agent stopped, of an episode on each task."""
        episodes = list(rollout(self.mdp, agent, tasks))
        return {
            "iou": [one.final_iou for one in episodes],
            "steps": [len(one.steps) for one in episodes],
            "stopped": [one.stopped for one in episodes],
        }

    def levels(self, tasks: Sequence[Task], bar: Any) -> dict[str, list[float]]:
        """Final IoUs of the controls, by their names."""
        import agents

        found: dict[str, list[float]] = {}
        for name, spec in CONTROLS.items():
            found[name] = self.play(agents.make(spec.format(grid=self.task.grid)), tasks)["iou"]
            bar.update(len(tasks))
        masks = [self.mdp.initial(task).mask for task in tasks]
        found[STOP] = [iou(task.target, mask) for task, mask in zip(tasks, masks, strict=True)]
        found[BEST], found[BOX] = [], []
        rng = np.random.default_rng(seed_of("box"))
        for task, start in zip(tasks, found[STOP], strict=True):
            found[BEST].append(max(start, *self._singles(task)))
            boxed = starts.box(task, self.tool, rng).initial_mask
            assert boxed is not None
            found[BOX].append(iou(task.target, boxed))
            bar.update()
        return found

    def _singles(self, task: Task, at_once: int = 16) -> list[float]:
        """IoUs after each action that is allowed at the start: of an oracle that may take one."""
        state = self.mdp.initial(task)
        seen, space = self.mdp.observation(state), self.numbering.space
        actions = [self.numbering.read(k, seen, space) for k in np.flatnonzero(self.numbering.masks(seen))]
        found = []
        for k in range(0, len(actions), at_once):
            some = actions[k : k + at_once]
            found += [iou(task.target, after.mask) for after in self.mdp.transition([state] * len(some), some)]
        return found
