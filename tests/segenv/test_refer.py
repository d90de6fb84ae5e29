"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: each mask, sentence and split as pycocotools and a list by hand have it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_fields import GENERALISED, REFERENCES, make_grefcoco, make_refcoco, masks_of, python2_pickle

from segenv import data
from segenv.data.refer import DATASETS
from segenv.types import BadItem, object_of

BY_HAND = {  # ids and sentences of each split, in the order of the file
    "train": {"1_0": "left cat", "1_1": "the café cat"},
    "val": {"2_2": "both halves", "2_3": 'the one that\'s "broken"', "2_4": "both halves"},
    "testA": {"3_5": "dog", "4_6": "crowd of dogs"},
    "testB": {"4_6": "crowd of dogs", "5_7": "cat below"},
    "test": {"3_5": "dog", "4_6": "crowd of dogs", "5_7": "cat below"},
}


@pytest.mark.parametrize("split", BY_HAND)
@pytest.mark.parametrize(("name", "by"), [(name, by) for name, each in DATASETS.items() for by in each])
def test_each_sentence_is_a_task_with_its_annotations_mask(name: str, by: str, split: str, tmp_path: Path) -> None:
    tasks = list(data.make(make_refcoco(tmp_path, name, by, split)))
    assert {task.id: task.instruction for task in tasks} == BY_HAND[split]
    listed = pickle.loads((tmp_path / name / f"refs({by}).p").read_bytes(), encoding="utf-8")
    annotation = {one["ref_id"]: one["ann_id"] for one in listed}
    masks = masks_of(tmp_path / name / "instances.json")
    for task in tasks:
        assert np.array_equal(object_of(task.target), masks[annotation[task.meta["ref_id"]]]), task.id
        assert task.meta["raw"] == task.instruction.title() and task.meta["text"] == "human"
        assert task.meta["file_name"] == f"COCO_train2014_{task.meta['image_id']:012d}.jpg"


def test_pixels_that_two_polygons_share_are_the_objects(tmp_path: Path) -> None:
    (task, _) = data.make(make_refcoco(tmp_path, split="train"))
    assert task.meta["annotation_ids"] == [11] and object_of(task.target)[6:9, 7:10].all()


def test_a_generalised_sentence_means_several_objects_or_none(tmp_path: Path) -> None:
    spec = make_grefcoco(tmp_path)
    masks, tasks = masks_of(tmp_path / "grefcoco/instances.json"), list(data.make(spec))
    empty = np.zeros((20, 30), bool)
    expected = [
        ("1_0", "cat and dog", masks[11] | masks[12]),
        ("2_1", "the horse", empty),
        ("2_2", "green car", empty),
        ("3_3", "the cat", masks[13]),
        ("4_4", "a zebra", empty),
    ]
    for task, (name, text, mask) in zip(tasks, expected, strict=True):
        assert (task.id, task.instruction) == (name, text)
        assert np.array_equal(object_of(task.target), mask), name
        assert task.meta.get("absent", False) == (not mask.any())
    (crowd,) = data.make(spec.replace("/val", "/testA"))
    assert np.array_equal(object_of(crowd.target), masks[13]), "crowds are left out"
    assert tasks[0].meta["category"] == "cat, dog" and tasks[1].meta["category"] is None


@pytest.mark.parametrize("none", [-1, [-1], [], None])
def test_every_way_to_say_that_there_is_no_target(none: Any, tmp_path: Path) -> None:
    spec = make_grefcoco(tmp_path)
    (tmp_path / "grefcoco/grefs(unc).json").write_text(json.dumps([GENERALISED[0] | {"ann_id": none}]))
    (task,) = data.make(spec)
    assert not object_of(task.target).any() and task.meta["absent"]


def test_words_of_another_image_fit_nothing_here_in_any_split(tmp_path: Path) -> None:
    tasks = data.make(make_refcoco(tmp_path))  # val: all of image 8
    said = {"both halves", "cat below", "a crowd", "one red dog", "left cat"}
    assert {words for words in said | {"the bus", "left"} if tasks.lacks(0, words)} == {"the bus", "left"}
    gref = data.make(make_grefcoco(tmp_path))
    assert gref.lacks(0, "the horse"), "what is said not to be there"
    assert set(tasks.sources) == {"8"} and set(gref.sources) == {"7", "8"}


PLACES: dict[str, Callable[[Path], Any]] = {
    "images": lambda root: (root / "images/mscoco/images/train2014").rename(root / "images/train2014"),
    "root": lambda root: (root / "images/mscoco/images/train2014").rename(root / "train2014"),
    "elsewhere": lambda root: (root / "images/mscoco/images/train2014").rename(root.parent / "photos@home"),
}


