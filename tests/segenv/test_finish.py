"""The finish: where it cuts, at which scale, and what the clicks allow it to change."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from segenv import metrics
from segenv.tools.finish import Finish
from segenv.tools.grabcut import places_of, shrink
from segenv.types import Click, Prompt

SHAPE = (240, 320)


def blob(x: float, y: float, radius: float) -> np.ndarray:
    """bool of `SHAPE`: a disc with a wavy edge, which a coarse grid cannot hold."""
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    angle = np.arctan2(rows - y, columns - x)
    return np.hypot(rows - y, columns - x) <= radius * (1 + 0.25 * np.sin(9 * angle))


def picture(target: np.ndarray) -> np.ndarray:
    """The target in one colour on another, with noise, uint8 [H, W, 3]."""
    noise = np.random.default_rng(3).normal(0, 12, (*target.shape, 3))
    return (np.where(target[..., None], (200, 90, 60), (70, 110, 150)) + noise).clip(0, 255).astype(np.uint8)


def coarse_logits(target: np.ndarray, cells: tuple[int, int] = (20, 15)) -> np.ndarray:
    """Logits as a tool of few cells gives them, sure of itself, float32 of the target's shape."""
    share = cv2.resize(target.astype(np.float32), cells, interpolation=cv2.INTER_AREA)
    return cv2.resize(12 * share - 5, target.shape[::-1], interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("radius", [14, 30])
def test_a_small_object_is_cut_at_a_finer_scale(radius: float) -> None:
    target = blob(70, 60, radius)
    prompt, finish = Prompt((Click(70, 60),)), Finish()
    found = finish.mask(picture(target), coarse_logits(target), prompt, SHAPE)
    whole = replace(finish, margin=9.0).mask(picture(target), coarse_logits(target), prompt, SHAPE)
    assert metrics.iou(target, found) > 0.97
    assert metrics.iou(target, found) > metrics.iou(target, whole) + 0.01
    assert metrics.iou(target, found) > metrics.iou(target, coarse_logits(target) > 0) + 0.1


def test_an_image_beyond_the_cut_s_size_gives_a_mask_of_its_own_shape() -> None:
    target = cv2.resize(blob(200, 120, 40).view(np.uint8), (960, 720), interpolation=cv2.INTER_NEAREST).astype(bool)
    small = picture(blob(200, 120, 40))
    found = Finish().mask(small, coarse_logits(blob(200, 120, 40)), Prompt((Click(600, 360),)), target.shape)
    assert found.shape == target.shape and metrics.iou(target, found) > 0.93


@pytest.mark.parametrize("number", [3, 4, 5, 9])
def test_a_settled_mask_changes_around_the_last_click_alone(number: int) -> None:
    left, right, finish = blob(80, 120, 40), blob(240, 120, 40), Finish()
    before = left | (right & (np.arange(SHAPE[1]) < 240))
    before[100:110, 60:70] = False  # an error far from the click
    clicks = (*(Click(80 - 3 * k, 130) for k in range(number - 1)), Click(262, 120))
    logits = coarse_logits(left | right)
    found = finish.mask(picture(left | right), logits, Prompt(clicks, mask=before, logits=logits), SHAPE)
    depth = cv2.distanceTransform((~before).view(np.uint8), cv2.DIST_L2, 5)[120, 262]
    rows, columns = np.nonzero(found != before)
    away = np.hypot(rows - 120, columns - 262)
    assert len(rows) and (away <= finish.spread * depth + 1e-6).all()
    near = np.hypot(*np.meshgrid(np.arange(SHAPE[1]) - 262, np.arange(SHAPE[0]) - 120)) < 40
    assert metrics.iou(right & near, found & near) > 0.95
    assert all(found[click.y, click.x] == click.positive for click in clicks)


def test_the_cut_begins_with_the_mask_that_has_settled() -> None:
    """What other clicks have made of it stays, though the tool's logits say otherwise."""
    both, finish = blob(150, 120, 40) | blob(190, 120, 30), Finish()
    image, logits = picture(both), coarse_logits(blob(150, 120, 40))
    clicks = tuple(Click(x, y) for x, y in ((150, 120), (140, 110), (150, 140), (195, 120), (210, 120)))
    before = both & ~blob(212, 120, 9)
    found = finish.mask(image, logits, Prompt(clicks, mask=before, logits=logits), SHAPE)
    assert metrics.iou(both, found) > max(metrics.iou(both, before), 0.97)


@pytest.mark.parametrize("x, y", [(0, 0), (319, 0), (0, 239), (319, 239)])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_corners_of_the_image_can_be_clicked(x: int, y: int, number: int) -> None:
    middle, corner, finish = blob(160, 120, 50), blob(x, y, 40), Finish()
    logits, image = coarse_logits(middle | corner), picture(middle | corner)
    clicks = (*(Click(150 + k, 120) for k in range(number - 1)), Click(x, y))
    prompt = Prompt(clicks) if number == 1 else Prompt(clicks, mask=middle, logits=logits)
    found = finish.mask(image, logits, prompt, SHAPE)
    assert found[y, x] and metrics.iou(corner, found & ~blob(160, 120, 70)) > 0.9


@pytest.mark.parametrize("shape", [(2000, 3), (2000, 2), (1000, 4), (3000, 23), (3, 2000), (1, 900), (900, 1), (2, 2)])
@pytest.mark.parametrize("number", [1, 3, 5, 7])
def test_thin_images_are_finished(shape: tuple[int, int], number: int) -> None:
    small = shrink(np.random.default_rng(2).integers(0, 255, (*shape, 3), np.uint8), Finish().size)
    logits = np.random.default_rng(number).normal(0, 8, small.shape[:2]).astype(np.float32)
    before = np.zeros(shape, bool)
    before[: shape[0] // 2 + 1, : shape[1] // 2 + 1] = True
    places = np.random.default_rng(5).integers(0, shape, (number, 2)).tolist()
    clicks = tuple(Click(x, y, positive=not before[y, x]) for y, x in places)
    prompt = Prompt(clicks) if number == 1 else Prompt(clicks, mask=before, logits=logits)
    found = Finish().mask(small, logits, prompt, shape)
    assert found.shape == shape and all(found[click.y, click.x] == click.positive for click in clicks[-1:])


@pytest.mark.parametrize("shape", [(2000, 3), (3, 2000), (480, 640), (1, 900), (900, 1)])
def test_a_window_around_a_click_holds_it(shape: tuple[int, int]) -> None:
    finish = Finish()
    scaled = shrink(np.zeros((*shape, 3), np.uint8), finish.size).shape[:2]
    for y, x in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 2)):
        rows, columns = finish._around(Click(x, y), 0.0, shape, scaled)
        [((at_x, at_y), _)] = places_of([Click(x, y)], shape, scaled)
        assert rows.start <= at_y < rows.stop <= scaled[0] and columns.start <= at_x < columns.stop <= scaled[1]
        assert rows.stop - rows.start <= 2 * finish.least * math.hypot(*shape) * scaled[0] / shape[0] + 3


def test_an_empty_and_a_full_mask_are_finished() -> None:
    image, finish = picture(blob(160, 120, 50)), Finish()
    for value in (-20.0, 20.0):
        logits = np.full(SHAPE, value, np.float32)
        found = finish.mask(image, logits, Prompt((Click(160, 120),)), SHAPE)
        assert found[120, 160] and math.isclose(found.mean(), float(value > 0), abs_tol=0.2)


def test_from_a_box_alone_the_tool_s_mask_stays_where_the_cut_loses_it() -> None:
    """What it is sure of is not where the colours of its mask are: all else in the box looks like what lies outside."""
    target, finish = blob(160, 120, 60), Finish(certain=0.99999)
    image = np.full((*SHAPE, 3), 90, np.uint8)
    image[110:130, 150:170] = 220
    logits = np.where(target, 6.0, -20.0).astype(np.float32)
    box = metrics.box_of(target)
    found = finish.mask(image, logits, Prompt(box=box), SHAPE)
    assert metrics.iou(target, found) > 0.9
    clicked = finish.mask(image, logits, Prompt((Click(160, 120),), box=box), SHAPE)
    assert clicked.sum() < target.sum() / 2, "with a click, the cut decides"
