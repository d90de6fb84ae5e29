"""What `experiments.annotate` makes of annotated images: COCO JSON, and conversations to train on.

Both are functions of the records in images.jsonl, which hold exact masks, and of settings that may be given anew when a
run goes on: outlines, codec, queries. Neither detector nor tool is asked again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.common.config import RunError
from experiments.common.run_folder import disk_errors
from segenv import __version__, metrics, queries
from segenv.codec.polygons import PolygonCodec
from segenv.data.base import MAX_PIXELS, digest, read_image, within
from segenv.data.coco import segmentation_mask
from segenv.data.trajectories.export import PLACEHOLDERS, Conversation
from segenv.geometry import canonical, fit, polygon_iou, simplify
from segenv.geometry.rle import polygons_to_coco, rle_to_polygons
from segenv.seeds import seed_of
from segenv.types import Polygons, Task, image_hash, object_of

Record = dict[str, Any]  # a line of images.jsonl


@dataclass(frozen=True)
class PolygonWriter:
    """How outlines are drawn: within `tolerance` pixels of the mask, of at most `max_vertices`; replies also of at most
    `max_tokens`, as `length` counts them."""

    tolerance: float = 1.0
    max_vertices: int | None = None
    max_tokens: int | None = None
    length: Callable[[str], int] = len

    def draw(self, rings: Iterable[np.ndarray], height: int, width: int) -> list[np.ndarray]:
        """Rings with fewer vertices, on the image and to a hundredth of a pixel, in canonical order."""
        limit = self.max_vertices
        found = canonical(simplify(list(rings), self.tolerance))
        if limit is not None:
            found = fit(found, lambda tried: sum(map(len, tried)) <= limit)
        return [np.round(np.clip(ring, 0, (width, height)), 2) for ring in found]

    def reply(self, mask: np.ndarray, task: Task, codec: PolygonCodec) -> str | None:
        """What a codec says of a mask, bool [H, W]; None where `max_tokens` has no room for it."""

        def text(rings: Sequence[np.ndarray]) -> str:
            return codec.format(Polygons(tuple(rings), codec.union), task)

        rings = self.draw(codec.outline(mask, ratio=0).rings, task.height, task.width)
        limit = self.max_tokens
        if limit is None:
            return text(rings)
        corner = (task.width, task.height)
        try:  # the coarsest outline is a rectangle, whose corners may lie off the image
            found = fit(
                rings, lambda t: self.length(text([np.clip(ring, 0, corner) for ring in t])) <= limit, codec.union
            )
        except ValueError:
            return None
        return text([np.clip(ring, 0, corner) for ring in found])


# ----------------------------------------------------------------------------------------------------------------- COCO


@dataclass
class WrittenPolygons:
    """What came of drawing the objects: their number, their vertices, and the outlines' IoU with the masks."""

    objects: int = 0
    vertices: int = 0
    ious: list[float] = field(default_factory=list)

    @property
    def summary(self) -> dict[str, float | None]:
        return {
            "vertices": self.vertices / self.objects if self.objects else None,
            "iou": float(np.mean(self.ious)) if self.ious else None,
            "worst_iou": min(self.ious, default=None),
        }


