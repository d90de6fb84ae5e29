"""What the agent sees is exact to the grey level; what persons see shows what it should."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segenv import render
from segenv.types import Click, Task


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from([0.5, 0.0, 1.0, 0.25, 0.3]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_overlay_equals_the_formula(
    height: int, width: int, color: tuple[int, int, int], alpha: float, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.random((height, width)) < density
    before = image.copy()
    blend = np.rint(image * (1 - alpha) + np.array(color) * alpha).astype(np.uint8)
    np.testing.assert_array_equal(render.overlay(image, mask, color, alpha), np.where(mask[..., None], blend, image))
    np.testing.assert_array_equal(image, before)


def test_overlay_is_green_at_half_and_equals_opencv() -> None:
    image = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    green = np.zeros_like(image) + np.array((0, 255, 0), np.uint8)
    made = render.overlay(image, np.ones((16, 16), bool))
    np.testing.assert_array_equal(made, cv2.addWeighted(image, 0.5, green, 0.5, 0))


def test_overlay_never_shares_memory_and_takes_read_only_views(task: Task) -> None:
    for mask in (np.zeros((48, 64), bool), task.target, task.target.astype(np.uint8) * 255, task.target.T.copy().T):
        assert not np.shares_memory(render.overlay(task.image, mask), task.image)
    with pytest.raises(ValueError, match=r"mask is \[48, 63\] but the image is \[48, 64, 3\]"):
        render.overlay(task.image, task.target[:, 1:])


def test_a_frame_shows_mask_clicks_target_and_caption(task: Task) -> None:
    """The scale is 8, so the middle of pixel (x, y) lies at (8x + 4, 8y + 4)."""
    plain = render.frame(task.image, size=512)
    assert plain.shape == (48 * 8 + render.CAPTION, 512, 3)
    assert (plain[48 * 8 :] == 255).all(), "no caption, no ink"
    np.testing.assert_array_equal(plain[: 48 * 8 : 8, ::8], task.image)

    shown = render.frame(task.image, task.target, [Click(30, 10), Click(5, 40, False)], task.target, "IoU 1.000")
    assert shown.shape == plain.shape
    blend = np.rint(task.image[20, 40] / 2 + np.array(render.MASK) / 2)
    np.testing.assert_array_equal(shown[20 * 8 + 4, 40 * 8 + 4], blend)
    # beside the number that is written on it
    np.testing.assert_array_equal(shown[10 * 8 + 4, 30 * 8 - 1], render.POSITIVE)
    np.testing.assert_array_equal(shown[40 * 8 + 4, 5 * 8 - 1], render.NEGATIVE)
    edge = shown[20 * 8 + 4, 24 * 8 : 32 * 8]
    assert (edge == render.OUTLINE).all(axis=-1).any(), "the target's left edge is at x = 28"
    assert (shown[48 * 8 :] < 128).any()


def test_a_frame_ignores_what_the_target_ignores(tasks: list[Task]) -> None:
    """In the third task a ring around the object is ignored: the outline runs inside of it."""
    ignored = tasks[2]
    shown = render.frame(ignored.image, target=ignored.target, size=320)[:320]
    outline = np.argwhere((shown == render.OUTLINE).all(axis=-1)) / 10
    assert np.hypot(*(outline - 16.5).T).max() < 7.5


def test_a_long_caption_is_cut_not_spilled(task: Task) -> None:
    cut = render.frame(task.image, caption="a red bus " * 40, size=200)[-render.CAPTION :]
    assert (cut[:, -4:] == 255).all() and (cut[:, :150] < 128).any()


def test_a_filmstrip_has_one_frame_a_step(task: Task) -> None:
    masks = [np.zeros((48, 64), bool), task.target, task.target]
    clicks = [[Click(1, 1, False)], [Click(1, 1, False), Click(40, 20)], [Click(1, 1, False), Click(40, 20)]]
    strip = render.filmstrip(task, masks, clicks, columns=3, size=128)
    height = 96 + render.CAPTION
    assert strip.shape == (2 * height + 6, 3 * 128 + 2 * 6, 3)
    last = strip[height + 6 :, 134 : 134 + 128]
    np.testing.assert_array_equal(
        last, render.frame(task.image, masks[2], clicks[2], task.target, "step 3: IoU 1.00", 128)
    )
    assert (strip[height + 6 :, 268:] == 255).all(), "five frames leave the sixth place empty"
    with pytest.raises(ValueError, match="3 masks and 2 lists of clicks"):
        render.filmstrip(task, masks, clicks[:2])


def test_without_a_display_a_frame_is_written_to_the_terminal() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:20] = (255, 0, 0)
    stream = io.StringIO()
    render.show(picture, stream, columns=10)
    lines = stream.getvalue().splitlines()
    assert [len(re.findall("▀", line)) for line in lines] == [10] * 5
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m▀") and lines[-1].startswith(
        "\x1b[38;2;0;0;0;48;2;0;0;0m▀"
    )
