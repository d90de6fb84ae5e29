"""Pictures and files of a session: what its page shows, and what a person takes home."""

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from experiments.demo.session import Session
from segenv import __version__, codec, metrics, render
from segenv.codec.polygons import PolygonCodec
from segenv.files import write_atomic
from segenv.geometry.rle import encode_mask
from segenv.types import Polygons

BOX = (255, 150, 30)
POLYGONS = {"rings": 0.0, "simpleseg": 0.001}  # how much each ring is simplified, as a part of its length


def picture(session: Session, size: int, show_target: bool = False) -> np.ndarray:
    """Image, mask, clicks and boxes of the state at hand, its longer side scaled to `size`: uint8 [h, w, 3]. With
    `show_target` also the target's outline, where it is known."""
    state, task = session.state, session.task
    target = task.target if show_target and session.target_known else None
    drawn = render.frame(task.image, state.mask, state.clicks, target, size=size)[: -render.CAPTION].copy()
    scale, width = size / max(task.height, task.width), max(round(size / 256), 1)
    if state.box is not None:
        x0, y0, x1, y1 = (round(value * scale) for value in vars(state.box).values())
        cv2.rectangle(drawn, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), BOX, width)
    if session.corner is not None:
        at = int((session.corner.x + 0.5) * scale), int((session.corner.y + 0.5) * scale)
        cv2.drawMarker(drawn, at, BOX, cv2.MARKER_CROSS, max(size // 32, 5), width)
    return drawn


def pixel_at(session: Session, size: int, x: float, y: float) -> tuple[int, int]:
    """The pixel (x, y) of the image under a point of its `picture`."""
    task = session.task
    scale = size / max(task.height, task.width)
    return min(max(int(x / scale), 0), task.width - 1), min(max(int(y / scale), 0), task.height - 1)


def coco(session: Session) -> bytes:
    """The mask as COCO instances with one annotation, none where the mask is empty: run lengths in JSON."""
    task, mask = session.task, session.state.mask
    box = metrics.box_of(mask)
    annotation = box and {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": {"size": [task.height, task.width], "counts": encode_mask(mask)},
        "area": int(mask.sum()),
        "bbox": [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0],
        "iscrowd": 0,
    }
    content = {
        "info": {"description": f"mask made by segenv {__version__}"},
        "images": [{"id": 1, "file_name": task.id, "width": task.width, "height": task.height}],
        "categories": [{"id": 1, "name": task.instruction or "object"}],
        "annotations": [annotation] if annotation else [],
    }
    return json.dumps(content, indent=1).encode()


def polygons(session: Session, name: str) -> bytes:
    """The mask as the text that the polygon codec `name` writes."""
    written = codec.make(name)
    assert isinstance(written, PolygonCodec)
    rings: Polygons = written.outline(session.state.mask, POLYGONS[name])
    return (written.format(rings, session.task) + "\n").encode()


def write(session: Session, folder: Path) -> list[Path]:
    """Write overlay and mask as PNG, COCO JSON, and a text for each of `POLYGONS`; their paths."""
    state = session.state
    contents: dict[str, Callable[[], bytes]] = {
        "overlay.png": lambda: _png(render.overlay(state.task.image, state.mask, render.MASK)),
        "mask.png": lambda: _png(np.where(state.mask, np.uint8(255), np.uint8(0))),
        "coco.json": lambda: coco(session),
        **{f"{name}.txt": lambda name=name: polygons(session, name) for name in POLYGONS},  # type: ignore[misc]
    }
    stem = re.sub(r"[^\w.-]+", "-", Path(state.task.id).with_suffix("").as_posix()).strip(".-") or "image"
    paths = [folder / f"{stem[:80]}-{name}" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content(), sync=False)
    return paths


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
