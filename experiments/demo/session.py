"""An episode that a person and an agent play together, as values: nothing of a page, and no model that is not asked.

A session is the list of its moments. Each holds a state of the decision process, and who led to it by which action; to
undo is to drop the last one. A fault of the tool or of the agent's server raises, and the session stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.episode_viewer import describe
from experiments.common.run_folder import hidden
from search import values
from search.episode import action_to_json, read_reply
from search.executors import Player
from segenv import metrics
from segenv.data.base import SKIP_HINT
from segenv.data.images import MAX_PIXELS, read_image
from segenv.mdp import SegState
from segenv.seeds import seed_of
from segenv.types import Action, BadItem, Box, Click, Invalid, RunError, Task

PERSON = "you"


@dataclass(frozen=True, eq=False)
class Moment:
    """One state, and how it came about: `by` whom, by which `action` (None at the start), said in which `reply` of the
    agent, who states in it an IoU in 0..1 of the mask before it, `stated_iou`.

    Of the state's mask: `area` in pixels, `value` as the value function estimates its IoU, and `iou`, the true one;
    None where there is none.
    """

    state: SegState
    area: int
    value: float | None = None
    iou: float | None = None
    by: str = ""
    action: Action | None = None
    reply: str = ""
    stated_iou: float | None = None

    @property
    def valid(self) -> bool:
        """Whether the action was carried out."""
        return not isinstance(self.action, Invalid) and self.state.error is None

    @property
    def words(self) -> str:
        """The action, for a person; why it was not carried out, where it was not."""
        if self.action is None:
            return "start"
        told = describe(action_to_json(self.action))
        return told if isinstance(self.action, Invalid) or self.valid else f"{told}: {self.state.error}"

    @property
    def score(self) -> float | None:
        """The tool's own estimate of the IoU of its mask."""
        return None if np.isnan(self.state.score) else float(self.state.score)


@dataclass(frozen=True, eq=False)
class Session:
    """The moments of one episode, the start included. `corner` is the first corner of a box that is being drawn.
    `target_known` is False for a person's own image, whose task has an empty target."""

    moments: tuple[Moment, ...]
    target_known: bool
    corner: Click | None = None

    @property
    def state(self) -> SegState:
        """The state at hand."""
        return self.moments[-1].state

    @property
    def task(self) -> Task:
        return self.state.task

    def undo(self) -> Session:
        """Go back by one moment, or give up the box that is being drawn. Raises RunError at the start."""
        if self.corner is not None:
            return replace(self, corner=None)
        if len(self.moments) == 1:
            raise RunError("nothing to undo: no step has been taken")
        return replace(self, moments=self.moments[:-1])

    def reset(self) -> Session:
        """Go back to the start."""
        return replace(self, moments=self.moments[:1], corner=None)


