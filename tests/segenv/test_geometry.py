"""Polygons and masks: round trips and invariances as laws, COCO's rasteriser as the judge, and every odd ring."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import same_rings, star_ring
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from segenv import geometry, metrics
from segenv.geometry import canonical, mask_to_polygons, polygon_iou, polygon_ious, polygons_to_mask, simplify
from segenv.geometry.rasterize import PackedMask
from segenv.geometry.rle import segmentation_mask

sizes = st.integers(1, 24)
masks = st.tuples(sizes, sizes).flatmap(lambda shape: arrays.arrays(bool, shape))
targets = st.tuples(sizes, sizes).flatmap(
    lambda shape: arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 128, 255]))
)
places = st.integers(-5, 30) | st.integers(-50, 300).map(lambda tenths: tenths / 10) | st.floats(-5, 30, width=32)
rings = st.lists(st.tuples(places, places), max_size=8)
polygons = st.lists(rings, max_size=4)


def coco_mask(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    return coco.decode(coco.frPyObjects([np.ravel(ring).tolist()], height, width))[..., 0].astype(bool)


# --- there and back ---------------------------------------------------------------------------------------------------


@given(mask=masks)
def test_a_mask_comes_back_with_its_holes_and_parts(mask):
    outlines = mask_to_polygons(mask)
    assert np.array_equal(polygons_to_mask(outlines, *mask.shape), mask)
    assert polygon_iou(outlines, mask) == 1
    assert bool(outlines) == mask.any()
    for ring in outlines:
        assert len(ring) >= 4 and len(ring) % 2 == 0
        steps = np.roll(ring, -1, axis=0) - ring
        assert (np.count_nonzero(steps, axis=1) == 1).all(), "along pixel edges"
        assert (np.count_nonzero(steps + np.roll(steps, 1, axis=0), axis=1) == 2).all(), "turning in every vertex"


def test_each_part_and_each_hole_is_a_ring():
    mask = np.zeros((12, 12), bool)
    mask[1:9, 1:9] = True
    mask[3:7, 3:7] = False
    mask[4:6, 4:6] = True  # an island in the hole
    mask[9, 9] = True  # touches the frame at a corner
    first, hole, island, pixel = mask_to_polygons(mask)
    assert first.tolist() == [[1, 1], [1, 9], [9, 9], [9, 1]]
    assert hole.tolist() == [[3, 3], [3, 7], [7, 7], [7, 3]]
    assert island.tolist() == [[4, 4], [4, 6], [6, 6], [6, 4]]
    assert pixel.tolist() == [[9, 9], [9, 10], [10, 10], [10, 9]]


def test_labels_of_a_target_and_masks_of_zeros_and_ones():
    target = np.array([[0, 255, 128], [1, 255, 0]], np.uint8)
    assert np.array_equal(polygons_to_mask(mask_to_polygons(target), 2, 3), [[False, True, False], [True, True, False]])
    assert polygon_iou(mask_to_polygons(target), target) == 1


def test_every_real_mask_comes_back(shared_data: Path):
    click, annotations = shared_data / "click", shared_data / "coco/annotations/instances_train2017_mini.json"
    found = [np.asarray(Image.open(click / entry["mask"])) for entry in json.loads((click / "index.json").read_text())]
    listed = json.loads(annotations.read_text())
    sides = {image["id"]: (image["height"], image["width"]) for image in listed["images"]}
    found += [segmentation_mask(entry["segmentation"], *sides[entry["image_id"]]) for entry in listed["annotations"]]
    assert len(found) == 204 + 923
    for mask in found:
        outlines = mask_to_polygons(mask)
        back = polygons_to_mask(outlines, *mask.shape)
        assert np.array_equal(back, mask if mask.dtype == bool else mask == 255)
        assert polygon_iou(outlines, mask) == 1


# --- canonical order --------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(mask=masks, polygons=polygons, data=st.data())
def test_canonical_order_forgets_how_rings_were_written(mask, polygons, data):
    for given_ in (mask_to_polygons(mask), [ring for ring in polygons if ring]):
        shuffled = []
        for ring in data.draw(st.permutations(given_)):
            turned = np.roll(np.asarray(ring, float), data.draw(st.integers(0, 9)), axis=0)
            repeated = np.repeat(turned, data.draw(st.integers(1, 2)), axis=0)
            shuffled.append(repeated[:: data.draw(st.sampled_from([1, -1]))])
        assert same_rings(canonical(shuffled), canonical(given_))
    assert same_rings(canonical(mask_to_polygons(mask)), mask_to_polygons(mask)), "traced in canonical order"


def test_the_first_vertex_is_on_top_and_the_next_one_down_the_left_side():
    square = [(5, 1), (5, 4), (1, 4), (1, 1)]
    (ring,) = canonical([square])
    assert ring.tolist() == [[1, 1], [1, 4], [5, 4], [5, 1]], "counterclockwise on the screen"
    x, y = ring.T
    assert x @ np.roll(y, -1) - y @ np.roll(x, -1) < 0, "clockwise where the same numbers are read with y up"
    (ring,) = canonical([square], clockwise=True)
    assert ring.tolist() == [[1, 1], [5, 1], [5, 4], [1, 4]]
    small = [(8, 0), (9, 0), (9, 1)]
    assert [len(ring) for ring in canonical([small, square])] == [4, 3], "the largest first"


# --- IoU without a raster ---------------------------------------------------------------------------------------------


@given(polygons=polygons, target=targets, union=st.booleans())
def test_the_iou_is_that_of_the_raster(polygons, target, union):
    """For any rings: beyond the image, crossing themselves, of one vertex or none, and with ignored pixels."""
    raster = polygons_to_mask(polygons, *target.shape, union=union)
    for empty in (1.0, 0.0):
        expected = metrics.iou(target, raster, empty=empty)
        assert polygon_iou(polygons, target, union, empty) == expected
        assert polygon_iou(polygons, PackedMask(target), union, empty) == expected


@settings(max_examples=40)
@given(batch=st.lists(polygons, max_size=6), data=st.data(), union=st.booleans())
def test_a_batch_is_its_items(batch, data, union):
    some = [data.draw(targets) for _ in range(2)]
    chosen = [some[data.draw(st.integers(0, 1))] for _ in batch]
    one = [polygon_iou(item, some[0], union) for item in batch]
    each = [polygon_iou(item, mask, union) for item, mask in zip(batch, chosen, strict=True)]
    assert polygon_ious(batch, some[0], union).tolist() == one
    assert polygon_ious(batch, PackedMask(some[0]), union).tolist() == one
    assert polygon_ious(batch, chosen, union).tolist() == each


@pytest.mark.parametrize("union", [False, True])
def test_batches_that_take_many_turns_and_large_images(union):
    """More crossings than one turn takes, and more places than 32 bits number."""
    rng = np.random.default_rng(0)
    large = np.zeros((4000, 3000), bool)
    large[500:2500, 300:2000] = True
    batch = [[star_ring(rng, 3000, 900 if i % 50 == 0 else 60), star_ring(rng, 3000, 50)] for i in range(200)]
    packed = PackedMask(large)
    assert polygon_ious(batch, packed, union).tolist() == [polygon_iou(item, packed, union) for item in batch]


def test_one_mask_or_one_for_each():
    with pytest.raises(ValueError, match="2 polygons and 1 masks; expected one mask, or one for each"):
        polygon_ious([[], []], [np.zeros((2, 2), bool)])


# --- COCO's rasteriser ------------------------------------------------------------------------------------------------


def test_the_pixels_are_cocos():
    """Rings of any kind, some of them beyond the image. Where COCO's own rounding decides a tie, a pixel may differ."""
    rng = np.random.default_rng(1)
    wrong = covered = 0
    for i in range(600):
        height, width = rng.integers(1, 150, 2)
        whole, parts = rng.integers(-10, 160, (rng.integers(3, 15), 2)), rng.uniform(-30, 180, (rng.integers(3, 15), 2))
        ring = (whole.astype(float), parts, np.round(parts, 1))[i % 3]
        expected = coco_mask(ring, height, width)
        wrong += np.count_nonzero(expected != polygons_to_mask([ring], height, width))
        covered += np.count_nonzero(expected)
    assert covered > 800_000 and wrong <= 20


