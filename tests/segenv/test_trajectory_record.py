"""Recorded clicks in SegAgent's JSON: there and back, tolerant of what differs elsewhere, and clear about what is
wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import save

from segenv import data
from segenv.data.trajectories.dataset import Trajectories, write
from segenv.data.trajectories.record import RecordedClick, Start, Trajectory
from segenv.geometry.rle import encode_mask, segmentation_mask
from segenv.types import BadItem, Click, Stop

masks = st.builds(
    lambda h, w, seed, p: np.random.default_rng(seed).random((h, w)) < p,
    *(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 1.0])),
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Any trajectory: with and without what the released files lack."""
    mask = draw(masks)
    height, width = mask.shape
    like = masks.map(lambda m: encode_mask(np.resize(m, (height, width))))
    clicks: list[RecordedClick] = []
    for k in range(draw(st.integers(0, 3))):
        spot = Click(draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1)), draw(st.booleans()))
        clicks.append(RecordedClick.measured(k, spot, draw(like), draw(st.floats(0, 1)), height, width))
    unknown = draw(st.booleans())
    if clicks and unknown:  # the last outcome need not be known
        clicks[-1] = replace(clicks[-1], mask=None, iou=None, box=None, area=None)
    task = draw(st.none() | st.text())
    return Trajectory(
        image_name=draw(st.text(min_size=1)),
        height=height,
        width=width,
        object_id=draw(st.none() | st.integers() | st.text()),
        caption=draw(st.text()),
        target=encode_mask(mask),
        clicks=tuple(clicks),
        start=draw(st.none() | st.builds(Start, st.sampled_from(["box", "points"]), like, st.floats(0, 1))),
        bbox=draw(st.none() | st.tuples(*[st.floats(0, 50)] * 4)),
        ignored=draw(st.none() | like),
        task=task,
        sample=0 if task is None else draw(st.integers(0, 5)),
    )


