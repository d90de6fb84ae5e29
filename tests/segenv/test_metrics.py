"""Metrics: worked examples, empty-mask rules, and laws against slow definitions."""

import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segenv import metrics, statistics
from segenv.types import Box, Task

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
pairs = sizes.flatmap(
    lambda size: st.tuples(arrays(np.uint8, size, elements=st.sampled_from([0, 128, 255])), arrays(np.bool_, size))
)
curves = st.lists(st.floats(0, 1), min_size=1, max_size=25)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@given(st.data(), st.tuples(st.integers(1, 90), st.integers(1, 90)))
@settings(max_examples=60)
def test_distances_are_roots_of_whole_numbers_wherever_the_mask_lies_in_memory(data, size):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    mask = rng.random(size) > 3 / (size[0] * size[1])
    mask[tuple(rng.integers(0, size))] = False
    height, width = size
    buffer = np.empty(mask.size + 64, bool)
    rows, columns = np.nonzero(~mask)
    across, down = np.arange(width)[:, None] - columns, np.arange(height)[:, None] - rows
    nearest = (down[:, None] ** 2 + across[None] ** 2).min(-1)
    for start in range(0, 64, 7):
        there = buffer[start : start + mask.size].reshape(size)
        there[:] = mask
        found = metrics.distances(there)
        assert found.dtype == np.float32 and np.array_equal(found, np.sqrt(nearest).astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------- masks


@given(pairs)
def test_areas_and_errors_are_their_definitions(pair):
    target, prediction = pair
    counted = target != 128
    intersection = ((target == 255) & prediction & counted).sum()
    union = (((target == 255) | prediction) & counted).sum()
    assert metrics.areas(target, prediction) == (intersection, union)
    ready = metrics.PreparedTarget(target)
    for predicted in (prediction, np.asfortranarray(prediction), prediction.astype(np.uint8) * 9):
        assert ready.areas(predicted) == (intersection, union)
    assert ready.iou(prediction, empty=0.5) == metrics.iou(target, prediction, empty=0.5)
    assert metrics.iou(target, prediction) == (intersection / union if union else 1.0)
    missing, extra = metrics.errors(target, prediction)
    assert not (missing & extra).any() and missing.sum() + extra.sum() == union - intersection


@given(pairs)
def test_bool_and_uint8_targets_and_any_memory_layout_agree(pair):
    target, prediction = pair
    wanted = target == 255
    values = {
        metrics.iou(wanted, prediction),
        metrics.iou(np.where(wanted, 255, 0).astype(np.uint8), prediction.astype(np.uint8) * 7),
        metrics.iou(np.asfortranarray(wanted), prediction[::-1][::-1]),
        metrics.iou(prediction, wanted),
    }
    assert len(values) == 1


def test_empty_masks_count_as_the_protocol_says():
    nothing, something = rectangle(0, 0, 0, 0), rectangle(2, 2, 5, 5)
    for metric in (metrics.iou, metrics.boundary_iou, metrics.box_iou):
        assert metric(nothing, nothing) == 1.0
        assert metric(nothing, nothing, empty=0.0) == 0.0
        assert math.isnan(metric(nothing, nothing, empty=math.nan))
        assert metric(nothing, something) == metric(something, nothing) == 0.0
        assert metric(something, something) == 1.0
    all_ignored = np.full((20, 20), 128, np.uint8)
    assert metrics.iou(all_ignored, something) == 1.0
    assert metrics.ciou([0, 0], [0, 0]) == 1.0 and metrics.ciou([1, 3], [2, 6]) == 0.5


def test_ciou_weighs_masks_by_their_size_and_miou_does_not():
    first = metrics.areas(rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 10))
    second = metrics.areas(rectangle(0, 0, 1, 1), rectangle(5, 5, 6, 6))
    assert metrics.ciou(*zip(first, second, strict=True)) == 100 / 102


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"target is \[20, 20\] and prediction \[5, 5\]"):
        metrics.iou(rectangle(0, 0, 3, 3), np.zeros((5, 5), bool))
    with pytest.raises(ValueError, match=r"target is \[20, 20\] and prediction \[5, 5\]"):
        metrics.PreparedTarget(rectangle(0, 0, 3, 3)).iou(np.zeros((5, 5), bool))


def test_a_target_is_prepared_once_and_kept_no_longer_than_its_task():
    task = Task("a", np.zeros((20, 20, 3), np.uint8), rectangle(2, 2, 9, 9))
    ready = weakref.ref(metrics.prepared(task))
    assert metrics.prepared(task) is ready() and metrics.prepared(task).iou(rectangle(2, 2, 9, 9)) == 1.0
    del task
    gc.collect()
    assert ready() is None


def slow_ring(mask: np.ndarray, steps: int) -> np.ndarray:
    """The ring by `steps` erosions with a 3×3 square, one after the other."""
    inner = np.pad(mask, 1)
    for _ in range(steps):
        eroded = inner.copy()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                eroded &= np.roll(inner, (dy, dx), (0, 1))
        inner = eroded
    return mask & ~inner[1:-1, 1:-1]


@settings(max_examples=50)
@given(pairs, st.sampled_from([0.02, 0.1, 0.2, 1.0]))
def test_boundary_iou_is_the_iou_of_eroded_rings(pair, ratio):
    target, prediction = pair
    steps = max(1, round(ratio * math.hypot(*target.shape)))
    counted = target != 128
    rings = [slow_ring(mask, steps) & counted for mask in (target == 255, prediction & counted)]
    union = (rings[0] | rings[1]).sum()
    expected = (rings[0] & rings[1]).sum() / union if union else 1.0
    assert metrics.boundary_iou(target, prediction, ratio) == expected


