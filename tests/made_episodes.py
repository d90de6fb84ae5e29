"""Hand-made episodes on a task of one rectangle, for the tests of StaR."""

from __future__ import annotations

import numpy as np

from search.episode import Episode, Step
from segenv import metrics
from segenv.geometry.rle import encode_mask
from segenv.types import Task

SHAPE = (40, 60)


def made_task() -> Task:
    target = np.zeros(SHAPE, bool)
    target[10:30, 10:40] = True
    return Task("made", np.zeros((*SHAPE, 3), np.uint8), target)


def part(columns: int) -> np.ndarray:
    """The target's first `columns` columns."""
    mask = np.zeros(SHAPE, bool)
    mask[10:30, 10 : 10 + columns] = True
    return mask


def made_episode(task: Task, steps: list[tuple[dict, np.ndarray]]) -> Episode:
    """An episode whose actions led to the given masks, from an empty one."""
    made = tuple(
        Step(
            text=f"reply {k}",
            action=action,
            iou=metrics.iou(task.target, mask),
            reward=0.0,
            score=None,
            error="not read" if action["type"] == "invalid" else None,
            stated_iou=None,
            mask=encode_mask(mask),
        )
        for k, (action, mask) in enumerate(steps)
    )
    empty = encode_mask(np.zeros(SHAPE, bool))
    return Episode(task.id, 0, *SHAPE, "", 0.0, empty, made, made[-1].action["type"] == "stop", 0, 0, 0.0, 0.0, {})


CLICK = {"type": "click", "x": 12, "y": 12, "positive": True}
MISS = {"type": "click", "x": 50, "y": 5, "positive": True}
STOP, UNDO, INVALID = {"type": "stop"}, {"type": "undo"}, {"type": "invalid", "reason": "no point"}
