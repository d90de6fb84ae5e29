"""Rewards of a whole answer in one reply: what an outline is worth, by name, for texts, for environments and for TRL.

| name | of a mask |
|---|---|
| `iou` | the IoU with the object, without a raster (SimpleSeg's main reward) |
| `centroid` | 1 less the distance of the two centres of mass, as a share of the image's diagonal |
| `format` | 1 for a reply that is a mask and is complete |
| `boundary_f` | F-measure of the boundary pixels that lie within 0.008 of the diagonal of the other boundary (DAVIS) |
| `chamfer` | exp(-d / s), d the mean distance between the boundaries in pixels, and s 0.05 of the diagonal |

All are in 0..1. A reply that is no mask has 0 of each. One that breaks off has the values of what it drew, and a
`format` of 0. Where the object is not in the image, nothing drawn has 1 of each and anything drawn 0, but for
`format`. Where it is in the image, nothing drawn has 0 of each, `format` too: an empty list, or the words that there is
none, has no polygon whose form could be right. SimpleSeg names the first three (arXiv 2601.19228), and publishes
neither the distance's form nor the weights; those here are ours, and so is `chamfer`.

Of other answers, a box is compared as the mask that it fills; a point has 1 of each part on the object and 0 beside it;
a text has 1 where it is the instruction, but for case, blanks and a full stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from segenv import codec as codecs
from segenv import metrics, queries
from segenv.codec.polygons import PolygonCodec
from segenv.geometry import mask_to_polygons, polygons_to_mask
from segenv.geometry.rasterize import PackedMask, runs
from segenv.geometry.rle import MaskError, encode_mask, rle_size, segmentation_mask
from segenv.rewards import clicks
from segenv.types import IGNORE, Absent, Box, Click, Invalid, Polygons, Task, ignored_of, object_of

Answer = Polygons | Box | Click | Absent | str | Invalid

TOLERANCE = 0.008  # of the image's diagonal, within which boundaries are the same (DAVIS; Perazzi et al. 2016)
SPREAD = 0.05  # of the image's diagonal, the boundaries' distance at which `chamfer` falls to 1/e


class Region:
    """Some pixels of an image, with what rewards measure of them; each is computed when it is first asked for."""

    def __init__(self, drawn: Polygons, height: int, width: int) -> None:
        self.drawn, self.height, self.width = drawn, height, width

    @classmethod
    def of(cls, mask: np.ndarray) -> Region:
        """The region of a mask, bool [H, W]."""
        return cls(Polygons(tuple(mask_to_polygons(mask))), *mask.shape)

    @cached_property
    def runs(self) -> np.ndarray:
        return runs(self.drawn.rings, self.height, self.width, self.drawn.union)

    @cached_property
    def mask(self) -> np.ndarray:
        """bool [H, W]."""
        return polygons_to_mask(self.drawn.rings, self.height, self.width, self.drawn.union)

    @cached_property
    def packed(self) -> PackedMask:
        return PackedMask(self.mask)

    @cached_property
    def size(self) -> int:
        """In pixels."""
        return int((self.runs[1::2] - self.runs[::2]).sum(dtype=np.int64))

    @cached_property
    def centre(self) -> np.ndarray:
        """The mean x and y of the pixels' indices, [2]; only of a region that is not empty."""
        places = self.runs.astype(np.int64)  # column * height + row, from the first of a run to the one behind it
        columns, rows = np.divmod(places, self.height)
        # of all places before each one: the sum of the columns, and that of the rows
        x = self.height * (columns * (columns - 1) // 2) + rows * columns
        y = columns * (self.height * (self.height - 1) // 2) + rows * (rows - 1) // 2
        return np.array([(sums[1::2] - sums[::2]).sum() for sums in (x, y)]) / self.size

    @cached_property
    def edge(self) -> np.ndarray:
        """The pixels next to one outside the region or the image, bool [H, W]."""
        return metrics.inner_ring(np.ascontiguousarray(self.mask), 1)

    @property
    def diagonal(self) -> float:
        return math.hypot(self.height, self.width)


def _iou(answer: Region, target: Region) -> float:
    covered, _ = target.packed.covered(answer.runs)
    intersection = int(covered.sum(dtype=np.int64))
    return intersection / (answer.size + target.size - intersection)


def _centroid(answer: Region, target: Region) -> float:
    return 1 - math.dist(answer.centre, target.centre) / target.diagonal


def _boundary_f(answer: Region, target: Region) -> float:
    within = max(1, math.ceil(TOLERANCE * target.diagonal))
    precision, recall = (float((gaps <= within).mean()) for gaps in _gaps(answer, target))
    return 2 * precision * recall / (precision + recall) if precision else 0.0


def _chamfer(answer: Region, target: Region) -> float:
    apart = sum(float(gaps.mean()) for gaps in _gaps(answer, target)) / 2
    return math.exp(-apart / (SPREAD * target.diagonal))


def _gaps(answer: Region, target: Region) -> tuple[np.ndarray, np.ndarray]:
    """In pixels, from each pixel of the answer's edge to the nearest one of the target's, and the other way round."""
    x, y, width, height = cv2.boundingRect((answer.edge | target.edge).view(np.uint8))
    first, second = (region.edge[y : y + height, x : x + width] for region in (answer, target))
    far = [metrics.distances(~edge) for edge in (second, first)]
    return far[0][first], far[1][second]


PARTS: dict[str, Callable[[Region, Region], float] | None] = {
    "iou": _iou,
    "centroid": _centroid,
    "format": None,
    "boundary_f": _boundary_f,
    "chamfer": _chamfer,
}


class Goal:
    """Target that a reply is compared with: uint8 or bool [H, W], read as an answer to a question for `asked`."""

    def __init__(self, target: np.ndarray, asked: str, instruction: str = "") -> None:
        self.height, self.width = target.shape
        self.asked, self.instruction = asked, instruction
        self._ignored = ignored_of(target)
        self._object = object_of(target)

    @cached_property
    def region(self) -> Region:
        box = metrics.box_of(self._object) if self.asked == "box" else None
        return self._filled(box) if box else Region.of(self._object)

    def _filled(self, box: Box) -> Region:
        corners = np.array([(box.x0, box.y0), (box.x0, box.y1), (box.x1, box.y1), (box.x1, box.y0)])
        return Region(Polygons((corners,)), self.height, self.width)

    def parts(self, answer: Answer, names: Sequence[str]) -> dict[str, float]:
        """Compute each part of an answer's reward."""
        match answer:
            case Invalid():
                return dict.fromkeys(names, 0.0)
            case str() | Click():
                right = float(self._right(answer))
                return {name: 1.0 if name == "format" else right for name in names}
            case Absent():
                drawn, whole = Region(Polygons(()), self.height, self.width), float(not self.region.size)
            case Box():
                drawn, whole = self._filled(answer), 1.0
            case Polygons(rings, _, truncated):
                drawn, whole = self._known(answer), float(not truncated and bool(rings or not self.region.size))
        compared = self.region.size and drawn.size
        missed = float(not self.region.size and not drawn.size)  # as it should, where both are empty
        return {
            name: whole if part is None else part(drawn, self.region) if compared else missed
            for name, part in ((name, PARTS[name]) for name in names)
        }

    def _known(self, answer: Polygons) -> Region:
        """Rasterize polygons, less the ignored pixels."""
        drawn = Region(answer, self.height, self.width)
        return drawn if self._ignored is None else Region.of(drawn.mask & ~self._ignored)

    def _right(self, answer: str | Click) -> bool:
        if isinstance(answer, Click):
            return bool(self._object[answer.y, answer.x])
        return _words(answer) == _words(self.instruction)


def _words(text: str) -> list[str]:
    return text.casefold().strip().rstrip(".").split()


@lru_cache(maxsize=64)
def goal_of(task: Task, asked: str = "mask") -> Goal:
    """Target that answers to a question about a task are compared with; kept for recent tasks."""
    return Goal(task.target, asked, task.instruction)


@lru_cache(maxsize=256)
def _column_goal(
    counts: str | bytes, height: int, width: int, asked: str, instruction: str, ignored: str | bytes | None = None
) -> Goal:
    target = segmentation_mask({"size": [height, width], "counts": counts}, height, width)
    if ignored is not None:
        left = segmentation_mask({"size": [height, width], "counts": ignored}, height, width)
        target = np.where(left, IGNORE, np.where(target, 255, 0)).astype(np.uint8)
    return Goal(target, asked, instruction)


def _row_goal(k: int, rle: Any, asked: str, instruction: str, ignored: Any) -> Goal:
    """Goal of row `k` of a batch. Raises `ValueError`."""
    try:
        height, width = rle_size(rle)
        counts, left = (
            one
            if one is None or isinstance(one, (str, bytes))
            else encode_mask(segmentation_mask({"size": [height, width], "counts": one}, height, width))
            for one in (rle["counts"], ignored)
        )
        return _column_goal(counts, height, width, asked, instruction if asked == "text" else "", left)
    except MaskError as error:
        raise ValueError(f"row {k} of the batch: column target, or ignored, {error}; correct the dataset") from error


class PolygonReward:
    """A weighted sum of the parts above, such as `iou+0.1*centroid+0.1*format`, of replies in the words of a codec.

    It is a reward function of TRL's (`GRPOTrainer(reward_funcs=...)`) for any model. The dataset needs the column
    `target`, the object as COCO's compressed run lengths `{"size": [height, width], "counts": str}`; with a column
    `asked` (`mask`, `box`, `point` or `text`) it may mix questions, and those for a text need `instruction` too. Where
    some pixels count neither as object nor as background, a column `ignored` holds their counts, or None.
    Completions are texts, or conversations whose last message counts.
    """

    def __init__(self, spec: str, codec: str | PolygonCodec = "rings") -> None:
        found = codecs.make(codec) if isinstance(codec, str) else codec
        if not isinstance(found, PolygonCodec):
            raise ValueError(f"codec {found.name!r} draws no polygons; expected one such as 'rings' or 'simpleseg'")
        self.spec, self.codec = spec, found
        self.weights = clicks.weights_of(spec, PARTS, "iou+0.1*centroid+0.1*format")
        self.__name__ = spec  # what TRL calls it in its logs

    def score(self, text: str, task: Task, asked: str = "mask") -> dict[str, float]:
        """Score a reply: each part in 0..1, and the weighted `total`."""
        goal = goal_of(task, asked)
        return self._summed(goal.parts(self._read(text, goal), list(self.weights)))

    def of(self, answer: Answer, task: Task, asked: str = "mask") -> dict[str, float]:
        """Score a reply that has been read, as `score` does."""
        return self._summed(goal_of(task, asked).parts(answer, list(self.weights)))

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """The totals of a batch, as TRL asks for them; the means of the parts go to its log, where it gives one."""
        if "target" not in columns:
            raise ValueError(
                f"the dataset has the columns {', '.join(columns)}; expected also `target`, with COCO run lengths "
                '{"size": [height, width], "counts": str}'
            )
        asked = columns.get("asked") or ["mask"] * len(completions)
        words = columns.get("instruction") or [""] * len(completions)
        scores = []
        ignored = columns.get("ignored") or [None] * len(completions)
        rows = zip(completions, columns["target"], asked, words, ignored, strict=True)
        for k, (completion, *row) in enumerate(rows):
            goal = _row_goal(k, *row)
            answer = self._read(_text(completion), goal)
            scores.append(self._summed(goal.parts(answer, list(self.weights))))
        if scores and callable(log := columns.get("log_metric")):
            for name in self.weights:
                log(f"reward/{name}", sum(score[name] for score in scores) / len(scores))
        return [score["total"] for score in scores]

    def _read(self, text: str, goal: Goal) -> Answer:
        return queries.read(text, goal, self.codec, goal.asked)

    def _summed(self, parts: dict[str, float]) -> dict[str, float]:
        return {**parts, "total": sum(self.weights[name] * value for name, value in parts.items())}


def _text(completion: Any) -> str:
    """The text of a completion: itself, or what the last message of a conversation says."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


def polygon(spec: str = "iou+0.1*centroid+0.1*format", codec: str | PolygonCodec = "rings") -> PolygonReward:
    """Reward of a reply that writes polygons, by the names in `PARTS`: for texts, actions and TRL."""
    return PolygonReward(spec, codec)
