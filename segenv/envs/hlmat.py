"""The click environments' shell, and `segenv/HLMAT-v0`: clicks as text."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

from segenv import codec as codecs
from segenv import render
from segenv.envs.base import SegEnv
from segenv.envs.spaces import FreeText, Pixels
from segenv.envs.starts import Start
from segenv.mdp import Observation
from segenv.tools.base import SegTool
from segenv.types import Action, Task


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
    An empty mask, or the task's `initial_mask`, or what `start` makes (`segenv.envs.starts.make`). The task is
    drawn from `data` by the environment's generator (`reset(seed=...)`), or given:
    `reset(options={"task": task_or_id_or_index})`.

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
        start: str | Start | None = None,
        render_size: int = 512,
    ) -> None:
        super().__init__(tool, data, reward, max_steps, render_mode, start, render_size)
        self.codec = codecs.make(codec) if isinstance(codec, str) else codec
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
