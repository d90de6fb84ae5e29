"""Named protocols: what they fix, when a run has their name, and what it says when it has not."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from made_data import make_davis, photo, save
from made_fields import make_grefcoco, make_reasonseg, make_refcoco

from experiments import merge
from experiments.common.config import RunError, parse_args
from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__, protocols
from experiments.evaluate.config import Args
from segenv import data as datasets


@pytest.fixture
def davis(tmp_path, monkeypatch) -> Path:
    """Three masks in the layout of DAVIS, where the protocol expects three."""
    make_davis(tmp_path / "davis")
    known = protocols.PROTOCOLS["ritm-davis"]
    monkeypatch.setitem(protocols.PROTOCOLS, "ritm-davis", replace(known, tasks={"": 3}))
    return tmp_path / "davis"


def metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def test_a_run_under_a_protocol_has_its_name_its_table_and_its_rules(davis, tmp_path, capsys):
    flags = ["--protocol", "ritm-davis", "--root", str(davis), "--tool", "disc:radius=4"]
    assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 0
    printed, numbers = capsys.readouterr(), metrics(tmp_path / "run")
    for text in (printed.err, printed.out):  # before and after
        assert "protocol ritm-davis: " in text and "--max-steps 20" in text and "clicks: the deepest pixel" in text
    assert numbers["protocol"]["name"] == "ritm-davis" and "departs_from" not in numbers["protocol"]
    assert numbers["episodes"] == 3 and numbers["protocol"]["max_steps"] == 20
    assert numbers["protocol"]["data"] == f"davis:{davis}"
    headline = numbers["headline"]
    assert headline["NoC@90"] == {"value": numbers["noc"]["90"], "interval": numbers["intervals"]["noc"]["90"]}
    assert headline["NoF@85"] == {"value": numbers["nof"]["85"], "interval": None} and "NoC@90" in printed.out
    page = (tmp_path / "run/report.html").read_text()
    assert "under protocol ritm-davis" in page and "Protocol ritm-davis" in page


def test_one_flag_changed_and_the_name_is_gone(davis, tmp_path, capsys):
    flags = ["--protocol", "ritm-davis", "--data", f"davis:{davis}", "--tool", "disc"]
    for name, flag, value in (
        ("limit", "--limit", "2"),
        ("steps", "--max-steps", "19"),
        ("agent", "--agent", "annotator:depth"),
        ("seed", "--seed", "1"),
        ("start", "--start", "box"),
    ):
        assert __main__.main([*flags, flag, value, "--report-episodes", "0", "--out", str(tmp_path / name)]) == 0
        printed, numbers = capsys.readouterr(), metrics(tmp_path / name)
        assert f"not under protocol ritm-davis: {flag} is {value}, and " in printed.err and "ritm-davis" in printed.out
        assert "name" not in numbers["protocol"] and "headline" not in numbers
        assert numbers["protocol"]["departs_from"]["differences"][0].startswith(f"{flag} is {value}")
        assert "Not under the protocol" in (tmp_path / name / "report.html").read_text()


def test_other_data_and_another_number_of_tasks_have_no_name(davis, tmp_path, capsys):
    for number in range(2):
        save(davis / f"img/more{number}.png", photo(number))
        save(davis / f"gt/more{number}.png", np.full((20, 30), 255, np.uint8))
    args = Args(protocol="ritm-davis", root=str(davis)).preset()
    assert protocols.differences(args, 3) == []
    assert protocols.differences(args, 5) == ["the data hold 5 tasks, and 3 there"]
    other = replace(args, data="synthetic:val")
    assert protocols.differences(other)[0] == "--data is synthetic:val, and davis:{root} there"
    assert protocols.about(Args(), 7) == {}
    flags = ["--protocol", "ritm-davis", "--root", str(davis), "--tool", "disc", "--report-episodes", "0"]
    assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().err  # by the data, not by the flags alone
    assert "not under protocol ritm-davis: the data hold 5 tasks, and 3 there" in told and "flags: " not in told


def test_the_page_names_the_protocols_whose_tasks_are_not_counted():
    page = (Path(__file__).parents[2] / "docs/protocols.md").read_text()
    sentence = " ".join(page.split()).partition("The number of tasks of ")[2].partition(" is not checked")[0]
    uncounted = {name for name, one in protocols.PROTOCOLS.items() if not one.tasks}
    assert set(re.findall("`(.*?)`", sentence)) == uncounted


def test_a_part_has_no_name_and_the_whole_has(davis, tmp_path):
    flags = ["--protocol", "ritm-davis", "--root", str(davis), "--tool", "disc", "--batch-size", "1"]
    flags += ["--report-episodes", "0"]
    for more, name in (([], "ritm-davis"), (["--max-steps", "2"], None)):
        root = tmp_path / str(name)
        assert __main__.main([*flags, *more, "--out", str(root / "whole")]) == 0
        for k in (1, 2):
            assert __main__.main([*flags, *more, "--shard", f"{k}/2", "--out", str(root / f"part{k}")]) == 0
            departs = metrics(root / f"part{k}")["protocol"]["departs_from"]["differences"]
            assert departs[-1] == f"--shard is {k}/2, and all tasks are played there"
        assert merge.main([str(root / "part1"), str(root / "part2"), "--out", str(root / "merged")]) == 0
        merged, whole = metrics(root / "merged"), metrics(root / "whole")
        assert {**merged, "seconds": 0} == {**whole, "seconds": 0} and merged["protocol"].get("name") == name


def test_a_run_that_goes_on_keeps_its_name(davis, tmp_path):
    flags = ["--protocol", "ritm-davis", "--root", str(davis), "--tool", "disc", "--batch-size", "1"]
    out = tmp_path / "run"
    assert __main__.main([*flags, "--out", str(out)]) == 0
    whole = metrics(out)
    lines = (out / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (out / "episodes.jsonl").write_bytes(lines[0])
    assert __main__.main(["--resume", str(out)]) == 0
    assert {**metrics(out), "seconds": 0} == {**whole, "seconds": 0}
    assert len(list(RunFolder(out).records("episodes.jsonl"))) == 3


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_flags_of_a_protocol_are_its_own_and_depart_from_nothing(name):
    root = ["--root", "/data"] if "{root}" in (protocols.PROTOCOLS[name].of_root or "") else []
    args = parse_args(Args, ["--protocol", name, *root, "--batch-size", "3"])
    assert args.batch_size == 3 and protocols.differences(args) == []
    known = {one.name for one in fields(Args)} | {"polygon.given", "polygon.asked", "polygon.temperature"}
    assert set(protocols.PROTOCOLS[name].settings) <= known
    assert parse_args(Args, ["--protocol", name, *root, "--limit", "7"]).limit == 7


def test_wrong_names_and_a_root_of_nothing_are_refused(capsys):
    assert __main__.main(["--protocol", "ritm-davi"]) == 1
    assert "did you mean 'ritm-davis'?" in capsys.readouterr().err
    with pytest.raises(RunError, match="--root /x is the folder of a protocol's data; name a --protocol"):
        parse_args(Args, ["--root", "/x"])


def test_referring_data_is_known_by_its_spec(tmp_path):
    for name, spec, part in (
        ("refcoco-umd", make_refcoco(tmp_path, "refcocog", "umd"), "val"),
        ("refcoco-unc", make_refcoco(tmp_path, "refcoco+", "unc", "testA"), "refcoco+/unc/testA"),
        ("grefcoco", make_grefcoco(tmp_path), "val"),
        ("reasonseg", make_reasonseg(tmp_path), "val"),
    ):
        assert protocols.PROTOCOLS[name].part(spec) == part
        if name != "refcoco-unc":  # whose --root leads to RefCOCO
            assert datasets.make(Args(protocol=name, root=str(tmp_path)).preset().data).spec == spec
        others = [other for other in protocols.PROTOCOLS if other != name]
        assert all(protocols.PROTOCOLS[other].part(spec) is None for other in others)
    assert protocols.PROTOCOLS["reasonseg"].part("reasonseg:/data/val#all") is None


def test_grefcoco_is_measured_with_its_empty_rules(tmp_path):
    spec = make_grefcoco(tmp_path)
    flags = ["--protocol", "grefcoco", "--data", spec, "--tool", "disc:radius=3", "--agent", "annotator"]
    assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 0
    numbers = metrics(tmp_path / "run")
    assert numbers["protocol"]["name"] == "grefcoco" and numbers["protocol"]["part"] == "val"
    assert set(numbers["headline"]) == {"gIoU", "cIoU", "N-acc", "T-acc"}
    assert numbers["headline"]["N-acc"]["value"] == numbers["headline"]["T-acc"]["value"] == 1
    assert numbers["no_target"] == 3


def test_coco_takes_large_instances_of_so_many_images(tmp_path, monkeypatch):
    folder = tmp_path / "val2017"
    annotations, images = [], []
    for k in range(4):
        save(folder / f"{k}.png", photo(k, (60, 80)))
        images.append({"id": k, "file_name": f"{k}.png", "height": 60, "width": 80})
        for number, side in enumerate((40, 31, 36)):
            corners = [1, 1, 1 + side, 1, 1 + side, 1 + side, 1, 1 + side]
            annotations.append({"segmentation": [corners], "area": side**2, "image_id": k, "category_id": 1})
            annotations[-1] |= {"id": 10 * k + number, "iscrowd": int(number == 2 and k == 0)}
    file = tmp_path / "annotations/instances_val2017.json"
    file.parent.mkdir()
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(content))
    args = Args(protocol="sam2-coco-500x5", root=str(tmp_path)).preset()
    data = datasets.make(args.data)
    assert [data.ids[i] for i in protocols.positions(args, data)] == [
        "0_0",
        "1_10",
        "1_12",
        "2_20",
        "2_22",
        "3_30",
        "3_32",
    ]
    out = tmp_path / "run"
    flags = ["--protocol", "sam2-coco-500x5", "--root", str(tmp_path), "--tool", "disc:radius=9", "--out", str(out)]
    assert __main__.main(flags) == 0
    numbers = metrics(out)
    assert numbers["episodes"] == 7 and numbers["protocol"]["name"] == "sam2-coco-500x5"
    assert list(numbers["headline"]) == ["mIoU@1", "mIoU@3", "mIoU@5", "NoC@85", "never 85"]


def test_hqseg44k_is_its_four_parts(tmp_path):
    for place, images, masks in (
        ("DIS5K/DIS-VD", "im", "gt"),
        ("thin_object_detection/COIFT", "images", "masks"),
        ("thin_object_detection/HRSOD", "images", "masks_max255"),
        ("thin_object_detection/ThinObject5K", "images_test", "masks_test"),
    ):
        for name in "ab":
            save(tmp_path / place / images / f"{name}.jpg", photo(ord(name)))
            soft = np.zeros((20, 30), np.uint8)
            soft[5:15, 5:20], soft[5, 5:20], soft[4, 5:20] = 255, 128, 1
            save(tmp_path / place / masks / f"{name}.png", soft)
    data = datasets.make(Args(protocol="segnext-hq44k", root=str(tmp_path)).preset().data)
    parts = ["DIS5K-VD", "COIFT", "HRSOD", "ThinObject5K-TE"]
    assert list(data.ids) == [f"{part}/{name}" for part in parts for name in "ab"]
    tasks = list(data)
    assert [task.id for task in tasks] == list(data.ids) and [task.meta["part"] for task in tasks[::2]] == parts
    assert all((task.target == 255).sum() == 11 * 15 for task in tasks)  # all that is not black, as SegNext reads it
    above = datasets.make(f"hq44k:{tmp_path}")  # as HQ-SAM does
    assert all((task.target == 255).sum() == 9 * 15 for task in above) and above.fingerprint != data.fingerprint
    assert len(set(data.sources)) == 8 and data.fingerprint == datasets.make(data.spec).fingerprint
    (tmp_path / "thin_object_detection/COIFT/masks/b.png").unlink()
    broken = datasets.make(data.spec, skip_bad=True)
    assert len(list(broken)) == 7 and broken.skipped[0][0] == "COIFT/b"
