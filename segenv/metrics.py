"""Metrics of masks, and of curves of masks.

Masks are [H, W]: targets uint8 or bool as in `segenv.types`, predictions bool (or 0/non-zero). Ignored pixels count in
nothing. Every function that can meet two empty masks says what it returns then, and takes another value as `empty`
(published code counts 1, NaN or 0). A *curve* is the IoUs of one episode after each click, in 0..1.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import cv2
import numpy as np

from segenv.types import Box, Task, ignored_of, object_of

Numbers = Sequence[float] | np.ndarray  # one for each item, [N]


def errors(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False negatives and false positives, bool [H, W] each, without ignored pixels."""
    wanted, predicted = _pair(target, prediction)
    return wanted & ~predicted, predicted & ~wanted


def areas(target: np.ndarray, prediction: np.ndarray) -> tuple[int, int]:
    """Intersection and union in pixels."""
    wanted, predicted = _pair(target, prediction)
    intersection = _count(wanted & predicted)
    return intersection, _count(wanted) + _count(predicted) - intersection


def iou(target: np.ndarray, prediction: np.ndarray, empty: float = 1.0) -> float:
    """Intersection over union; `empty` where both masks are empty (SegAgent counts 1, RITM NaN, others 0)."""
    intersection, union = areas(target, prediction)
    return intersection / union if union else empty


class PreparedTarget:
    """A target for many IoUs, which are those of `areas` and `iou`: its object and its ignored pixels are found once,
    and cut to their boxes. The target must not change afterwards. `prepared` keeps one for each task."""

    def __init__(self, target: np.ndarray) -> None:
        ignored = ignored_of(target)
        self.shape = target.shape
        self._box, self._object = _cut(object_of(target))
        self._area = _count(self._object)
        self._ignored = None if ignored is None else _cut(ignored)

    def areas(self, prediction: np.ndarray) -> tuple[int, int]:
        """Intersection and union in pixels."""
        if prediction.shape != self.shape:
            raise ValueError(_shapes(self.shape, prediction))
        predicted = np.ascontiguousarray(prediction.astype(bool, copy=False))
        intersection, found = _count(predicted[self._box] & self._object), _count(predicted)
        if self._ignored is not None:
            box, ignored = self._ignored
            found -= _count(predicted[box] & ignored)
        return intersection, self._area + found - intersection

    def iou(self, prediction: np.ndarray, empty: float = 1.0) -> float:
        """Intersection over union; `empty` where both masks are empty."""
        intersection, union = self.areas(prediction)
        return intersection / union if union else empty


_PREPARED: WeakKeyDictionary[Task, PreparedTarget] = WeakKeyDictionary()


def prepared(task: Task) -> PreparedTarget:
    """The target of a task for many IoUs; prepared once, and kept while the task is."""
    found = _PREPARED.get(task)
    if found is None:
        found = _PREPARED[task] = PreparedTarget(task.target)
    return found


