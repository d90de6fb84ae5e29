"""`segenv/HLMATGrid-v0` and `segenv/HLMATPoint-v0`: clicks as numbers, for RL libraries that know no text."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from segenv import codec as codecs
from segenv.envs.base import Moment, SegEnv
from segenv.envs.features import Features, Observe
from segenv.envs.starts import Start
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

    **Not in the observation:** the target, the clicks so far, and by default the instruction, which is text, and only
    in `info`. So where an image has several objects, say which one is meant, by data with one object an image, by a
    mask that points at it (`start="box"`; `start` is that of `segenv.envs.starts.make`, and the default is an empty
    mask), or by `observe`, whose parts are joined by +:

    | `observe` | adds |
    |---|---|
    | `instruction` | `instruction`, MultiDiscrete: superlative, colour and shape word of synthetic scenes, 0 for none |
    | a function | `instruction`, float32 [d]: what it makes of the instruction, an embedding of your own |
    | `click`, `box` | one channel of `image` each, 0 or 255: a click in the object's middle, or its box |

    A reference click or box reads the target, once an episode, as `start="box"` does. `action_mask` adds
    `action_masks()` as int8, as `sample(mask=...)` of the action space wants it, to `"info"` or to the
    `"observation"` under that name (there as one array [n]).

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
        observe: Observe = None,
        action_mask: str | None = None,
    ) -> None:
        super().__init__(tool, data, reward, max_steps, render_mode, start, render_size)
        self.codec = codecs.make(codec) if isinstance(codec, str) else codec
        require(Count, size=size)
        if action_mask not in (None, "info", "observation"):
            raise ValueError(f"action_mask is {action_mask!r}; expected 'info', 'observation' or None")
        self.size, self.action_mask = size, action_mask
        self.features = Features(observe)
        self._scene: tuple[Task, np.ndarray, np.ndarray | None] | None = None
        self.action_space = self._actions()
        channels = 4 + len(self.features.channels)
        parts: dict[str, gym.Space] = {
            "image": gym.spaces.Box(0, 255, (size, size, channels), np.uint8),
            "steps_left": gym.spaces.Box(0, 1, (1,), np.float32),
        }
        if self.features.space is not None:
            parts["instruction"] = self.features.space
        if action_mask == "observation":
            parts["action_mask"] = gym.spaces.MultiBinary(self._mask_size())
        elif action_mask:
            self._mask_size()  # refuses a space that has no mask
        self.observation_space = gym.spaces.Dict(parts)

    def _actions(self) -> gym.Space:
        """The action space."""
        raise NotImplementedError

    def _mask_size(self) -> int:
        """Number of entries of a mask of actions."""
        raise ValueError(f"action_mask is {self.action_mask!r}; expected None, since points are not masked")

    def action_masks(self) -> np.ndarray:
        raise ValueError("points are not masked; use segenv/HLMATGrid-v0")

    def arrive(self, parsed: Action, following: SegState) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = super().arrive(parsed, following)
        info["text"] = self.codec.format(parsed, following.task)
        return seen, reward, terminated, truncated, info

    def _observe(self, observation: Observation) -> dict[str, Any]:
        task = self._now("step").task
        if self._scene is None or self._scene[0] is not task:  # what stays the same for an episode
            still = np.zeros((self.size, self.size, 4 + len(self.features.channels)), np.uint8)
            still[..., :3] = self._shrunk(observation.image)
            for k, channel in enumerate(self.features.channels):
                still[..., 4 + k] = channel(task, self.size)
            words = None if self.features.space is None else self.features.read(observation.instruction)
            self._scene = task, still, words
        _, still, words = self._scene
        image = still.copy()
        image[..., 3] = self._shrunk(observation.mask.view(np.uint8) * np.uint8(255))
        left = observation.steps_left / self.mdp.max_steps
        seen: dict[str, Any] = {"image": image, "steps_left": np.array([left], np.float32)}
        if words is not None:
            seen["instruction"] = words.copy()
        if self.action_mask == "observation":
            seen["action_mask"] = self.action_masks().astype(np.int8)
        return seen

    def _shrunk(self, channels: np.ndarray) -> np.ndarray:
        return cv2.resize(channels, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def _info(self, moment: Moment) -> dict[str, Any]:
        info = super()._info(moment)
        if self.action_mask == "info":
            allowed = self.action_masks().astype(np.int8)
            space = self.action_space
            if isinstance(space, gym.spaces.MultiDiscrete):  # its `sample` wants a mask for each number
                info["action_mask"] = tuple(np.split(allowed, np.cumsum(space.nvec)[:-1]))
            else:
                info["action_mask"] = allowed
        return info


class HLMATGridEnv(NumericEnv):
    """Clicks on the cells of a grid.

    ## Action Space
    `Discrete(2 · grid² + 1)`. Action `row · grid + column` is a positive click on the middle of a cell, the same plus
    grid² a negative one; the last action stops (`stop=False` leaves it out). Cells are stretched as the image is: all
    of them lie inside it. With `actions="multidiscrete"` it is `MultiDiscrete([2 or 3, grid, grid])`: type (0 positive,
    1 negative, 2 stop), column and row. `action_masks()` says which clicks can correct anything, for MaskablePPO.

    ## Observation Space, Starting State
    See `NumericEnv`.

    ## Rewards, Episode End, Information
    See `segenv.envs.hlmat.HLMATEnv`.
    """

    def __init__(
        self, *args: Any, grid: int = 16, stop: bool = True, actions: str = "discrete", **options: Any
    ) -> None:
        require(Count, grid=grid)
        if actions not in ("discrete", "multidiscrete"):
            raise ValueError(f"actions is {actions!r}; expected 'discrete' or 'multidiscrete'")
        self.grid, self.stop, self.actions = grid, stop, actions
        super().__init__(*args, **options)

    def _actions(self) -> gym.Space:
        if self.actions == "multidiscrete":
            return gym.spaces.MultiDiscrete([2 + self.stop, self.grid, self.grid])
        return gym.spaces.Discrete(2 * self.grid * self.grid + self.stop)

    def _mask_size(self) -> int:
        return 2 + self.stop + 2 * self.grid if self.actions == "multidiscrete" else 2 * self.grid**2 + self.stop

    def _parse(self, action: Any, observation: Observation) -> Action:
        if action not in self.action_space:
            raise gym.error.InvalidAction(f"action is {action!r}; expected one of {self.action_space}")
        if self.actions == "multidiscrete":
            sign, column, row = (int(number) for number in action)
        else:
            sign, cell = divmod(int(action), self.grid * self.grid)
            row, column = divmod(cell, self.grid)
        if sign == 2:
            return Stop()
        xs, ys = self._middles(observation)
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

        For `MultiDiscrete` the masks of type, column and row follow each other, [2 or 3 + 2 · grid]: a number is
        allowed where it is part of an allowed action, so that a few sampled clicks may still correct nothing.
        """
        state = self._now("action_masks")
        xs, ys = self._middles(self.mdp.observation(state))
        on = state.mask[np.ix_(ys, xs)]
        clicked = {(click.x, click.y) for click in state.clicks}
        new = np.array([[(x, y) not in clicked for x in xs.tolist()] for y in ys.tolist()])
        signs, stop = np.stack([new & ~on, new & on]), np.ones(int(self.stop), np.bool_)  # [2, rows, columns]
        if self.actions == "multidiscrete":
            parts = np.append(signs.any((1, 2)), stop), signs.any((0, 1)), signs.any((0, 2))
            return np.concatenate([part if part.any() else np.ones_like(part) for part in parts])
        allowed = np.concatenate([signs.ravel(), stop])
        return allowed if allowed.any() else np.ones_like(allowed)


