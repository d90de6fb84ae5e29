"""`segenv/HLMATGrid-v0` and `segenv/HLMATPoint-v0`: clicks as numbers, for RL libraries that know no text."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from segenv import codec as codecs
from segenv.envs import refine
from segenv.envs.base import SegEnv, Start
from segenv.mdp import Observation, SegState
from segenv.ranges import Count, require
from segenv.tools.base import SegTool
from segenv.types import Action, Click, Stop, Task


class NumericEnv(SegEnv):
    """The observation that the numeric environments share.

    | key | space | content |
    |---|---|---|
    | `image` | uint8 [size, size, 4] | image (RGB) and, as fourth channel, mask (0 or 255), stretched to a square |
    | `steps_left` | float32 [1] | part of the steps that is left, 1 to 0 |

    **Not in the observation:** the target, the clicks so far, and the instruction: it is text, and only in `info`. So
    where an image has several objects, nothing tells which one is meant: use data with one object an image, or let
    episodes start from a mask that points at it (`start="box"`; `start` is that of `segenv.envs.refine.make`, and the
    default is an empty mask).

    After a step, `info["text"]` is the reply with which a text agent would have done the same, in the words of `codec`.

    Stable-Baselines3 takes this as it is: a Box of three axes, uint8 and 0..255, is an image for it, the smallest axis
    its channels; it puts them first and divides by 255 by itself, and `MultiInputPolicy` gives the image to a
    NatureCNN.
    """

    def __init__(
        self,
        tool: str | SegTool = "sam",
        data: str | Sequence[Task] = "synthetic:train",
        codec: str | codecs.Codec = "segagent",
        reward: str | Callable = "iou_gain",
        max_steps: int = 20,
        render_mode: str | None = None,
        start: str | Start | None = None,
        size: int = 84,
        render_size: int = 512,
    ) -> None:
        begin = None if start is None else refine.make(start)
        super().__init__(tool, data, reward, max_steps, render_mode, begin, render_size)
        self.codec = codecs.make(codec) if isinstance(codec, str) else codec
        require(Count, size=size)
        self.size = size
        self.observation_space = gym.spaces.Dict(
            {
                "image": gym.spaces.Box(0, 255, (size, size, 4), np.uint8),
                "steps_left": gym.spaces.Box(0, 1, (1,), np.float32),
            }
        )

    def arrive(self, parsed: Action, following: SegState) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = super().arrive(parsed, following)
        info["text"] = self.codec.format(parsed, following.task)
        return seen, reward, terminated, truncated, info

    def _observe(self, observation: Observation) -> dict[str, Any]:
        mask = observation.mask.view(np.uint8) * np.uint8(255)
        channels = [
            cv2.resize(channel, (self.size, self.size), interpolation=cv2.INTER_AREA)
            for channel in (observation.image, mask)
        ]
        left = observation.steps_left / self.mdp.max_steps
        return {"image": np.dstack(channels), "steps_left": np.array([left], np.float32)}


class HLMATGridEnv(NumericEnv):
    """Clicks on the cells of a grid.

    ## Action Space
    `Discrete(2 · grid² + 1)`. Action `row · grid + column` is a positive click on the middle of a cell, the same plus
    grid² a negative one; the last action stops (`stop=False` leaves it out). Cells are stretched as the image is: all
    of them lie inside it. `action_masks()` says which clicks can correct anything, for MaskablePPO.

    ## Observation Space, Starting State
    See `NumericEnv`.

    ## Rewards, Episode End, Information
    See `segenv.envs.hlmat.HLMATEnv`.
    """

    def __init__(self, *args: Any, grid: int = 16, stop: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        require(Count, grid=grid)
        self.grid, self.stop = grid, stop
        self.action_space = gym.spaces.Discrete(2 * grid * grid + stop)

    def _parse(self, action: int, observation: Observation) -> Action:
        if action not in self.action_space:
            raise gym.error.InvalidAction(f"action is {action!r}; expected one of {self.action_space}")
        sign, cell = divmod(int(action), self.grid * self.grid)
        if sign == 2:
            return Stop()
        xs, ys = self._middles(observation)
        row, column = divmod(cell, self.grid)
        return Click(int(xs[column]), int(ys[row]), sign == 0)

    def _middles(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        """The pixel columns and rows that hold the middles of the grid's columns and rows."""
        middles = np.arange(self.grid) * 2 + 1
        return middles * observation.width // (2 * self.grid), middles * observation.height // (2 * self.grid)

    def action_masks(self) -> np.ndarray:
        """Which actions make sense now, bool [n]; they follow from the mask and the clicks, never from the target.

        A positive click does where the mask is off, a negative one where it is on, and neither on a pixel that was
        clicked before: these are the clicks that could correct an error at their pixel, the only ones that the
        simulated annotator makes. Stopping always does. Where nothing is left (no `stop`, every cell clicked), every
        action is allowed.
        """
        state = self._now("action_masks")
        xs, ys = self._middles(self.mdp.observation(state))
        on = state.mask[np.ix_(ys, xs)]
        clicked = {(click.x, click.y) for click in state.clicks}
        new = np.array([[(x, y) not in clicked for x in xs.tolist()] for y in ys.tolist()])
        allowed = np.concatenate([(new & ~on).ravel(), (new & on).ravel(), np.ones(int(self.stop), np.bool_)])
        return allowed if allowed.any() else np.ones_like(allowed)


class HLMATPointEnv(NumericEnv):
    """Clicks at continuous coordinates.

    ## Action Space
    `Box(-1, 1, (3,))`: x from the left edge to the right one, y from the top edge to the bottom one, and a sign: a
    click is positive from 0 on. Values beyond the edges are clipped. With `stop=True` there is a fourth number, and the
    episode stops where it is above 0.

    ## Observation Space, Starting State
    See `NumericEnv`.

    ## Rewards, Episode End, Information
    See `segenv.envs.hlmat.HLMATEnv`.
    """

    def __init__(self, *args: Any, stop: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.action_space = gym.spaces.Box(-1, 1, (3 + stop,), np.float32)

    def _parse(self, action: np.ndarray, observation: Observation) -> Action:
        values = np.asarray(action, np.float64)
        if values.shape != self.action_space.shape or not np.isfinite(values).all():
            raise gym.error.InvalidAction(f"action is {action!r}; expected finite numbers in {self.action_space}")
        if len(values) == 4 and values[3] > 0:
            return Stop()
        size = np.array([observation.width, observation.height])
        x, y = np.clip((values[:2] + 1) / 2 * size, 0, size - 1).astype(int).tolist()
        return Click(x, y, bool(values[2] >= 0))
