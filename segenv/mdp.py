"""Segmentation as a Markov decision process (HLMAT, SegAgent, arXiv 2503.08625): rules only, no plumbing.

    s_t = (M_t, a_0 .. a_{t-1})     M_{t+1} = F(image, all clicks so far, box, logits of M_t)     R(s) = IoU(M, target)

A state is a value. `SegMDP.transition` takes a batch of states and of actions and gives the batch of next states,
always the same ones for the same input; branching is keeping a reference. The target is read by `reward` alone;
`observation` is the same whatever the target is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from segenv import rewards
from segenv.geometry import polygons_to_mask
from segenv.ranges import Count, require
from segenv.types import Absent, Action, Box, Click, Invalid, Polygons, Prompt, Stop, Task, ToolError, Undo, frozen

if TYPE_CHECKING:
    from segenv.tools.base import SegTool


NO_MASK: dict[str, Any] = {"packed": None, "logits": None, "score": float("nan")}  # of a state, and nothing of a tool


@dataclass(frozen=True, eq=False)
class SegState:
    """One moment of an episode; read-only, and shared freely between branches.

    The mask is kept as packed bits. `logits` are the tool's [h, w] float32, or None. `score` is the tool's own IoU
    estimate of the mask (NaN at the start). `undone` is the state that `Undo` returns to. `error` says why the last
    action was not carried out.
    """

    task: Task
    packed: np.ndarray | None = None  # uint8 [ceil(H·W / 8)]; None: empty mask
    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    logits: np.ndarray | None = field(default=None, repr=False)
    score: float = float("nan")
    step: int = 0
    stopped: bool = False
    error: str | None = None
    undone: SegState | None = field(default=None, repr=False)

    @property
    def mask(self) -> np.ndarray:
        """The current mask, bool [H, W], read-only."""
        shape = self.task.image.shape[:2]
        if self.packed is None:
            return frozen(np.zeros(shape, bool))
        return frozen(np.unpackbits(self.packed, count=shape[0] * shape[1]).view(bool).reshape(shape))

    def looks_like(self, other: SegState) -> bool:
        """Whether two states have the same task and equal masks."""
        first, second = self.packed, other.packed
        if self.task is not other.task or first is None or second is None:
            return self.task is other.task and first is second
        return first is second or first.tobytes() == second.tobytes()


@dataclass(frozen=True, eq=False)
class Observation:
    """Facts that an agent may know of a state: everything but the target.

    `image` is the untouched uint8 [H, W, 3] and `mask` bool [H, W]; `segenv.render.overlay` blends them into the
    picture that a model sees. `clicks` are the agent's own so far; the paper's policy, and so every model that is asked
    in text, is shown the mask, the image and the instruction alone.
    """

    task_id: str
    image: np.ndarray
    mask: np.ndarray
    instruction: str
    step: int
    steps_left: int
    error: str | None = None
    clicks: tuple[Click, ...] = ()

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]


@dataclass(frozen=True, eq=False)
class SegMDP:
    """The rules: `initial`, `transition`, `terminal`, `observation` and `reward`.

    `max_steps` is part of the state (steps left are observed), so running out of clicks terminates an episode and does
    not truncate it. `reward_name` is a name from `segenv.rewards`, or a function as defined there.
    """

    tool: SegTool
    max_steps: int = 20
    reward_name: str | Callable = "iou_gain"

    def __post_init__(self) -> None:
        require(Count, max_steps=self.max_steps)
        _ = self._terms  # an unknown name is an error here, and not at the first step

    @cached_property
    def _terms(self) -> dict[str, Callable]:
        return rewards.terms(self.reward_name)

    @cached_property
    def _of_ious(self) -> bool:
        """Whether the reward reads masks through their IoUs alone."""
        return all(isinstance(term, rewards.IoUReward) for term in self._terms.values())

    def initial(self, task: Task) -> SegState:
        """The start: an empty mask, or the task's `initial_mask` with the box that it was made of."""
        if task.initial_mask is None:
            return SegState(task)
        return SegState(task, frozen(np.packbits(task.initial_mask)), box=task.initial_box)

    def transition(
        self, states: Sequence[SegState], actions: Sequence[Action], masks: Sequence[np.ndarray] | None = None
    ) -> list[SegState]:
        """The states that follow, one for each pair of state and action; the given states are left as they are. `masks`
        are theirs, from callers who have them already."""
        if len(states) != len(actions):
            raise ValueError(
                f"transition got {len(states)} states and {len(actions)} actions; give one action for each state"
            )
        following: list[SegState | None] = [None] * len(states)
        prompted: list[tuple[int, SegState, dict]] = []  # what the tool must answer: place, state, and what changes
        for i, (state, action) in enumerate(zip(states, actions, strict=True)):
            if self.terminal(state):
                raise ValueError(
                    f"task {state.task.id} ended at step {state.step}; start a new episode with initial(task)"
                )
            moved: dict[str, Any] = {"step": state.step + 1, "error": None}
            match action:
                case Click() | Box() if reason := _outside(action, state.task):
                    following[i] = _with(state, **moved | {"error": reason})
                case Click():
                    prompted.append((i, state, moved | {"clicks": (*state.clicks, action), "undone": state}))
                case Box():
                    prompted.append((i, state, moved | {"box": action, "undone": state}))
                case Stop():
                    following[i] = _with(state, **moved, stopped=True)
                case Absent():  # nothing is there, whatever the mask was
                    following[i] = _with(state, **moved | NO_MASK, stopped=True)
                case Undo() if (earlier := state.undone) is not None:
                    following[i] = _with(earlier, **moved)
                case Undo():
                    following[i] = _with(state, **moved | {"error": "nothing to undo: no click has been made"})
                case Polygons(rings, union):  # a whole mask, whatever was there before, and without the tool
                    drawn = polygons_to_mask(rings, state.task.height, state.task.width, union)
                    packed = frozen(np.packbits(drawn))
                    following[i] = _with(state, **moved | NO_MASK | {"packed": packed}, undone=state)
                case Invalid():
                    following[i] = _with(state, **moved | {"error": action.reason})
                case _:
                    raise TypeError(
                        f"action is {type(action).__name__}; expected Click, Box, Polygons, Stop, Absent, "
                        "Undo or Invalid"
                    )
        if prompted:
            for i, state in self._answer(prompted, masks):
                following[i] = state
        return following  # type: ignore[return-value]  # every place is filled by now

    def _answer(
        self, prompted: list[tuple[int, SegState, dict[str, Any]]], masks: Sequence[np.ndarray] | None
    ) -> list[tuple[int, SegState]]:
        """The states whose prompt changes, with their new masks, of one call of the tool."""
        tasks = [state.task for _, state, _ in prompted]
        encodings = self.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
        prompts = []
        for i, state, changes in prompted:
            mask = None if state.packed is None else state.mask if masks is None else masks[i]
            clicks, box = changes.get("clicks", state.clicks), changes.get("box", state.box)
            prompts.append(Prompt(clicks, box, mask, state.logits))
        predictions = self.tool.predict(encodings, prompts)
        for task, prediction in zip(tasks, predictions, strict=True):
            if prediction.mask.shape != task.image.shape[:2]:
                raise ToolError(
                    f"{self.tool.spec}: mask is {list(prediction.mask.shape)} for task {task.id}; expected the image's "
                    f"{list(task.image.shape[:2])}"
                )
        answered = []
        for (i, state, changes), prompt, prediction in zip(prompted, prompts, predictions, strict=True):
            unchanged = prediction.mask is prompt.mask  # the tool gave it back
            packed = state.packed if unchanged else frozen(np.packbits(prediction.mask))
            logits = None if prediction.logits is None else frozen(prediction.logits)
            answered.append((i, _with(state, **changes, packed=packed, logits=logits, score=prediction.score)))
        return answered

    def terminal(self, state: SegState) -> bool:
        """Stopped by the agent, or out of steps."""
        return state.stopped or state.step >= self.max_steps

    def observation(self, state: SegState, mask: np.ndarray | None = None) -> Observation:
        """Observe `state` as an agent may. `mask` is the state's, from callers who have it already."""
        task = state.task
        left = self.max_steps - state.step
        seen = state.mask if mask is None else mask
        return Observation(task.id, task.image, seen, task.instruction, state.step, left, state.error, state.clicks)

    def reward(
        self, state: SegState, action: Action, following: SegState, ious: tuple[float, float] | None = None
    ) -> float:
        """The reward of having taken `action` in `state`, which led to `following`; `ious` as in `reward_terms`."""
        return float(sum(self.reward_terms(state, action, following, ious).values()))

    def reward_terms(
        self, state: SegState, action: Action, following: SegState, ious: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Terms of the reward by name: `{"iou_gain": 0.2, "format": 0.1}` for `iou_gain+0.1*format`. `ious` are those
        of the two states with the target, from callers who have them already."""
        terminal, terms = self.terminal(following), self._terms
        if ious is not None and self._of_ious:
            return {name: float(term.of(*ious, action, terminal)) for name, term in terms.items()}  # type: ignore[attr-defined]
        step = state.task, state.mask, action, following.mask, terminal
        return {name: float(term(*step)) for name, term in terms.items()}

    @cached_property
    def reward_range(self) -> tuple[float, float]:
        """The bounds of one step's reward; infinite for a function."""
        return rewards.reward_range(self.reward_name)


def _with(state: SegState, **changes: Any) -> SegState:
    """The state with changed fields: `dataclasses.replace`, without its search for them, and at once."""
    changed = object.__new__(SegState)
    vars(changed).update(vars(state), **changes)
    return changed


def _outside(action: Click | Box, task: Task) -> str | None:
    """Say why an action, made without a codec that clips, lies outside this image; None where it does not."""
    if isinstance(action, Click):
        if not (0 <= action.x < task.width and 0 <= action.y < task.height):
            return f"click ({action.x}, {action.y}) lies outside the image of {task.width} x {task.height} pixels"
        return None
    if not (0 <= action.x0 < action.x1 <= task.width and 0 <= action.y0 < action.y1 <= task.height):
        corners = f"({action.x0}, {action.y0}, {action.x1}, {action.y1})"
        return f"box {corners} is empty or leaves the image of {task.width} x {task.height} pixels"
    return None
