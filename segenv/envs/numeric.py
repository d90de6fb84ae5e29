"""`segenv/HLMATGrid-v0` and `segenv/HLMATPoint-v0`: clicks as numbers, for RL libraries that know no text."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from segenv import codec as codecs
from segenv.envs.base import Moment, SegEnv
from segenv.envs.features import Observe
from segenv.envs.numbers import Actions, GridActions, PointActions, View
from segenv.envs.starts import Start
from segenv.mdp import Observation, SegState
from segenv.tools.base import SegTool
from segenv.types import Action, Task


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

    numbering: Actions

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
        if action_mask not in (None, "info", "observation"):
            raise ValueError(f"action_mask is {action_mask!r}; expected 'info', 'observation' or None")
        self.view, self.action_mask = View(size, observe), action_mask
        self.size = size
        self.action_space = self.numbering.space
        parts = dict(self.view.spaces)
        if action_mask == "observation":
            parts["action_mask"] = gym.spaces.MultiBinary(self._mask_size())
        elif action_mask:
            self._mask_size()  # refuses a space that has no mask
        self.observation_space = gym.spaces.Dict(parts)

    def _mask_size(self) -> int:
        """Number of entries of a mask of actions."""
        raise ValueError(f"action_mask is {self.action_mask!r}; expected None, since points are not masked")

    def action_masks(self) -> np.ndarray:
        raise ValueError("points are not masked; use segenv/HLMATGrid-v0")

    def _parse(self, action: Any, observation: Observation) -> Action:
        return self.numbering.read(action, observation, self.action_space)

    def arrive(self, parsed: Action, following: SegState) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = super().arrive(parsed, following)
        info["text"] = self.codec.format(parsed, following.task)
        return seen, reward, terminated, truncated, info

    def _observe(self, observation: Observation) -> dict[str, Any]:
        seen: dict[str, Any] = self.view.of(observation, self._now("step").task, self.borrowed)
        if self.action_mask == "observation":
            seen["action_mask"] = self.action_masks().astype(np.int8)
        return seen

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

    numbering: GridActions

    def __init__(
        self, *args: Any, grid: int = 16, stop: bool = True, actions: str = "discrete", **options: Any
    ) -> None:
        self.numbering = GridActions(grid, stop, actions)  # type: ignore[arg-type]  # checked there
        self.grid, self.stop, self.actions = grid, stop, actions
        super().__init__(*args, **options)

    def _mask_size(self) -> int:
        return self.numbering.mask_size

    def action_masks(self) -> np.ndarray:
        """Which actions make sense now, bool [n]; they follow from the mask and the clicks, never from the target.

        A positive click does where the mask is off, a negative one where it is on, and neither on a pixel that was
        clicked before: these are the clicks that could correct an error at their pixel, the only ones that the
        simulated annotator makes. Stopping always does. Where nothing is left (no `stop`, every cell clicked), every
        action is allowed.

        For `MultiDiscrete` the masks of type, column and row follow each other, [2 or 3 + 2 · grid]: a number is
        allowed where it is part of an allowed action, so that a few sampled clicks may still correct nothing.
        """
        return self.numbering.masks(self.mdp.observation(self._now("action_masks")))


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
        self.numbering = PointActions(stop, actions)  # type: ignore[arg-type]  # checked there
        self.stop, self.actions = stop, actions
        super().__init__(*args, **options)
