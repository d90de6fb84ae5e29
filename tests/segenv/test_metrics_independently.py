"""All metrics against a second computation that shares no code with them: the difference is 0."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle

from segenv import metrics

PAIRS = 1000


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blobs, noise, rectangles, all, or nothing."""
    kind = rng.integers(6)
    if kind == 0:
        return np.zeros((height, width), bool)
    if kind == 1:
        return np.ones((height, width), bool)
    if kind == 2:
        return rng.random((height, width)) < rng.random()
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, side + 1, 2)) for side in (height, width))
        mask[y0:y1, x0:x1] ^= True
    return mask


def pairs():
    """Targets with object, background and ignored pixels, and predictions; the four empty cases first."""
    nothing, all_of_it = np.zeros((7, 9), bool), np.ones((7, 9), bool)
    yield from ((one.astype(np.uint8) * 255, other) for one in (nothing, all_of_it) for other in (nothing, all_of_it))
    yield np.full((7, 9), 128, np.uint8), all_of_it  # nothing but ignored pixels
    rng = np.random.default_rng(0)
    for k in range(PAIRS):
        height, width = rng.integers(1, 60, 2)
        target = np.where(random_mask(rng, height, width), 255, 0).astype(np.uint8)
        if k % 3 == 0:
            target[random_mask(rng, height, width)] = 128
        prediction = random_mask(rng, height, width)
        if k % 4 == 0:  # a prediction near the target
            prediction = np.roll(target == 255, rng.integers(-2, 3), axis=int(rng.integers(2)))
        yield target, prediction


def encoded(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def ring(mask: np.ndarray, ratio: float = 0.02) -> np.ndarray:
    """As published with boundary IoU (Cheng et al. 2021): a padded mask less what erosion leaves of it."""
    height, width = mask.shape
    steps = max(1, round(ratio * (height**2 + width**2) ** 0.5))
    padded = np.pad(mask.astype(np.uint8), 1)
    for _ in range(steps):
        shifted = [np.roll(padded, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        padded = np.minimum.reduce(shifted)
        padded[[0, -1]] = 0
        padded[:, [0, -1]] = 0
    return mask & (padded[1:-1, 1:-1] == 0)


def tight(mask: np.ndarray) -> list[int] | None:
    """x, y, width, height by OpenCV-free means."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


def test_masks_are_measured_as_pycocotools_and_plain_definitions_measure_them():
    totals, found = [0, 0], ([], [])
    for target, prediction in pairs():
        counted = target != 128
        wanted, drawn = (target == 255) & counted, prediction & counted
        intersection = int(rle.area(rle.merge([encoded(wanted), encoded(drawn)], intersect=True)))
        union = int(rle.area(rle.merge([encoded(wanted), encoded(drawn)])))
        assert metrics.areas(target, prediction) == (intersection, union)
        right = intersection / union if union else 1.0
        assert metrics.iou(target, prediction) == right
        if union:
            assert rle.iou([encoded(drawn)], [encoded(wanted)], [0])[0][0] == right
        for empty in (0.0, 1.0):
            assert metrics.iou(target, prediction, empty=empty) == (right if union else empty)
        missing, extra = metrics.errors(target, prediction)
        assert np.array_equal(missing, wanted & ~drawn) and np.array_equal(extra, drawn & ~wanted)
        rings = ring(wanted) & counted, ring(drawn) & counted
        both, either = (rings[0] & rings[1]).sum(), (rings[0] | rings[1]).sum()
        assert metrics.boundary_iou(target, prediction) == (both / either if either else 1.0)
        boxes = tight(wanted), tight(drawn)
        if None in boxes:
            assert metrics.box_iou(target, prediction) == (1.0 if boxes[0] == boxes[1] else 0.0)
        else:
            known = rle.iou(np.array([boxes[1]], float), np.array([boxes[0]], float), [0])[0][0]
            assert metrics.box_iou(target, prediction) == known
        totals = [totals[0] + intersection, totals[1] + union]
        for one, value in zip(found, (intersection, union), strict=True):
            one.append(value)
    assert len(found[0]) == PAIRS + 5
    assert metrics.ciou(*found) == totals[0] / totals[1]
    assert metrics.ciou([], []) == 1.0 and metrics.ciou([0, 0], [0, 0], empty=0.0) == 0.0


def test_curves_are_measured_as_by_loops():
    rng = np.random.default_rng(1)
    every = [np.round(rng.random(rng.integers(1, 21)), 2) for _ in range(PAIRS)]
    every += [np.array([0.85]), np.array([0.0]), np.array([1.0]), np.full(20, 0.849999999)]
    for threshold in (0.5, 0.8, 0.85, 0.9, 0.95):
        failures = published = 0
        for ious in every:
            clicks, never = 20, True
            for k, value in enumerate(ious, 1):
                if np.float32(value) >= np.float32(threshold):
                    clicks, never = k, False
                    break
            assert metrics.noc(ious, threshold) == clicks
            failures += never
            published += clicks == 20
        assert metrics.nof(every, threshold) == failures
        assert metrics.nof(every, threshold, published=True) == published
    for ious in every:
        assert metrics.regret(ious) == max(ious) - ious[-1]
        for k in (1, 3, 5, 20):
            assert metrics.iou_at(ious, k) == (ious[k - 1] if k <= len(ious) else ious[-1])


def test_an_empty_curve_has_no_iou():
    with pytest.raises(ValueError, match="of a curve of 0"):
        metrics.iou_at([], 1)
