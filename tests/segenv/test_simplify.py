"""Simpler outlines: what a tolerance, a ratio and a budget leave out."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import same_rings, star_ring
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segenv.geometry import canonical, fit, mask_to_polygons, polygon_iou, polygons_to_mask, row_crossings, simplify

sizes = st.integers(1, 24)
masks = st.tuples(sizes, sizes).flatmap(lambda shape: arrays.arrays(bool, shape))


@given(mask=masks, tolerance=st.floats(0.1, 5))
def test_what_is_left_out_is_near_the_simpler_ring(mask, tolerance):
    """Within twice the tolerance: OpenCV drops vertices in two passes."""
    rings = mask_to_polygons(mask)
    simple = simplify(rings, tolerance)
    assert bool(simple) == bool(rings), "no object disappears"
    assert sum(map(len, simple)) <= sum(map(len, rings))
    for ring in rings if len(simple) == len(rings) else []:
        reduced = [new for new in simple if {tuple(v) for v in new} <= {tuple(v) for v in ring}]
        distances = [
            max(-cv2.pointPolygonTest(new.astype(np.float32), tuple(vertex), True) for vertex in ring)
            for new in reduced
        ]
        assert not reduced or min(distances) <= 2 * tolerance
    assert same_rings(mask_to_polygons(mask, tolerance), canonical(simple))


def test_the_ratio_is_of_each_rings_length():
    rng = np.random.default_rng(3)
    large, small = star_ring(rng, 640, 200, roughness=0.02), star_ring(rng, 640, 20, roughness=0.02)
    for ring in (large, small):
        contour = ring.astype(np.float32)
        expected = cv2.approxPolyDP(contour, 0.004 * cv2.arcLength(contour, True), True)[:, 0]
        (simple,) = simplify([ring], ratio=0.004)
        assert np.array_equal(simple, expected) and len(simple) < 100
    assert same_rings(
        simplify([large, small], ratio=0.004), [*simplify([large], ratio=0.004), *simplify([small], ratio=0.004)]
    )
    with pytest.raises(ValueError, match="tolerance is -1"):
        simplify([large], -1)


@settings(max_examples=50)
@given(mask=masks.filter(np.any), budget=st.integers(4, 60))
def test_a_budget_of_vertices_is_kept_and_used(mask, budget):
    rings = mask_to_polygons(mask)
    fitted = fit(rings, lambda some: sum(map(len, some)) <= budget)
    assert 3 <= sum(map(len, fitted)) <= budget
    if sum(map(len, rings)) <= budget:
        assert same_rings(fitted, rings), "nothing is lost where all fits"


def test_a_larger_budget_gives_a_better_outline():
    mask = polygons_to_mask([star_ring(np.random.default_rng(4), 200, 60, 80)], 200, 200)
    rings = mask_to_polygons(mask)
    ious = []
    for budget in (4, 12, 40, 120, 1000):
        fitted = fit(rings, lambda some, budget=budget: sum(map(len, some)) <= budget)
        ious.append(polygon_iou(fitted, mask))
    assert ious == sorted(ious) and ious[2] > 0.9 and ious[-1] == 1
    with pytest.raises(ValueError, match="no room for the coarsest outline"):
        fit(rings, lambda some: not some)


def test_a_hole_takes_no_vertices_that_the_outline_needs_more():
    mask = polygons_to_mask([star_ring(np.random.default_rng(4), 200, 60, 80)], 200, 200)
    holed = mask.copy()
    holed[97:104, 97:104] = False
    wide = mask.copy()
    wide[85:115, 85:115] = False

    def within(mask, budget):
        return fit(mask_to_polygons(mask), lambda some: sum(map(len, some)) <= budget)

    assert same_rings(within(holed, 12), within(mask, 12)), "all of them go to the outline"
    assert len(within(wide, 16)) == 2 and len(within(wide, 5)) == 1
    assert polygon_iou(within(wide, 16), wide) > polygon_iou(within(mask, 16), wide) + 0.05
    with pytest.raises(ValueError, match="no room"):
        fit([], lambda some: False)


def test_of_many_parts_as_many_are_kept_as_serve_best():
    mask = np.zeros((90, 150), bool)
    for k in range(15):
        y, x = 30 * (k // 5), 30 * (k % 5)
        mask[y + 2 : y + 22 + k % 3, x + 2 : x + 20 + k % 5] = True
    rings = mask_to_polygons(mask)
    for budget, least in ((16, 4), (32, 8), (48, 12)):
        kept = fit(rings, lambda some, budget=budget: sum(map(len, some)) <= budget)
        assert len(kept) == least, "four vertices each"


def test_an_outline_of_many_parts_is_fitted_in_few_trials():
    mask = np.random.default_rng(0).random((120, 120)) < 0.3
    mask[30:90, 30:90] = True
    rings, tried = mask_to_polygons(mask), []
    fit(rings, lambda some: tried.append(some) or sum(map(len, some)) <= 60)
    assert len(rings) > 500 and len(tried) < len(rings)


@given(mask=masks, apart=st.floats(0.3, 9), inset=st.floats(0.01, 3))
def test_crossings_of_rows_lie_on_the_ring_and_none_is_left_out(mask, apart, inset):
    rows = np.arange(apart / 2, 30, apart)
    for ring in mask_to_polygons(mask):
        low, high = ring[:, 1].min(), ring[:, 1].max()
        within = min(inset, (high - low) / 6)
        expected = [low + within, *rows[(rows > low + 2 * within) & (rows < high - 2 * within)], high - within]
        beside = ring[:, 1, None] < np.array(expected)
        count = int((beside != np.roll(beside, -1, axis=0)).sum())
        found = row_crossings([ring], rows, inset)
        assert bool(found) == (count > 2)
        if found:
            heights = found[0][:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((low + within, high - within))
        for points in found:
            assert len(points) <= count and set(np.round(points[:, 1], 6)) <= set(np.round(expected, 6))
            after = np.roll(ring, -1, axis=0)
            for x, y in points:
                low_x, high_x = np.minimum(ring, after)[:, 0], np.maximum(ring, after)[:, 0]
                on = (np.minimum(ring, after)[:, 1] <= y) & (y <= np.maximum(ring, after)[:, 1])
                assert (on & (low_x - 1e-6 <= x) & (x <= high_x + 1e-6)).any(), "edges of masks are upright or level"


def test_crossings_of_rows_keep_the_form_of_a_ring():
    y, x = np.mgrid[:80, :100]
    for inside in ((x - 50) ** 2 + (y - 40) ** 2 < 900, (abs(x - 50) < 30) & (abs(y - 40) < 25), abs(x - y - 10) < 9):
        rings = simplify(mask_to_polygons(inside), 1.0)
        found = row_crossings(rings, np.arange(2, 80, 4), 0.4)
        assert polygon_iou(found, inside) > 0.93
        assert all(np.array_equal(a, b) for a, b in zip(found, canonical(found), strict=True))
    assert row_crossings([], [3.0], 0.4) == [] and row_crossings([np.array([[0, 1], [5, 1], [9, 1]])], [1.0], 0.4) == []
