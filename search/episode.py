"""An episode as plain JSON: its steps, actions and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.backends.base import Reply
from segenv import metrics
from segenv.codec.base import Codec
from segenv.codec.frames import Scene
from segenv.codec.reading import Reading
from segenv.geometry.rle import check_counts, decode_mask, encode_mask
from segenv.mdp import SegMDP, SegState
from segenv.records import reader
from segenv.types import Absent, Action, Box, Click, Invalid, Polygons, Stop, Undo

PARTS = ("encode", "decode", "agent", "annotator", "other")  # where an episode's seconds went


@dataclass(frozen=True)
class Step:
    """One action and its outcome: `iou` and `mask` are those after it."""

    text: str  # the agent's reply
    action: dict[str, Any]  # as the codec parsed the reply: {"type": "click", "x": 3, "y": 5, "positive": True}
    iou: float
    reward: float
    score: float | None  # the tool's own estimate of the mask's IoU, 0..1
    error: str | None  # why the action was not carried out
    stated_iou: float | None  # the reply's predicted IoU of the mask before the action, 0..1
    mask: str  # `encode_mask`
    other: dict[str, Any] | None = None  # {"action", "iou"}: an action tried in the same state, but not continued from
    exact: bool | None = None  # whether the reply is written as asked
    extra: int = 0  # further actions in the reply
    unsigned: bool = False  # the reply's point has no sign
    finish_reason: str | None = None  # why the reply ended, where the backend tells it
    tokens: int | None = None  # of the reply, where the backend tells it


@dataclass(frozen=True)
class Episode:
    """One finished episode, as plain values: `to_json` and `from_json` are exact inverses."""

    task: str
    sample: int
    height: int
    width: int
    instruction: str
    start_iou: float
    start_mask: str  # `encode_mask`
    steps: tuple[Step, ...]
    stopped: bool
    intersection: int  # pixels of final mask and target, without ignored ones
    union: int
    boundary_iou: float  # of the final mask
    box_iou: float
    seconds: dict[str, float]  # by `PARTS`, the episode's share of its batches

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

    def check(self) -> None:
        """Raise ValueError where an action or a mask of a record cannot be read."""
        check_counts(self.start_mask, self.height, self.width)
        for step in self.steps:
            check_action(step.action)
            check_counts(step.mask, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """The episode as a JSON record."""
        shallow = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**shallow, "steps": [dict(vars(step)) for step in self.steps]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Episode:
        """Read the episode that `to_json` wrote, or an older version's, whose steps had a field `corrected`. Raises
        ValueError where it is another thing."""
        steps = record.get("steps") if isinstance(record, dict) else None
        if isinstance(steps, list):
            for step in steps:
                if isinstance(step, dict):
                    step.pop("corrected", None)
        return reader(cls)(record)


def step_of(
    mdp: SegMDP,
    state: SegState,
    text: str,
    action: Action,
    following: SegState,
    stated_iou: float | None,
    before: tuple[float, str],
) -> Step:
    """The record of an action in `state`, whose mask has the IoU and the run lengths `before`, that led to
    `following`."""
    iou, counts = before
    if following.packed is not state.packed:
        mask = following.mask
        iou, counts = metrics.prepared(following.task).iou(mask), encode_mask(mask)
    return Step(
        text=text,
        action=action_to_json(action),
        iou=iou,
        reward=mdp.reward(state, action, following, (before[0], iou)),
        score=None if np.isnan(following.score) else float(following.score),
        error=following.error,
        stated_iou=stated_iou,
        mask=counts,
    )


def read_reply(codec: Codec, reply: Reply, scene: Scene) -> Reading:
    """The reading by a codec of a reply about `scene`."""
    return codec.read(reply.text, scene, reply.finish_reason, reply.tokens, reply.thinking or "")


def told_of(reply: Reply, reading: Reading) -> dict[str, Any]:
    """The fields of a `Step` about how its reply was written."""
    how = {name: getattr(reading, name) for name in ("exact", "extra", "unsigned")}
    return {**how, "finish_reason": reply.finish_reason, "tokens": reply.tokens}


def action_to_json(action: Action) -> dict[str, Any]:
    """An action as `{"type": "click" | "box" | "polygons" | "stop" | "absent" | "undo" | "invalid", …}` with its
    fields, rings as lists of [x, y]; an invalid one keeps its reason."""
    values: dict[str, Any] = {"reason": action.reason} if isinstance(action, Invalid) else dict(vars(action))
    if isinstance(action, Polygons):
        values["rings"] = [ring.tolist() for ring in action.rings]
    return {"type": type(action).__name__.lower(), **values}


def action_from_json(record: dict[str, Any]) -> Action:
    """The click, box, polygons, stop, absent or undo that `action_to_json` wrote; KeyError for an invalid reply."""
    values = {key: value for key, value in record.items() if key != "type"}
    return _ACTIONS[record["type"]](**values)


def check_action(record: dict[str, Any]) -> None:
    """Raise ValueError where `record` is no action of `action_to_json`."""
    kind, values = record.get("type"), {key: value for key, value in record.items() if key != "type"}
    if kind == "invalid" and isinstance(values.get("reason"), str):
        return
    if kind not in _ACTIONS:
        raise ValueError(f"an action has the type {kind!r}; expected {', '.join(_ACTIONS)} or invalid")
    if kind != "polygons":
        reader(_ACTIONS[kind])(values)
        return
    try:
        Polygons(**values)
    except TypeError as error:
        raise ValueError(f"polygons cannot be read: {error}") from error


_ACTIONS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Click, Box, Polygons, Stop, Absent, Undo)}


def clicks_of(steps: Iterable[Step]) -> list[Click]:
    """The clicks that hold after `steps`: those carried out and not undone, in order."""
    history: list[Action] = []
    for action in (action_from_json(step.action) for step in steps if step.error is None):
        if isinstance(action, (Click, Box, Polygons)):
            history.append(action)
        elif isinstance(action, Undo):
            history.pop()
    return [action for action in history if isinstance(action, Click)]