class Demo:
    """The decision process, the agent and the value function that sessions are played with."""

    def __init__(self, player: Player, value: str = "none", max_pixels: int = MAX_PIXELS) -> None:
        self.player, self.max_pixels = player, max_pixels
        self.mdp, self.agent, self.dataset = player.mdp, player.agent, player.dataset
        self.agent_name = hidden(self.agent.spec)  # for the page, which others may see
        self.value = None if value == "none" else values.make(value, self.mdp, self.agent)
        if self.value is not None and self.value.privileged:
            raise ValueError(f"value {value!r} reads the target; expected prm, prm-mean, self or none")

    def open_task(self, index: int) -> Session:
        """Begin the task at `index` of the data. Raises BadItem, and RunError where there is no such task."""
        if not 0 <= index < len(self.dataset):
            raise RunError(f"there is no task {index}; expected 0 to {len(self.dataset) - 1}")
        try:
            return self._begin(self.dataset[index], True)
        except BadItem as error:  # nothing is skipped here
            raise BadItem(str(error).removesuffix(SKIP_HINT)) from error

    def open_image(self, path: Path, name: str, instruction: str = "") -> Session:
        """Begin on an image file, whose target nobody knows; `name` is the file's own. Raises BadItem, before the image
        is decoded where it is too large."""
        try:
            image = read_image(path, name, self.max_pixels)
        except BadItem as error:  # where an upload lies is nobody's concern
            raise BadItem(str(error).replace(str(path), name)) from error
        task = Task(name, image, np.zeros(image.shape[:2], bool), instruction)
        self.agent.check(task)
        return self._begin(task, False)

    def click(self, session: Session, x: int, y: int, positive: bool = True) -> Session:
        """Let the person click on a pixel of the image."""
        return self._act(session, Click(x, y, positive))

    def corner(self, session: Session, x: int, y: int) -> Session:
        """Let the person click on a corner of a box; on the second one, the box that covers both pixels is given."""
        if (first := session.corner) is None:
            return replace(session, corner=Click(x, y))
        low, high = (min(first.x, x), min(first.y, y)), (max(first.x, x) + 1, max(first.y, y) + 1)
        return self._act(session, Box(*map(float, (*low, *high))))

    def ask(self, session: Session) -> Session:
        """Let the agent take one step. A reply that is no action is a moment too, with the mask as it was."""
        state, agent, setup = session.state, self.agent, self.player.setup
        if agent.privileged and not session.target_known:
            raise RunError(f"agent {self.agent_name!r} reads the target, and nobody knows that of your own image")
        if state.stopped:
            raise RunError("the agent has ended the episode; click to go on, undo or reset")
        self._check_steps(state)
        item: Any = state if agent.privileged else self.mdp.observation(state)
        seed = seed_of(setup.seed, state.task.id, setup.round_index, 0, state.step)  # as in a rollout
        reply = agent.answer([item], [seed], [0])[0]
        reading = read_reply(agent.codec, reply, state.task if agent.privileged else item)
        told = {"reply": reply.text, "stated_iou": reading.stated_iou}
        return self._step(replace(session, corner=None), reading.action, self.agent_name, **told)

    def play(self, session: Session) -> Iterator[Session]:
        """Let the agent play to the end; the session after each of its steps."""
        session = self.ask(session)
        yield session
        while not self.mdp.terminal(session.state):
            session = self.ask(session)
            yield session

    def instruct(self, session: Session, instruction: str) -> Session:
        """Say anew what to segment: from this moment on, whose value is estimated again."""
        task = replace(session.task, instruction=instruction)
        if task.instruction == session.task.instruction:
            return session
        state = replace(session.state, task=task)
        now = replace(session.moments[-1], state=state, value=self._value(state))
        return replace(session, moments=(*session.moments[:-1], now))

    def _begin(self, task: Task, target_known: bool) -> Session:
        return Session((self._moment(self.mdp.initial(task), target_known),), target_known)

    def _act(self, session: Session, action: Action) -> Session:
        """Carry out an action of the person's, in place of the agent's end of the episode."""
        session = replace(session, corner=None)
        if session.state.stopped:
            session = session.undo()
        self._check_steps(session.state)
        return self._step(session, action, PERSON)

    def _step(self, session: Session, action: Action, by: str, **told: Any) -> Session:
        state = self.mdp.transition([session.state], [action])[0]
        moment = self._moment(state, session.target_known, by=by, action=action, **told)
        return replace(session, moments=(*session.moments, moment))

    def _moment(self, state: SegState, target_known: bool, **how: Any) -> Moment:
        mask = state.mask
        iou = metrics.prepared(state.task).iou(mask) if target_known else None
        return Moment(state, int(np.count_nonzero(mask)), self._value(state), iou, **how)

    def _check_steps(self, state: SegState) -> None:
        if state.step >= self.mdp.max_steps:
            raise RunError(f"all {self.mdp.max_steps} steps are taken; undo or reset, or start with more --max-steps")

    def _value(self, state: SegState) -> float | None:
        return None if self.value is None else float(self.value.values([state])[0])
