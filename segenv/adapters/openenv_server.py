"""An OpenEnv server (https://github.com/huggingface/OpenEnv) whose sessions are episodes of clicks.

uvicorn.run(create(tool="sam", data="synthetic:train", max_steps=7), host="127.0.0.1", port=8000)

A client resets with the `index` of a task, or with a seed that draws one, and steps with the text of a reply. Every
session shares one tool. A broken tool is an error of the session, which its client raises, and no reward.
"""

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import segenv
from segenv import render
from segenv.adapters import chat
from segenv.envs.base import Start
from segenv.mdp import SegState
from segenv.tools.base import SegTool
from segenv.types import Task

try:
    from openenv.core.env_server.http_server import create_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
    from pydantic import Field
except ImportError as missing:
    raise ImportError("this adapter needs openenv 0.10 or newer: pip install 'segenv[openenv]'") from missing

SPLIT = "all"  # the only one: the data that the server was started with


class ReplyAction(Action):
    """A reply of the policy."""

    text: str = Field(description="the reply of the model: one action in the words of the prompt")


class MaskObservation(Observation):
    """A state as a model sees it."""

    picture: str = Field(description="the image with the mask in green, a PNG in base64")
    prompt: str = Field(description="what to ask the model, instruction included")
    task_id: str
    steps_left: int


class EpisodeState(State):
    """A session's episode, for logs: `iou` reads the target."""

    task_id: str | None = None
    iou: float | None = None
    stopped: bool = False


class SegEnvironment(Environment[ReplyAction, MaskObservation, EpisodeState]):
    """A session of `create`, whose class knows the game."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    game: chat.Chat
    lock: threading.Lock  # a tool is no server: one call at a time

    def __init__(self) -> None:
        super().__init__()
        self.now: SegState | None = None
        self.episode = ""

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, split: str = SPLIT, index: int | None = None
    ) -> MaskObservation:
        """Start the episode of the task at `index`, or of one that the seed draws."""
        number = self.num_tasks(split)
        chosen = int(np.random.default_rng(seed).integers(number)) if index is None else index
        self._check(chosen, split)
        with self.lock:
            self.now = self.game.start(chosen)
        self.episode = episode_id or str(uuid.uuid4())
        return self._seen(self.now, None, False)

    def step(self, action: ReplyAction, timeout_s: float | None = None, **more: Any) -> MaskObservation:
        """Carry out a reply."""
        if self.now is None:
            raise ValueError("step came before reset; call reset first")
        with self.lock:
            self.now, reward, done = self.game.advance(self.now, action.text)
        return self._seen(self.now, reward, done)

    @property
    def state(self) -> EpisodeState:
        """The episode of the session."""
        if self.now is None:
            return EpisodeState()
        iou = self.game.iou(self.now)
        told = {"task_id": self.now.task.id, "iou": iou, "stopped": self.now.stopped}
        return EpisodeState(episode_id=self.episode, step_count=self.now.step, **told)

    def get_metadata(self) -> EnvironmentMetadata:
        """Name and version of the environment."""
        about = "Segment what a sentence names, one click of a tool at a time."
        return EnvironmentMetadata(name="segenv", description=about, version=segenv.__version__)

    def list_splits(self) -> list[str]:
        """The one split."""
        return [SPLIT]

    def num_tasks(self, split: str) -> int:
        """The number of tasks."""
        if split != SPLIT:
            raise ValueError(f"there is no split {split!r}; expected {SPLIT!r}")
        return len(self.game.data)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """The id and the instruction of a task."""
        self._check(index, split)
        task = self.game.data[index]
        return {"id": task.id, "index": index, "instruction": task.instruction}

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        """Tasks from `start` up to `stop`."""
        return [self.get_task(split, index) for index in range(self.num_tasks(split))[start:stop]]

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """The first 100 tasks."""
        return self.get_task_range(split, 0, 100)

    def _check(self, index: int, split: str) -> None:
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(f"there is no task {index}; expected 0 to {self.num_tasks(split) - 1}")

    def _seen(self, state: SegState, reward: float | None, done: bool) -> MaskObservation:
        url = render.data_url(self.game.picture(state))
        return MaskObservation(
            done=done,
            reward=reward,
            picture=url.partition(",")[2],
            prompt=self.game.prompt(state),
            task_id=state.task.id,
            steps_left=self.game.mdp.max_steps - state.step,
        )


def create(
    tool: str | SegTool = "sam",
    data: str | Sequence[Task] = "synthetic:train",
    codec: str = "segagent",
    reward: str | Callable = "iou_gain",
    max_steps: int = 7,
    start: str | Start | None = None,
    sessions: int = 16,
) -> Any:
    """Create the FastAPI application of a server for up to `sessions` clients at once."""
    members = {"game": chat.make(tool, data, codec, reward, max_steps, start), "lock": threading.Lock()}
    environment = type("SegSession", (SegEnvironment,), members)
    return create_app(
        environment, ReplyAction, MaskObservation, "segenv", max_concurrent_envs=sessions, state_cls=EpisodeState
    )
