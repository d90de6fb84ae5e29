"""Base of the environments whose episodes are those of a `SegMDP`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from segenv import data as datasets
from segenv import metrics, render, tools
from segenv.envs import starts
from segenv.envs.starts import Start
from segenv.mdp import Observation, SegMDP, SegState
from segenv.ranges import Count, require
from segenv.tools.base import SegTool
from segenv.types import Action, BadItem, Task


class Moment(NamedTuple):
    """A state with what is read from its mask: the observation, and the IoU with the target."""

    state: SegState
    observation: Observation
    iou: float


class SegEnv(gym.Env[dict[str, Any], Any]):
    """Gymnasium's plumbing around `SegMDP`; its environments give `_parse` and `_observe`, and their two spaces.

    `mdp` holds the rules and `state` the present moment, both public: a search branches on `env.unwrapped.state`.
    `tool`, `data` and `reward` are specs, or objects that they name: a `SegTool`, any sequence of tasks, a function.
    `start` changes a drawn task before its episode: a spec or a function of `segenv.envs.starts`. `render_size` is the
    side of a frame in pixels: images of any shape are letterboxed to it, so that a recording may go on from one to
    another.

    A step is `read_action`, one call of `mdp.transition`, and `arrive`; a reset is `draw` and `begin`. So
    `segenv.envs.vector` steps many of these with one call of the tool.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 2}
    borrowed = False  # whether an observation's arrays may change at the next step, for a caller that copies them
    _spec: EnvSpec | None = None

    def __init__(
        self,
        tool: str | SegTool = "sam",
        data: str | Sequence[Task] = "synthetic:train",
        reward: str | Callable = "iou_gain",
        max_steps: int = 20,
        render_mode: str | None = None,
        start: str | Start | None = None,
        render_size: int = 512,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; expected one of {self.metadata['render_modes']} or None")
        self.data = datasets.make(data) if isinstance(data, str) else data
        require(Count, render_size=render_size)
        if not len(self.data):
            raise ValueError(f"data {data!r} has no tasks; give a dataset with at least one")
        self.mdp = SegMDP(tools.make(tool), max_steps, reward)
        self.metadata = {**self.metadata, "reward_range": self.mdp.reward_range}
        self.render_mode = render_mode
        self.render_size = render_size
        self.state: SegState | None = None
        self._start = None if start is None else starts.make(start)
        self._last: Moment | None = None
        self._places: dict[str, int] = {}  # of tasks by id, where the data is no `Dataset`

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's record of how this was made, with `max_steps` as its `max_episode_steps`.

        `gym.make(spec)` then adds a `TimeLimit` of as many steps, whose last one is both terminated and truncated.
        """
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = spec
        if spec is not None and spec.max_episode_steps is None:
            spec.max_episode_steps = self.mdp.max_steps

    def _parse(self, action: Any, observation: Observation) -> Action:
        """Read `action` on the observed image."""
        raise NotImplementedError

    def _observe(self, observation: Observation) -> dict[str, Any]:
        """A new observation, sharing no memory with the state, nor with the environment unless it is `borrowed`."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Start an episode on a task that the environment's generator draws, or on `options["task"]`: a `Task`, or the
        id or the index of one in the data."""
        super().reset(seed=seed)
        return self.begin(self.draw(options))

    @property
    def has_start(self) -> bool:
        """Whether a drawn task is changed before its episode."""
        return self._start is not None

    def draw(self, options: dict[str, Any] | None = None) -> Task:
        """The task of the next episode: drawn by the generator, or what `options["task"]` names."""
        options = options or {}
        if unknown := set(options) - {"task"}:
            raise ValueError(f"reset has no option {', '.join(map(repr, unknown))}; it has 'task'")
        return self._draw() if options.get("task") is None else self._find(options["task"])

    def begin(self, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode on a task: its first observation and information."""
        if self._start is not None:
            task = self._start(task, self.mdp.tool, self.np_random)
        self.state = self.mdp.initial(task)
        if self.render_mode == "human":
            self.render()
        moment = self._moment(self.state)
        return self._observe(moment.observation), self._info(moment)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out `action`. Never truncates: the steps left are observed, so their end terminates."""
        parsed = self.read_action(action)
        [following] = self.mdp.transition([self._now("step")], [parsed], [self.mask])
        return self.arrive(parsed, following)

    @property
    def mask(self) -> np.ndarray:
        """The present mask, bool [H, W], read-only."""
        return self._moment(self._now("mask")).observation.mask

    def read_action(self, action: Any) -> Action:
        """Read `action` in the present state. Raises `ResetNeeded` where the episode has ended."""
        state = self._now("step")
        if self.mdp.terminal(state):
            raise ResetNeeded(
                f"the episode on task {state.task.id} ended at step {state.step}; call reset() for another"
            )
        return self._parse(action, self._moment(state).observation)

    def arrive(self, parsed: Action, following: SegState) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Go on to the state that `parsed` led to, and return what `step` does."""
        before, after = self._moment(self._now("step")), self._moment(following)
        terms = self.mdp.reward_terms(before.state, parsed, following, (before.iou, after.iou))
        self.state = following
        if self.render_mode == "human":
            self.render()
        info = self._info(after)
        info["action"] = {"type": type(parsed).__name__.lower(), **vars(parsed)}
        info["parsed"], info["valid"], info["rewards"] = parsed, following.error is None, terms
        return self._observe(after.observation), sum(terms.values()), self.mdp.terminal(following), False, info

    def _moment(self, state: SegState) -> Moment:
        """A state with its observation and IoU, of which the last one is kept."""
        last = self._last
        if last is None or last.state is not state:
            if last is not None and state.looks_like(last.state):
                mask, iou = last.observation.mask, last.iou
            else:
                mask = state.mask
                iou = metrics.prepared(state.task).iou(mask)
            last = self._last = Moment(state, self.mdp.observation(state, mask), iou)
        return last

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
        iou = metrics.prepared(state.task).iou(state.mask)
        words = f"step {state.step}/{self.mdp.max_steps}, IoU {iou:.3f}"
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
        if isinstance(self.data, datasets.Dataset):
            place = self.data.place_of(task)
        else:
            place = self._places.get(task)
            if place is None or place >= len(self.data) or self.data[place].id != task:
                self._places = {item.id: i for i, item in reversed(list(enumerate(self.data)))}
                place = self._places.get(task)
        if place is None:
            known = self.data.ids[0] if isinstance(self.data, datasets.Dataset) else self.data[0].id
            raise ValueError(f"task {task!r} is not in the data, whose ids look like {known!r}")
        return self.data[place]

    def _info(self, moment: Moment) -> dict[str, Any]:
        """Facts about a state; for logs and for rewards of one's own, since `iou` reads the target."""
        state = moment.state
        return {
            "task_id": state.task.id,
            "instruction": state.task.instruction,
            "step": state.step,
            "iou": moment.iou,
            "score": None if math.isnan(state.score) else state.score,
            "clicks": state.clicks,
        }
