"""`segenv/Polygon-v0`: a whole mask in one reply, and the other questions about an object."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import numpy as np

from segenv import codec as codecs
from segenv import queries, rewards
from segenv.codec.polygons import PolygonCodec
from segenv.envs.hlmat import HLMATEnv
from segenv.mdp import Observation, SegMDP, SegState
from segenv.rewards import Reward
from segenv.rewards.polygons import PolygonReward, goal_of
from segenv.tools.base import SegTool
from segenv.tools.disc import DiscTool
from segenv.types import Action, Box, Click, Stop, Task, object_of


@dataclass(frozen=True)
class Words(Stop):
    """The answer to a question for a text; nothing is left to do after it."""

    text: str


@dataclass(frozen=True, eq=False)
class AnswerMDP(SegMDP):
    """The rules of one question and one answer: outlines become the mask; a point, a box or a text ends the episode and
    leaves the mask as it is. No tool is asked.

    `asked` is one of `segenv.queries.KINDS`. `reward_name` is a sum of the parts in `segenv.rewards.polygons`, or a
    function as in `segenv.rewards`.
    """

    asked: str = "mask"

    def transition(
        self, states: Sequence[SegState], actions: Sequence[Action], masks: Sequence[np.ndarray] | None = None
    ) -> list[SegState]:
        return super().transition(states, [Stop() if isinstance(one, (Click, Box)) else one for one in actions], masks)

    @cached_property
    def _terms(self) -> dict[str, Reward]:
        if callable(self.reward_name):
            return rewards.terms(self.reward_name)
        weights = PolygonReward(self.reward_name).weights
        return {name: rewards.weighted(weight, partial(_part, name, self.asked)) for name, weight in weights.items()}

    @cached_property
    def reward_range(self) -> tuple[float, float]:
        """The bounds of the reward, whose parts are in 0..1; infinite for a function."""
        if callable(self.reward_name):
            return rewards.reward_range(self.reward_name)
        weights = PolygonReward(self.reward_name).weights.values()
        return sum(min(weight, 0.0) for weight in weights), sum(max(weight, 0.0) for weight in weights)


def _part(
    name: str, asked: str, task: Task, before: np.ndarray, action: Any, after: np.ndarray, terminal: bool
) -> float:
    """Compute one part of an answer's reward."""
    answer = action.text if isinstance(action, Words) else action
    return goal_of(task, asked).parts(answer, [name])[name]


class PolygonEnv(HLMATEnv):
    """Outline what the instruction names, in one reply (SimpleSeg, arXiv 2601.19228); or answer another question.

    ## Description
    The agent sees the image and a question, and answers with a list of polygons: the mask, without a segmentation tool.
    A question gives one of text, point, box and mask, and asks for another (`given`, `asked`; see `segenv.queries`).

    ## Action Space
    `FreeText`: any text. What is read in it is the codec's to say, and `prompt` tells it to the agent. A mask that
    breaks off is taken as far as it goes. A text that states none, or answers another question, is data and not an
    error; it has no reward. `[]` is the answer where the object is not in the image.

    ## Observation Space
    That of `segenv.envs.hlmat.HLMATEnv`: `image` (the mask blended in), `mask` (empty, or the given one; at the end
    what the reply drew), `instruction` (empty where no text is given), `prompt` (the question), `steps_left` and
    `error`. **Not in the observation:** the target, but for what the question gives of it: with `given="text"`, the
    default, nothing; else a point in it, its box or its mask.

    ## Rewards
    `reward`: a sum of the parts in `segenv.rewards.polygons` (`iou`, `centroid`, `format`, `boundary_f`, `chamfer`), or
    a function as in `segenv.rewards`.

    ## Starting State
    A task of `data`, drawn by the environment's generator (`reset(seed=...)`) or given (`options={"task": ...}`), and
    the question about it. A task without an object can be asked by its text, for its mask alone.

    ## Episode End
    Terminated by the first step. Never truncated.

    ## Information
    As in `HLMATEnv` (`iou` is that of the mask); after the step, `parsed` is the `Polygons`, `Click`, `Box`, `Words` or
    `Invalid`, and `rewards` holds the weighted parts. `unwrapped.query` is the question, with its answer.

    ## Arguments
    ```python
    gym.make(
        "segenv/Polygon-v0", data="synthetic:train", codec="rings", reward="iou+0.1*centroid+0.1*format",
        given="text", asked="mask", style="codec", varied=False,
    )
    ```
    `style` is "codec" (all that a model must know) or "instruction" (short, for small models); `varied` draws one of
    several phrasings of "codec". There is no `tool` and no `max_steps`: nothing clicks, and one reply is all.
    """

    query: queries.Query
    codec: PolygonCodec

    def __init__(
        self,
        data: str | Sequence[Task] = "synthetic:train",
        codec: str | PolygonCodec = "rings",
        reward: str | Callable = "iou+0.1*centroid+0.1*format",
        given: str = "text",
        asked: str = "mask",
        style: str = "codec",
        varied: bool = False,
        render_mode: str | None = None,
        render_size: int = 512,
    ) -> None:
        spoken = codecs.make(codec) if isinstance(codec, str) else codec
        if not isinstance(spoken, PolygonCodec):
            raise ValueError(f"codec {spoken.name!r} draws no polygons; expected one such as 'rings' or 'simpleseg'")
        queries.check(given, asked, style)
        super().__init__(DiscTool(), data, spoken, "iou", 1, render_mode, self._pose, render_size)
        self.mdp = AnswerMDP(self.mdp.tool, 1, reward, asked)
        self.metadata["reward_range"] = self.mdp.reward_range
        self.given, self.asked, self.style, self.varied = given, asked, style, varied

    def _pose(self, task: Task, tool: SegTool, rng: np.random.Generator) -> Task:
        """Ask about a task. A given mask is where the episode starts."""
        seed = int(rng.integers(2**31)) if self.varied else None
        self.query = queries.query(task, self.codec, self.given, self.asked, self.style, seed)
        return replace(task, initial_mask=object_of(task.target) if self.given == "mask" else None)

    def _parse(self, action: Any, observation: Observation) -> Action:
        if not isinstance(action, str):
            raise gym.error.InvalidAction(
                f"action is {type(action).__name__}; expected a text for codec {self.codec.name}"
            )
        found = queries.read(action, observation, self.codec, self.asked)
        return Words(found) if isinstance(found, str) else found

    def _observe(self, observation: Observation) -> dict[str, Any]:
        words = observation.instruction if self.given == "text" else ""
        return {**super()._observe(observation), "instruction": words, "prompt": self.query.prompt}
