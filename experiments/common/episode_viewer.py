"""Episodes as the page that steps through them takes them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from experiments.common.html import data_uri
from search.episode import Episode, Step, clicks_of
from segenv.data.trajectories.record import encode_mask
from segenv.types import Task, ignored_of, object_of

SIDE = 448  # pixels of a picture's longer side in a report


def payload(task: Task, episode: Episode, group: str) -> dict[str, Any]:
    """What the episode browser shows of an episode: pictures at most `SIDE` pixels long, masks as run lengths of that
    size."""
    scale = min(1.0, SIDE / max(task.height, task.width))
    width, height = max(1, round(task.width * scale)), max(1, round(task.height * scale))
    image = cv2.resize(task.image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else task.image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=82)

    def small(mask: np.ndarray) -> str:
        return encode_mask(cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT))

    ignored = ignored_of(task.target)
    return {
        "id": task.id,
        "sample": episode.sample,
        "group": group,
        "instruction": task.instruction,
        "size": [task.width, task.height],
        "shown": [width, height],
        "image": data_uri(buffer.getvalue(), "image/jpeg"),
        "target": small(object_of(task.target)),
        "ignored": None if ignored is None else small(ignored),
        "start": {"iou": episode.start_iou, "mask": small(episode.mask(0))},
        "stopped": episode.stopped,
        "steps": [_step(step, small(episode.mask(k)), episode.steps[:k]) for k, step in enumerate(episode.steps, 1)],
    }


def _step(step: Step, mask: str, so_far: Iterable[Step]) -> dict[str, Any]:
    return {
        "text": step.text,
        "action": describe(step.action),
        "kind": step.action["type"],
        "positive": step.action.get("positive"),
        "iou": step.iou,
        "reward": step.reward,
        "score": step.score,
        "stated": step.stated_iou,
        "error": step.error,
        "mask": mask,
        "clicks": [[click.x, click.y, click.positive] for click in clicks_of(so_far)],
    }


def describe(action: dict[str, Any]) -> str:
    """An action of `rollout.action_to_json` in words."""
    kind = action["type"]
    if kind == "click":
        return f"{'positive' if action['positive'] else 'negative'} click at x = {action['x']}, y = {action['y']}"
    if kind == "box":
        return f"box from ({action['x0']:g}, {action['y0']:g}) to ({action['x1']:g}, {action['y1']:g})"
    return f"invalid reply: {action['reason']}" if kind == "invalid" else kind