@pytest.mark.parametrize("size", [640, 1024])
def test_ious_agree_with_cocos_for_polygons_without_holes(size):
    rng = np.random.default_rng(2)
    target = np.zeros((size, size), np.uint8)
    cv2.ellipse(target, (size // 2, size // 2), (size // 4, size // 5), 30, 0, 360, 1, -1)
    encoded = [coco.encode(np.asfortranarray(target))]
    outlines = [star_ring(rng, size, size * rng.uniform(0.03, 0.3), roughness=rng.uniform(0, 0.3)) for _ in range(60)]
    outlines += [ring for tolerance in (0.5, 1, 3) for ring in mask_to_polygons(target.astype(bool), tolerance)]
    drawn = coco.frPyObjects([ring.ravel() for ring in outlines], size, size)
    ious = polygon_ious([[ring] for ring in outlines], target)
    assert np.abs(coco.iou(drawn, encoded, [0])[:, 0] - ious).max() <= 1e-5
    own = [
        polygon_iou([ring], np.ascontiguousarray(coco.decode(rle))) for ring, rle in zip(outlines, drawn, strict=True)
    ]
    assert min(own) >= 1 - 1e-5, "also with a mask that COCO drew from the ring itself"


@given(polygons=st.lists(rings.filter(lambda ring: len(ring) > 2), min_size=1, max_size=4))
def test_union_joins_what_each_ring_covers(polygons):
    alone = [polygons_to_mask([ring], 20, 30) for ring in polygons]
    assert np.array_equal(polygons_to_mask(polygons, 20, 30, union=True), np.any(alone, axis=0))
    assert np.array_equal(polygons_to_mask(polygons, 20, 30), np.logical_xor.reduce(alone))


@settings(max_examples=50)
@given(mask=masks)
def test_run_lengths_are_those_that_pycocotools_writes(mask):
    outlines = mask_to_polygons(mask)
    rle = geometry.polygons_to_rle(outlines, *mask.shape)
    assert rle["counts"] == coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()
    assert same_rings(geometry.rle_to_polygons(rle), outlines)
    ends = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    counts = np.diff(ends, prepend=0, append=mask.size).tolist()
    assert same_rings(geometry.rle_to_polygons({"size": list(mask.shape), "counts": counts}), outlines)


@settings(max_examples=50)
@given(mask=masks)
def test_a_coco_segmentation_covers_the_same_pixels(mask):
    segmentation = geometry.polygons_to_coco(mask_to_polygons(mask), *mask.shape)
    assert np.array_equal(segmentation_mask(segmentation, *mask.shape), mask)


# --- odd rings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ring",
    [
        [],
        [(3, 3)],
        [(1, 1), (8, 8)],
        [(2, 2)] * 9,
        [(1, 1), (5, 5), (9, 9), (5, 5)],
        np.zeros((0, 2)),
        [(2, 0), (2, 9)],
    ],
    ids=["empty", "one vertex", "two", "repeated", "back and forth", "empty array", "upright"],
)
def test_rings_without_area_cover_nothing(ring):
    mask = np.ones((10, 10), bool)
    assert not polygons_to_mask([ring], 10, 10).any()
    assert polygon_iou([ring], mask) == 0 and polygon_iou([ring], ~mask) == 1
    assert polygon_iou([ring, [(0, 0), (0, 10), (10, 10), (10, 0)]], mask) == 1
    assert simplify(canonical([ring]), 2.0) is not None and geometry.polygons_to_coco([ring], 10, 10)


def test_what_two_loops_share_is_not_covered_and_repeats_change_nothing():
    twice = [(0, 0), (0, 6), (6, 6), (6, 0), (0, 0), (0, 3), (3, 3), (3, 0)]
    mask = polygons_to_mask([twice], 6, 6)
    assert not mask[:3, :3].any() and mask.sum() == 27
    bow = [(0, 0), (6, 6), (6, 0), (0, 6)]
    assert np.array_equal(polygons_to_mask([bow], 6, 6), polygons_to_mask([np.repeat(bow, 3, axis=0)], 6, 6))
    square = [(0, 0), (0, 6), (6, 6), (6, 0)]
    assert not polygons_to_mask([square, square], 6, 6).any()
    assert polygons_to_mask([square, square], 6, 6, union=True).all()


@given(polygons=polygons, dx=st.integers(0, 7), dy=st.integers(0, 7))
def test_whole_pixels_move_the_mask_with_the_rings(polygons, dx, dy):
    """For rings on COCO's fifths of a pixel, which no rounding touches, to the right of 0 and below it."""
    fifths = [[(round(5 * abs(x)) / 5, round(5 * abs(y)) / 5) for x, y in ring] for ring in polygons]
    moved = [[(x + dx, y + dy) for x, y in ring] for ring in fifths]
    here, there = polygons_to_mask(fifths, 40, 40), polygons_to_mask(moved, 47, 47)
    assert np.array_equal(there[dy : dy + 40, dx : dx + 40], here)


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[(0, 0), (float("nan"), 1), (2, 2)]], r"vertex \[nan, 1.0\]; expected pixels"),
        ([[(0, 0), (1, float("inf")), (2, 2)]], r"vertex \[1.0, inf\]"),
        ([[(0, 0), (1e9, 1), (2, 2)]], r"vertex \[1000000000.0, 1.0\]"),
        ([[0, 0, 1, 1, 2, 2]], r"a ring is \[6\]; expected a list of rings"),
        ([[[(0, 0), (1, 1)]]], r"a ring is \[1, 2, 2\]"),
    ],
)
def test_what_is_no_ring_says_so(polygons, message):
    with pytest.raises(ValueError, match=message):
        polygon_iou(polygons, np.ones((4, 4), bool))
    with pytest.raises(ValueError, match=message):
        polygons_to_mask(polygons, 4, 4)


