"""The simulated annotator: the published clicker's clicks, and the laws of its human-like variants."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segenv import annotator, metrics
from segenv.annotator import next_click
from segenv.types import Click

SHARED = Path(__file__).parents[2].parent / "shared"
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
masks = sizes.flatmap(
    lambda size: st.tuples(arrays(np.uint8, size, elements=st.sampled_from([0, 128, 255])), arrays(np.bool_, size))
)


def published_click(target: np.ndarray, prediction: np.ndarray, clicked: list[tuple[int, int]]) -> Click | None:
    """RITM's clicker word for word, with squared distances found by looking at every pair of pixels."""
    depths = []
    for error in ((target == 255) & ~prediction, (target == 0) & prediction):
        inside = np.argwhere(error)
        outside = np.argwhere(~np.pad(error, 1)) - 1
        depth = np.zeros(error.shape, int)
        if len(inside):
            depth[error] = ((inside[:, None] - outside[None]) ** 2).sum(-1).min(1)
        for x, y in clicked:
            depth[y, x] = 0
        depths.append(depth)
    missing, extra = depths
    positive = bool(missing.max() > extra.max())
    chosen = missing if positive else extra
    if not chosen.max():
        return None
    y, x = np.argwhere(chosen == chosen.max())[0]
    return Click(int(x), int(y), positive)


