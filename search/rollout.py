"""Play episodes: those of a batch advance together, so that agent and tool are asked once a step for all of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

from agents.base import Agent
from segenv import metrics
from segenv.data.recorded import encode as encode_mask
from segenv.mdp import SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Action, Box, Click, Invalid, Polygons, Stop, Task, ToolError, Undo

# asked with a state, the action and what followed; the action to take instead, or None
Correct = Callable[[SegState, Action, SegState], Action | None]
PARTS = ("encode", "decode", "agent", "annotator", "other")  # where an episode's seconds went


@dataclass(frozen=True)
class Step:
    """What one action did. `iou` and `mask` are those after it."""

    text: str  # what the agent wrote
    action: dict[str, Any]  # what the codec read in it: {"type": "click", "x": 3, "y": 5, "positive": True}
    iou: float
    reward: float
    score: float | None  # the tool's own estimate of the mask's IoU, 0..1
    error: str | None  # why the action was not carried out
    stated_iou: float | None  # what the text says of the mask before the action, 0..1
    mask: str  # `encode_mask`
    other: dict[str, Any] | None = None  # {"action", "iou"} that was tried in the same state, and not gone on from
    corrected: bool = False  # whether `action` is a correction, and `other` what the agent did


@dataclass(frozen=True)
class Episode:
    """One finished episode, as plain values: `to_json` and `from_json` are exact inverses.

    The first mask is `start_mask` with `start_iou`. `intersection` and `union` count pixels of the final mask, ignored
    ones in neither; `boundary_iou` and `box_iou` are the final mask's. `seconds` are this episode's share of what its
    batches took.
    """

    task: str
    sample: int
    height: int
    width: int
    instruction: str
    start_iou: float
    start_mask: str
    steps: tuple[Step, ...]
    stopped: bool
    intersection: int
    union: int
    boundary_iou: float
    box_iou: float
    seconds: dict[str, float]

    @property
    def ious(self) -> list[float]:
        """IoU after each step."""
        return [step.iou for step in self.steps]

    @property
    def final_iou(self) -> float:
        """IoU of the last mask."""
        return self.steps[-1].iou if self.steps else self.start_iou

    @property
    def best_iou(self) -> float:
        """The highest IoU that any mask of the episode had, the first one included."""
        return max([self.start_iou, *self.ious])

    def mask(self, step: int) -> np.ndarray:
        """The mask after `step` actions, bool [H, W]; the first mask at 0."""
        return decode_mask(self.steps[step - 1].mask if step else self.start_mask, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """The episode as what JSON holds."""
        shallow = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**shallow, "steps": [dict(vars(step)) for step in self.steps]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Episode:
        """The episode that `to_json` wrote."""
        return cls(**{**record, "steps": tuple(Step(**step) for step in record["steps"])})


def rollout(
    mdp: SegMDP,
    agent: Agent,
    tasks: Iterable[Task],
    *,
    seed: int = 0,
    round_index: int = 0,
    samples: int = 1,
    batch_size: int = 8,
    correct: Correct | None = None,
    go_on_from: str = "policy",
) -> Iterator[Episode]:
    """Play each task `samples` times and yield the episodes, in the order of tasks and then samples, as soon as they
    are ready.

    At most `batch_size` episodes are under way; one that ends makes place for the next, so tasks are read when they are
    needed. The agent's seed at a step is `seed_of(seed, task id, round_index, sample, step)`: no result depends on
    `batch_size` or on the tasks around it. `correct` is asked about each action; what it returns is tried in the
    same state, and the episode goes on from what the agent did ("policy"), or from that ("correction").
    """
    if batch_size < 1 or samples < 1 or mdp.max_steps < 1:
        raise ValueError(
            f"batch_size {batch_size}, samples {samples} and max_steps {mdp.max_steps} must all be 1 or more"
        )
    waiting = ((task, sample) for task in tasks for sample in range(samples))
    live: list[Play] = []
    finished: dict[int, Episode] = {}
    started = ready = 0
    while True:
        while len(live) < batch_size:
            began = time.perf_counter()
            item = next(waiting, None)
            if item is None:
                break
            live.append(Play(started, item[1], mdp.initial(item[0]), (seed, item[0].id, round_index, item[1])))
            live[-1].seconds["other"] += time.perf_counter() - began
            started += 1
        if not live:
            return
        _advance(mdp, agent, live, correct, go_on_from)
        finished.update((play.number, play.finish()) for play in live if mdp.terminal(play.state))
        live = [play for play in live if not mdp.terminal(play.state)]
        while ready in finished:
            yield finished.pop(ready)
            ready += 1


@dataclass
class Play:
    """An episode under way."""

    number: int  # its place in the order
    sample: int
    state: SegState
    key: tuple[Any, ...]  # what its seeds derive from
    steps: list[Step] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __post_init__(self) -> None:
        mask = self.state.mask
        self.start_iou = metrics.iou(self.state.task.target, mask)
        self.start_mask = encode_mask(mask)

    def finish(self) -> Episode:
        """The episode, with the measures of its last mask."""
        began = time.perf_counter()
        task, mask = self.state.task, self.state.mask
        intersection, union = metrics.areas(task.target, mask)
        measured: dict[str, Any] = {
            "intersection": intersection,
            "union": union,
            "boundary_iou": float(metrics.boundary_iou(task.target, mask)),
            "box_iou": float(metrics.box_iou(task.target, mask)),
        }
        self.seconds["other"] += time.perf_counter() - began
        return Episode(
            task=task.id,
            sample=self.sample,
            height=task.height,
            width=task.width,
            instruction=task.instruction,
            start_iou=self.start_iou,
            start_mask=self.start_mask,
            steps=tuple(self.steps),
            stopped=self.state.stopped,
            seconds=self.seconds,
            **measured,
        )


def _advance(
    mdp: SegMDP, agent: Agent, live: Sequence[Play], correct: Correct | None = None, go_on_from: str = "policy"
) -> None:
    """One step of every episode in `live`."""
    began = time.perf_counter()
    states = [play.state for play in live]
    observations = [mdp.observation(state) for state in states]
    seeds = [seed_of(*play.key, play.state.step) for play in live]
    asked = time.perf_counter()
    texts = agent.act_on(states, seeds) if agent.privileged else agent.act(observations, seeds)
    answered = time.perf_counter()
    actions = [agent.codec.parse(text, observation) for text, observation in zip(texts, observations, strict=True)]
    before = dict(mdp.tool.seconds)
    try:
        following = list(mdp.transition(states, actions))
        tried = _corrections(mdp, states, actions, following, correct) if correct else {}
    except ToolError as error:
        raise ToolError(f"{error} (asked about tasks {', '.join(state.task.id for state in states)})") from error
    spent = {part: mdp.tool.seconds[part] - before[part] for part in ("encode", "decode")}
    spent["annotator" if agent.privileged else "agent"] = answered - asked
    for k, (play, text, action, state) in enumerate(zip(live, texts, actions, following, strict=True)):
        other = tried.get(k)
        taken = other is not None and go_on_from == "correction"
        if other is not None and taken:
            (action, state), other = other, (action, state)
        step = step_of(mdp, play.state, text, action, state, agent.codec.stated_iou(text))
        play.steps.append(dataclasses.replace(step, other=other and _tried(*other), corrected=taken))
        play.state = state
    spent["other"] = time.perf_counter() - began - sum(spent.values())
    for play in live:
        for part, seconds in spent.items():
            play.seconds[part] += seconds / len(live)


def _corrections(
    mdp: SegMDP,
    states: Sequence[SegState],
    actions: Sequence[Action],
    following: Sequence[SegState],
    correct: Correct,
) -> dict[int, tuple[Action, SegState]]:
    """What `correct` would have done, and what follows from it, where it found an action bad."""
    better = {
        k: action
        for k, asked in enumerate(zip(states, actions, following, strict=True))
        if (action := correct(*asked)) is not None
    }
    after = mdp.transition([states[k] for k in better], list(better.values()))
    return {k: (action, state) for (k, action), state in zip(better.items(), after, strict=True)}


def _tried(action: Action, following: SegState) -> dict[str, Any]:
    return {"action": action_to_json(action), "iou": float(metrics.iou(following.task.target, following.mask))}


def step_of(
    mdp: SegMDP, state: SegState, text: str, action: Action, following: SegState, stated_iou: float | None
) -> Step:
    """The record of an action in `state` and of what followed."""
    mask = following.mask
    return Step(
        text=text,
        action=action_to_json(action),
        iou=float(metrics.iou(following.task.target, mask)),
        reward=mdp.reward(state, action, following),
        score=None if np.isnan(following.score) else float(following.score),
        error=following.error,
        stated_iou=stated_iou,
        mask=encode_mask(mask),
    )


def action_to_json(action: Action) -> dict[str, Any]:
    """An action as `{"type": "click" | "box" | "polygons" | "stop" | "undo" | "invalid", …}` with its fields, rings as
    lists of [x, y]; an invalid one keeps its reason."""
    values: dict[str, Any] = {"reason": action.reason} if isinstance(action, Invalid) else dict(vars(action))
    if isinstance(action, Polygons):
        values["rings"] = [ring.tolist() for ring in action.rings]
    return {"type": type(action).__name__.lower(), **values}


def action_from_json(record: dict[str, Any]) -> Action:
    """The click, box, polygons, stop or undo that `action_to_json` wrote; an invalid reply is no action to go back
    to."""
    values = {key: value for key, value in record.items() if key != "type"}
    return _ACTIONS[record["type"]](**values)


_ACTIONS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Click, Box, Polygons, Stop, Undo)}


def clicks_of(steps: Iterable[Step]) -> list[Click]:
    """The clicks that hold after `steps`: those carried out and not undone, in order."""
    history: list[Action] = []
    for action in (action_from_json(step.action) for step in steps if step.error is None):
        if isinstance(action, (Click, Box, Polygons)):
            history.append(action)
        elif isinstance(action, Undo):
            history.pop()
    return [action for action in history if isinstance(action, Click)]


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """The bool [height, width] mask that `encode_mask` wrote."""
    return coco.decode({"size": [height, width], "counts": counts.encode("ascii")}).astype(bool)
