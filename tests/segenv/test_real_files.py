"""Files that others wrote, where this machine has some: the shared COCO photographs, and a table that PyArrow ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from segenv import data

COCO_FILES = Path(__file__).parents[2].parent / "shared/data/coco"
ANNOTATIONS = COCO_FILES / "annotations/instances_train2017_mini.json"
EVERY = 12  # one of so many annotations is read


@pytest.fixture(scope="module")
def theirs() -> COCO:
    if not ANNOTATIONS.is_file():
        pytest.skip("needs ../shared/data/coco: annotations that COCO published, with their photographs")
    return COCO(str(ANNOTATIONS))


def test_every_mask_of_published_coco_annotations_is_pycocotools(theirs):
    tasks = data.make(f"coco:{ANNOTATIONS}@{COCO_FILES / 'train2017'}")
    assert len(tasks) == len(theirs.anns)
    areas = []
    for number, annotation in list(enumerate(theirs.anns.values()))[::EVERY]:
        task = tasks[number]
        mask = theirs.annToMask(annotation).astype(bool)
        assert np.array_equal(task.target == 255, mask) and task.image.shape[:2] == mask.shape
        areas.append(mask.sum())
    assert len(areas) > 70 and min(areas) > 0
    assert [tasks.crowd(k) for k in range(len(tasks))] == [bool(one["iscrowd"]) for one in theirs.anns.values()]


def test_derived_instructions_are_those_that_were_derived_apart(theirs):
    """The shared data hold "the CLASS" by the same three conditions, written by another program."""
    tasks = data.make(f"coco:{ANNOTATIONS}@{COCO_FILES / 'train2017'}")
    refs = json.loads((COCO_FILES / "annotations/derived_classname_refs.json").read_text())["refs"]
    derived = {ref["ann_id"]: ref["expression"] for ref in refs}
    read = list(enumerate(theirs.anns.values()))[:: EVERY - 1]
    assert 5 < sum(annotation["id"] in derived for _, annotation in read) < len(read) - 5
    for number, annotation in read:
        assert tasks[number].instruction == derived.get(annotation["id"], "")


@pytest.mark.parametrize(
    ("spec", "name"), [("reasonseg:{}/test", "data/test-0.parquet"), ("ref-l4:{}/val", "ref-l4-val.parquet")]
)
def test_a_table_of_other_columns_is_refused_by_the_names_that_it_lacks(spec, name, tmp_path):
    """PyArrow's wheel holds tables that pandas wrote, of diamonds."""
    arrow = pytest.importorskip("pyarrow")
    table = Path(arrow.__file__).parent / "tests/data/parquet/v0.7.1.parquet"
    if not table.is_file():
        pytest.skip("this PyArrow ships no table")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(table, tmp_path / name)
    with pytest.raises(data.DataError, match="has no column .*; it has carat, cut, color"):
        data.make(spec.format(tmp_path))
