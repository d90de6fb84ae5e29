"""DIS5K, ThinObject5K and HRSOD: the object is where a soft mask is above a threshold that the spec tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_data import photo, save, square
from made_fields import SOFT, make_dis, soft_mask

from segenv import data
from segenv.types import BadItem, object_of


@pytest.mark.parametrize("threshold", [None, 0, 127, 128, 199, 254])
def test_the_object_is_above_the_threshold(threshold: int | None, tmp_path: Path) -> None:
    spec = make_dis(tmp_path) + ("" if threshold is None else f",threshold={threshold}")
    expected = np.zeros((20, 30), bool)
    expected[5:15, 4:12] = [value > (128 if threshold is None else threshold) for value in SOFT.tolist()]
    expected[5:15, 12:20] = True
    for task in data.make(spec):
        assert np.array_equal(object_of(task.target), expected)
    fingerprints = {data.make(f"dis:{tmp_path},threshold={k}").fingerprint for k in (127, 128)}
    assert len(fingerprints) == 2 and data.make(spec).spec == spec.replace(",threshold=128", "")


def test_names_of_dis5k_tell_a_class_and_no_instruction(tmp_path: Path) -> None:
    tasks = list(data.make(make_dis(tmp_path)))
    assert [task.meta["category"] for task in tasks] == ["bag", "helicopter"]
    assert [task.instruction for task in tasks] == ["", ""]


def thin(root: Path, images: str, masks: str, names: str = "abc") -> None:
    for number, name in enumerate(names):
        save(root / images / f"{name}.jpg", photo(number))
        save(root / masks / f"{name}.png", soft_mask())


def test_thinobject_has_lists_or_a_folder_for_each_part(tmp_path: Path) -> None:
    thin(tmp_path / "published", "images", "masks")
    (tmp_path / "published/list").mkdir()
    (tmp_path / "published/list/test.txt").write_text("c.jpg\na.jpg\n")
    (tmp_path / "published/list/val.txt").write_text("b.jpg\nd.jpg")
    assert list(data.make(f"dis:{tmp_path}/published#test").ids) == ["c", "a"]
    assert list(data.make(f"dis:{tmp_path}/published").ids) == ["a", "b", "c"]
    with pytest.raises(BadItem, match="item 'd': .*val.txt names it, and no image has that name"):
        list(data.make(f"dis:{tmp_path}/published#val"))
    thin(tmp_path / "hq", "images_train", "masks_train", "ab")
    thin(tmp_path / "hq", "images_test", "masks_test", "c")
    assert list(data.make(f"dis:{tmp_path}/hq#test,threshold=100").ids) == ["c"]
    thin(tmp_path / "hrsod", "images", "masks_max255", "xy")
    assert list(data.make(f"dis:{tmp_path}/hrsod").ids) == ["x", "y"]


def test_the_folder_around_the_splits_names_them(tmp_path: Path) -> None:
    make_dis(tmp_path / "DIS-VD")
    make_dis(tmp_path / "DIS-TE1")
    with pytest.raises(data.DataError, match="take one of the folders in it, DIS-TE1, DIS-VD"):
        data.make(f"dis:{tmp_path}")


def test_masks_may_be_gray_stored_as_rgb_and_of_no_other_colour(tmp_path: Path) -> None:
    spec = make_dis(tmp_path)
    mask = next((tmp_path / "gt").iterdir())
    before = {task.id: task.target for task in data.make(spec)}
    save(mask, np.stack([soft_mask()] * 3, axis=2))
    assert np.array_equal(data.make(spec).by_id(mask.stem).target, before[mask.stem])
    save(mask, np.stack([soft_mask(), square(), square()], axis=2))
    with pytest.raises(BadItem, match="coloured pixels"):
        list(data.make(spec))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "laid out otherwise; expected im/ and gt/ .*xuebinqin.github.io/dis"),
        ("#test", "with part 'test' is laid out otherwise"),
        (",threshold=300", "threshold is 300; expected a gray value from 0 to 254"),
        (",threshold=half", "threshold is 'half'; expected a whole number"),
        ("/none", "none does not exist; expected im/ and gt/"),
    ],
)
def test_other_layouts_and_thresholds_are_told(rest: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=message):
        data.make(f"dis:{tmp_path}{rest}")