@settings(max_examples=300)
@given(masks, st.data())
def test_clicks_are_those_of_the_definition(pair, data):
    target, prediction = pair
    height, width = target.shape
    pixel = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    clicked = data.draw(st.lists(pixel, max_size=6))
    assert next_click(target, prediction, clicked) == published_click(target, prediction, clicked)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_crop_changes_no_click_on_large_errors(seed):
    """Blobs of every size, also at the border: the same click as from the distances of the whole padded image."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 160, 2)
    target, prediction = (np.zeros((height, width), np.uint8) for _ in range(2))
    for canvas in (target, prediction):
        for _ in range(rng.integers(1, 6)):
            centre, axes = rng.integers(0, (width, height)), rng.integers(2, 50, 2)
            cv2.ellipse(canvas, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    clicks: list[Click] = []
    for _ in range(4):
        depths = []
        for error in metrics.errors(target, prediction > 0):
            depth = cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[
                1:-1, 1:-1
            ]
            depth = np.rint(depth.astype(float) ** 2)
            for click in clicks:
                depth[click.y, click.x] = 0
            depths.append(depth)
        positive = depths[0].max() > depths[1].max()
        y, x = np.unravel_index(depths[0 if positive else 1].argmax(), target.shape)
        click = next_click(target, prediction > 0, clicks)
        assert click == (Click(int(x), int(y), bool(positive)) if max(depths[0].max(), depths[1].max()) else None)
        if click is None:
            break
        clicks.append(click)


def test_a_perfect_mask_has_no_next_click():
    target = np.zeros((9, 9), np.uint8)
    target[2:5, 2:5] = 255
    assert next_click(target, target == 255) is None
    assert all(get(target, target == 255, (), np.random.default_rng(0)) is None for get in map(annotator.make, SPECS))


def test_a_tie_is_negative():
    target, prediction = np.zeros((5, 9), bool), np.zeros((5, 9), bool)
    target[1:4, 1:4] = prediction[1:4, 5:8] = True
    assert next_click(target, prediction) == Click(6, 2, positive=False)


def test_what_lies_beyond_the_image_is_outside_the_error():
    """Without the rim, the deepest pixel of a full image would be a corner."""
    assert next_click(np.ones((7, 7), bool), np.zeros((7, 7), bool)) == Click(3, 3)


def test_ignored_pixels_attract_no_click():
    target = np.full((7, 7), 128, np.uint8)
    target[0, 0] = 255
    prediction = np.ones((7, 7), bool)
    prediction[0, 0] = False
    assert next_click(target, prediction) == Click(0, 0)
    prediction[0, 0] = True
    assert next_click(target, prediction) is None


def test_clicked_pixels_are_not_clicked_again_until_none_is_left():
    target, clicks = np.ones((3, 3), bool), []
    while (click := next_click(target, np.zeros((3, 3), bool), clicks)) is not None:
        clicks.append(click)
    assert clicks[0] == Click(1, 1) and len(set(clicks)) == len(clicks) == 9


def test_masks_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"target is \[3, 3\] and prediction \[3, 4\]"):
        next_click(np.ones((3, 3), bool), np.ones((3, 4), bool))


# ------------------------------------------------------------------------------------------------------------- variants

SPECS = [*annotator.VARIANTS, "jitter:sigma=2", "flip:p=1", "best-of:k=5", "worst-of:k=5"]


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=40)
@given(pair=masks, seed=st.integers(0, 2**32 - 1))
def test_every_variant_depends_on_its_seed_alone_and_clicks_within_the_image(spec, pair, seed):
    target, prediction = pair
    first, second = (annotator.make(spec)(target, prediction, (), np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    published = next_click(target, prediction)
    assert (first is None) == (published is None) or (spec == "grid" and first is None)  # its middles miss some errors
    if first is not None:
        assert 0 <= first.x < target.shape[1] and 0 <= first.y < target.shape[0]


@pytest.mark.parametrize("spec", ["ritm", "depth", "middle", "uniform", "best-of", "worst-of"])
@settings(max_examples=40)
@given(pair=masks, seed=st.integers(0, 2**32 - 1))
def test_careful_variants_click_errors_with_the_right_sign(spec, pair, seed):
    target, prediction = pair
    click = annotator.make(spec)(target, prediction, (), np.random.default_rng(seed))
    if click is not None:
        missing, extra = metrics.errors(target, prediction)
        assert (missing if click.positive else extra)[click.y, click.x]


def draws(spec: str, target: np.ndarray, count: int = 600) -> np.ndarray:
    """Depths of `count` first clicks of a variant, each from an empty mask."""
    annotate, rng = annotator.make(spec), np.random.default_rng(0)
    clicks = [annotate(target, np.zeros_like(target), (), rng) for _ in range(count)]
    depth = cv2.distanceTransform(np.pad(target, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.array([depth[click.y, click.x] for click in clicks])


def test_variants_are_as_deep_as_their_definitions():
    """On a disc: uniform clicks are shallower than those drawn by depth, the best of five deeper, the worst of five
    shallower."""
    target = np.zeros((61, 61), bool)
    target[np.hypot(*(np.indices(target.shape) - 30)) <= 25] = True
    mean = {spec: draws(spec, target).mean() for spec in ("uniform", "depth", "best-of:k=5", "worst-of:k=5")}
    assert mean["worst-of:k=5"] < mean["uniform"] < mean["depth"] < mean["best-of:k=5"]
    assert mean["uniform"] == pytest.approx(25 / 3, abs=0.9)  # of a cone: a third of its height
    assert mean["depth"] == pytest.approx(25 / 2, abs=0.9)  # ∫ depth² / ∫ depth over a cone: half of it
    assert draws("middle", target).min() > 25 / 2


def test_jitter_spreads_by_sigma_and_flip_turns_the_sign():
    target, empty, rng = np.ones((101, 101), bool), np.zeros((101, 101), bool), np.random.default_rng(0)
    xs = [annotator.make("jitter:sigma=6")(target, empty, (), rng).x for _ in range(600)]
    assert np.mean(xs) == pytest.approx(50, abs=1) and np.std(xs) == pytest.approx(6, abs=0.6)
    signs = [annotator.make("flip:p=0.25")(target, empty, (), rng).positive for _ in range(600)]
    assert np.mean(signs) == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize(
    "spec",
    [
        "ritmo",
        "jitter:sigma",
        "jitter:tau=1",
        "jitter:sigma=-1",
        "flip:p=2",
        "best-of:k=0",
        "best-of:k=nan",
        "depth:k=2",
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec):
    with pytest.raises(ValueError, match=f"annotator {spec!r}"):
        annotator.make(spec)


# --------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="needs ../shared/golden and ../shared/data/click")
def test_all_4080_clicks_of_the_published_clicker_are_ours():
    """Empty start, a tool that paints or erases the disc within 24 px of the click, 20 clicks, on 204 real masks."""
    image_module = pytest.importorskip("PIL.Image")
    golden = json.loads((SHARED / "golden/ritm_disc_clicks.json").read_text())
    index = json.loads((SHARED / "data/click/index.json").read_text())
    items = index if isinstance(index, list) else next(part for part in index.values() if isinstance(part, list))
    paths = {item["name"]: SHARED / "data/click" / item["mask"] for item in items}
    disc = np.hypot(*np.ogrid[-24:25, -24:25]) <= 24
    curves, seconds = [], 0.0
    for episode in golden["episodes"]:
        target = np.array(image_module.open(paths[episode["name"]]))
        canvas = np.zeros((target.shape[0] + 48, target.shape[1] + 48), bool)
        prediction, clicks, ious = canvas[24:-24, 24:-24], [], []
        for expected, iou in zip(episode["clicks"], episode["iou"], strict=True):
            began = time.thread_time()
            click = next_click(target, prediction, clicks)
            seconds += time.thread_time() - began
            assert [click.y, click.x, int(click.positive)] == expected, f"{episode['name']}, click {len(clicks) + 1}"
            clicks.append(click)
            canvas[click.y : click.y + 49, click.x : click.x + 49][disc] = click.positive
            ious.append(metrics.iou(target, prediction))
            assert round(ious[-1], 6) == iou
        curves.append(ious)
    for name, (mean, failures) in golden["summary"].items():
        threshold = int(name.removeprefix("noc")) / 100
        assert np.mean([metrics.noc(ious, threshold) for ious in curves]) == mean
        assert metrics.nof(curves, threshold, published=True) == failures
    assert sum(map(len, curves)) == 4080
    assert seconds / 4080 < 0.01, "a click takes 0.5 ms on a free core"
