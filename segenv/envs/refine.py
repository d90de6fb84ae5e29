"""`segenv/Refine-v0`: repair a mask that is there already."""

from collections.abc import Callable, Sequence

from segenv import codec as codecs
from segenv.envs.hlmat import HLMATEnv
from segenv.envs.starts import Start
from segenv.tools.base import SegTool
from segenv.types import Task


class RefineEnv(HLMATEnv):
    """Repair a given mask with text clicks: `segenv/HLMAT-v0` from a mask that is not empty.

    Actions, observations, rewards, end and information are those of `HLMATEnv`.

    ## Starting State
    `start` says where the mask comes from: `box` (the tool's answer to the object's bounding box; the default),
    `points` (its answer to random points in that box), `distort` (the target, distorted to a drawn IoU), `given` (the
    task's `initial_mask`) or `empty`. Options follow a colon, see `segenv.envs.starts.make`. The first three read the
    target, once, and the episode keeps the mask that they make. A box stays a prompt of the tool; neither points nor
    logits remain, and `undo` goes no further back than this mask. The episode's task (`env.unwrapped.state.task`)
    carries mask and box, so that a `given` start repeats them.
    """

    def __init__(
        self,
        tool: str | SegTool = "sam",
        data: str | Sequence[Task] = "synthetic:train",
        codec: str | codecs.Codec = "segagent",
        reward: str | Callable = "iou_gain",
        max_steps: int = 20,
        render_mode: str | None = None,
        start: str | Start = "box",
        render_size: int = 512,
    ) -> None:
        super().__init__(tool, data, codec, reward, max_steps, render_mode, start, render_size)
