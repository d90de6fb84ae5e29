"""Base of the environments whose episodes are those of a `SegMDP`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from segenv import data as datasets
from segenv import metrics, render, tools
from segenv.mdp import Observation, SegMDP, SegState
from segenv.ranges import Count, require
from segenv.tools.base import SegTool
from segenv.types import Action, BadItem, Task

Start = Callable[[Task, SegTool, np.random.Generator], Task]  # the task that an episode starts from


class SegEnv(gym.Env[dict[str, Any], Any]):
    """Gymnasium's plumbing around `SegMDP`; its environments give `_parse` and `_observe`, and their two spaces.

    `mdp` holds the rules and `state` the present moment, both public: a search branches on `env.unwrapped.state`.
    `tool`, `data` and `reward` are specs, or objects that they name: a `SegTool`, any sequence of tasks, a function.
    `start` changes a drawn task before its episode, as the refinement does. `render_size` is the side of a frame in
    pixels: images of any shape are letterboxed to it, so that a recording may go on from one to another.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 2}

    def __init__(
        self,
        tool: str | SegTool = "sam",
        data: str | Sequence[Task] = "synthetic:train",
        reward: str | Callable = "iou_gain",
        max_steps: int = 20,
        render_mode: str | None = None,
        start: Start | None = None,
        render_size: int = 512,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; expected one of {self.metadata['render_modes']} or None")
        self.data = datasets.make(data) if isinstance(data, str) else data
        require(Count, render_size=render_size)
        if not len(self.data):
            raise ValueError(f"data {data!r} has no tasks; give a dataset with at least one")
        self.mdp = SegMDP(tools.make(tool), max_steps, reward)
        self.render_mode = render_mode
        self.render_size = render_size
        self.state: SegState | None = None
        self._start = start

    def _parse(self, action: Any, observation: Observation) -> Action:
        """Read `action` on the observed image."""
        raise NotImplementedError

    def _observe(self, observation: Observation) -> dict[str, Any]:
        """A new observation, sharing no memory with the state."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Start an episode on a task that the environment's generator draws, or on `options["task"]`: a `Task`, or the
        id or the index of one in the data."""
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"task"}:
            raise ValueError(f"reset has no option {', '.join(map(repr, unknown))}; it has 'task'")
        task = self._draw() if options.get("task") is None else self._find(options["task"])
        if self._start is not None:
            task = self._start(task, self.mdp.tool, self.np_random)
        self.state = self.mdp.initial(task)
        if self.render_mode == "human":
            self.render()
        return self._observe(self.mdp.observation(self.state)), self._info(self.state)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out `action`. Never truncates: the steps left are observed, so their end terminates."""
        state = self._now("step")
        if self.mdp.terminal(state):
            raise ResetNeeded(
                f"the episode on task {state.task.id} ended at step {state.step}; call reset() for another"
            )
        parsed = self._parse(action, self.mdp.observation(state))
        [following] = self.mdp.transition([state], [parsed])
        terms = self.mdp.reward_terms(state, parsed, following)
        self.state = following
        if self.render_mode == "human":
            self.render()
        info = self._info(following) | {
            "action": {"type": type(parsed).__name__.lower(), **dataclasses.asdict(parsed)},
            "parsed": parsed,
            "valid": following.error is None,
            "rewards": terms,
        }
        seen, terminated = self._observe(self.mdp.observation(following)), self.mdp.terminal(following)
        return seen, sum(terms.values()), terminated, False, info

    def render(self) -> np.ndarray | None:
        """The present state for a person: mask in blue, target outlined in yellow, clicks numbered, IoU in words.

        `rgb_array` returns the frame, uint8 [render_size + 22, render_size, 3]; `human` shows it in a window, or on the
        terminal where there is no display.
        """
        state = self._now("render")
        if self.render_mode is None:
            gym.logger.warn(
                "render() shows nothing without a render_mode; make the environment with render_mode='rgb_array'"
            )
            return None
        words = f"step {state.step}/{self.mdp.max_steps}, IoU {metrics.iou(state.task.target, state.mask):.3f}"
        words += f": {state.task.instruction}" * bool(state.task.instruction)
        shown = state.task.image, state.mask, state.clicks, state.task.target
        picture = render.frame(*shown, words, self.render_size, square=True)
        if self.render_mode == "rgb_array":
            return picture
        render.show(picture)
        return None

    def close(self) -> None:
        if self.render_mode == "human":
            render.hide()

    def _now(self, method: str) -> SegState:
        if self.state is None:
            raise ResetNeeded(f"{method}() came before reset(); call reset() first")
        return self.state

    def _draw(self) -> Task:
        """A task of the data at random; bad items are passed over where the dataset was told to skip them."""
        while True:
            try:
                return self.data[int(self.np_random.integers(len(self.data)))]
            except BadItem:
                data = self.data
                if not (isinstance(data, datasets.Dataset) and data.skip_bad and len(data.skipped) < len(data)):
                    raise

    def _find(self, task: Task | str | int) -> Task:
        if isinstance(task, Task):
            return task
        if isinstance(task, (int, np.integer)):
            return self.data[int(task)]
        if not isinstance(task, str):
            raise TypeError(
                f"options['task'] is {type(task).__name__}; expected a Task, or the id or index of one in the data"
            )
        ids = self.data.ids if isinstance(self.data, datasets.Dataset) else [item.id for item in self.data]
        try:
            return self.data[ids.index(task)]
        except ValueError:
            raise ValueError(f"task {task!r} is not in the data, whose ids look like {ids[0]!r}") from None

    def _info(self, state: SegState) -> dict[str, Any]:
        """Facts about a state; for logs and for rewards of one's own, since `iou` reads the target."""
        return {
            "task_id": state.task.id,
            "instruction": state.task.instruction,
            "step": state.step,
            "iou": metrics.iou(state.task.target, state.mask),
            "score": None if math.isnan(state.score) else state.score,
            "clicks": state.clicks,
        }