@pytest.mark.parametrize("place", PLACES)
def test_images_are_where_published_code_looks_or_where_the_spec_says(place: str, tmp_path: Path) -> None:
    spec = make_refcoco(tmp_path / "me@home")
    before = [task.image_hash for task in data.make(spec)]
    PLACES[place](tmp_path / "me@home")
    if place == "elsewhere":
        with pytest.raises(data.DataError, match="train2014 images, published at cocodataset.org.*@IMAGES"):
            data.make(spec)
        spec += f"@{tmp_path}/photos@home"
    assert [task.image_hash for task in data.make(spec)] == before
    assert data.make(spec).fingerprint == data.make(data.make(spec).spec).fingerprint


def test_references_that_stand_twice_are_two_tasks(tmp_path: Path) -> None:
    spec = make_grefcoco(tmp_path)
    (tmp_path / "grefcoco/grefs(unc).json").write_text(json.dumps([GENERALISED[2], GENERALISED[2]]))
    assert list(data.make(spec).ids) == ["3_3", "3_3~2"]


def test_files_may_lie_in_root_itself_and_be_pickles(tmp_path: Path) -> None:
    spec = make_grefcoco(tmp_path)
    ids = data.make(spec).ids
    (tmp_path / "grefcoco/grefs(unc).json").unlink()
    (tmp_path / "grefcoco/grefs(unc).p").write_bytes(pickle.dumps(GENERALISED, 4))
    assert data.make(spec).ids == data.make(f"grefcoco:{tmp_path}/grefcoco/val").ids == ids
    assert data.make(f"grefcoco:{tmp_path}/grefcoco/val@{tmp_path}/images/train2014").ids == ids


def changed(root: Path, **values: Any) -> str:
    spec = make_refcoco(root)
    (root / "refcoco+/refs(unc).p").write_bytes(python2_pickle([REFERENCES[1] | values]))
    return spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ann_id": 99}, "instances.json has no annotation 99, unlike .*refs.unc..p; use files"),
        ({"ann_id": 11}, "has annotation 11 in the image 7"),
        ({"image_id": 9}, "has no file for the image 9"),
        ({"no_target": True}, r"says no_target, and names the annotations \[13\]"),
    ],
)
def test_a_reference_that_fits_no_annotation_is_a_bad_item(values: dict, message: str, tmp_path: Path) -> None:
    spec = changed(tmp_path, **values)
    with pytest.raises(BadItem, match=f"item '2_2': .*{message}"):
        data.make(spec)[0]
    patient = data.make(spec, skip_bad=True)
    assert list(patient) == [] and len(patient.skipped) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sentences": [{"sent_id": 1, "sent": 7}]}, r"\[0\].sentences\[0\].sent is 7; expected a text"),
        ({"split": 1}, r"\[0\].split is 1; expected a text"),
        ({"split": "train"}, "no sentences of split 'val'; its splits are train"),
        ({"sentences": []}, "no sentences of split 'val'"),
    ],
)
def test_a_file_with_other_records_says_which(values: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=f"refs.unc..p.*{message}"):
        data.make(changed(tmp_path, **values))


def test_a_hostile_file_of_references_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    spec = make_refcoco(tmp_path)
    file, made = tmp_path / "refcoco+/refs(unc).p", tmp_path / "made"
    file.write_bytes(b"(lp0\n(dp1\nS'ref_id'\np2\ncposix\nsystem\n(S'touch " + str(made).encode() + b"'\ntRsa.")
    with pytest.raises(data.DataError, match="refs.unc..p is no pickle of plain data .byte 23 is GLOBAL.*ref_id"):
        data.make(spec, skip_bad=True)
    assert not made.exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("refcoco:{}/refcoco/umd/val", "none of refcoco by unc or google; refcoco. by unc; refcocog by umd or google"),
        ("refcoco:{}", "is none of .*expected refcoco:ROOT/DATASET/SPLITBY/SPLIT"),
        ("refcoco:{}/refcoco/unc/val", "refcoco does not exist; .*refs.unc..p .*github.com/lichengunc/refer"),
        ("refcoco:{}/refcoco+/unc/val", r"refcoco\+ has no refs\(unc\).p; .*github.com/lichengunc/refer"),
        ("grefcoco:{}/val", r"has no grefs\(unc\).json.*github.com/henghuiding/gRefCOCO"),
        ("grefcoco:{}/none/val", "none does not exist; expected gRefCOCO"),
    ],
)
def test_a_missing_file_says_where_it_is_published(spec: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "refcoco+").mkdir()
    with pytest.raises(data.DataError, match=message):
        data.make(spec.replace("{}", str(tmp_path)))
