"""Outputs of `experiments.annotate`: COCO JSON, and conversations to train on.

Both are functions of the records in images.jsonl, which hold exact masks, and of settings that may be given anew when a
run is resumed: polygons, codec, queries. Neither detector nor tool is called again.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.common.config import RunError
from experiments.common.run_folder import disk_errors
from segenv import __version__, metrics, queries
from segenv.codec.polygons import PolygonCodec
from segenv.data.base import within
from segenv.data.images import MAX_PIXELS, read_image
from segenv.data.trajectories.export import PLACEHOLDERS, Conversation
from segenv.files import json_hash, replacing
from segenv.geometry import canonical, fit, polygon_iou, simplify
from segenv.geometry.rle import polygons_to_coco, rle_to_polygons, segmentation_mask
from segenv.seeds import seed_of
from segenv.types import Polygons, Task, image_hash, object_of

Record = dict[str, Any]  # a line of images.jsonl


@dataclass(frozen=True)
class PolygonWriter:
    """Simplifies polygons to at most `max_vertices` within `tolerance` pixels of the mask, and formats replies of at
    most `max_tokens`, as `length` counts tokens."""

    tolerance: float = 1.0
    max_vertices: int | None = None
    max_tokens: int | None = None
    length: Callable[[str], int] = len

    def simplify(self, rings: Iterable[np.ndarray], height: int, width: int) -> list[np.ndarray]:
        """Simplify rings, clip them to the image, and round them to a hundredth of a pixel, in canonical order."""
        limit = self.max_vertices
        simpler = canonical(simplify(list(rings), self.tolerance))
        if limit is not None:
            simpler = fit(simpler, lambda tried: sum(map(len, tried)) <= limit)
        return [np.round(np.clip(ring, 0, (width, height)), 2) for ring in simpler]

    def reply(self, mask: np.ndarray, task: Task, codec: PolygonCodec) -> str | None:
        """Format a mask, bool [H, W], as a reply; None where it does not fit into `max_tokens`."""

        def text(rings: Sequence[np.ndarray]) -> str:
            inside = (np.clip(ring, 0, (task.width, task.height)) for ring in rings)
            return codec.format(Polygons(tuple(inside), codec.union), task)

        rings = self.simplify(codec.outline(mask, ratio=0).rings, task.height, task.width)
        if (limit := self.max_tokens) is not None:
            try:  # the coarsest polygon is a rectangle, whose corners may lie off the image
                rings = fit(rings, lambda tried: self.length(text(tried)) <= limit, codec.union)
            except ValueError:
                return None
        return text(rings)


def write_coco(
    path: Path, records: Callable[[], Iterable[Record]], phrases: Sequence[str], writer: PolygonWriter, about: dict
) -> dict[str, float | None]:
    """Write COCO instances of the `records` (given anew at each call), one category for each of `phrases`. Returns the
    mean number of vertices, and the polygons' mean and worst IoU with the masks."""
    numbers = {phrase: i for i, phrase in enumerate(phrases, 1)}
    written: list[tuple[int, float]] = []  # vertices, and IoU with the mask, of each object
    lists = {
        "info": {"description": f"polygons made by segenv {__version__}", **about},
        "categories": [{"id": number, "name": phrase} for phrase, number in numbers.items()],
        "images": (
            {"id": i, "file_name": one["image"], "width": one["width"], "height": one["height"]}
            for i, one in enumerate(records(), 1)
        ),
        "annotations": _annotations(records(), numbers, writer, written),
    }
    with disk_errors(path), replacing(path, "ascii") as file:
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
    vertices, ious = [count for count, _ in written], [iou for _, iou in written]
    return {
        "vertices": sum(vertices) / len(vertices) if vertices else None,
        "iou": float(np.mean(ious)) if ious else None,
        "worst_iou": min(ious, default=None),
    }


def _annotations(
    records: Iterable[Record], numbers: dict[str, int], writer: PolygonWriter, written: list[tuple[int, float]]
) -> Iterator[dict[str, Any]]:
    for image, record in enumerate(records, 1):
        height, width = record["height"], record["width"]
        for entry in record["objects"]:
            rings = writer.simplify(rle_to_polygons(entry["mask"]), height, width)
            segmentation, mask = polygons_to_coco(rings, height, width), segmentation_mask(entry["mask"], height, width)
            covered = segmentation_mask(segmentation, height, width)
            if not covered.any():  # thinner than what COCO's rule fills
                segmentation, covered = entry["mask"], mask
            box = metrics.box_of(covered)
            assert box is not None
            written.append((sum(map(len, rings)), polygon_iou(rings, mask)))
            yield {
                "id": len(written),
                "image_id": image,
                "category_id": numbers[entry["phrase"]],
                "segmentation": segmentation,
                "area": int(covered.sum()),
                "bbox": [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0],
                "iscrowd": 0,
                **{key: entry[key] for key in ("score", "mask_score", "caption") if entry.get(key) is not None},
            }