def _cut(mask: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The box of a bool mask [H, W], as rows and columns, and the mask within it."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    box = slice(y, y + height), slice(x, x + width)
    return box, np.ascontiguousarray(mask[box])


def ciou(intersections: Numbers, unions: Numbers, empty: float = 1.0) -> float:
    """Cumulative IoU of many masks, ΣI / ΣU, from their `areas`; `empty` where every union is empty."""
    total = float(np.sum(unions))
    return float(np.sum(intersections)) / total if total else empty


def boundary_iou(target: np.ndarray, prediction: np.ndarray, ratio: float = 0.02, empty: float = 1.0) -> float:
    """IoU of the masks' inner rings, `ratio` of the image's diagonal wide (Cheng et al. 2021): what 3×3 erosion takes
    away in max(1, round(ratio · diagonal)) steps, with the outside of the image counted as background. Ignored pixels
    are taken from the prediction first, and from both rings after. `empty` where both masks are empty."""
    wanted, predicted = _pair(target, prediction)
    steps = max(1, round(ratio * float(np.hypot(*target.shape))))
    rings = inner_ring(wanted, steps), inner_ring(predicted, steps)
    ignored = ignored_of(target)
    if ignored is not None:
        rings = rings[0] & ~ignored, rings[1] & ~ignored
    return iou(*rings, empty=empty)


def distances(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pixel of a bool or uint8 mask [h, w] to the nearest one that is 0, in pixels, float32.

    Squared distances are whole numbers, but OpenCV's roots of them are off by a unit in the last place here and there,
    depending on the build, on where a crop begins and even on where in memory the mask lies: the whole numbers are
    restored, so that equal distances are equal everywhere (up to about 1,000 px).
    """
    whole = np.ascontiguousarray(mask).view(np.uint8)
    squared = np.square(cv2.distanceTransform(whole, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), dtype=np.float64)
    return np.sqrt(np.rint(squared, out=squared), out=squared).astype(np.float32)


def box_of(mask: np.ndarray) -> Box | None:
    """The tight box of a bool mask [H, W] in continuous corners, or None where it is empty."""
    x, y, width, height = cv2.boundingRect(mask.astype(bool, copy=False).view(np.uint8))
    return Box(x, y, x + width, y + height) if width else None


def box_iou(target: np.ndarray, prediction: np.ndarray, empty: float = 1.0) -> float:
    """IoU of the masks' tight boxes, for Acc@0.5 of referring expression comprehension; 0 where one mask is empty,
    `empty` where both are."""
    first, second = (box_of(mask) for mask in _pair(target, prediction))
    if first is None or second is None:
        return empty if first is second else 0.0
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    intersection = max(0.0, width) * max(0.0, height)
    union = sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in (first, second)) - intersection
    return float(intersection / union)


def _pair(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object and the prediction without ignored pixels, bool [H, W] each, C-contiguous."""
    if target.shape != prediction.shape or target.ndim != 2:
        raise ValueError(_shapes(target.shape, prediction))
    wanted, predicted = object_of(target), prediction.astype(bool, copy=False)
    ignored = ignored_of(target)
    if ignored is not None:
        predicted = predicted & ~ignored
    return np.ascontiguousarray(wanted), np.ascontiguousarray(predicted)


def _shapes(target: tuple[int, ...], prediction: np.ndarray) -> str:
    return f"target is {list(target)} and prediction {list(prediction.shape)}; both must be [H, W] of one image"


def _count(mask: np.ndarray) -> int:
    return cv2.countNonZero(mask.view(np.uint8))


def inner_ring(mask: np.ndarray, steps: int) -> np.ndarray:
    """Pixels of a bool mask [H, W] within `steps` pixels (maximum norm) of the mask's or the image's outside."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    ring = np.zeros_like(mask)
    if width:
        window = np.s_[y : y + height, x : x + width]
        padded = cv2.copyMakeBorder(mask[window].view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=min(steps, min(width, height)))[1:-1, 1:-1]
        ring[window] = mask[window] & (inner == 0)
    return ring


def iou_at(ious: Numbers, clicks: int) -> float:
    """IoU after so many clicks; an episode that ended sooner keeps its last mask. (Only an episode that ended because
    nothing was left to do may be asked: one that was cut at an IoU of 0.90 cannot tell its IoU@20.)"""
    if not len(ious) or clicks < 1:
        raise ValueError(f"IoU after {clicks} clicks of a curve of {len(ious)}; expected at least one of each")
    return float(ious[min(clicks, len(ious)) - 1])


def noc(ious: Numbers, threshold: float, max_clicks: int = 20) -> int:
    """Clicks to reach IoU ≥ `threshold`, compared in float32 as RITM does; `max_clicks` if never."""
    reached = _reached(ious, threshold, max_clicks)
    return int(reached.argmax()) + 1 if reached.any() else max_clicks


def nof(curves: Sequence[Numbers], threshold: float, max_clicks: int = 20, published: bool = False) -> int:
    """Number of failures: episodes that do not reach `threshold` within `max_clicks`. `published` counts as RITM's code
    does: every episode whose NoC is `max_clicks`, and so also those that reach the threshold at exactly the last
    click."""
    if published:
        return sum(noc(ious, threshold, max_clicks) == max_clicks for ious in curves)
    return sum(not _reached(ious, threshold, max_clicks).any() for ious in curves)


def _reached(ious: Numbers, threshold: float, max_clicks: int) -> np.ndarray:
    """Whether each click's IoU is at the threshold, bool [up to max_clicks]."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected an IoU in 0..1, such as 0.85")
    return np.asarray(ious, np.float32)[:max_clicks] >= np.float32(threshold)


def regret(ious: Numbers) -> float:
    """Gain of a better moment to stop: the curve's maximum less its last value."""
    return float(np.max(ious) - ious[-1])
