"""`segenv/Filter-v0`: judge a given mask, and the random points that such masks are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from segenv import codec as codecs
from segenv.envs import starts
from segenv.envs.hlmat import HLMATEnv
from segenv.envs.starts import Start
from segenv.mdp import Observation
from segenv.metrics import iou
from segenv.rewards import Reward
from segenv.tools.base import SegTool
from segenv.types import Action, Click, Invalid, Prompt, Stop, Task

POINTS = 5  # of a mask, at most


@dataclass(frozen=True)
class Judgement(Stop):
    """The statement that the present mask has this IoU, in 0..1; nothing is left to do after it."""

    stated: float


def random_prompt(task: Task, rng: np.random.Generator, k: int = POINTS) -> Prompt:
    """1 to `k` clicks anywhere in the object's bounding box, on the object or off it. The first is positive, as a mask
    needs one; the sign of the others is a coin's. (The paper publishes neither number nor signs.)"""
    x0, y0, x1, y1 = starts.object_bounds(task)
    spots = rng.integers((x0, y0), (x1, y1), (int(rng.integers(1, k + 1)), 2)).tolist()
    signs = [True, *(rng.random(len(spots) - 1) < 0.5).tolist()]
    return Prompt(clicks=tuple(Click(x, y, sign) for (x, y), sign in zip(spots, signs, strict=True)))


def random_points(task: Task, tool: SegTool, rng: np.random.Generator) -> Task:
    """The task, starting from what the tool makes of a `random_prompt`."""
    return starts.predicted_start(task, tool, random_prompt(task, rng))


def _error(task: Task, mask: np.ndarray, action: Action) -> float:
    """How far the stated IoU is from the true one; 1 where none is stated."""
    return abs(action.stated - iou(task.target, mask)) if isinstance(action, Judgement) else 1.0


def _absolute(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """Minus the absolute error."""
    return -_error(task, before, action)


def _squared(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """Minus the squared error, a proper score: the best statement is the expected IoU."""
    return -(_error(task, before, action) ** 2)


REWARDS: dict[str, Reward] = {"absolute": _absolute, "squared": _squared}


class FilterEnv(HLMATEnv):
    """Say how good a given mask is: the process reward model as a judge of annotations (SegAgent, arXiv 2503.08625).

    ## Description
    The agent sees the image under a mask, and states the mask's IoU with the object that the instruction names. There
    is nothing to correct: an episode is one statement.

    ## Action Space
    `FreeText`: any text with a line such as `Current IOU: 74` (percent, 0 to 100; decimals are read too). What else it
    holds, an action for example, is passed over. A text that states no IoU in that range is data and not an error; it
    is the worst answer.

    ## Observation Space
    That of `segenv.envs.hlmat.HLMATEnv`: `image` (the mask blended in), `mask`, `instruction`, `prompt`, `steps_left`
    and `error`. **Not in the observation:** the target, the points that the mask was made of, and the tool's own score.

    ## Rewards
    `reward`: `absolute` (the default; minus the absolute error of the stated IoU, which is 0..1) or `squared` (minus
    its square), where a reply without a statement has an error of 1; or a function as in `segenv.rewards`, whose action
    is a `Judgement` or an `Invalid`.

    ## Starting State
    A mask that the tool makes of 1 to 5 random points in the object's bounding box, the first positive, the others of
    either sign (`start="random"`), or that of another start of `segenv.envs.starts.make`: `given`, `box`, `points`,
    `distort`.

    ## Episode End
    Terminated by the first step. Never truncated.

    ## Information
    As in `HLMATEnv`; after the step, `parsed` is the `Judgement` (its `stated` is in 0..1) or the `Invalid`.

    ## Arguments
    ```python
    gym.make("segenv/Filter-v0", tool="sam", data="synthetic:train", codec="segagent", reward="absolute")
    ```
    """

    def __init__(
        self,
        tool: str | SegTool = "sam",
        data: str | Sequence[Task] = "synthetic:train",
        codec: str | codecs.Codec = "segagent",
        reward: str | Callable = "absolute",
        render_mode: str | None = None,
        start: str | Start = "random",
        render_size: int = 512,
    ) -> None:
        if isinstance(reward, str) and reward not in REWARDS:
            raise ValueError(f"reward is {reward!r}; expected one of {', '.join(REWARDS)}, or a function")
        judged_by = REWARDS[reward] if isinstance(reward, str) else reward
        begin = random_points if start == "random" else start
        super().__init__(tool, data, codec, judged_by, 1, render_mode, begin, render_size)
        if isinstance(reward, str):
            self.metadata["reward_range"] = (-1.0, 0.0)

    def _parse(self, action: Any, observation: Observation) -> Action:
        if not isinstance(action, str):
            raise gym.error.InvalidAction(f"action is {type(action).__name__}; expected a text that states an IoU")
        stated = self.codec.stated_iou(action)
        if stated is None:
            return Invalid(action, "no IoU is stated; expected a line `Current IOU: n` with n from 0 to 100")
        return Judgement(stated)
