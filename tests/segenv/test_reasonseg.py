"""ReasonSeg: texts, and targets drawn as the published reader draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import photo, save
from made_fields import make_reasonseg

from segenv import data
from segenv.data.reasonseg import polygon_labels
from segenv.types import BadItem


def test_targets_and_texts_are_those_by_hand(tmp_path: Path) -> None:
    first, second = data.make(make_reasonseg(tmp_path))
    target = np.zeros((20, 30), np.uint8)  # rectangles hold both of their corners; smaller ones lie on larger ones
    target[3:10, 4:13] = 255
    target[7:13, 10:17] = 128
    assert np.array_equal(first.target, target), "the flag is left out"
    target = np.zeros((20, 30), np.uint8)
    target[8:17, 18:27] = 128
    target[10:13, 20:23] = 255
    target[2:5, 2:6] = 255  # 5.9 and 4.9 are cut to whole pixels
    assert np.array_equal(second.target, target)
    assert [task.instruction for task in (first, second)] == ["What holds a?", "What holds b?"]
    assert [task.meta["is_sentence"] for task in (first, second)] == [True, False]


def test_each_text_is_a_task_where_all_are_asked_for(tmp_path: Path) -> None:
    tasks = list(data.make(f"{make_reasonseg(tmp_path)}#all"))
    assert [task.id for task in tasks] == ["a_0", "a_1", "b_0", "b_1"]
    assert tasks[3].instruction == "the thing that holds b" and np.array_equal(tasks[2].target, tasks[3].target)
    assert data.make(f"reasonseg:{tmp_path}/val#all").sources == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]


corner = st.tuples(st.integers(-5, 35), st.integers(-5, 25))
shape = st.tuples(
    st.sampled_from(["target", "ignore", "Ignored part", "flag"]), st.lists(corner, min_size=1, max_size=6)
)


@settings(max_examples=40)
@given(st.lists(shape, max_size=4))
def test_larger_shapes_never_hide_smaller_ones(shapes: list[Any]) -> None:
    """The target, pixel by pixel: the label of the smallest shape that holds it, by areas that are counted apart."""
    masks = []
    for label, points in shapes:
        mask = np.zeros((20, 30), np.uint8)
        cv2.fillPoly(mask, [np.array(points, np.int32)], 1)
        cv2.polylines(mask, [np.array(points, np.int32)], True, 1, 1)
        if label != "flag":
            masks.append((int(mask.sum()), 128 if "gnore" in label else 255, mask.astype(bool)))
    if len({area for area, _, _ in masks}) < len(masks):
        return  # which of two equal ones lies above is chance where it is published
    found = polygon_labels([{"label": label, "points": points} for label, points in shapes], 20, 30)
    for y in range(20):
        for x in range(30):
            over = [(area, label) for area, label, mask in masks if mask[y, x]]
            assert found[y, x] == (min(over)[1] if over else 0)


def changed(root: Path, **values: Any) -> str:
    spec = make_reasonseg(root)
    file = root / "val/a.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": []}, "a.json has no text; expected text .a list."),
        ({"text": "What?"}, "text is 'What.'; expected a list"),
        ({"is_sentence": 1}, "is_sentence is 1; expected true or false"),
        ({"shapes": []}, "a.json has no object pixel"),
        ({"shapes": [{"label": "target", "points": []}]}, r"shapes\[0\] without points"),
        ({"shapes": [{"label": "target", "points": [[1, 1], [1e9, 1]]}]}, "far from the image"),
        ({"shapes": [{"label": "target", "points": [[1, float("nan")]]}]}, "far from the image"),
        ({"shapes": [{"label": "target", "points": [[1, 2, 3]]}]}, r"points\[0\] is .*expected a list of 2"),
    ],
)
def test_a_broken_annotation_is_one_bad_item(values: dict, message: str, tmp_path: Path) -> None:
    patient = data.make(changed(tmp_path, **values), skip_bad=True)
    assert [task.id for task in patient] == ["b"]
    with pytest.raises(BadItem, match=f"item 'a': .*{message}"):
        data.make(patient.spec)[0]


def test_a_file_without_its_partner_and_a_broken_one_are_bad_items(tmp_path: Path) -> None:
    spec = make_reasonseg(tmp_path)
    save(tmp_path / "val/c.jpg", photo(3))
    (tmp_path / "val/a.json").write_text("{")
    patient = data.make(spec, skip_bad=True)
    assert [task.id for task in patient] == ["b"]
    assert [name for name, _ in patient.skipped] == ["a", "c"]
    assert "a.json is not valid JSON" in patient.skipped[0][1] and "expected one image and one .json" in str(
        patient.skipped
    )


def test_texts_in_the_encoding_of_windows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "val/a.json"
    spec = changed(tmp_path, text=["the dog’s bowl"])
    file.write_bytes(json.dumps(json.loads(file.read_text()), ensure_ascii=False).encode("cp1252"))
    assert data.make(spec)[0].instruction == "the dog’s bowl"


def test_what_is_not_there_says_where_it_is_published(tmp_path: Path) -> None:
    for spec, message in {
        f"reasonseg:{tmp_path}/none": "none does not exist; .*github.com/dvlab-research/LISA",
        f"reasonseg:{tmp_path}": "is empty; expected .*github.com/dvlab-research/LISA",
        f"reasonseg:{tmp_path}/x#some": "expected reasonseg:DIR/SPLIT, or #all",
    }.items():
        with pytest.raises(data.DataError, match=message):
            data.make(spec)
