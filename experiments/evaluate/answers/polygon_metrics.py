"""Metrics of replies with polygons: a record for each reply, and the numbers of metrics.json."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from segenv import metrics, queries, rewards, statistics
from segenv.codec.polygons import PolygonCodec
from segenv.geometry import polygons_to_mask
from segenv.rewards.polygons import TOLERANCE
from segenv.types import Box, Click, Invalid, Polygons, Task, object_of

SIZES = {"small": 32.0, "medium": 96.0, "large": float("inf")}  # COCO's: the root of the area is less, in pixels
TOPOLOGIES = ("one part", "several parts", "holes")
NONE = "no object"  # the size and topology of an empty target
PHOTO, TINY = 640, 320  # the longer side of COCO's images, and of images so small that sizes are read as if they had it
SPECK = 0.01  # parts and holes smaller than this share of the object make no topology
MEANS = ("giou", "acc_at_50", "precision_at_50", "boundary_f", "valid", "truncated", "missed", "tokens", "vertices")
PARTS = ("giou", "boundary_f", "valid", "tokens")  # measures that are also given by size and by topology
QUANTILES = (5, 25, 50, 75, 95)

METRIC_DEFINITIONS = {
    "iou": "intersection over union at the image's own size; pixels labelled 128 count in neither mask. Asked for a "
    "box, the masks are the two boxes; asked for a point or a text, IoU is 1 where the reply is right and else 0 "
    "(segenv.rewards.polygons)",
    "rasteriser": "segenv.geometry.rasterize: vertices in continuous coordinates where pixel i covers [i, i+1), COCO's "
    "rule for which pixels an edge takes; the codec says whether rings are filled even-odd or each by itself",
    "empty": "two empty masks have IoU 1, box IoU 1 and boundary F 1; a reply that is no answer has 0, whatever the "
    "target",
    "giou": "mean IoU over tasks; where there are several replies to a task, of their mean",
    "inside": "asked for a point: share of replies whose point is on the object, or that rightly tell of none: gIoU",
    "ciou": "sum of intersections over sum of unions, over all replies",
    "acc_at_50": "share of replies whose tight box has IoU >= 0.5 with the target's",
    "precision_at_50": "share of replies whose mask has IoU >= 0.5",
    "boundary_f": f"F measure of boundary pixels that have one of the other mask within {TOLERANCE} of the diagonal, "
    "rounded up to pixels (DAVIS); a mask's boundary is what 3x3 erosion takes away",
    "valid": "share of replies that the codec reads as what was asked for, truncated ones included",
    "truncated": "share of replies that broke off, or have fewer vertices than they planned; their prefix is scored",
    "missed": "share of replies that draw nothing, of those to tasks with an object",
    "no_target": "over tasks without an object: share of replies that are valid and draw nothing; n_acc is the same",
    "t_acc": "over tasks with an object: share of replies that draw something",
    "tokens": "of a reply, without its end: mean over tasks, and quantiles over replies",
    "vertices": "of a reply, as it was read; 0 where it was not",
    "sizes": "COCO's by the object's area in pixels: small under 32^2, medium under 96^2, large; images whose longer "
    f"side is under {TINY} pixels are measured as if it were {PHOTO}",
    "topology": f"of the target, parts (which touch along an edge) and holes of at least {SPECK:.0%} of its area: "
    "holes where there is one, else several parts, else one part",
    "intervals": "95 % percentile bootstrap over images, each with all of its tasks, 2000 resamples, seed 0; nothing "
    "of the spread over training seeds",
}


@dataclass(frozen=True)
class Record:
    """A reply to a task with its scores; `sample` 0 is the greedy one, sampled ones are numbered from 1."""

    task: str
    sample: int
    text: str
    tokens: int
    error: str | None  # why the reply is no answer
    truncated: bool
    vertices: int
    drawn: bool  # it has a pixel
    iou: float
    intersection: int
    union: int
    box_iou: float
    boundary_f: float
    share: float  # of the image that the object covers
    size: str
    topology: str
    finish_reason: str | None = None  # why the reply ended, where the backend tells it

    @property
    def has_object(self) -> bool:
        """Whether the target has an object."""
        return self.size != NONE


def record(
    task: Task,
    codec: PolygonCodec,
    text: str,
    tokens: int,
    sample: int = 0,
    output_type: str = "mask",
    finish_reason: str | None = None,
) -> Record:
    """Read a reply and score it."""
    scored = score(task, codec, queries.read(text, task, codec, output_type), text, tokens, sample, output_type)
    return replace(scored, finish_reason=finish_reason)


def score(
    task: Task, codec: PolygonCodec, answer: Any, text: str, tokens: int, sample: int = 0, output_type: str = "mask"
) -> Record:
    """Score an answer of `queries.read`, which stands for the reply `text`."""
    right = rewards.polygon("iou+boundary_f", codec).of(answer, task, output_type)
    mask = rasterize(answer, task)
    if output_type in ("mask", "box"):
        target = task.target if output_type == "mask" else rasterize(queries.answer(task, codec, output_type), task)
        (intersection, union), box_iou = metrics.areas(target, mask), metrics.box_iou(target, mask)
    else:  # right or wrong
        intersection, union, box_iou = int(right["iou"]), 1, right["iou"]
    failed = isinstance(answer, Invalid)
    return Record(
        task=task.id,
        sample=sample,
        text=text,
        tokens=tokens,
        error=answer.reason if isinstance(answer, Invalid) else None,
        truncated=isinstance(answer, Polygons) and answer.truncated,
        vertices=sum(map(len, answer.rings)) if isinstance(answer, Polygons) else 0,
        drawn=bool(mask.any()),
        iou=right["iou"],
        intersection=intersection,
        union=union,
        box_iou=0.0 if failed else box_iou,
        boundary_f=right["boundary_f"],
        **_kind(task),
    )


def rasterize(answer: Any, task: Task) -> np.ndarray:
    """Rasterize an answer of `queries.read` to bool [H, W]; no pixel where it is a text or invalid."""
    match answer:
        case Polygons(rings, union):
            return polygons_to_mask(rings, task.height, task.width, union)
        case Box(x0, y0, x1, y1):
            corners = np.array([(x0, y0), (x0, y1), (x1, y1), (x1, y0)])
            return polygons_to_mask([corners], task.height, task.width)
    mask = np.zeros((task.height, task.width), bool)
    if isinstance(answer, Click):
        mask[answer.y, answer.x] = True
    return mask


@lru_cache(maxsize=64)
def _kind(task: Task) -> dict[str, Any]:
    """Share, size and topology of a task's object."""
    share = float(object_of(task.target).mean())
    return {"share": share, "size": size_of(task), "topology": topology_of(task.target)}


