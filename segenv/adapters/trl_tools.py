"""Clicks as tools for TRL's `GRPOTrainer(environment_factory=...)`: the model calls typed functions in place of writing
text, and each answer shows it the new mask.

    environment = click_tools(tool="sam", data="synthetic:train", max_steps=4)
    GRPOTrainer(model, environment_factory=environment, train_dataset=Dataset.from_list(rows(1_000)), ...)

The chat template must know tools and pictures in their answers, as Qwen3-VL's does; the embedded model's does not. A
picture in an answer counts in `max_completion_length`, and TRL drops an answer that goes beyond it without a word:
leave room for `max_steps` pictures. To train one turn alone, take `segenv.adapters.chat.rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from segenv.adapters import chat
from segenv.envs.base import Start
from segenv.mdp import SegState
from segenv.tools.base import SegTool
from segenv.types import Action, Click, Stop, Task

SIDE = 1000  # coordinates run from 0 to this over the width and the height
REQUEST = """Segment this object: {instruction}
The green layer on the image is the current mask. Call one tool at a time: `add` where a part of the object is not \
green, `remove` where green lies outside the object, and `finish` when the mask is right. x goes from 0 at the left to \
1000 at the right, y from 0 at the top to 1000 at the bottom. You have {left} calls left."""
Content = list[dict[str, Any]]


class ClickTools:
    """An episode whose public methods are the tools that a model may call. TRL keeps instances and resets them, so make
    a class of one's own with `click_tools`, which knows the game.

    A broken tool reaches the model as the text of an error, as every exception in a tool does; the reward then raises
    it, so that it is never learned from.
    """

    _game: chat.Chat

    def __init__(self) -> None:
        self._state: SegState | None = None
        self._rewards: list[float] = []
        self._fault: Exception | None = None
        self._ended = False

    def reset(self, index: int = 0, **row: Any) -> Content:
        """Start the episode of the task at `index` in the data: its picture and request."""
        self._state, self._rewards, self._fault, self._ended = self._game.start(index), [], None, False
        return self._shown()

    def add(self, x: int, y: int) -> Content:
        """
        Add the part of the object under this point to the mask.

        Args:
            x: The column, from 0 at the left of the image to 1000 at its right.
            y: The row, from 0 at the top of the image to 1000 at its bottom.

        Returns:
            The image with the new mask, and what to do next.
        """
        return self._click(x, y, True)

    def remove(self, x: int, y: int) -> Content:
        """
        Remove the part of the mask under this point.

        Args:
            x: The column, from 0 at the left of the image to 1000 at its right.
            y: The row, from 0 at the top of the image to 1000 at its bottom.

        Returns:
            The image with the new mask, and what to do next.
        """
        return self._click(x, y, False)

    def finish(self) -> str:
        """
        End the work when the mask covers the object and nothing else.

        Returns:
            A note that the work has ended.
        """
        self._act(Stop())
        return "The work has ended."

    def get_reward(self) -> float:
        """The sum of the rewards of the steps. Raises the fault of a tool that was broken on the way."""
        if self._fault is not None:
            raise self._fault
        return float(math.fsum(self._rewards))

    def _click(self, x: int, y: int, positive: bool) -> Content:
        state = self._open()
        if not all(isinstance(value, (int, float)) and 0 <= value <= SIDE for value in (x, y)):
            raise ValueError(f"the point is ({x!r}, {y!r}); expected numbers from 0 to {SIDE}")
        column, row = _place(x, state.task.width), _place(y, state.task.height)
        self._act(Click(column, row, positive))
        return [{"type": "text", "text": "The work has ended."}] if self._ended else self._shown()

    def _act(self, action: Action) -> None:
        """Carry out an action, and keep a fault."""
        try:
            self._state, reward, self._ended = self._game.act(self._open(), action)
        except ValueError:
            raise
        except Exception as error:
            self._fault = error
            raise
        self._rewards.append(reward)

    def _open(self) -> SegState:
        """The state of an episode that goes on."""
        if self._state is None or self._ended or self._fault is not None:
            raise ValueError("the work has ended; answer without a tool")
        return self._state

    def _shown(self) -> Content:
        """The picture of the state, and the request."""
        state = self._open()
        instruction, left = state.task.instruction or "the main object", self._game.mdp.max_steps - state.step
        text = REQUEST.format(instruction=instruction, left=left)
        return [{"type": "image", "image": self._game.picture(state)}, {"type": "text", "text": text}]


def _place(value: float, size: int) -> int:
    """The pixel of a coordinate along a side of `size` pixels."""
    return min(int(value * size / SIDE), size - 1)


def click_tools(
    tool: str | SegTool = "sam",
    data: str | Sequence[Task] = "synthetic:train",
    reward: str | Callable = "iou_gain",
    max_steps: int = 4,
    start: str | Start | None = None,
) -> type[ClickTools]:
    """Make the class whose instances TRL plays, over one tool and one dataset. Specs, or the objects they name."""
    game = chat.make(tool, data, "grid1000-xy", reward, max_steps, start)
    return type("SegmentationTools", (ClickTools,), {"_game": game})


def rows(number: int) -> list[dict[str, Any]]:
    """Rows of a training set for `click_tools`: the place of a task in the data, and a message that `reset` fills."""
    return [{"prompt": [{"role": "user", "content": ""}], "index": index} for index in range(number)]
