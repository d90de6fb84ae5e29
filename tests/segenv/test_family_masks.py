"""Codecs of clicks that outline masks, and answer the questions of their families."""

from __future__ import annotations

import numpy as np
import pytest

from segenv import codec, queries
from segenv.codec.polygons import of_family
from segenv.geometry import polygon_iou
from segenv.types import Box, Click, Polygons, Task
from tests.segenv.test_codec import SCENE, Scene, grid


@pytest.mark.parametrize("spec", [spec for spec in codec.CODECS if spec != "segagent"])
def test_a_family_outlines_masks_and_answers_its_own_questions(spec):
    """Every family draws polygons in its own frame and order, and its boxes and points answer the tasks of these."""
    mask = np.zeros((480, 640), bool)
    mask[100:300, 200:400] = True
    mask[150:200, 250:300] = False
    task = Task("a", np.zeros((480, 640, 3), np.uint8), mask, "red cup")
    clicks = codec.make(spec)
    spoken = of_family(clicks)
    read = spoken.read(spoken.format(spoken.outline(mask), SCENE), SCENE)
    assert read.exact and polygon_iou(read.action.rings, mask, read.action.union) > 0.99
    for asked, kind in (("box", Box), ("point", Click)):
        query = queries.query(task, spoken, "text", asked)
        own = clicks.grammar.questions.get(asked)
        assert "red cup" in query.prompt and (own is None or query.prompt == own.format("red cup"))
        template = clicks.grammar.answers.get(asked)
        if template is None:
            text = clicks.format(query.answer, SCENE)
        else:
            write = clicks.points.write_point if asked == "point" else clicks.boxes.write_box
            text = template.format(*write(query.answer, SCENE), label="red cup")
        assert isinstance(queries.read(text, task, spoken, asked), kind)
        found = clicks.read(text, SCENE, asked=asked)
        assert found.exact and not found.extra


def test_what_asks_for_a_point_is_answered_by_the_point_of_an_object():
    answer = '<think>a</think><answer>[{"bbox_2d": [210, 0, 420, 840], "point_2d": [315, 420]}]</answer>'
    spoken = codec.make("seg-zero")
    assert spoken.read(answer, SCENE, asked="point").action == Click(240, 240)
    assert spoken.read(answer, SCENE, asked="box").action == Box(160, 0, 320, 480) == spoken.parse(answer, SCENE)
    with pytest.raises(ValueError, match="counts points and boxes differently"):
        of_family(codec.make("segagent"))


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (2160, 3840)])
@pytest.mark.parametrize("spec", [spec for spec in codec.CODECS if spec != "segagent"])
def test_masks_of_odd_sizes_come_back_within_a_grid_step(spec, size):
    spoken, scene = of_family(codec.make(spec)), Scene(*size)
    corners = np.array([(0, 0), (0, size[0]), (size[1] / 3, size[0]), (size[1] / 3, 0)])
    read = spoken.read(spoken.format(Polygons((corners,)), scene), scene)
    steps = np.array([float(step) for step in grid(spoken.points, scene)])
    apart = np.abs(corners[:, None] - read.action.rings[0][None]) / steps  # repeats on the grid are dropped
    assert read.exact and (apart.max(axis=2).min(axis=1) <= 0.5 + 1e-6).all()


def test_where_points_and_boxes_count_differently_each_is_asked_for_in_its_own_numbers():
    task = Task("a", np.zeros((1000, 2000, 3), np.uint8), np.ones((1000, 2000), bool), "red cup")
    point, box = (
        queries.query(task, of_family(codec.make("segagent"), asked), asked=asked).prompt for asked in ("point", "box")
    )
    assert "`[y, x]`" in point and "0..1000" in point and "`[x0, y0, x1, y1]`" in box and "0..999" in box
    spoken = of_family(codec.make("segagent"), "box")
    assert queries.read("[0, 0, 999, 500]", task, spoken, "box") == Box(0, 0, 2000, 500000 / 999)
    assert queries.read("[250, 500]", task, spoken, "point") == Click(1000, 250)
    assert queries.read(spoken.format(Click(1500, 250), task), task, spoken, "point") == Click(1500, 250)


def test_a_mask_is_drawn_in_the_size_that_the_model_saw():
    mask = np.zeros((480, 640), bool)
    mask[:240, :320] = True
    spoken = of_family(codec.make("qwen2.5-vl")).seen_at(lambda width, height: (64, 48))
    text = spoken.format(spoken.outline(mask), SCENE)
    assert text == "[[[0, 0], [0, 24], [32, 24], [32, 0]]]"
    assert polygon_iou(spoken.parse(text, SCENE).rings, mask) == 1
    assert spoken.read('{"bbox_2d": [0, 0, 32, 24]}', SCENE, asked="box").action == Box(0, 0, 320, 240)
    assert not spoken.read(text.replace(" ", ""), SCENE).exact and spoken.read(text, SCENE).exact
