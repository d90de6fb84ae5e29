"""The click environments' shell, and `segenv/HLMAT-v0`: clicks as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from segenv import codec as codecs
from segenv import data as datasets
from segenv import metrics, render, tools
from segenv.envs.spaces import FreeText, Pixels
from segenv.mdp import Observation, SegMDP, SegState
from segenv.tools.base import SegTool
from segenv.types import Action, BadItem, Task

Start = Callable[[Task, SegTool, np.random.Generator], Task]  # the task that an episode starts from


class SegEnv(gym.Env[dict[str, Any], Any]):
    """Gymnasium's plumbing around `SegMDP`; its environments give `_parse` and `_observe`, and their two spaces.

    `mdp` holds the rules and `state` the present moment, both public: a search branches on `env.unwrapped.state`.
    `tool`, `data` and `reward` are specs, or objects that they name: a `SegTool`, any sequence of tasks, a function.
    `start` changes a drawn task before its episode, as the refinement does.
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
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; expected one of {self.metadata['render_modes']} or None")
        self.data = datasets.make(data) if isinstance(data, str) else data
        if not len(self.data):
            raise ValueError(f"data {data!r} has no tasks; give a dataset with at least one")
        self.mdp = SegMDP(tools.make(tool), max_steps, reward)
        self.render_mode = render_mode
        self.state: SegState | None = None
        self._start = start

    def _parse(self, action: Any, observation: Observation) -> Action:
        """What `action` means on the observed image."""
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
        """Carry out `action`. Never truncates: the steps left are observed, so running out of them is an end like any
        other."""
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

        `rgb_array` returns the frame, uint8 [h, w, 3]; `human` shows it in a window, or on the terminal where there is
        no display.
        """
        state = self._now("render")
        if self.render_mode is None:
            gym.logger.warn(
                "render() shows nothing without a render_mode; make the environment with render_mode='rgb_array'"
            )
            return None
        words = f"step {state.step}/{self.mdp.max_steps}, IoU {metrics.iou(state.task.target, state.mask):.3f}"
        words += f": {state.task.instruction}" * bool(state.task.instruction)
        picture = render.frame(state.task.image, state.mask, state.clicks, state.task.target, words)
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
        """What is known of a state; for logs and for rewards of one's own, since `iou` reads the target."""
        return {
            "task_id": state.task.id,
            "instruction": state.task.instruction,
            "step": state.step,
            "iou": metrics.iou(state.task.target, state.mask),
            "score": None if math.isnan(state.score) else state.score,
            "clicks": state.clicks,
        }


class HLMATEnv(SegEnv):
    """Segment what the instruction names, one text click at a time (HLMAT: SegAgent, arXiv 2503.08625).

    ## Description
    A segmentation tool turns clicks into a mask. The agent sees the image under the present mask and answers with the
    next click as text, in the words of its `codec`.

    ## Action Space
    `FreeText`: any text. Which texts are clicks, boxes, `stop` or `undo` is the codec's to say, and `prompt` tells it
    to the agent: with `segagent`, the default, `Positive point: (row, column)` in thousandths of the image. Any other
    text is data and not an error: it takes one step, leaves the mask as it was, and shows its reason in the next
    observation's `error`.

    ## Observation Space
    | key | space | content |
    |---|---|---|
    | `image` | uint8 [H, W, 3] | the image at full size, RGB, with the mask blended in: green, alpha 0.5 |
    | `mask` | bool [H, W] | the mask itself |
    | `instruction` | text | what to segment |
    | `prompt` | text | the codec's request to a language model, instruction included |
    | `steps_left` | 0 .. max_steps | steps before the episode ends |
    | `error` | text | why the last action was not carried out; empty if it was |

    H and W differ between tasks. **Not in the observation:** the target and everything computed from it, the clicks
    made so far, the tool's own score, and the dataset's metadata.

    ## Rewards
    `reward`: a name of `segenv.rewards`, a sum such as `iou_gain+0.1*format`, or a function. The default `iou_gain` is
    the IoU after the step less the IoU before it, so that an episode's rewards add up to what it gained.

    ## Starting State
    An empty mask, or the task's `initial_mask`. The task is drawn from `data` by the environment's generator
    (`reset(seed=...)`), or given: `reset(options={"task": task_or_id_or_index})`.

    ## Episode End
    Terminated by `stop`, or after `max_steps` steps. Never truncated. A further step raises `ResetNeeded`.

    ## Information
    `task_id`, `instruction`, `step`, `iou`, `score` (the tool's estimate of the IoU, or None) and `clicks`; after a
    step also `action` (a dict with `type`), `parsed` (the same as an object of `segenv.types`), `valid` (whether it was
    carried out) and `rewards` (the terms of the reward, by name).

    ## Arguments
    ```python
    gym.make("segenv/HLMAT-v0", tool="sam", data="synthetic:train", codec="segagent", reward="iou_gain", max_steps=20)
    ```
    Each is a spec, or an object that the spec would make.
    """

    def __init__(
        self,
        tool: str | SegTool = "sam",
        data: str | Sequence[Task] = "synthetic:train",
        codec: str | codecs.Codec = "segagent",
        reward: str | Callable = "iou_gain",
        max_steps: int = 20,
        render_mode: str | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__(tool, data, reward, max_steps, render_mode, start)
        self.codec = codecs.get(codec) if isinstance(codec, str) else codec
        self.action_space = FreeText()
        self.observation_space = gym.spaces.Dict(
            {
                "image": Pixels(3),
                "mask": Pixels(dtype=bool),
                "instruction": FreeText(),
                "prompt": FreeText(),
                "steps_left": gym.spaces.Discrete(max_steps + 1),
                "error": FreeText(),
            }
        )

    def _parse(self, action: str, observation: Observation) -> Action:
        if not isinstance(action, str):
            raise gym.error.InvalidAction(
                f"action is {type(action).__name__}; expected a text for codec {self.codec.name}"
            )
        return self.codec.parse(action, observation)

    def _observe(self, observation: Observation) -> dict[str, Any]:
        return {
            "image": render.overlay(observation.image, observation.mask),
            "mask": observation.mask.copy(),
            "instruction": observation.instruction,
            "prompt": self.codec.prompt(observation),
            "steps_left": observation.steps_left,
            "error": observation.error or "",
        }