@settings(max_examples=50)
@given(found=st.lists(trajectories(), min_size=1, max_size=3))
def test_what_is_written_is_read_again_exactly(
    found: list[Trajectory], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = (tmp_path_factory.getbasetemp() / name for name in ("first.json", "second.json"))
    assert write(first, (one.to_json() for one in found), {"about": "é"}) == len(found)
    read = Trajectories(str(first))
    again = [read.trajectory(i) for i in range(len(read))]
    assert again == found and read.info == {"about": "é"}
    assert len(set(read.ids)) == len(found)
    write(second, (one.to_json() for one in again), read.info)
    assert second.read_bytes() == first.read_bytes()


def released() -> dict[str, Any]:
    """Two entries as the released files have them, by hand: an image of 4 rows and 5 columns, run down the columns."""
    square = {"size": [4, 5], "counts": [5, 2, 2, 2, 9]}  # rows 1 and 2 of columns 1 and 2
    left = {"size": [4, 5], "counts": [5, 2, 13]}
    all_right = {"size": [4, 5], "counts": [5, 2, 2, 2, 9]}
    about = {"object_id": 7, "caption": "the square", "segmentation": square, "bbox": [1, 1, 2, 2], "area": 4}
    clicks = [
        {"idx": 0, "coor": [2, 1], "is_positive": True, "mask": left, "box": [1, 1, 1, 2], "area": 2, "iou": 0.5},
        {"idx": 1, "coor": [1, 2], "is_positive": True, "mask": all_right, "box": [1, 1, 2, 2], "area": 4, "iou": 1.0},
    ]
    entry = {"image_name": "a.png", "height": 4, "width": 5, "gt_ann": about, "clicks_list": clicks}
    other = json.loads(json.dumps(entry))
    other["gt_ann"]["object_id"] = 8
    other["clicks_list"][0] |= {"coor": [0, 4], "is_positive": False}
    return {"info": {"description": "SegAgent"}, "data": [entry, other]}


SQUARE = np.zeros((4, 5), bool)
SQUARE[1:3, 1:3] = True


def write_file(root: Path, content: Any) -> str:
    save(root / "a.png", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    (root / "t.json").write_text(json.dumps(content))
    return f"trajectories:{root / 't.json'}"


def test_a_released_file_is_read_as_it_is_meant(tmp_path: Path) -> None:
    found = data.make(write_file(tmp_path, released()))
    first, second = found
    assert list(found.ids) == ["a_7", "a_8"] and list(found.sources) == ["a.png", "a.png"]
    assert first.instruction == "the square" and first.initial_mask is None
    assert np.array_equal(first.image, np.arange(60).reshape(4, 5, 3)) and np.array_equal(first.target == 255, SQUARE)
    recorded = first.meta["trajectory"]
    assert [click.click for click in recorded.clicks] == [Click(1, 2), Click(2, 1)], "coor is [row, column]"
    assert second.meta["trajectory"].clicks[0].click == Click(4, 0, False)
    left = SQUARE.copy()
    left[:, 2] = False
    assert np.array_equal(recorded.decode(recorded.clicks[0].mask), left)
    empty, half, done = recorded.lessons()
    assert (empty.action, empty.iou, empty.iou_after) == (Click(1, 2), 0.0, 0.5) and not recorded.decode(
        empty.mask
    ).any()
    assert (half.action, half.iou) == (Click(2, 1), 0.5) and np.array_equal(recorded.decode(half.mask), left)
    assert (done.action, done.iou) == (Stop(), 1.0)
    assert [lesson.action for lesson in recorded.lessons(0.5)] == [Click(1, 2), Stop()]
    assert Stop() not in [lesson.action for lesson in recorded.lessons(1.01)]


def said(counts: list[int]) -> str:
    """The same run lengths, compressed."""
    return encode_mask(segmentation_mask({"size": [4, 5], "counts": counts}, 4, 5))


def changed(content: dict[str, Any], how: str) -> Any:
    """The file as it may be met elsewhere, meaning the same."""
    for entry in content["data"]:
        for mask in (entry["gt_ann"]["segmentation"], *(click["mask"] for click in entry["clicks_list"])):
            match how:
                case "compressed":
                    mask["counts"] = said(mask["counts"])
                case "printed bytes":
                    mask["counts"] = repr(said(mask["counts"]).encode())
                case "no size":
                    del mask["size"]
        if how == "polygon":
            entry["gt_ann"]["segmentation"] = [[1, 1, 3, 1, 3, 3, 1, 3]]
        for click in entry["clicks_list"]:
            match how:
                case "numbers":
                    click |= {"coor": [float(side) for side in click["coor"]], "is_positive": int(click["is_positive"])}
                case "bare clicks":
                    for name in ("idx", "box", "area", "iou"):
                        del click[name]
    return content["data"] if how == "bare list" else content


@pytest.mark.parametrize(
    "how", ["compressed", "printed bytes", "no size", "polygon", "numbers", "bare clicks", "bare list"]
)
def test_what_differs_elsewhere_reads_the_same(how: str, tmp_path: Path) -> None:
    expected = list(data.make(write_file(tmp_path, released())))
    for task, usual in zip(data.make(write_file(tmp_path, changed(released(), how))), expected, strict=True):
        assert np.array_equal(task.target, usual.target) and task.id == usual.id
        assert list(task.meta["trajectory"].lessons()) == list(usual.meta["trajectory"].lessons())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("height"), r"height is None; expected a whole number, 1 or more"),
        (lambda e: e.update(height=40_000, width=40_000), r"more than the 50,000,000 pixels allowed"),
        (lambda e: e.update(gt_ann=[]), r"gt_ann is \[\]; expected a record"),
        (lambda e: e["gt_ann"].update(caption=7), r"gt_ann.caption is 7; expected a text"),
        (lambda e: e["gt_ann"]["segmentation"].update(size=[5, 4]), r"gt_ann.segmentation has size \[5, 4\]; expected"),
        (lambda e: e.pop("clicks_list"), r"clicks_list is None; expected a list of clicks"),
        (lambda e: e["clicks_list"].append("a"), r"clicks_list\[2\] is 'a'; expected a record"),
        (lambda e: e["clicks_list"][1].update(coor=[1, 2, 3]), r"clicks_list\[1\].coor is \[1, 2, 3\]; expected \[row"),
        (lambda e: e["clicks_list"][1].update(coor=[4, 0]), r"coor is \[4, 0\], outside the image of 5 x 4 pixels"),
        (lambda e: e["clicks_list"][1].update(coor=[0.5, 0]), r"clicks_list\[1\].coor is 0.5; expected a whole number"),
        (lambda e: e["clicks_list"][0].update(iou=74), r"clicks_list\[0\].iou is 74; expected a fraction in 0..1"),
        (lambda e: e["clicks_list"][0].update(is_positive="no"), r"is_positive is 'no'; expected true or false"),
        (lambda e: e["clicks_list"][0].update(mask=None), r"clicks_list\[0\].mask is null, as only that of the last"),
        (lambda e: e["clicks_list"][1]["mask"].update(counts="zzz"), r"clicks_list\[1\].mask has compressed counts"),
        (lambda e: e["clicks_list"][1]["mask"].update(counts=[3]), r"clicks_list\[1\].mask has counts for 3 pixels"),
        (lambda e: e["clicks_list"][1].update(box=[1, 2]), r"clicks_list\[1\].box is \[1, 2\]; expected four numbers"),
        (lambda e: e.update(start={"kind": "box"}), r"start.mask is a NoneType; expected"),
        (lambda e: e.update(image_name=3), r"image_name is 3; expected a text"),
    ],
)
def test_a_broken_entry_is_one_bad_item(change: Callable, message: str, tmp_path: Path) -> None:
    content = released()
    change(content["data"][1])
    spec = write_file(tmp_path, content)
    told = rf"^item '.+': .*t.json, data\[1\]: .*{message}.*; correct the entry; .*--skip-bad"
    with pytest.raises(BadItem, match=told):
        list(data.make(spec))
    patient = data.make(spec, skip_bad=True)
    assert len(list(patient)) == 1 and len(patient.skipped) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_name": "../a.png"}, r"'../a.png' leaves .*in"),
        ({"image_name": "b.png"}, r"b.png is missing; put the file there"),
        ({"gt_ann": {"segmentation": {"counts": [20]}}}, r"t.json has no object pixel"),
    ],
)
def test_a_file_that_is_not_there_or_not_inside_is_one_bad_item(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = released()
    content["data"][1] |= change
    save(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
    spec = write_file(tmp_path / "in", content)
    with pytest.raises(BadItem, match=rf"^item '.+': .*{message}.*--skip-bad"):
        data.make(spec)[1]
    assert len(list(data.make(spec, skip_bad=True))) == 1


def test_an_image_of_another_size_is_a_bad_item(tmp_path: Path) -> None:
    spec = write_file(tmp_path, released())
    save(tmp_path / "a.png", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(BadItem, match=r"item 'a_7': .*t.json is 5 x 4 pixels .* but .*a.png is 5 x 5"):
        data.make(spec)[0]
    with pytest.raises(BadItem, match="more than the 19 pixels allowed"):
        data.make(spec, max_pixels=19)[0]


def test_the_spec_names_a_folder_of_images(tmp_path: Path) -> None:
    write_file(tmp_path / "p@q", released())
    (tmp_path / "t.json").write_text(json.dumps(released()))
    spec = f"trajectories:{tmp_path / 't.json'}@{tmp_path / 'p@q'}"
    there, here = data.make(spec), data.make(f"trajectories:{tmp_path / 'p@q' / 't.json'}")
    assert there.spec == spec and there.fingerprint == here.fingerprint and there[0].image_hash == here[0].image_hash
    for wrong, message in (
        (f"trajectories:{tmp_path}/no.json", "no.json cannot be read"),
        (
            f"trajectories:{tmp_path / 't.json'}@{tmp_path}/none",
            "none does not exist; expected the folder of the images",
        ),
        ("trajectories:", r"names no files; expected trajectories:FILE.json or"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.make(wrong)
    odd: list[Any] = [{"info": {}}, {"data": []}, 7]
    for content in odd:
        with pytest.raises(data.DataError, match=r"t.json has no (list of )?entries; expected trajectories"):
            data.make(write_file(tmp_path, content))
