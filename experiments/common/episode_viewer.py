"""Examples for a page: which to show, and episodes for the browser that steps through them."""

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from experiments.common.html import jpeg_uri
from search.episode import Episode, Step, clicks_of
from segenv.geometry.rle import encode_mask
from segenv.seeds import seed_of
from segenv.types import Task, ignored_of, object_of

SIDE = 448  # pixels of a picture's longer side in a report
Key = tuple[Any, ...]  # of an example: (task, sample)


def choose(scores: Mapping[Key, float], limit: int) -> dict[Key, str]:
    """Choose at most `limit` examples by score, a third each the worst, the best and random; groups by key."""
    ranked = sorted(scores, key=lambda key: (scores[key], key))
    third = limit // 3
    chosen = dict.fromkeys(ranked[:third], "worst")
    chosen |= dict.fromkeys(reversed(ranked[max(third, len(ranked) - third) :]), "best")
    for key in sorted(ranked, key=lambda key: seed_of("report", *key)):
        if len(chosen) < limit:
            chosen.setdefault(key, "random")
    return chosen


def payload(task: Task, episode: Episode, group: str) -> dict[str, Any]:
    """An episode for the episode browser: pictures at most `SIDE` pixels long, masks as run lengths of that size."""
    scale = min(1.0, SIDE / max(task.height, task.width))
    width, height = max(1, round(task.width * scale)), max(1, round(task.height * scale))
    image = cv2.resize(task.image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else task.image

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
        "image": jpeg_uri(image),
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
    """Describe an action of `search.episode.action_to_json` in words."""
    kind = action["type"]
    if kind == "click":
        return f"{'positive' if action['positive'] else 'negative'} click at x = {action['x']}, y = {action['y']}"
    if kind == "box":
        return f"box from ({action['x0']:g}, {action['y0']:g}) to ({action['x1']:g}, {action['y1']:g})"
    return f"invalid reply: {action['reason']}" if kind == "invalid" else kind
