"""Episodes as a chat: two functions, over which other frameworks train and evaluate language models.

    chat = make(tool="sam", data="synthetic:train")
    state = chat.start(0)
    while not done:
        text = model(chat.conversation(state))
        state, reward, done = chat.advance(state, text)

A state is a value, so the same one can be answered many times. The policy is Markov in the mask: a conversation is one
message of a user, the picture of the state and the codec's prompt, however many steps came before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from segenv import codec as codecs
from segenv import data as datasets
from segenv import metrics, render, tools
from segenv.envs import starts
from segenv.envs.base import Start
from segenv.mdp import SegMDP, SegState
from segenv.seeds import seed_of
from segenv.tools.base import SegTool
from segenv.types import Action, Task

Message = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Chat:
    """The rules, the words and the tasks of episodes that a language model plays by messages."""

    mdp: SegMDP
    codec: codecs.Codec
    data: Sequence[Task]
    begin: Start | None = None  # changes a task before its episode, as in `segenv.envs.starts`

    @property
    def ids(self) -> Sequence[str]:
        """The id of each task, in order; where the data are a dataset, without decoding an image."""
        data = self.data
        return data.ids if isinstance(data, datasets.Dataset) else [task.id for task in data]

    def start(self, task: Task | int) -> SegState:
        """Start an episode on a task, or on the task at an index of the data."""
        chosen = task if isinstance(task, Task) else self.data[task]
        if self.begin is not None:
            chosen = self.begin(chosen, self.mdp.tool, np.random.default_rng(seed_of("start", chosen.id)))
        return self.mdp.initial(chosen)

    def picture(self, state: SegState) -> Image.Image:
        """The image with the mask in green, as a model sees it."""
        return Image.fromarray(render.overlay(state.task.image, state.mask))

    def prompt(self, state: SegState) -> str:
        """The codec's request, which says why the last reply was not carried out."""
        return self.codec.prompt(self.mdp.observation(state))

    def conversation(self, state: SegState) -> list[Message]:
        """One message of a user: the picture (a PIL image), then the prompt."""
        content = [{"type": "image", "image": self.picture(state)}, {"type": "text", "text": self.prompt(state)}]
        return [{"role": "user", "content": content}]

    def advance(self, state: SegState, text: str, finish_reason: str | None = None) -> tuple[SegState, float, bool]:
        """Carry out a reply: the next state, the reward, and whether the episode has ended.

        Any text is data: one that is no action costs a step, and so does one that was cut (`finish_reason` is
        "length"). A broken tool raises `ToolError`, which is never a reward.
        """
        return self.act(state, self.codec.read(text, self.mdp.observation(state), finish_reason).action)

    def act(self, state: SegState, action: Action) -> tuple[SegState, float, bool]:
        """As `advance`, with an action that needs no reading."""
        [following] = self.mdp.transition([state], [action])
        return following, self.mdp.reward(state, action, following), self.mdp.terminal(following)

    def iou(self, state: SegState) -> float:
        """The IoU of a state's mask with the target, for logs and scores; never for a model."""
        return float(metrics.iou(state.task.target, state.mask))


@dataclass
class LiveEpisode:
    """An episode under way, for frameworks that keep one: the present state, and the rewards so far."""

    chat: Chat
    state: SegState
    rewards: list[float] = field(default_factory=list)
    done: bool = False
    best: float = field(init=False)  # the highest IoU so far, for logs

    def __post_init__(self) -> None:
        self.best = self.chat.iou(self.state)

    def answer(self, text: str, finish_reason: str | None = None) -> float:
        """Carry out a reply, as `Chat.advance` does; its reward."""
        self.state, reward, self.done = self.chat.advance(self.state, text, finish_reason)
        self.rewards.append(reward)
        self.best = max(self.best, self.chat.iou(self.state))
        return reward

    @property
    def total(self) -> float:
        """The return: the sum of the rewards."""
        return math.fsum(self.rewards)

    def record(self) -> dict[str, Any]:
        """A summary for logs and scores, which reads the target."""
        told = {"iou": self.chat.iou(self.state), "best_iou": self.best, "steps": self.state.step}
        return told | {"rewards": list(self.rewards), "stopped": self.state.stopped}


def make(
    tool: str | SegTool = "sam",
    data: str | Sequence[Task] = "synthetic:train",
    codec: str | codecs.Codec = "segagent",
    reward: str | Callable = "iou_gain",
    max_steps: int = 7,
    start: str | Start | None = None,
) -> Chat:
    """Make a chat from specs, or from the objects that specs would make; `start` is one of `segenv.envs.starts`."""
    return Chat(
        SegMDP(tools.make(tool), max_steps, reward),
        codecs.make(codec) if isinstance(codec, str) else codec,
        datasets.make(data) if isinstance(data, str) else data,
        None if start is None else starts.make(start),
    )


def rows(chat: Chat, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Single-turn rows of the first `limit` tasks: `prompt` (messages without the picture), `images`, `index` and
    `task_id`. Trainers that know one turn alone train a policy that is Markov in the mask without loss."""
    for index in range(len(chat.data) if limit is None else min(limit, len(chat.data))):
        state = chat.start(index)
        content = [{"type": "image"}, {"type": "text", "text": chat.prompt(state)}]
        prompt = [{"role": "user", "content": content}]
        yield {"prompt": prompt, "images": [chat.picture(state)], "index": index, "task_id": state.task.id}
