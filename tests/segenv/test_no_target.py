"""Tasks that ask for what is not there: nothing in the image fits the words, and all else is as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from segenv import data
from segenv.data.base import Dataset
from segenv.data.no_target import NoTarget
from segenv.data.synthetic.scenes import DIFFICULTIES, Synthetic
from segenv.data.synthetic.shapes import COLOURS
from segenv.types import BadItem, Task

SHAPES = {shape for level in DIFFICULTIES for shape in level.shapes}


class Worded(Dataset):
    """Small images with the given instructions; each image has two tasks."""

    spec = "worded"

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = words

    @property
    def ids(self) -> Sequence[str]:
        return [str(i) for i in range(len(self.words))]

    @property
    def sources(self) -> Sequence[str]:
        return [str(i // 2) for i in range(len(self.words))]

    @property
    def fingerprint(self) -> str:
        return "0"

    def load(self, i: int) -> Task:
        return Task(str(i), np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool), self.words[i])


def test_nothing_in_a_synthetic_scene_fits_the_words() -> None:
    whole = data.make("synthetic:val")
    assert isinstance(whole, Synthetic)
    absent = data.make("absent:synthetic:val")
    for i in range(3):
        task, scene = absent[i], whole.scene(i)
        words = set(task.instruction.split())
        colours, shapes = words & set(COLOURS), words & SHAPES
        assert colours or shapes
        for thing in (*scene.objects, *scene.clutter):
            assert colours - {thing.colour} or shapes - {thing.shape}, (task.instruction, thing)
        assert task.id == whole.ids[i] and not task.target.any() and task.meta["absent"]
        np.testing.assert_array_equal(task.image, whole[i].image)
        assert absent[i].instruction == task.instruction, "the same each time"


def test_a_share_leaves_the_other_tasks_as_they_are() -> None:
    whole = Worded([f"thing-{i}" for i in range(200)])
    found = list(NoTarget(whole, 0.3))
    gone = ["absent" in task.meta for task in found]
    assert 40 <= sum(gone) <= 80
    for out, task, original in zip(gone, found, whole, strict=True):
        assert (task.instruction != original.instruction) == out == (not task.target.any())
    mixed, old = (data.make(f"{name}:0.3:synthetic:val#easy") for name in ("no-target", "absent"))
    assert mixed.spec == "no-target:0.3:synthetic:val#easy" == data.make(mixed.spec).spec == old.spec
    assert mixed.fingerprint == old.fingerprint
    fingerprints = {data.make(spec).fingerprint for spec in (mixed.spec, mixed.spec.replace("0.3", "0.4"))}
    assert len(fingerprints) == 2 and len(mixed) == len(data.make("synthetic:val#easy"))


def test_other_data_goes_by_the_words_of_the_images_own_tasks() -> None:
    absent = NoTarget(Worded(["the red cat", "the dog", "a red car", "the tall tree", "a dog", "the sky"]))
    assert {absent[0].instruction, absent[1].instruction} <= {"the tall tree", "the sky"}
    assert absent[2].instruction in {"the dog", "a dog", "the sky"}
    part = NoTarget(Worded(["the red cat", "the dog", "a red car", "the tree"])[1:])
    assert part[0].instruction in {"the tree"}, "of the tasks that were selected"


def test_an_image_of_which_too_little_is_known_is_told() -> None:
    for words in (["the cat"] * 4, ["the cat", "", "the dog", "the car"]):
        with pytest.raises(BadItem, match="item '0': of 100 instructions drawn from worded, none is known"):
            NoTarget(Worded(words))[0]
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="expected a part of the tasks, above 0 and at most 1"):
            NoTarget(Worded(["a"]), share)


def test_cocos_classes_are_absent_where_they_are_annotated_nowhere(tmp_path: Path) -> None:
    """Image 0 has two cats, so that no task says "the cat"; still a cat is there."""
    classes = {1: "cat", 2: "dog", 3: "bird"}
    objects = [(0, 1), (0, 1), (1, 1), (2, 2), (2, 3)]
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((10, 10, 3), np.uint8))
    ring = [[1, 1, 8, 1, 8, 8, 1, 8]]
    record = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 10, "height": 10} for i in range(3)],
        "categories": [{"id": key, "name": name} for key, name in classes.items()],
        "annotations": [
            {"id": k, "image_id": image, "category_id": key, "segmentation": ring, "iscrowd": 0}
            for k, (image, key) in enumerate(objects)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(record))
    absent = data.make(f"absent:coco:{tmp_path}/a.json@{tmp_path}")
    assert [task.instruction == "the cat" for task in absent] == [False, False, False, True, True]
    assert {task.instruction for task in absent} <= {"the cat", "the dog", "the bird"}
