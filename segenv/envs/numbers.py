"""Observations as arrays and clicks as numbers: for numeric environments, and for agents that were trained in them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Union

import cv2
import gymnasium as gym
import numpy as np

from segenv.envs.features import Features, Observe
from segenv.mdp import Observation
from segenv.ranges import Count, require
from segenv.types import Action, Click, Stop, Task


class View:
    """The arrays of an observation: `image` uint8 [size, size, 4 + channels], `steps_left` float32 [1], and with
    `observe` also `instruction` (see `segenv.envs.features`). `spaces` are theirs, by name."""

    def __init__(self, size: int = 84, observe: Observe = None) -> None:
        require(Count, size=size)
        self.size, self.features = size, Features(observe)
        self.spaces: dict[str, gym.Space] = {
            "image": gym.spaces.Box(0, 255, (size, size, 4 + len(self.features.channels)), np.uint8),
            "steps_left": gym.spaces.Box(0, 1, (1,), np.float32),
        }
        if self.features.space is not None:
            self.spaces["instruction"] = self.features.space
        self._scene: tuple[np.ndarray, str, Task | None, np.ndarray, np.ndarray | None] | None = None
        self._shown: np.ndarray | None = None  # the mask in the scene's image
        self._left = np.zeros(1, np.float32)

    @property
    def reads_target(self) -> bool:
        """Whether a reference click or box is seen, which is made of the target."""
        return bool(self.features.channels)

    def of(self, observation: Observation, task: Task | None, borrowed: bool = False) -> dict[str, np.ndarray]:
        """The arrays of an observation: new ones or, where they are `borrowed`, those that the next call may change.
        `task` is needed where the view `reads_target`."""
        scene = self._scene
        if (
            scene is None
            or scene[0] is not observation.image
            or scene[1] != observation.instruction
            or scene[2] is not task
        ):
            self._scene = scene = observation.image, observation.instruction, task, *self._still(observation, task)
            self._shown = None
        *_, image, words = scene
        if self._shown is not observation.mask:  # which an unchanged mask stays
            image[..., 3] = shrunk_mask(observation.mask, self.size)
            self._shown = observation.mask
        self._left[0] = observation.steps_left / (observation.step + observation.steps_left)
        seen = {"image": image, "steps_left": self._left}
        if words is not None:
            seen["instruction"] = words
        return seen if borrowed else {key: part.copy() for key, part in seen.items()}

    def _still(self, observation: Observation, task: Task | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The channels that stay for an episode: the image without its mask, and the instruction."""
        still = np.zeros((self.size, self.size, 4 + len(self.features.channels)), np.uint8)
        still[..., :3] = self._shrunk(observation.image)
        for k, channel in enumerate(self.features.channels):
            assert task is not None, "a reference click or box needs the task"
            still[..., 4 + k] = channel(task, self.size)
        return still, None if self.features.space is None else self.features.read(observation.instruction)

    def _shrunk(self, channels: np.ndarray) -> np.ndarray:
        return cv2.resize(channels, (self.size, self.size), interpolation=cv2.INTER_AREA)


