"""Every dataset keeps one contract, and every spec makes a dataset or says what was expected."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_data import MADE, make_coco, make_index, save, square
from made_fields import FIELDS
from pyarrow import parquet

from segenv import data
from segenv.types import Task, object_of

REAL = ["index:{}/click#GrabCut", "coco:{0}/coco/annotations/instances_train2017_mini.json@{0}/coco/train2017"]
PROCEDURAL = ["synthetic", "synthetic:val", "synthetic:test", "synthetic:val#hard", "from:9990:synthetic:test"]
PROCEDURAL += ["synthetic:val#charts"]


@pytest.fixture(params=[*MADE, *FIELDS, *REAL, *PROCEDURAL], ids=lambda p: p if isinstance(p, str) else p.__name__)
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in PROCEDURAL:
        return request.param
    if isinstance(request.param, str):
        return request.param.format(request.getfixturevalue("shared_data"))
    return request.param(tmp_path)


def same(one: Task, other: Task) -> bool:
    return (
        (one.id, one.instruction, one.image_hash) == (other.id, other.instruction, other.image_hash)
        and one.target.dtype == other.target.dtype
        and np.array_equal(one.target, other.target)
    )


def test_a_dataset_is_a_lazy_sequence_of_tasks(spec: str) -> None:
    dataset = data.make(spec)
    few = dataset[:4]
    assert 0 < len(few) == len(list(few)) <= len(dataset)
    assert list(few.ids) == [task.id for task in few] == [dataset.ids[i] for i in range(len(few))]
    for i, task in enumerate(few):
        assert same(task, dataset[i]) and same(task, dataset[i - len(dataset)]), "a second reading equals the first"
        assert task.image.dtype == np.uint8 and task.image.shape == (*task.target.shape, 3)
        assert task.target.dtype == bool or set(np.unique(task.target)) <= {0, 128, 255}
        assert object_of(task.target).any() != task.meta.get("absent", False)
        assert not task.image.flags.writeable and not task.target.flags.writeable
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[outside]
    assert [task.id for task in dataset.select([-1, 0])] == [dataset.ids[-1], dataset.ids[0]]
    assert dataset.skipped == []


def test_ids_are_unique_and_the_spec_makes_the_dataset_again(spec: str) -> None:
    dataset = data.make(spec)
    again = data.make(dataset.spec)
    assert again.fingerprint == dataset.fingerprint and again.spec == dataset.spec
    first = list(dataset[:1000].ids)
    assert len(set(first)) == len(first) and first == list(again[:1000].ids)
    assert dataset[:2].fingerprint != dataset[:1].fingerprint


IN_A_NEW_PROCESS = """
import sys
from segenv import data
for spec in sys.argv[1:]:
    dataset = data.make(spec)
    task = dataset[-1]
    print(dataset.fingerprint, task.id, task.image_hash, int(task.target.sum()), sep="|")
