"""Training examples of the embedded model are true, and depend on their number alone."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from agents.training.auxiliary_heads import _squares_loss
from agents.training.click_examples import (
    COLOUR_NAMES,
    SHAPE_NAMES,
    ClickExamples,
    Mixture,
    Rollout,
    correct_action,
    distorted_mask,
    rotated,
    steady_click,
    turned,
)
from agents.training.patch_labels import FINE, fine_shares, leading_digits
from segenv import annotator, codec, metrics, tools
from segenv.codec import polygons
from segenv.data.synthetic.scenes import KINDS, Synthetic, expressions
from segenv.mdp import SegMDP
from segenv.types import Click, Stop, Task

MIXED = Mixture(first=2, trajectory=2, cheap=2, crossed=2)
CODEC = codec.make("segagent")


@pytest.fixture(scope="module")
def examples():
    return ClickExamples(MIXED, Rollout(tools.make("disc")), image_size=64, grid=4, seed=3)


@pytest.mark.parametrize("i", range(6))
def test_an_example_depends_on_its_number_alone(examples, i):
    one, other = (
        examples[i],
        ClickExamples(MIXED, Rollout(tools.make("disc")), image_size=64, grid=4, seed=3, window=400)[i],
    )
    assert np.array_equal(one.pictures, other.pictures)
    assert [q.reply for q in one.questions] == [q.reply for q in other.questions]
    assert not np.array_equal(one.pictures[0], examples[i + 6].pictures[0])


@pytest.mark.parametrize("i", range(12))
def test_replies_state_the_true_iou_and_what_the_patches_show(examples, i):
    example = examples[i]
    for question in example.questions:
        assert abs(CODEC.stated_iou(question.reply) - question.iou) <= 0.005 + 1e-9
        target, missing, extra = question.shares
        both = target - missing  # the part of the target that the mask holds
        assert both.sum() / (target.sum() + extra.sum()) == pytest.approx(question.iou, abs=1e-3)
        assert example.masks[question.picture].mean(1) == pytest.approx(both + extra, abs=1e-4)
        if question.reply.endswith("Finish"):
            assert question.iou >= examples.stop_iou and question.click == -1
            assert not question.places[:, 0].any()
        else:
            assert (missing if "Positive" in question.reply else extra)[question.click] > 0
            assert np.flatnonzero(question.places[:, 0]).tolist() == [question.click]
            row, column = map(int, re.findall(r"[0-9]+", question.reply)[-2:])
            assert question.places[question.click, 1:].tolist() == [*leading_digits(row), *leading_digits(column)]


def test_a_mask_is_asked_about_for_its_own_object_and_for_another(examples):
    for example in (examples[i] for i in range(6)):
        own, crossed = example.questions[:-2], example.questions[-2:]
        for question in crossed:
            (same,) = [q for q in own if q.picture == question.picture]
            assert question.picture > 0 and not np.array_equal(question.shares[0], same.shares[0])


@given(st.integers(0, 500), st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_turning_a_scene_keeps_what_is_true_of_it(number, turn):
    scene = Synthetic("train").scene(number)
    moved = rotated(scene, turn)
    for k, thing in enumerate(moved.objects):
        rows, columns = np.nonzero(moved.instances == k + 1)
        assert thing.centre == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))
        assert thing.area == len(rows)
    sideways = {"leftmost", "rightmost", "topmost", "bottommost"}
    for k in range(len(scene.objects)):
        plain, after = (
            {text for text in expressions(s, k) if not sideways & set(text.split())} for s in (scene, moved)
        )
        if not any(sideways & set(text.split()) for s in (scene, moved) for text in expressions(s, k)):
            assert plain == after


def test_a_mirror_exchanges_left_and_right():
    scene = next(
        s
        for s in map(Synthetic("train").scene, range(100))
        if any("the leftmost object" in expressions(s, k) for k in range(len(s.objects)))
    )
    k = next(k for k in range(len(scene.objects)) if "the leftmost object" in expressions(scene, k))
    assert "the rightmost object" in expressions(rotated(scene, 1), k)
    assert "the topmost object" in expressions(rotated(scene, 4), k)


def _places_of_vertices(scene, grid):
    """The places of the vertices of all objects' outlines, read off the text of a codec."""
    rings, places = polygons.make("rings"), {}
    for k in range(len(scene.objects)):
        task = Task("x", scene.image, scene.instances == k + 1, "")
        text = rings.format(rings.outline(task.target, 0.015), task)
        _, *numbers = map(int, re.findall(r"[0-9]+", text))  # how many there are comes first
        for x, y in zip(numbers[::2], numbers[1::2], strict=True):
            row, column = ((2 * number + 1) * grid // 1998 for number in (y, x))  # rounding keeps it in its patch
            cell = min(row, grid - 1), min(column, grid - 1)
            places.setdefault(cell, [1, *leading_digits(x), *leading_digits(y)])
    return places


def test_the_table_names_colour_shape_and_first_click_of_each_object(examples):
    task = Synthetic("train").load(7)
    scene = Synthetic("train").scene(7)
    patches, layout, vertices, table = examples._labels(scene)
    assert set(np.unique(patches)) <= set(range(len(scene.objects) + 1))
    for k in range(len(scene.objects)):
        own = fine_shares(scene.instances == k + 1, examples.grid)
        assert np.array_equal(layout[patches == k + 1], own[patches == k + 1])
    held = {tuple(map(int, divmod(k, examples.grid))): list(vertices[k]) for k in np.flatnonzero(vertices[:, 0])}
    assert held == _places_of_vertices(scene, examples.grid) and held
    for k, thing in enumerate(scene.objects):
        assert (COLOUR_NAMES[table[k + 1, 0]], SHAPE_NAMES[table[k + 1, 1]]) == (thing.colour, thing.shape)
        named = bool(table[k + 1, 2 + KINDS.index(("", True, True))])
        alike = [o for o in (*scene.objects, *scene.clutter) if (o.colour, o.shape) == (thing.colour, thing.shape)]
        assert named == (len(alike) == 1)
        click = correct_action(replace(task, target=scene.instances == k + 1), np.zeros_like(task.target), (), 0.9)
        row, column = map(int, CODEC.points.write_point(click, task))
        assert table[k + 1, -4:].tolist() == [*leading_digits(row), *leading_digits(column)]


def test_played_states_are_what_the_tool_makes_of_the_correct_actions():
    task, tool = Synthetic("val").load(4), tools.make("disc")
    states = Rollout(tool).states(task, np.random.default_rng(0))
    assert len(states) == 4
    mdp = SegMDP(tool)
    state, action = mdp.initial(task), correct_action(task, np.zeros(task.target.shape, bool), (), 0.9)
    for _, mask, best in states:
        (state,) = mdp.transition([state], [action])
        action = correct_action(task, state.mask, state.clicks, 0.9)
        assert np.array_equal(state.mask, mask) and best == action


def test_scenes_are_of_the_classes_that_the_mixture_says():
    def objects(**shares):
        examples = ClickExamples(Mixture(first=1, **shares), seed=5)
        return [len(examples.scene(k).objects) for k in range(20)]

    assert max(objects(easy=1.0, hard=0.0)) <= 3 < 4 <= min(objects(easy=0.0, hard=1.0))
    assert objects() == objects(hard=1 / 3), "by default classes are alike"


@pytest.mark.parametrize("turn", range(8))
def test_played_states_are_turned_with_their_scene(turn):
    examples = ClickExamples(Mixture(first=1, trajectory=5), Rollout(tools.make("disc"), steps=6), seed=5)
    states = examples.played(3)
    assert len(states) >= 5 and examples.played(3) is states, "played once for all orientations"
    scene = examples.scene(3)
    moved = rotated(scene, turn)
    for k, mask, _ in states:
        target, after = scene.instances == k + 1, moved.instances == k + 1
        assert metrics.iou(after, turned(mask, turn)) == metrics.iou(target, mask)


def test_a_policy_is_corrected_where_it_went():
    """Its clicks make other masks than the annotator's, each with the annotator's action; it never gives up early."""
    task, tool = Synthetic("val").load(4), tools.make("disc")
    states = Rollout(tool, agents.make("random"), steps=6, share=0.0).states(task, np.random.default_rng(0))
    assert len(states) == 6
    annotated = Rollout(tool, steps=6).states(task, np.random.default_rng(0))
    assert not np.array_equal(states[-1][1], annotated[-1][1])
    again = Rollout(tool, agents.make("random"), steps=6, share=0.0).states(task, np.random.default_rng(0))
    assert all(
        np.array_equal(one[1], other[1]) and one[2] == other[2] for one, other in zip(states, again, strict=True)
    )


def test_the_reply_is_to_stop_where_the_tool_is_saturated():
    task, tool = Synthetic("val").load(4), tools.make("disc")
    gains = [
        metrics.iou(task.target, mask) for _, mask, _ in Rollout(tool, steps=7).states(task, np.random.default_rng(0))
    ]
    limit = float(np.diff(gains).min()) + 1e-6
    states = Rollout(tool, steps=7, stop_gain=limit).states(task, np.random.default_rng(0))
    assert len(states) < len(gains) and states[-1][2] == Stop()
    assert all(isinstance(best, Click) for _, _, best in states[:-1])


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_correct_actions_stop_where_the_mask_is_good_and_else_correct_it(seed):
    task = Synthetic("val").load(seed % 30)
    target = task.target.view(bool)
    mask = distorted_mask(target, task.meta["instances"], np.random.default_rng(seed))
    action, iou = correct_action(task, mask, (), 0.9), metrics.iou(target, mask)
    assert mask.dtype == bool and mask.shape == target.shape
    assert isinstance(action, Stop) == (iou >= 0.9)
    if isinstance(action, Click):
        assert target[action.y, action.x] == action.positive != mask[action.y, action.x]


@pytest.mark.parametrize("shape", ["ring", "bar", "disc"])
def test_steady_clicks_are_deep_in_the_error_and_hardly_move_with_its_outline(shape):
    rows, columns = np.mgrid[:80, :100]
    radius = np.hypot(rows - 40, columns - 50)
    target = {"ring": (radius < 30) & (radius > 18), "disc": radius < 25}.get(shape, np.abs(rows - columns * 0.4) < 7)
    empty, noise = np.zeros(target.shape, bool), np.random.default_rng(0)
    places = []
    for _ in range(8):
        rough = target & ~(
            (noise.random(target.shape) < 0.1) & ~cv2.erode(target.view(np.uint8), np.ones((3, 3))).view(bool)
        )
        click, deepest = steady_click(rough, empty), annotator.next_click(rough, empty)
        depth = metrics.distances(np.pad(rough, 1).view(np.uint8))
        assert click.positive and depth[click.y + 1, click.x + 1] >= 0.7 * depth[deepest.y + 1, deepest.x + 1]
        assert steady_click(empty, rough) == Click(click.x, click.y, False)
        places.append((click.x, click.y))
        assert steady_click(rough, empty, [click]) != click
    assert np.ptp(places, axis=0).max() <= 16, "the deepest pixel moves by 40 along a bar, and by 60 around a ring"
    assert steady_click(target, target) is None


def test_the_loss_on_squares_is_least_where_they_are_right():
    shares = torch.rand(3, 16, FINE**2).round()
    right, none = 20 * (2 * shares - 1), torch.zeros_like(shares)
    assert float(_squares_loss(right, shares)) < 1e-6 < float(_squares_loss(none, shares))
    assert float(_squares_loss(-right, shares)) == pytest.approx(20, abs=0.1)