def size_of(task: Task) -> str:
    """Size of a task's object, of `SIZES`, or `NONE`."""
    area = np.count_nonzero(object_of(task.target))
    longer = max(task.height, task.width)
    side = float(np.sqrt(area)) * (PHOTO / longer if longer < TINY else 1.0)
    return next(name for name, limit in SIZES.items() if side < limit) if area else NONE


def topology_of(target: np.ndarray) -> str:
    """Whether the object of a target [H, W] has holes, several parts, or neither; or `NONE`."""
    mask = np.pad(object_of(target), 1)
    area = np.count_nonzero(mask)
    if not area:
        return NONE

    def pieces(pixels: np.ndarray, connectivity: int) -> int:
        _, _, stats, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=connectivity)
        return int((stats[1:, cv2.CC_STAT_AREA] >= SPECK * area).sum())

    filled = mask.astype(np.uint8)
    cv2.floodFill(filled, None, (0, 0), 1, flags=8)  # what a walk around the object reaches
    if pieces(filled == 0, 8):
        return "holes"
    return "several parts" if pieces(mask, 4) > 1 else "one part"


def measures(records: Sequence[Record], images: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Measures of replies, each mean over tasks with its interval over `images`, the image of each task where several
    have one; see `METRIC_DEFINITIONS`. A measure of no task is None. The order of `records` matters to the last digits
    of the intervals: give the data's."""
    if not records:
        raise ValueError("no reply to measure")
    absent = [one for one in records if not one.has_object]
    silent = [by_task(absent, lambda one: float(one.error is None and not one.drawn))]
    tokens = [one.tokens for one in records]
    quantiles = dict(zip(map(str, QUANTILES), np.percentile(tokens, QUANTILES).tolist(), strict=True))
    accuracy = {"accuracy": (silent[0], images_of(absent, images))}
    there = [one for one in records if one.has_object]
    drawn = by_task(there, lambda one: float(one.drawn)), images_of(there, images)
    known = _means({"n_acc": (silent[0], images_of(absent, images)), "t_acc": drawn})
    found = _table(records, MEANS, images)
    return {
        **found,
        **known,
        "intervals": {**found["intervals"], **known["intervals"]},
        "no_target": {"tasks": len(silent[0]), **_means(accuracy)} if absent else None,
        "finish_reasons": dict(sorted(Counter(one.finish_reason for one in records if one.finish_reason).items())),
        "token_quantiles": {**quantiles, "100": float(max(tokens))},
        "by_size": _groups(records, "size", tuple(SIZES), images),
        "by_topology": _groups(records, "topology", TOPOLOGIES, images),
    }


def _groups(
    records: Sequence[Record], field: str, names: Sequence[str], images: Mapping[str, str] | None
) -> dict[str, Any]:
    """Measures of the records by their value of `field`."""
    parts = {name: [one for one in records if getattr(one, field) == name] for name in names}
    return {name: _table(part, PARTS, images) for name, part in parts.items() if part}


def _table(records: Sequence[Record], names: Sequence[str], images: Mapping[str, str] | None) -> dict[str, Any]:
    """Count replies and tasks, and average `names` and cIoU, with `intervals` under the same keys."""
    chosen = {name: having(records, name) for name in names}
    columns = {name: (by_task(some, VALUES[name]), images_of(some, images)) for name, some in chosen.items()}
    areas = by_task(records, lambda one: one.intersection), by_task(records, lambda one: one.union)
    numbers = _means(columns)
    numbers["ciou"] = metrics.ciou(*areas)
    numbers["intervals"]["ciou"] = list(statistics.bootstrap_ratio(*areas, images=images_of(records, images)))
    return {"replies": len(records), "tasks": len(areas[0]), **numbers}


def _means(columns: Mapping[str, tuple[np.ndarray, list[str] | None]]) -> dict[str, Any]:
    """Means of values, and intervals over their images."""
    ends = {name: list(statistics.bootstrap(values, images=images)) for name, (values, images) in columns.items()}
    means = {name: float(values.mean()) if len(values) else None for name, (values, _) in columns.items()}
    return {**means, "intervals": ends}


def images_of(records: Sequence[Record], images: Mapping[str, str] | None) -> list[str] | None:
    """The image of each task of `by_task`, from the image of each task by its id."""
    return None if images is None else [images[task] for task in dict.fromkeys(one.task for one in records)]


VALUES: dict[str, Callable[[Record], float]] = {
    "giou": lambda one: one.iou,
    "acc_at_50": lambda one: float(one.box_iou >= 0.5),
    "precision_at_50": lambda one: float(one.iou >= 0.5),
    "boundary_f": lambda one: one.boundary_f,
    "valid": lambda one: float(one.error is None),
    "truncated": lambda one: float(one.truncated),
    "missed": lambda one: float(one.error is None and not one.drawn),
    "tokens": lambda one: one.tokens,
    "vertices": lambda one: one.vertices,
}


def having(records: Sequence[Record], name: str) -> list[Record]:
    """Select the records that a measure is about."""
    return [one for one in records if one.has_object or name != "missed"]


def by_task(records: Sequence[Record], value: Callable[[Record], float]) -> np.ndarray:
    """Average a value over each task's records, [tasks], in the order in which the tasks come first."""
    values: dict[str, list[float]] = {}
    for one in records:
        values.setdefault(one.task, []).append(value(one))
    return np.array([np.mean(found) for found in values.values()])
