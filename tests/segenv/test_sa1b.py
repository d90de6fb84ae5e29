"""SA-1B: every annotation is a task, its mask as pycocotools decodes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_fields import make_sa1b
from pycocotools import mask as rle

from segenv import data
from segenv.types import BadItem


def test_masks_are_those_of_pycocotools_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    tasks = list(data.make(make_sa1b(tmp_path)))
    expected = []
    for number in (2, 10):
        listed = json.loads((tmp_path / f"sa_{number}.json").read_text())["annotations"]
        expected += [(f"sa_{number}_{one['id']}", one) for one in listed]
    for task, (name, one) in zip(tasks, expected, strict=True):
        assert task.id == name and np.array_equal(task.target, rle.decode(one["segmentation"]) * 255)
        assert (task.target > 0).sum() == one["area"] and task.instruction == ""
        assert task.meta["predicted_iou"] == one["predicted_iou"] and task.meta["point_coords"] == [[7.5, 8.5]]
    assert [*data.make(f"sa1b:{tmp_path}").sources] == ["sa_2", "sa_2", "sa_10", "sa_10"]


def test_a_broken_file_is_one_bad_item_and_a_broken_mask_another(tmp_path: Path) -> None:
    spec = make_sa1b(tmp_path)
    (tmp_path / "sa_2.json").write_text("{")
    file = tmp_path / "sa_10.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"]["counts"] = "5Z1"
    file.write_text(json.dumps(content))
    patient = data.make(spec, skip_bad=True)
    assert [task.id for task in patient] == ["sa_10_5001"]
    assert [name for name, _ in patient.skipped] == ["sa_2", "sa_10_5000"]
    content["image"]["file_name"] = "../sa_10.jpg"
    file.write_text(json.dumps(content))
    with pytest.raises(BadItem, match="leaves"):
        data.make(spec)[2]
    content["image"] = content["image"] | {"file_name": "sa_10.jpg", "width": 20, "height": 30}
    file.write_text(json.dumps(content))
    with pytest.raises(BadItem, match="sa_10.json is 20 x 30 pixels .* but .*sa_10.jpg is 30 x 20"):
        data.make(spec)[2]


def test_a_folder_without_files_says_where_they_are_published(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="has no sa_..json; expected SA-1B .*ai.meta.com"):
        data.make(f"sa1b:{tmp_path}")
