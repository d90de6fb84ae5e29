"""The initial masks of episodes, and how they are made."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from segenv import specs
from segenv.metrics import distances, iou
from segenv.tools.base import SegTool
from segenv.types import BadItem, Box, Click, Prompt, Task, object_of

Start = Callable[[Task, SegTool, np.random.Generator], Task]  # the task that an episode starts from


class NoStart(BadItem, ValueError):
    """A task lacks what a start is made of: an object, or a mask of its own."""


Kind = Callable[[float], np.ndarray]  # strength 0..1 -> mask; 0 leaves the mask as it was


def given(task: Task, tool: SegTool, rng: np.random.Generator) -> Task:
    """The task's own `initial_mask`. Raises `NoStart` where it has none."""
    if task.initial_mask is None:
        raise NoStart(f"task {task.id} has no initial_mask; use start='box', 'points' or 'distort', which make one")
    return task


def empty(task: Task, tool: SegTool, rng: np.random.Generator) -> Task:
    """Start from an empty mask, whatever `initial_mask` the task has."""
    return replace(task, initial_mask=None, initial_box=None)


def box(task: Task, tool: SegTool, rng: np.random.Generator) -> Task:
    """Start from the tool's mask of the object's bounding box, which stays a prompt of the tool."""
    x0, y0, x1, y1 = object_bounds(task)
    return predicted_start(task, tool, Prompt(box=Box(x0, y0, x1, y1)))


def points(task: Task, tool: SegTool, rng: np.random.Generator, k: int = 3) -> Task:
    """Start from the tool's mask of 1 to `k` positive clicks anywhere in the object's bounding box, off the object too
    (SegAgent §4)."""
    x0, y0, x1, y1 = object_bounds(task)
    spots = rng.integers((x0, y0), (x1, y1), (int(rng.integers(1, k + 1)), 2)).tolist()
    return predicted_start(task, tool, Prompt(clicks=tuple(Click(x, y) for x, y in spots)))


def distort(task: Task, tool: SegTool, rng: np.random.Generator, low: float = 0.4, high: float = 0.9) -> Task:
    """The target with two distortions, at an IoU drawn from `low` to `high` (as near to it as whole pixels come).

    Each is drawn from: grown, shrunk, shifted, ragged, a part cut off, a round part added.
    """
    return replace(task, initial_mask=distorted(task.target, rng, low, high), initial_box=None)


def distorted(target: np.ndarray, rng: np.random.Generator, low: float = 0.4, high: float = 0.9) -> np.ndarray:
    """Distort `target` (uint8 or bool [H, W]) as `distort` does; returns bool [H, W]."""
    if not 0 < low <= high <= 1:
        raise ValueError(f"distort got low={low}, high={high}; expected 0 < low <= high <= 1")
    final = rng.uniform(low, high)
    mask = object_of(target)
    for goal in (rng.uniform(final, 1), final):
        mask = _lowered(mask, target, goal, rng)
    return mask


STARTS: dict[str, Callable[..., Task]] = {
    "given": given,
    "empty": empty,
    "box": box,
    "points": points,
    "distort": distort,
}


def make(start: str | Start) -> Start:
    """The start that a spec names: `given`, `empty`, `box`, `points`, `points:k=5`, `distort`,
    `distort:low=0.2,high=0.7`. A function of (task, tool, generator) that returns a task is returned as it is."""
    if callable(start):
        return start
    name, _ = specs.name_of("start", start, STARTS)
    options = specs.options_of("start", start, specs.defaults_of(STARTS[name], skip=3))
    for key, number in options.items():
        if number <= 0:
            raise ValueError(f"start {start!r}: {key} is {number}; expected a number above 0")
    return partial(STARTS[name], **options)


def object_bounds(task: Task) -> tuple[int, int, int, int]:
    """The corners x0, y0, x1, y1 of the object's tight box. Raises `NoStart` where there is no object."""
    x, y, width, height = cv2.boundingRect(object_of(task.target).view(np.uint8))
    if not width:
        raise NoStart(f"task {task.id} has no object pixel, so no box to start from")
    return x, y, x + width, y + height


def predicted_start(task: Task, tool: SegTool, prompt: Prompt) -> Task:
    """The task, starting from the tool's answer to `prompt`."""
    [prediction] = tool.predict(tool.encode([task.image], [task.image_hash]), [prompt])
    return replace(task, initial_mask=prediction.mask, initial_box=prompt.box)


def _lowered(mask: np.ndarray, target: np.ndarray, goal: float, rng: np.random.Generator) -> np.ndarray:
    """`mask` [H, W] bool, distorted in one drawn way until its IoU with the target has fallen to `goal`."""
    kinds = _kinds(mask, rng)
    best = mask
    for i in rng.permutation(len(kinds)):
        weak, strong = 0.0, 1.0
        for _ in range(16):
            middle = (weak + strong) / 2
            weak, strong = (middle, strong) if iou(target, kinds[i](middle)) >= goal else (weak, middle)
        best = min((best, kinds[i](weak), kinds[i](strong)), key=lambda made: abs(iou(target, made) - goal))
        if abs(iou(target, best) - goal) < 0.02:
            break  # else this way is too coarse on a small object, or too weak on a big one: try another
    return best


def _kinds(mask: np.ndarray, rng: np.random.Generator) -> tuple[Kind, ...]:
    """The ways to distort a mask, drawn once: each is a function of strength alone."""
    height, width = mask.shape
    reach = float(np.hypot(height, width))
    # signed distance to the object's edge, in pixels: at most 0 inside
    away = distances(~mask) - distances(mask)
    coarse = rng.uniform(-1, 1, (max(height // 24, 3), max(width // 24, 3))).astype(np.float32)
    waves = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    turn = rng.uniform(0, 2 * np.pi)
    along = np.cos(turn) * np.arange(width)[None, :] + np.sin(turn) * np.arange(height)[:, None]
    first, last = (along[mask].min(), along[mask].max() + 1) if mask.any() else (0.0, 1.0)
    near = np.argwhere(np.abs(away) <= 2)
    y, x = near[rng.integers(len(near))] if len(near) else (0, 0)
    part = np.hypot(np.arange(width)[None, :] - x, np.arange(height)[:, None] - y)

    def shifted(strength: float) -> np.ndarray:
        by = strength * reach
        matrix = np.array([[1, 0, by * np.cos(turn)], [0, 1, by * np.sin(turn)]], np.float32)
        return cv2.warpAffine(mask.view(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST) > 0

    return (
        lambda strength: away <= strength * reach,  # grown
        lambda strength: away <= -strength * reach,  # shrunk
        shifted,
        lambda strength: away + strength * reach * waves <= 0,  # ragged
        lambda strength: mask & (along >= first + strength * (last - first)),  # a part cut off
        lambda strength: mask | (part < strength * reach),  # a round part added
    )
