"""VAGEN's environments of pictures and texts (`GymImageEnv`; https://github.com/mll-lab-nu/VAGEN).

Name the class in VAGEN's `env_registry.yaml` as `segenv.adapters.vagen.SegImageEnv`; the keys of an environment's
`config` are those of `segenv.adapters.chat.make`: tool, data, codec, reward, max_steps, start.
"""

from typing import Any

from segenv.adapters import chat
from segenv.mdp import SegState

PLACE = "<image>"  # of the picture in a text
GOAL = 0.9  # the IoU from which on VAGEN's log counts an episode as a success
Seen = dict[str, Any]


class SegImageEnv:
    """An episode of clicks as VAGEN plays it; it needs no import of VAGEN, which calls its methods alone.

    Each observation tells all that the policy needs, so both ways of training fit: one context that grows, and one
    context a step.
    """

    def __init__(self, env_config: dict[str, Any]) -> None:
        self.chat = chat.make(**env_config)
        self.state: SegState | None = None

    async def close(self) -> None:
        """Forget the episode."""
        self.state = None

    async def system_prompt(self) -> Seen:
        """An empty text: each observation has the whole prompt."""
        return {"obs_str": ""}

    async def reset(self, seed: int) -> tuple[Seen, dict[str, Any]]:
        """Start the episode of the task at `seed` in the data, which begins anew after its last task."""
        self.state = self.chat.start(seed % len(self.chat.data))
        return self._seen(self.state)

    async def step(self, action_str: str) -> tuple[Seen, float, bool, dict[str, Any]]:
        """Carry out a reply. Raises `ToolError` where the tool is broken, and ValueError before `reset`."""
        if self.state is None:
            raise ValueError("step() came before reset(); call reset(seed) first")
        self.state, reward, done = self.chat.advance(self.state, action_str)
        seen, info = self._seen(self.state)
        return seen, reward, done, info

    def _seen(self, state: SegState) -> tuple[Seen, dict[str, Any]]:
        """The observation of a state, and what VAGEN logs of it."""
        iou = self.chat.iou(state)
        text = self.chat.prompt(state).replace(PLACE, "")  # VAGEN counts the places of pictures
        seen = {"obs_str": f"{PLACE}\n{text}", "multi_modal_input": {PLACE: [self.chat.picture(state)]}}
        return seen, {"success": iou >= GOAL, "iou": iou, "task_id": state.task.id, "error": state.error or ""}
