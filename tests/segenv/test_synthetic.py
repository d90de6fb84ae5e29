"""Procedural scenes: deterministic, split apart, and with sentences that pick out exactly one object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segenv import data
from segenv.data.synthetic.scenes import DIFFICULTIES, Scene, SceneObject, Synthetic, expressions, picks_out
from segenv.data.synthetic.shapes import paint


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_scene_is_a_function_of_its_index(split):
    first, second = Synthetic(split), Synthetic(split)
    for i in (7, 0, 5):
        a, b = first[i], second[i]
        assert a.id == b.id and a.instruction == b.instruction
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.target, b.target)


def test_splits_share_no_image():
    hashes = [Synthetic(split)[i].image_hash for split in ("train", "val", "test") for i in range(12)]
    assert len(set(hashes)) == len(hashes)


def test_the_mixed_split_takes_the_difficulties_in_turn():
    mixed = Synthetic("val")
    for place, level in enumerate(DIFFICULTIES):
        alone = data.make(f"synthetic:val#{level.name}")
        task = mixed[3 * 4 + place]
        assert task.id == alone.ids[4] and task.meta["difficulty"] == level.name
        np.testing.assert_array_equal(task.image, alone[4].image)


def test_every_target_can_be_seen_and_is_asked_for():
    for task in Synthetic("val")[:30]:
        assert task.target.dtype == np.bool_ and task.target.sum() >= 100
        assert task.instruction.startswith("the ")
        assert task.image.shape[:2] == task.target.shape


def test_a_sentence_is_true_of_one_object_alone():
    """Recheck each expression by words: count the objects that it fits, without margins."""
    order = {
        "largest": lambda thing: -thing.area,
        "smallest": lambda thing: thing.area,
        "leftmost": lambda thing: thing.centre[0],
        "rightmost": lambda thing: -thing.centre[0],
        "topmost": lambda thing: thing.centre[1],
        "bottommost": lambda thing: -thing.centre[1],
    }
    seen = set()
    for i in range(60):
        scene = Synthetic("val").scene(i)
        for k in range(len(scene.objects)):
            for sentence in expressions(scene, k):
                words = sentence.split()[1:]
                fits = [*scene.objects, *scene.clutter]
                for word in words:
                    if word in order:
                        seen.add(word)
                        continue
                    fits = [
                        thing for thing in fits if word in (thing.colour, thing.shape, "object") or word == "object"
                    ]
                superlative = [word for word in words if word in order]
                chosen = min(fits, key=order[superlative[0]]) if superlative else fits[0]
                assert chosen is scene.objects[k]
                assert superlative or len(fits) == 1
    assert seen == set(order)


def test_other_objects_have_sentences_of_their_own():
    task = next(task for task in Synthetic("val") if task.meta["others"])
    for sentence, number in task.meta["others"]:
        assert sentence != task.instruction
        other = task.meta["instances"] == number
        assert other.any() and not (other & task.target).any()


def test_two_of_a_kind_are_told_apart_or_not_at_all():
    def picked(*things, clutter=()):
        scene = Scene(np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8), things, "easy", clutter)
        return set(expressions(scene, 0)), scene

    one, two = SceneObject("red", "star", 400, (20.0, 50.0)), SceneObject("red", "star", 420, (80.0, 52.0))
    found, scene = picked(one, two)
    assert not picks_out(scene, 0, "", "red", "star") and not picks_out(scene, 0, "smallest", "red", "star")
    assert found == {"the leftmost object"}  # the shortest that is true
    assert "the blue object" in picked(replace(one, colour="blue"), two)[0]
    scrap = SceneObject("red", "star", 60, (5.0, 5.0))
    assert picked(one, clutter=(scrap,))[0].isdisjoint({"the star", "the red star", "the leftmost star"})


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="train, val, test"):
        Synthetic("validation")
    with pytest.raises(ValueError, match="easy, medium, hard"):
        Synthetic("val", "impossible")


def test_a_shadow_may_fall_beyond_the_canvas():
    for seed in range(60):
        canvas = np.full((16, 16, 3), 100, np.float32)
        alpha, surface = np.full((16, 2), 255, np.uint8), np.full((16, 2, 3), 200, np.float32)
        paint(canvas, alpha, (0, 14), surface, np.random.default_rng(seed))
        assert (canvas[:, 14:] == 200).all() and canvas[:, :14].min() > 30