@pytest.mark.parametrize("mask", [np.zeros((2, 2), int), np.zeros(4, bool), np.zeros((2, 2, 1), np.uint8)])
def test_what_is_no_mask_says_so(mask):
    for call in (mask_to_polygons, PackedMask):
        with pytest.raises(ValueError, match=r"expected bool or uint8 \[H, W\]"):
            call(mask)


def test_masks_in_any_memory_order_and_read_only():
    mask = polygons_to_mask([star_ring(np.random.default_rng(5), 60, 20, 30)], 60, 50)
    outlines = mask_to_polygons(mask)
    for same_mask in (np.asfortranarray(mask), np.repeat(mask, 2, axis=1)[:, ::2], mask[::-1][::-1], mask.copy()):
        same_mask.setflags(write=False)
        assert same_rings(mask_to_polygons(same_mask), outlines)
        assert polygon_iou(outlines, same_mask) == polygon_iou(outlines, same_mask.view(np.uint8)) == 1


def test_images_without_pixels():
    for shape in ((0, 0), (0, 5), (5, 0)):
        empty = np.zeros(shape, bool)
        assert mask_to_polygons(empty) == []
        assert polygons_to_mask([[(0, 0), (0, 3), (3, 3)]], *shape).shape == shape
        assert polygon_iou([[(0, 0), (0, 3), (3, 3)]], empty) == 1


@pytest.mark.slow
def test_polygon_iou_is_faster_than_pycocotools():
    from experiments.benchmark import geometry as benchmark_geometry

    for kind, roughness in (("smooth", 0.0), ("rough", 0.1)):
        rows = [row for row in benchmark_geometry.ious(kind, roughness, 0.5) if row.passed is not None]
        assert len(rows) == 2 and all(row.ratio > 1.5 for row in rows)  # the page asks for more, on a machine at rest