def test_boundary_iou_sees_what_iou_does_not():
    """A square 60 wide against one 56 wide inside it: rings of round(0.02 · 99) = 2 pixels do not meet."""
    outer, inner = rectangle(5, 5, 65, 65, 70), rectangle(7, 7, 63, 63, 70)
    assert metrics.iou(outer, inner) == 56**2 / 60**2
    assert metrics.boundary_iou(outer, inner) == 0.0


@given(pairs)
def test_box_iou_is_the_iou_of_filled_boxes(pair):
    target, prediction = pair
    filled = []
    for mask in (target == 255, prediction & (target != 128)):
        box, canvas = metrics.box_of(mask), np.zeros_like(mask)
        assert (box is None) == (not mask.any())
        if box is not None:
            ys, xs = np.nonzero(mask)
            assert box == Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            canvas[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
        filled.append(canvas)
    assert metrics.box_iou(target, prediction) == pytest.approx(metrics.iou(*filled))


# --------------------------------------------------------------------------------------------------------------- curves


def test_noc_and_both_counts_of_failures():
    reached = [0.5, 0.86, 0.84, 0.91]
    assert (metrics.noc(reached, 0.85), metrics.noc(reached, 0.9), metrics.noc(reached, 0.95)) == (2, 4, 20)
    at_the_last_click, too_late = [0.1] * 19 + [0.9], [0.1] * 20 + [0.9]
    assert metrics.noc(at_the_last_click, 0.9) == metrics.noc(too_late, 0.9) == 20
    episodes = [reached, at_the_last_click, too_late, []]
    assert metrics.nof(episodes, 0.9) == 2
    assert metrics.nof(episodes, 0.9, published=True) == 3
    assert metrics.noc([0.2, 0.9], 0.9, max_clicks=1) == 1 and metrics.nof([[0.2, 0.9]], 0.9, max_clicks=1) == 1


def test_noc_compares_in_float32():
    """The IoU 0.9 - 1e-9 is 0.9 in float32, and so it is in the published numbers."""
    assert metrics.noc([0.9 - 1e-9], 0.9) == 1
    with pytest.raises(ValueError, match="threshold is 85"):
        metrics.noc([0.9], 85)


@given(curves, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_takes_fewer_clicks(ious, first, second):
    low, high = sorted((first, second))
    assert 1 <= metrics.noc(ious, low) <= metrics.noc(ious, high) <= 20
    assert metrics.nof([ious], low) <= metrics.nof([ious], high) <= metrics.nof([ious], high, published=True)


@given(curves)
def test_curves_hold_their_last_value(ious):
    assert metrics.iou_at(ious, 1) == ious[0]
    assert metrics.iou_at(ious, len(ious) + 3) == ious[-1]
    assert metrics.regret(ious) >= 0 == metrics.regret(sorted(ious))


def test_regret_by_hand():
    assert metrics.regret([0.2, 0.9, 0.7]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="curve of 0"):
        metrics.iou_at([], 3)


# ---------------------------------------------------------------------------------------------------------- uncertainty


def test_the_interval_holds_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = statistics.bootstrap(rng.normal(3.0, 1.0, 60), n=500)
        held += low <= 3.0 <= high
    assert 180 <= held <= 199


def test_intervals_are_reproducible_and_know_their_limits():
    values = np.random.default_rng(0).random(50)
    assert (
        statistics.bootstrap(values, seed=4)
        == statistics.bootstrap(list(values), seed=4)
        != statistics.bootstrap(values, seed=5)
    )
    low, high = statistics.bootstrap(values)
    assert low < values.mean() < high
    assert statistics.bootstrap([0.7]) == (0.7, 0.7)
    assert all(map(math.isnan, statistics.bootstrap([])))


def test_a_paired_difference_is_sharper_than_two_intervals():
    """Two methods on the same items of very different difficulty, one always .01 to .02 better."""
    rng = np.random.default_rng(0)
    difficulty, edge = rng.random(80), rng.uniform(0.01, 0.02, 80)
    mean, low, high = statistics.bootstrap_difference(difficulty + edge, difficulty)
    assert 0.01 < low < mean < high < 0.02 and mean == pytest.approx(edge.mean())
    assert statistics.bootstrap(difficulty + edge)[0] < statistics.bootstrap(difficulty)[1]  # apart, they overlap
    with pytest.raises(ValueError, match="one value of each for every item"):
        statistics.bootstrap_difference([1.0], [1.0, 2.0])


def test_the_interval_of_ciou_holds_ciou():
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 10_000, 300)
    intersections = unions * rng.uniform(0.5, 0.9, 300)
    low, high = statistics.bootstrap_ratio(intersections, unions)
    assert low < metrics.ciou(intersections, unions) < high < low + 0.06
    assert all(map(math.isnan, statistics.bootstrap_ratio([0, 0], [0, 0])))


# ---------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand():
    stated, true = [0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.9]
    assert statistics.mae(stated, true) == pytest.approx(0.2)
    assert statistics.spearman(stated, true) == pytest.approx(1.0)
    assert statistics.pearson(stated, true) == pytest.approx(np.corrcoef(stated, true)[0, 1])
    assert statistics.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(9 / 90**0.5)  # ties share 2.5
    assert statistics.ece([0.05, 0.95, 0.95], [0.15, 0.85, 0.95]) == pytest.approx(0.2 / 3)
    assert statistics.ece([0.5, 0.5], [0.0, 1.0]) == 0.0  # calibrated on average, though wrong every time
    assert math.isnan(statistics.pearson([0.5, 0.5], [0.1, 0.2])) and math.isnan(statistics.mae([], []))