@dataclass(frozen=True)
class QueryOptions:
    """Options of the queries about objects: `pairs` of prompt type and output type (`queries.KINDS`), wording, a text
    that names several objects of an image (`several`), and phrases without an object (`negatives`)."""

    codec: PolygonCodec
    pairs: Sequence[tuple[str, str]] = (("text", "mask"),)
    prompt: str = "codec"
    wording: Literal["first", "varied"] = "first"
    several: Literal["skip", "union"] = "skip"
    negatives: bool = False
    seed: int = 0


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Parse names of queries: `text-mask` as ("text", "mask"). Raises `RunError`."""
    known = {"-".join(pair): pair for pair in queries.PAIRS}
    if wrong := [name for name in names if name not in known]:
        raise RunError(f"query {wrong[0]!r} is unknown; expected some of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def conversations(
    records: Iterable[Record],
    root: Path,
    options: QueryOptions,
    writer: PolygonWriter,
    counts: Counter[str],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Conversation]:
    """Ask about the objects of the records, with images in `root`; `counts` counts the queries, and those left out."""
    for record in records:
        if not record["objects"] and not options.negatives:
            continue
        image = read_image(
            within(root, record["image"], record["image"], follow_links=True), record["image"], max_pixels
        )
        for task, texts in _subjects(record, image, options, counts):
            for pair in options.pairs:
                if ("text" in pair) == texts and (one := _ask(task, pair, options, writer, counts)):
                    counts["-".join(pair)] += 1
                    yield one


def _subjects(
    record: Record, image: np.ndarray, options: QueryOptions, counts: Counter[str]
) -> Iterator[tuple[Task, bool]]:
    """Tasks of an image, and whether their queries have a text: each object without, each text that names some with."""
    height, width = record["height"], record["width"]
    if image_hash(image) != record["hash"]:
        raise RunError(f"{record['image']} has changed since it was annotated; start another run with --out")
    meta = {"image_hash": record["hash"]}
    masks = [segmentation_mask(entry["mask"], height, width) for entry in record["objects"]]
    named: dict[str, list[int]] = {}
    for i, entry in enumerate(record["objects"]):
        named.setdefault(entry.get("caption") or entry["phrase"], []).append(i)
        yield Task(f"{record['image']}#{i}", image, masks[i], meta=meta), False
    for text, indices in named.items():
        if len(indices) > 1 and options.several == "skip":
            counts["several"] += 1
            continue
        union = np.any([masks[i] for i in indices], axis=0)
        yield Task(f"{record['image']}#{indices[0]}", image, union, _safe(text), meta=meta), True
    for phrase in record["absent"] if options.negatives else ():
        nothing = np.zeros((height, width), bool)
        yield Task(f"{record['image']}#{phrase}", image, nothing, _safe(phrase), meta=meta), True


def _ask(
    task: Task, pair: tuple[str, str], options: QueryOptions, writer: PolygonWriter, counts: Counter[str]
) -> Conversation | None:
    """Ask one query with its answer; None where there is no answer."""
    prompt_type, output_type = pair
    target = object_of(task.target)
    if not target.any() and pair != ("text", "mask"):
        return None
    seed = seed_of(options.seed, task.id, *pair) if options.wording == "varied" else None
    query = queries.query(task, options.codec, prompt_type, output_type, options.prompt, seed)
    masked = output_type == "mask"
    reply = writer.reply(target, task, options.codec) if masked else queries.reply(query, options.codec)
    if reply is None:
        counts["no_room"] += 1
        return None
    painted = target if prompt_type == "mask" else np.zeros_like(target)
    key = json_hash([task.meta["image_hash"], image_hash(painted)])
    return Conversation(task, painted, query.prompt, reply, key)


def _safe(text: str) -> str:
    """Remove the placeholders that trainers replace by media."""
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, " ")
    return " ".join(text.split())
