"""Masks as grids of labels: what comes back, replies that break off, and what is no grid."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segenv import codec
from segenv.codec.grids import cells_of
from segenv.geometry import polygons_to_mask
from segenv.types import Box, Click, Invalid, Polygons
from tests.segenv.test_codec import SCENE, Scene

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda shape: arrays.arrays(bool, shape))


@settings(max_examples=30)
@given(mask=masks, grid=st.integers(1, 20))
def test_the_cells_of_a_mask_come_back(mask, grid):
    spoken, scene = codec.make(f"text4seg:grid={grid}"), Scene(*mask.shape)
    read = spoken.read(spoken.format(spoken.outline(mask), scene), scene)
    assert isinstance(read.action, Polygons) and read.exact and not read.action.truncated
    assert read.action == spoken.outline(mask)
    if mask.shape[0] % grid == mask.shape[1] % grid == 0:  # cells of whole pixels
        drawn = polygons_to_mask(read.action.rings, *mask.shape)
        assert np.array_equal(cells_of(drawn, grid), cells_of(mask, grid))


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (2160, 3840)])
def test_odd_sizes(size):
    spoken, mask = codec.make("text4seg"), np.ones(size, bool)
    read = spoken.parse(spoken.format(spoken.outline(mask), Scene(*size)), Scene(*size))
    assert polygons_to_mask(read.rings, *size).all()


def test_what_a_grid_says_and_the_ways_to_write_it():
    spoken, scene = codec.make("text4seg:grid=2"), Scene(4, 8)
    expected = spoken.parse("others *1, target *1\nothers *2", scene)
    assert [ring.tolist() for ring in expected.rings] == [[[4, 0], [4, 2], [8, 2], [8, 0]]]
    for text in (
        "<seg>others*1 | red cup*1\nothers*2</seg>",
        "others *1, target *1, others *2",
        "Here it is:\n```\nothers *1, target *1\nothers *2\n```",
        "Row 1: others *1, target *1\n\nRow 2: others *2",
    ):
        assert spoken.parse(text, scene) == expected, text
    assert spoken.parse("others *2\nothers *2", scene) == Polygons(()) == spoken.parse("**No object found**", scene)
    assert "2 x 2 cells" in spoken.prompt(scene) and "the left cat" in spoken.prompt(scene)
    assert spoken.parse(spoken.format(Click(3, 1), scene), scene) == Click(3, 1)
    assert spoken.parse(spoken.format(Box(0, 0, 4, 2), scene), scene) == Box(0, 0, 4, 2)


def test_a_reply_that_breaks_off_gives_its_whole_rows():
    spoken = codec.make("text4seg")
    text = spoken.format(spoken.outline(np.ones((480, 640), bool)), SCENE)
    half = spoken.parse("\n".join(text.split("\n")[:8]), SCENE)
    assert half.truncated and polygons_to_mask(half.rings, 480, 640).sum() == 240 * 640


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("others *17\nothers *16", "row 1 of `others *17 others *16` fills 17 cells; expected 16 rows of 16"),
        ("others *16\n" * 17, "17 rows; expected 16 rows"),
        ("others *257", "the reply fills 257 cells; expected 256"),
        ("a * b", "no list in"),
        ("others *16\nothers *5; target *11\nothers *16", "`others *5; target *11` between two rows is none"),
        ("nothing here", "no list in"),
    ],
)
def test_what_is_no_grid_is_invalid(text, reason):
    action = codec.make("text4seg").parse(text, SCENE)
    assert isinstance(action, Invalid) and reason in action.reason


@pytest.mark.parametrize(
    "piece",
    [
        "a*1,",
        "*",
        "a*1\n",
        "others *16\n",
        "|",
        "a" * 60 + "*",
        "9*9",
        " *",
        "\n",
        "[[0.1, 0.1], [0.2, 0.5], [0.9, 0.3]], ",
    ],
)
def test_no_100_kb_of_text_takes_long(piece):
    """As in `test_codec.py`, told apart from seconds."""
    spoken, text, best = codec.make("text4seg:grid=256"), piece * (100_000 // len(piece)), float("inf")
    for _ in range(8):
        began = time.thread_time()
        spoken.read(text, SCENE)
        best = min(best, time.thread_time() - began)
        if best < 0.1:
            break
    assert best < 0.1


def test_a_budget_that_is_too_small_and_a_grid_that_is_none_say_so():
    with pytest.raises(ValueError, match="expected a coarser grid"):
        codec.make("text4seg").reply(np.ones((9, 9), bool), Scene(9, 9), 50)
    for grid in (0, 257):
        with pytest.raises(ValueError, match="expected 1 to 256 cells"):
            codec.make(f"text4seg:grid={grid}")