def shrunk_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A bool mask [H, W] as uint8 [size, size], 255 inside: bit for bit what `cv2.resize` makes of it by area, whose
    time grows with the pixels that it reads. So it is given the part alone that holds the mask."""
    whole = mask.view(np.uint8)
    if min(mask.shape) < 2 * size:  # no averages of pixels, or of few
        return cv2.resize(whole * np.uint8(255), (size, size), interpolation=cv2.INTER_AREA)
    x, y, width, height = cv2.boundingRect(whole)
    shrunk = np.zeros((size, size), np.uint8)
    if width:
        scales = size / mask.shape[1], size / mask.shape[0]
        columns, cells = _span(x, x + width, mask.shape[1], size)
        rows, lines = _span(y, y + height, mask.shape[0], size)
        part = whole[rows, columns] * np.uint8(255)
        shrunk[lines, cells] = cv2.resize(part, None, None, *scales, cv2.INTER_AREA)
    return shrunk


def _span(low: int, high: int, pixels: int, size: int) -> tuple[slice, slice]:
    """Pixels that hold `low` to `high` of an axis, and the cells that they shrink to. They begin where a pixel and a
    cell do, and so have the same part in each cell as in the whole."""
    period = size // math.gcd(size, pixels)
    first, last = low * size // pixels // period * period, -(-high * size // pixels)
    return slice(first * pixels // size, -(-last * pixels // size)), slice(first, last)


def _refuse(action: Any, space: gym.Space, expected: str = "expected one of") -> gym.error.InvalidAction:
    return gym.error.InvalidAction(f"action is {action!r}; {expected} {space}")


@dataclass(frozen=True)
class GridActions:
    """Clicks on the middles of a grid's cells, as `segenv.envs.numeric.HLMATGridEnv` numbers them."""

    grid: Count = 16
    stop: bool = True
    actions: Literal["discrete", "multidiscrete"] = "discrete"

    def __post_init__(self) -> None:
        require(Count, grid=self.grid)
        if self.actions not in ("discrete", "multidiscrete"):
            raise ValueError(f"actions is {self.actions!r}; expected 'discrete' or 'multidiscrete'")

    @property
    def space(self) -> gym.Space:
        """A new action space."""
        if self.actions == "multidiscrete":
            return gym.spaces.MultiDiscrete([2 + self.stop, self.grid, self.grid])
        return gym.spaces.Discrete(self.count)

    @cached_property
    def count(self) -> int:
        """Number of different actions."""
        return 2 * self.grid**2 + self.stop

    @property
    def mask_size(self) -> int:
        """Number of entries of a mask of actions."""
        return 2 + self.stop + 2 * self.grid if self.actions == "multidiscrete" else self.count

    def read(self, action: Any, observation: Observation, space: gym.Space) -> Action:
        """The click or stop that a number of `space` stands for. Raises `InvalidAction` for any other value."""
        plain = self.actions == "discrete" and type(action) in (int, np.int64)  # as nearly all are
        if not (plain and 0 <= action < self.count) and action not in space:
            raise _refuse(action, space)
        if self.actions == "multidiscrete":
            sign, column, row = (int(number) for number in action)
        else:
            sign, cell = divmod(int(action), self.grid * self.grid)
            row, column = divmod(cell, self.grid)
        if sign == 2:
            return Stop()
        x, y = (2 * column + 1) * observation.width, (2 * row + 1) * observation.height
        return Click(x // (2 * self.grid), y // (2 * self.grid), sign == 0)

    def middles(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The pixel columns and rows that hold the middles of the grid's columns and rows."""
        middles = np.arange(self.grid) * 2 + 1
        return middles * width // (2 * self.grid), middles * height // (2 * self.grid)

    def masks(self, observation: Observation) -> np.ndarray:
        """Which actions make sense, bool [mask_size]: see `segenv.envs.numeric.HLMATGridEnv.action_masks`."""
        xs, ys = self.middles(observation.height, observation.width)
        on = observation.mask[np.ix_(ys, xs)]
        new = np.ones_like(on)
        for click in observation.clicks:
            new[np.ix_(ys == click.y, xs == click.x)] = False
        signs, stop = np.stack([new & ~on, new & on]), np.ones(int(self.stop), np.bool_)  # [2, rows, columns]
        if self.actions == "multidiscrete":
            parts = np.append(signs.any((1, 2)), stop), signs.any((0, 1)), signs.any((0, 2))
            return np.concatenate([part if part.any() else np.ones_like(part) for part in parts])
        allowed = np.concatenate([signs.ravel(), stop])
        return allowed if allowed.any() else np.ones_like(allowed)


@dataclass(frozen=True)
class PointActions:
    """Clicks at continuous coordinates, as `segenv.envs.numeric.HLMATPointEnv` numbers them."""

    stop: bool = False
    actions: Literal["box", "hybrid"] = "box"

    def __post_init__(self) -> None:
        if self.actions not in ("box", "hybrid"):
            raise ValueError(f"actions is {self.actions!r}; expected 'box' or 'hybrid'")

    @property
    def space(self) -> gym.Space:
        """A new action space."""
        if self.actions == "box":
            return gym.spaces.Box(-1, 1, (3 + self.stop,), np.float32)
        return gym.spaces.Tuple((gym.spaces.Discrete(2 + self.stop), gym.spaces.Box(-1, 1, (2,), np.float32)))

    def read(self, action: Any, observation: Observation, space: gym.Space) -> Action:
        """The click or stop that a value of `space` stands for, clipped to the image. Raises `InvalidAction` for any
        other value."""
        kind: Any = 0
        if self.actions == "hybrid":
            if not isinstance(action, (tuple, list)) or len(action) != 2 or action[0] not in space[0]:  # type: ignore[index]
                raise _refuse(action, space, "expected (type, [x, y]) in")
            kind, action = action
        values, numbers = np.asarray(action, np.float64), 2 if self.actions == "hybrid" else 3 + self.stop
        if values.shape != (numbers,) or not np.isfinite(values).all():
            raise _refuse(action, space, "expected finite numbers in")
        if kind == 2 or (len(values) == 4 and values[3] > 0):
            return Stop()
        positive = values[2] >= 0 if self.actions == "box" else kind == 0
        size = np.array([observation.width, observation.height])
        x, y = np.clip((values[:2] + 1) / 2 * size, 0, size - 1).astype(int).tolist()
        return Click(x, y, bool(positive))


Actions = Union[GridActions, PointActions]  # noqa: UP007
ACTIONS: Mapping[str, type[GridActions] | type[PointActions]] = {
    "segenv/HLMATGrid-v0": GridActions,
    "segenv/HLMATPoint-v0": PointActions,
}