def write_coco(
    path: Path, records: Callable[[], Iterable[Record]], phrases: Sequence[str], outlines: PolygonWriter, about: dict
) -> WrittenPolygons:
    """Write COCO instances of the `records` (given anew at each call), one category for each of `phrases`; the file
    appears when it is complete. Images without an object are listed too."""
    numbers, drawn = {phrase: i for i, phrase in enumerate(phrases, 1)}, WrittenPolygons()
    images = (
        {"id": i, "file_name": one["image"], "width": one["width"], "height": one["height"]}
        for i, one in enumerate(records(), 1)
    )
    lists = {
        "info": {"description": f"polygons made by segenv {__version__}", **about},
        "categories": [{"id": number, "name": phrase} for phrase, number in numbers.items()],
        "images": images,
        "annotations": _annotations(records(), numbers, outlines, drawn),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path), open(partial, "w", encoding="ascii") as file:
            for i, (name, items) in enumerate(lists.items()):
                file.write(f"{',' if i else '{'}\n{json.dumps(name)}: ")
                if isinstance(items, dict):
                    file.write(json.dumps(items))
                    continue
                file.write("[")
                for j, item in enumerate(items):
                    file.write(("," if j else "") + "\n" + json.dumps(item))
                file.write("]")
            file.write("}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return drawn


def _annotations(
    records: Iterable[Record], numbers: dict[str, int], outlines: PolygonWriter, drawn: WrittenPolygons
) -> Iterator[dict[str, Any]]:
    for image, record in enumerate(records, 1):
        height, width = record["height"], record["width"]
        for found in record["objects"]:
            rings = outlines.draw(rle_to_polygons(found["mask"]), height, width)
            segmentation = polygons_to_coco(rings, height, width)
            covered = segmentation_mask(segmentation, height, width)
            if not covered.any():  # thinner than what COCO's rule fills
                segmentation = found["mask"]
                covered = segmentation_mask(segmentation, height, width)
            box = metrics.box_of(covered)
            assert box is not None
            drawn.objects += 1
            drawn.vertices += sum(map(len, rings))
            drawn.ious.append(polygon_iou(rings, segmentation_mask(found["mask"], height, width)))
            yield {
                "id": drawn.objects,
                "image_id": image,
                "category_id": numbers[found["phrase"]],
                "segmentation": segmentation,
                "area": int(covered.sum()),
                "bbox": [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0],
                "iscrowd": 0,
                **{key: found[key] for key in ("score", "mask_score", "caption") if found.get(key) is not None},
            }


# -------------------------------------------------------------------------------------------------------- conversations


@dataclass(frozen=True)
class Questions:
    """What is asked about the objects: `pairs` as (given, asked) of `queries.KINDS`; in which words; what becomes of a
    text that names several objects of an image (`several`); and whether a phrase that was not found is asked too, to
    be answered by nothing (`negatives`)."""

    codec: PolygonCodec
    pairs: Sequence[tuple[str, str]] = (("text", "mask"),)
    prompt: str = "codec"
    wording: Literal["first", "varied"] = "first"
    several: Literal["skip", "union"] = "skip"
    negatives: bool = False
    seed: int = 0


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """`text-mask` as ("text", "mask"), and so on. Raises `RunError`."""
    known = {"-".join(pair): pair for pair in queries.PAIRS}
    if wrong := [name for name in names if name not in known]:
        raise RunError(f"query {wrong[0]!r} is unknown; expected some of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def conversations(
    records: Iterable[Record],
    root: Path,
    questions: Questions,
    outlines: PolygonWriter,
    counts: Counter[str],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Conversation]:
    """The questions about the objects of the records, whose images lie in `root`, with their answers. `counts` learns
    what was asked and what was left out."""
    for record in records:
        if not record["objects"] and not questions.negatives:
            continue
        image = read_image(within(root, record["image"], record["image"]), record["image"], max_pixels)
        for task, texts in _subjects(record, image, questions, counts):
            for pair in questions.pairs:
                if ("text" in pair) == texts and (found := _ask(task, pair, questions, outlines, counts)):
                    counts["-".join(pair)] += 1
                    yield found


def _subjects(
    record: Record, image: np.ndarray, questions: Questions, counts: Counter[str]
) -> Iterator[tuple[Task, bool]]:
    """The tasks of an image, and whether they are asked with their text: every object without, and every text that
    names one object (or a union of several) with."""
    height, width = record["height"], record["width"]
    if image_hash(image) != record["hash"]:
        raise RunError(f"{record['image']} has changed since it was annotated; start another run with --out")
    meta = {"image_hash": record["hash"]}
    masks = [segmentation_mask(found["mask"], height, width) for found in record["objects"]]
    named: dict[str, list[int]] = {}
    for i, found in enumerate(record["objects"]):
        named.setdefault(found.get("caption") or found["phrase"], []).append(i)
        yield Task(f"{record['image']}#{i}", image, masks[i], meta=meta), False
    for text, places in named.items():
        if len(places) > 1 and questions.several == "skip":
            counts["several"] += 1
            continue
        union = np.any([masks[i] for i in places], axis=0)
        yield Task(f"{record['image']}#{places[0]}", image, union, _safe(text), meta=meta), True
    for phrase in record["absent"] if questions.negatives else ():
        nothing = np.zeros((height, width), bool)
        yield Task(f"{record['image']}#{phrase}", image, nothing, _safe(phrase), meta=meta), True


def _ask(
    task: Task, pair: tuple[str, str], questions: Questions, outlines: PolygonWriter, counts: Counter[str]
) -> Conversation | None:
    """One question with its answer; None where nothing can be answered."""
    given, asked = pair
    target = object_of(task.target)
    if not target.any() and pair != ("text", "mask"):
        return None
    seed = seed_of(questions.seed, task.id, given, asked) if questions.wording == "varied" else None
    query = queries.query(task, questions.codec, given, asked, questions.prompt, seed)
    reply = outlines.reply(target, task, questions.codec) if asked == "mask" else queries.reply(query, questions.codec)
    if reply is None:
        counts["no_room"] += 1
        return None
    painted = target if given == "mask" else np.zeros_like(target)
    key = digest([task.meta["image_hash"], image_hash(painted)])
    return Conversation(task, painted, query.prompt, reply, key)


def _safe(text: str) -> str:
    """A text without what trainers put media in the place of."""
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, " ")
    return " ".join(text.split())