class HLMATPointEnv(NumericEnv):
    """Clicks at continuous coordinates.

    ## Action Space
    `Box(-1, 1, (3,))`: x from the left edge to the right one, y from the top edge to the bottom one, and a sign: a
    click is positive from 0 on. Values beyond the edges are clipped. With `stop=True` there is a fourth number, and the
    episode stops where it is above 0. With `actions="hybrid"` it is `Tuple(Discrete(2 or 3), Box(-1, 1, (2,)))`: type
    (0 positive, 1 negative, 2 stop), and x and y.

    ## Observation Space, Starting State
    See `NumericEnv`.

    ## Rewards, Episode End, Information
    See `segenv.envs.hlmat.HLMATEnv`.
    """

    def __init__(self, *args: Any, stop: bool = False, actions: str = "box", **options: Any) -> None:
        if actions not in ("box", "hybrid"):
            raise ValueError(f"actions is {actions!r}; expected 'box' or 'hybrid'")
        self.stop, self.actions = stop, actions
        super().__init__(*args, **options)

    def _actions(self) -> gym.Space:
        if self.actions == "box":
            return gym.spaces.Box(-1, 1, (3 + self.stop,), np.float32)
        return gym.spaces.Tuple((gym.spaces.Discrete(2 + self.stop), gym.spaces.Box(-1, 1, (2,), np.float32)))

    def _parse(self, action: Any, observation: Observation) -> Action:
        kind: Any = 0
        if self.actions == "hybrid":
            if not isinstance(action, (tuple, list)) or len(action) != 2 or action[0] not in self.action_space[0]:  # type: ignore[index]
                raise gym.error.InvalidAction(f"action is {action!r}; expected (type, [x, y]) in {self.action_space}")
            kind, action = action
        values, numbers = np.asarray(action, np.float64), 2 if self.actions == "hybrid" else 3 + self.stop
        if values.shape != (numbers,) or not np.isfinite(values).all():
            raise gym.error.InvalidAction(f"action is {action!r}; expected finite numbers in {self.action_space}")
        if kind == 2 or (len(values) == 4 and values[3] > 0):
            return Stop()
        positive = values[2] >= 0 if self.actions == "box" else kind == 0
        size = np.array([observation.width, observation.height])
        x, y = np.clip((values[:2] + 1) / 2 * size, 0, size - 1).astype(int).tolist()
        return Click(x, y, bool(positive))
