"""ReasonSeg's variants and Ref-L4 in parquet files: masks, boxes and texts as they were written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import photo, square
from made_fields import BOXES, make_reasonseg_table, make_ref_l4

from segenv import data
from segenv.types import BadItem, object_of

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def test_rows_of_all_files_are_tasks(tmp_path: Path) -> None:
    dataset = data.make(make_reasonseg_table(tmp_path))
    assert list(dataset.ids) == ["im0_0", "im0_1", "im1_2", "im1_3"] and dataset.sources == ["im0", "im0", "im1", "im1"]
    for number, task in [*enumerate(dataset), (3, dataset[3]), (0, dataset[0])]:
        assert task.instruction == f"What is {number}?" and task.meta["reasoning_type"] == "physical"
        assert np.array_equal(task.image, np.array(photo(number // 2)))
        assert np.array_equal(object_of(task.target), np.roll(square() == 255, number, axis=1))
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "data2")
    for file in (tmp_path / "data2").iterdir():
        file.rename(tmp_path / file.name)
    assert list(data.make(dataset.spec).ids) == list(dataset.ids), "files in DIR itself"


def test_the_target_of_a_box_is_its_nearest_pixels(tmp_path: Path) -> None:
    tasks = list(data.make(make_ref_l4(tmp_path)))
    corners = [(4, 3, 14, 9), (2, 4, 8, 6), (28, 19, 29, 20)]  # the last box is smaller than a pixel
    for task, box, (left, top, right, bottom) in zip(tasks, BOXES, corners, strict=True):
        expected = np.zeros((20, 30), bool)
        expected[top:bottom, left:right] = True
        assert np.array_equal(object_of(task.target), expected)
        assert task.instruction == f"the thing at {box[0]}"
        assert task.meta["box"] == [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    counts = {split: len(data.make(f"ref-l4:{tmp_path}/{split}")) for split in ("val", "test", "all")}
    assert counts == {"val": 3, "test": 1, "all": 4}
    (tmp_path / "images/o365_1.jpg").rename(tmp_path / "o365_1.jpg")
    assert np.array_equal(data.make(f"ref-l4:{tmp_path}/val")[0].image, tasks[0].image)


def changed(file: Path, **values: Any) -> None:
    rows = parquet.read_table(file).to_pylist()
    parquet.write_table(pyarrow.Table.from_pylist([rows[0] | values, *rows[1:]]), file)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"bytes": b"no image", "path": None}}, "cannot be decoded"),
        ({"image": {"bytes": None, "path": "a.jpg"}}, "holds no image in this row"),
        ({"mask": [[True] * 30] * 19}, "is 30 x 19 pixels .* is 30 x 20"),
        ({"mask": [[True] * 30] * 19 + [[True]]}, "has no mask in this row"),
        ({"mask": None}, "has no mask in this row"),
        ({"mask": []}, "has no mask in this row"),
        ({"mask": [[]] * 20}, "has no mask in this row"),
        ({"mask": [[False] * 30] * 20}, "no object pixel"),
    ],
)
def test_a_broken_row_is_one_bad_item(values: dict, message: str, tmp_path: Path) -> None:
    patient = data.make(make_reasonseg_table(tmp_path), skip_bad=True)
    changed(tmp_path / "data/test-00000-of-00002.parquet", **values)
    patient = data.make(patient.spec, skip_bad=True)
    assert [task.id for task in patient] == ["im0_1", "im1_2", "im1_3"]
    with pytest.raises(BadItem, match=f"item 'im0_0': .*{message}"):
        data.make(patient.spec)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bbox": [1.0, 2.0, 0.0, 3.0]}, "expected .x, y, width, height. with an area"),
        ({"bbox": [1.0, 2.0, float("nan"), 3.0]}, "with an area"),
        ({"bbox": None}, "has the box None"),
        ({"bbox": [40.0, 2.0, 5.0, 5.0]}, "no object pixel"),
        ({"height": 21}, "30 x 21 pixels .* is 30 x 20"),
        ({"file_name": "../a.jpg"}, "leaves"),
        ({"file_name": "none.jpg"}, "none.jpg is missing"),
    ],
)
def test_a_broken_box_is_one_bad_item(values: dict, message: str, tmp_path: Path) -> None:
    spec = make_ref_l4(tmp_path)
    changed(tmp_path / "ref-l4-val.parquet", **values)
    with pytest.raises(BadItem, match=f"item 'val000000': .*{message}"):
        data.make(spec)[0]


def test_damaged_files_and_missing_ones_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_ref_l4(tmp_path)
    file = tmp_path / "ref-l4-val.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match="ref-l4-val.parquet cannot be read as parquet"):
        data.make(spec)
    parquet.write_table(pyarrow.table({"id": ["a"], "caption": ["b"]}), file)
    with pytest.raises(data.DataError, match="has no column bbox, file_name, height, width; it has id, caption"):
        data.make(spec)
    file.unlink()
    with pytest.raises(data.DataError, match="ref-l4-val.parquet is missing; .*huggingface.co/datasets/JierunChen"):
        data.make(spec)
    with pytest.raises(data.DataError, match="no split val, test or all"):
        data.make(f"ref-l4:{tmp_path}")
    file.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(data.DataError, match="PyArrow: pip install 'segenv.parquet.'"):
        data.make(spec)


def test_a_damaged_page_is_one_bad_item(tmp_path: Path) -> None:
    spec = make_reasonseg_table(tmp_path)
    file = tmp_path / "data/test-00000-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = b"\xff" * 56  # the header of the first page, which holds images
    file.write_bytes(bytes(content))
    patient = data.make(spec, skip_bad=True)
    assert [task.id for task in patient] == ["im1_2", "im1_3"], "the other groups of rows are read"
    assert [name for name, reason in patient.skipped if "00000-of-00002.parquet cannot be read" in reason]
    assert all(len(reason.splitlines()) == 1 for _, reason in patient.skipped)
