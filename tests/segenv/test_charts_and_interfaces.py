"""Charts, interfaces and scenes of one object: deterministic, split apart, with exact masks, and with sentences that
pick out exactly one part."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest

from segenv import annotator, data, metrics, tools
from segenv.data.synthetic.drawing import MIN_AREA, Drawing, Thing
from segenv.data.synthetic.scenes import Synthetic, expressions
from segenv.data.synthetic.shapes import COLOURS
from segenv.geometry import polygon_iou
from segenv.mdp import SegMDP

NEW = ("single", "charts", "interfaces")
ORDER = ("first", "second", "third")


@pytest.mark.parametrize("name", NEW)
def test_a_class_is_a_function_of_split_and_index_and_no_part_of_the_mix(name):
    spec = f"synthetic:val#{name}"
    first, second = data.make(spec), data.make(spec)
    for i in (7, 0, 5):
        a, b = first[i], second[i]
        assert a.id == b.id == f"synthetic/val/{name}/{i}" and a.instruction == b.instruction
        assert a.meta["difficulty"] == name
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.target, b.target)
    hashes = [
        data.make(f"synthetic:{split}#{name}")[i].image_hash for split in ("train", "val", "test") for i in range(6)
    ]
    assert len(set(hashes)) == len(hashes)
    assert data.make(f"synthetic#{name}").spec == f"synthetic:train#{name}"
    assert {Synthetic("val").place(i)[0] for i in range(30)} == {"easy", "medium", "hard"}


def test_fingerprints_tell_the_classes_apart_and_leave_the_others_as_they_were():
    made = [data.make(f"synthetic:test{name}").fingerprint for name in ("", "#hard", *(f"#{name}" for name in NEW))]
    assert len(set(made)) == len(made)
    assert data.make("synthetic").fingerprint == "c346cb4d18b8ab93"
    assert data.make("synthetic:test").fingerprint == "57a548942a58d19f"
    assert data.make("synthetic:val#hard").fingerprint == "4beedf3992147521"


def test_a_scene_of_one_object_has_one():
    for task in data.make("synthetic:val#single")[:20]:
        assert np.array_equal(task.meta["instances"] > 0, task.target) and task.target.sum() >= 100
        assert task.meta["others"] == [] and task.instruction.startswith("the ")


@pytest.mark.parametrize("name", ["charts", "interfaces"])
def test_every_target_can_be_seen_and_others_have_sentences_of_their_own(name):
    others = 0
    for task in data.make(f"synthetic:val#{name}")[:40]:
        assert task.target.dtype == np.bool_ and task.target.shape == task.image.shape[:2]
        assert task.target.sum() >= MIN_AREA
        for sentence, number in task.meta["others"]:
            other = task.meta["instances"] == number
            assert sentence != task.instruction and other.any() and not (other & task.target).any()
            others += 1
    assert others > 40


def _measure(scene, things, word):
    """The size that a word speaks of, in pixels, by the index of a thing."""
    boxes = {}
    for k, thing in enumerate(scene.objects):
        rows, columns = np.nonzero(scene.instances == k + 1)
        boxes[thing] = (np.ptp(rows) + 1, np.ptp(columns) + 1, rows.max())
    lying = len({box[2] // 2 for box in boxes.values()}) > 1  # upright bars stand on one line
    if word in ("largest", "smallest"):
        return {thing: thing.area for thing in things}
    return {thing: boxes[thing][1 if lying else 0] for thing in things}


def _fits_in_a_chart(scene, text):
    things = list(scene.objects)
    if found := re.fullmatch(r"the (\w+) bar from the (left|right|top|bottom)", text):
        axis, back = found[2] in ("top", "bottom"), found[2] in ("right", "bottom")
        return [sorted(things, key=lambda thing: thing.centre[axis], reverse=back)[ORDER.index(found[1])]]
    if found := re.fullmatch(r"the (second )?(tallest|longest|largest|shortest|smallest) (\w+ )?(bar|slice)", text):
        like = [thing for thing in things if not found[3] or thing.colour == found[3].strip()]
        size = _measure(scene, like, found[2])
        back = found[2] not in ("shortest", "smallest")
        return [sorted(like, key=lambda thing: size[thing], reverse=back)[bool(found[1])]]
    if found := re.fullmatch(r"the line that ends (highest|lowest)", text):
        return [(max if found[1] == "highest" else min)(things, key=lambda thing: thing.value)]
    if text == "the dashed line":
        return [thing for thing in things if thing.state == "dashed"]
    if found := re.fullmatch(r"the (\w+) (bar|slice|line)", text):
        return [thing for thing in things if (thing.colour, thing.shape) == found.groups()]
    if found := re.fullmatch(r"the (?:bar labeled|slice of|line of) (\w+)", text):
        return [thing for thing in things if thing.label == found[1]]
    if found := re.fullmatch(r"the (\w+) bar at (\w+)", text):
        return [thing for thing in things if (thing.colour, thing.label) == found.groups()]
    found = re.fullmatch(r"the bar of (\w+) at (\w+)", text)
    assert found, f"an unknown kind of sentence: {text!r}"
    return None  # names a series as the legend does


def _fits_in_an_interface(scene, text):
    found = re.fullmatch(
        r"the (?:(leftmost|rightmost|topmost|bottommost) )?(.*?)(button|icon|field|checkbox|slider|switch)"
        r"(?: that is (on|off))?(?: at the (top|bottom) (left|right))?",
        text,
    )
    assert found, f"an unknown kind of sentence: {text!r}"
    side, words, noun, state, row, column = found.groups()
    fits = [thing for thing in scene.objects if thing.shape == noun and (not state or thing.state == state)]
    rest = words.strip()
    if (first := rest.split(" ")[0]) in COLOURS:
        fits, rest = [thing for thing in fits if thing.colour == first], rest[len(first) :].strip()
    if rest in ("checked", "unchecked", "empty"):
        fits = [thing for thing in fits if thing.state == rest]
    elif rest:
        fits = [thing for thing in fits if thing.label == rest]
    if side:
        axis, back = side in ("topmost", "bottommost"), side in ("rightmost", "bottommost")
        fits = sorted(fits, key=lambda thing: thing.centre[axis], reverse=back)[:1]
    if row:
        height, width = scene.instances.shape
        corner = width * (column == "right"), height * (row == "bottom")
        fits = sorted(fits, key=lambda thing: np.hypot(*np.subtract(thing.centre, corner)))[:1]
    return fits


@pytest.mark.parametrize(
    ("name", "fitting", "kinds"), [("charts", _fits_in_a_chart, 25), ("interfaces", _fits_in_an_interface, 60)]
)
def test_a_sentence_is_true_of_one_part_alone(name, fitting, kinds):
    """Recheck each sentence from its words and the pixels, without margins."""
    seen, source = set(), Synthetic("val", name)
    for i in range(60):
        scene = source.scene(i)
        told = [sentence for k in range(len(scene.objects)) for sentence in expressions(scene, k)]
        assert len(set(told)) == len(told), "a sentence of two parts"
        for k, thing in enumerate(scene.objects):
            for sentence in expressions(scene, k):
                fits = fitting(scene, sentence)
                assert fits is None or (len(fits) == 1 and fits[0] is thing), (i, sentence)
                seen.add(sentence)
    assert len(seen) > kinds


def test_what_might_be_taken_for_another_is_not_named():
    def sentences(*things):
        drawing = Drawing((40, 100), (255, 255, 255))
        for number in range(1, len(things) + 1):
            drawing.box(20 * number, 5, 20 * number + 12, 35, (0, 0, 0), number)

        def candidates(thing, others):
            yield f"the {thing.colour} bar", lambda other: other.colour == thing.colour
            yield "the tallest bar", lambda other: other.value > max(one.value for one in others) - 0.1

        scene = drawing.scene(things, "charts", candidates, np.random.default_rng(0))
        return [expressions(scene, k) for k in range(len(things))]

    one, two = (Thing("red", "bar", 0, (0, 0), value=value) for value in (0.8, 0.75))
    assert sentences(one, two) == [[], []]
    blue = Thing("blue", "bar", 0, (0, 0), value=0.2)
    assert sentences(one, blue) == [["the red bar", "the tallest bar"], ["the blue bar"]]


def test_masks_are_the_pixels_that_are_drawn():
    drawing, ring = Drawing((60, 80), (255, 255, 255)), np.array([(10.3, 5.2), (70.6, 20.8), (30.1, 52.7)])
    drawing.fill(ring, (0, 0, 0), 1)
    assert np.array_equal(drawing.instances == 1, drawing.canvas[..., 0] < 127.5)
    assert polygon_iou([ring], drawing.instances == 1) > 0.97
    drawing.box(20, 10, 40, 30, (9, 9, 9), 2)
    assert (drawing.instances == 2).sum() == 400 and (drawing.canvas[10:30, 20:40] == 9).all()
    drawing.text("Ag", 30, 20, 8, (200, 0, 0), 0.5)
    assert (drawing.instances == 2).sum() == 400 and (drawing.canvas[10:30, 20:40, 0] > 100).any(), "it is on the box"
    drawing.line([(0, 20), (80, 20)], (255, 255, 255), 4, 0)
    assert not drawing.instances[18:22].any() and (drawing.instances[17] > 0).any()


def test_bars_and_slices_have_their_colour_up_to_the_rim_of_the_mask():
    close = 0
    for task in data.make("synthetic:val#charts")[:30]:
        if task.meta["shape"] == "line":
            continue
        away = np.abs(task.image.astype(int) - COLOURS[task.meta["colour"]]).max(2)
        assert np.median(away[task.target]) < 45 and np.mean(away[task.target] < 60) > 0.9
        close += 1
    assert close > 15


@pytest.mark.parametrize("name", ["charts", "interfaces"])
def test_what_another_chart_asks_for_is_missing_where_no_part_has_its_colour_and_kind(name):
    tasks = data.make(f"synthetic:val#{name}")
    for i in range(8):
        scene = tasks.scene(i)
        for k in range(len(scene.objects)):
            assert not any(tasks.lacks(i, sentence) for sentence in expressions(scene, k))
    found = {tasks.lacks(i, tasks[k].instruction) for i in range(4) for k in range(8)}
    assert found == {True, False}


@pytest.mark.parametrize("name", NEW)
def test_environments_play_the_new_classes(name):
    env = gym.make("segenv:segenv/HLMAT-v0", data=f"synthetic#{name}", tool="disc", max_steps=3)
    observation, _ = env.reset(seed=1)
    assert observation
    env.close()


@pytest.mark.parametrize("name", NEW)
def test_the_annotator_segments_the_new_classes_with_the_embedded_tool(name):
    mdp, ious = SegMDP(tools.make("sam"), max_steps=5), []
    for task in data.make(f"synthetic:val#{name}")[:3]:
        state = mdp.initial(task)
        for _ in range(5):
            click = annotator.next_click(task.target, state.mask, state.clicks)
            if click is not None:
                [state] = mdp.transition([state], [click])
        ious.append(metrics.iou(task.target, state.mask))
    assert max(ious) > 0.6