"""


def test_another_process_reads_the_same_from_the_spec(tmp_path: Path) -> None:
    specs = [*(make(tmp_path / make.__name__) for make in (*MADE, *FIELDS)), "synthetic:val#hard"]
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, *specs]
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.split("\n")
    for spec, line in zip(specs, out, strict=False):
        task = data.make(spec)[-1]
        assert line == "|".join([data.make(spec).fingerprint, task.id, task.image_hash, str(int(task.target.sum()))])


@pytest.mark.parametrize("make", [*MADE, *FIELDS])
def test_the_fingerprint_follows_the_data_and_not_its_place(make: Callable[[Path], str], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    spec = make(here)
    shutil.copytree(here, there)
    moved = spec.replace(str(here), str(there))
    before = data.make(spec).fingerprint
    assert data.make(moved).fingerprint == before
    if told := sorted([*there.rglob("*instances.json"), *there.rglob("a.json"), *there.rglob("sa_*.json")]):
        told[0].write_text(told[0].read_text().replace("2", "3", 1))
    elif tables := sorted(there.rglob("*-*.parquet")):
        parquet.write_table(parquet.read_table(tables[-1])[:-1], tables[-1])
    else:
        mask = next(path for path in sorted(there.rglob("*")) if path.parent.name in ("masks", "boundary_GT", "gt"))
        save(mask, square(inside=0, ring=255))
    assert data.make(moved).fingerprint != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "imagenet:x",
            "unknown data 'imagenet:x'; expected one of: synthetic.*coco:ANNOTATIONS.json@IMAGES.*davis:DIR",
        ),
        ("", "unknown data ''"),
        ("folder", "names no files; expected folder:DIR"),
        ("folder:{}/none", "none does not exist; expected a folder with images/ and masks/"),
        ("folder:{}", "images does not exist"),
        ("folder:{}/empty", "has no items"),
        ("folder:{}/nested", "is a folder; expected files only"),
        ("index:{}", "index.json cannot be read .No such file"),
        ("index:{}/file.json", "file.json is not a folder"),
        ("index:{}/broken", "index.json is not valid JSON"),
        ("index:{}/deep", "index.json is not valid JSON"),
        ("index:{}/twice", "two items as 'a'"),
        ("coco:{}/file.json", "lacks a part; expected coco:ANNOTATIONS.json@IMAGES"),
        ("coco:{}/file.json@{}/none", "none does not exist"),
        ("coco:{}/file.json@{}", "has no list of images"),
        ("grabcut:{}", "data_GT does not exist; expected GrabCut with data_GT/ and boundary_GT/"),
        ("davis:{}", "img does not exist; expected DAVIS with img/ and gt/"),
        ("synthetic:dev", "no split 'dev'.*train, val, test"),
        ("synthetic:val#huge", "no difficulty 'huge'.*easy, medium, hard"),
    ],
)
def test_a_spec_that_cannot_be_made_says_what_was_expected(spec: str, message: str, tmp_path: Path) -> None:
    for name in ("empty/images", "empty/masks", "nested/images/deeper", "nested/masks", "broken", "deep", "twice"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file.json").write_text("[]")
    (tmp_path / "broken" / "index.json").write_text("[{")
    (tmp_path / "deep" / "index.json").write_text("[" * 100_000)
    item = {"name": "a", "image": "a.png", "mask": "b.png"}
    (tmp_path / "twice" / "index.json").write_text(json.dumps([item, item]))
    for skip_bad in (False, True):  # data that cannot be read as a whole is never skipped
        with pytest.raises(data.DataError, match=message):
            data.make(spec.replace("{}", str(tmp_path)), skip_bad)


def test_paths_may_hold_the_separators_of_specs(tmp_path: Path) -> None:
    assert len(data.make(make_index(tmp_path / "set #2"))) == 3
    assert len(data.make(make_index(tmp_path / "set #3") + "#P")) == 2
    assert len(data.make(make_coco(tmp_path / "me@home"))) == 5


def test_a_range_of_tasks_has_a_spec(tmp_path: Path) -> None:
    whole = data.make("synthetic:test")
    rest = data.make("from:6000:synthetic:test")
    assert len(rest) == 4000 and rest.ids[0] == whole.ids[6000] and same(rest[1], whole[6001])
    assert rest.spec == "from:6000:synthetic:test" and rest.fingerprint != whole.fingerprint
    coco = data.make(make_coco(tmp_path))
    some = data.make(f"from:1:{coco.spec}")
    assert some.images_of(some.ids) == list(some.sources) == list(coco.sources[1:])
    assert len(set(coco.images_of(coco.ids))) < len(coco)
    for wrong, message in (
        ("from:10000:synthetic:test", "has 10000 tasks, so none from index 10000 on"),
        ("from:x:synthetic:test", "'x' is no index; expected from:N:DATA"),
        ("from:5", "expected from:N:DATA"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.make(wrong)
