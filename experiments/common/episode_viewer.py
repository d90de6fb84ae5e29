"""Episodes for the browser of a page that steps through them: a few within the page, thousands in files beside it.

A page lists its episodes in rows. The episodes themselves are in the page where there are at most `IN_PAGE`; more are
in `report/N.js`, `IN_FILE` a file, and their images in `report/images/`. The page loads a file when one of its episodes
is opened. The files are scripts, because a browser reads nothing else beside a page that lies on a disk.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from experiments.common.html import data_uri, jpeg
from experiments.common.run_folder import disk_errors
from search.episode import Episode, Step, clicks_of
from segenv import files, render
from segenv.geometry.rle import decode_mask, encode_mask
from segenv.seeds import seed_of
from segenv.types import Task, ignored_of, object_of

SIDE = 640  # pixels of a picture's longer side in a report
IN_PAGE = 48  # episodes that a page holds itself
IN_FILE = 8  # episodes of each file beside it
FOLDER = "report"  # of these files
TEXT = "text"  # type of an answer that draws nothing
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


def payload(
    task: Task, episode: Episode, group: str = "", size: str = "", prompts: Sequence[str] = (), sent: Any = None
) -> dict[str, Any]:
    """An episode for the episode browser: pictures at most `SIDE` pixels long, masks as run lengths of that size.

    `group` and `size` (of the object) are words to choose by; `prompts` are those of each step, and `sent` is the
    width and height of the picture that went with them.
    """
    image = render.resized(task.image, SIDE)
    height, width = image.shape[:2]

    @lru_cache(maxsize=2)  # steps that leave the mask as it is
    def small(counts: str) -> str:
        if (height, width) == (episode.height, episode.width):
            return counts
        return encode_mask(_shrunk(decode_mask(counts, episode.height, episode.width), width, height))

    target, ignored = object_of(task.target), ignored_of(task.target)
    texts = list(dict.fromkeys(prompts))
    steps = [_step(step, small(step.mask), episode.steps[:k]) for k, step in enumerate(episode.steps, 1)]
    for step, prompt in zip(steps, prompts, strict=False):
        step["prompt"] = texts.index(prompt)
    return {
        "id": task.id,
        "sample": episode.sample,
        "group": group,
        "instruction": task.instruction,
        "size": [task.width, task.height],
        "shown": [width, height],
        "pixels": image,
        "object": size,
        "target": encode_mask(_shrunk(target, width, height)),
        "ignored": None if ignored is None else encode_mask(_shrunk(ignored, width, height)),
        "start": {"iou": episode.start_iou, "mask": small(episode.start_mask)},
        "stopped": episode.stopped,
        "steps": steps,
        "prompts": texts,
        "sent": sent,
        "present": bool(target.any()),
    }


def _shrunk(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _step(step: Step, mask: str, so_far: Iterable[Step]) -> dict[str, Any]:
    told = {"exact": step.exact, "extra": step.extra, "unsigned": step.unsigned}
    history = clicks_of(one for one in so_far if one.action["type"] != TEXT)
    return {
        "text": step.text,
        "action": describe(step.action),
        "kind": step.action["type"],
        "box": [step.action[name] for name in ("x0", "y0", "x1", "y1")] if step.action["type"] == "box" else None,
        "rings": step.action.get("rings"),
        "iou": step.iou,
        "reward": step.reward,
        "score": step.score,
        "stated": step.stated_iou,
        "error": step.error,
        "ended": step.finish_reason,
        "tokens": step.tokens,
        "mask": mask,
        "clicks": [[click.x, click.y, click.positive] for click in history],
        **{name: value for name, value in told.items() if value},
    }


def describe(action: dict[str, Any]) -> str:
    """Describe an action of `search.episode.action_to_json` in words."""
    kind = action["type"]
    if kind == "click":
        return f"{'positive' if action['positive'] else 'negative'} click at x = {action['x']}, y = {action['y']}"
    if kind == "box":
        return f"box from ({action['x0']:g}, {action['y0']:g}) to ({action['x1']:g}, {action['y1']:g})"
    if kind == "polygons":
        return f"{len(action['rings'])} rings with {sum(map(len, action['rings']))} vertices"
    return f"invalid reply: {action['reason']}" if kind == "invalid" else kind


def write_episodes(folder: Path, episodes: Iterable[dict[str, Any]], count: int) -> dict[str, Any]:
    """Write `count` episodes of `payload` for the browser of a page in `folder`, and return the argument of its macro.
    Files of an earlier page that are not written again are deleted."""
    inside = count <= IN_PAGE
    rows: list[dict[str, Any]] = []
    images: dict[str, str] = {}
    kept: list[dict[str, Any]] = []
    written = set()
    for shard in _groups(episodes, count if inside else IN_FILE):
        for one in shard:
            one["image"] = name = _image(folder, one.pop("pixels"), images if inside else None)
            written.add(folder / FOLDER / "images" / f"{name}.jpg")
            rows.append(_row(one, len(rows)))
        if inside:
            kept += shard
            continue
        path = folder / FOLDER / f"{len(rows[: -len(shard)]) // IN_FILE}.js"
        _write(path, f"segenvEpisodes({path.stem}, {json.dumps(shard, separators=(',', ':'))});\n".encode())
        written.add(path)
    for path in [*(folder / FOLDER).glob("*.js"), *(folder / FOLDER / "images").glob("*.jpg")]:
        if inside or path not in written:
            path.unlink()
    return {"rows": rows, "episodes": kept if inside else None, "images": images, "folder": FOLDER, "in_file": IN_FILE}


def _groups(items: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _image(folder: Path, pixels: np.ndarray, images: dict[str, str] | None) -> str:
    """Keep an image once, in `images` or as a file in `folder`; its name."""
    name = files.content_hash(repr(pixels.shape).encode(), np.ascontiguousarray(pixels))[:16]
    if images is not None:
        if name not in images:
            images[name] = data_uri(jpeg(pixels), "image/jpeg")
    elif not (path := folder / FOLDER / "images" / f"{name}.jpg").exists():
        _write(path, jpeg(pixels))
    return name


def _write(path: Path, content: bytes) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content, sync=False)  # made again where a power cut loses them


def _row(one: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The row of an episode in the list: shown, and searched, sorted and filtered by."""
    steps, start = one["steps"], one["start"]["iou"]
    ious = [start, *(step["iou"] for step in steps)]
    kinds = {step["kind"] for step in steps}
    refused = any(step["error"] is not None and step["kind"] != "invalid" for step in steps)
    flags = {
        "invalid reply": "invalid" in kinds,
        "refused action": refused,
        "said absent": "absent" in kinds,
        "no object": not one["present"],
        "stopped by the agent": one["stopped"],
    }
    return {
        **{name: one[name] for name in ("id", "sample", "group", "instruction", "object", "image")},
        "at": index,
        "iou": ious[-1],
        "best": max(ious),
        "steps": len(steps),
        "flags": [name for name, holds in flags.items() if holds],
    }
