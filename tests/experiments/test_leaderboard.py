"""Runs under one protocol, ranked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import disc_task
from PIL import Image

from experiments.common.config import RunError
from experiments.evaluate.__main__ import main as evaluate
from experiments.leaderboard import _rank_key, main, rank


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs of three agents on four pictures."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("images", "masks"):
        (root / "photos" / name).mkdir(parents=True)
    for k in range(4):
        task = disc_task(60, 80, 30, 30, 9 + k)
        Image.fromarray(task.image).save(root / f"photos/images/{k}.png")
        Image.fromarray(task.target.astype(np.uint8) * 255).save(root / f"photos/masks/{k}.png")
    flags = ["--data", f"folder:{root / 'photos'}", "--tool", "disc:radius=10", "--max-steps", "2"]
    for name, more in {
        "random": ["--agent", "random"],
        "annotator": [],
        "searched": ["--agent", "random", "--search", "greedy:k=2,value=oracle"],
    }.items():
        words = [*flags, *more, "--out", str(root / name)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["__main__.py", *words])  # as it is typed
            assert evaluate(words) == 0
    return root


def test_the_best_run_is_first_with_its_interval_its_cost_and_its_command(runs, tmp_path, capsys):
    names = ("random", "annotator", "searched")
    assert main([*(str(runs / name) for name in names), "--out", str(tmp_path / "board")]) == 0
    found = {name: json.loads((runs / name / "metrics.json").read_text()) for name in names}
    rows = json.loads((tmp_path / "board/leaderboard.json").read_text())["rows"]
    assert [row["measures"]["mIoU"]["value"] for row in rows] == sorted(one["miou"] for one in found.values())[::-1]
    first, numbers = rows[0], found["annotator"]
    assert first["privileged"] and first["measures"]["mIoU"]["interval"] == numbers["intervals"]["miou"]
    assert first["measures"]["IoU@1"]["value"] == numbers["iou_at"]["1"]
    parts = {name: seconds for name, seconds in numbers["seconds"].items() if isinstance(seconds, float)}
    assert first["costs"]["seconds"] == pytest.approx(sum(parts.values()) / 4)
    text = (tmp_path / "board/leaderboard.md").read_text()
    assert text.count("python -m experiments.evaluate") == 3 and "--search greedy:k=2,value=oracle" in text
    assert str(runs) not in text and "(reads the target)" in text and "--out" not in text
    page = (tmp_path / "board/report.html").read_text()
    assert str(runs / "photos") not in page and "folder:DIR" in page.partition("have in common")[2]
    assert page.count("report.html") == 3 and "reads the target" in capsys.readouterr().out


def test_agents_in_private_folders_are_told_apart_and_no_place_is_shown(runs, tmp_path):
    for name in ("first", "second"):
        run = shutil.copytree(runs / "random", tmp_path / name)
        numbers = json.loads((run / "metrics.json").read_text())
        numbers["protocol"]["agent"] = f"sb3:/home/someone/{name}/policy"
        (run / "metrics.json").write_text(json.dumps(numbers))
    assert main([str(tmp_path / "first"), str(tmp_path / "second"), "--out", str(tmp_path / "board")]) == 0
    for name in ("report.html", "leaderboard.md", "leaderboard.json"):
        text = (tmp_path / "board" / name).read_text()
        assert "someone" not in text and "sb3:DIR / pixels (first)" in text and "sb3:DIR / pixels (second)" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_steps", 3), ("name", "ritm-davis"), ("noc", "otherwise"), ("exclude", {"tasks": 1})),
        ("shard", "1/2"),
    ],
)
def test_a_run_under_another_protocol_is_refused_and_the_difference_named(runs, tmp_path, name, value):
    other = shutil.copytree(runs / "random", tmp_path / "other")
    numbers = json.loads((other / "metrics.json").read_text())
    numbers["protocol"][name] = value
    (other / "metrics.json").write_text(json.dumps(numbers))
    with pytest.raises(RunError, match=f"differ in (the definition of )?{name}.*leaderboard is of one protocol"):
        rank([runs / "annotator", other])


def test_a_leaderboard_of_a_named_protocol_has_its_measures_first(runs, tmp_path):
    for name, value in (("annotator", 2.0), ("random", 1.5)):
        run = shutil.copytree(runs / name, tmp_path / name)
        numbers = json.loads((run / "metrics.json").read_text())
        numbers["protocol"]["name"] = "ritm-davis"
        numbers["headline"] = {"NoC@85": {"value": value, "interval": [value - 1, value]}}
        (run / "metrics.json").write_text(json.dumps(numbers))
    _, rows = rank([tmp_path / "annotator", tmp_path / "random"])
    assert [next(iter(row["measures"].items())) for row in rows] == [
        ("NoC@85", {"value": 1.5, "interval": [0.5, 1.5]}),  # fewer clicks are better
        ("NoC@85", {"value": 2.0, "interval": [1.0, 2.0]}),
    ]


def test_masks_by_clicks_and_by_one_reply_are_in_one_table_under_a_name_alone(runs, tmp_path):
    clicks, reply = (shutil.copytree(runs / "annotator", tmp_path / name) for name in ("clicks", "reply"))
    numbers = json.loads((clicks / "metrics.json").read_text())
    numbers |= {"headline": {"cIoU": {"value": 0.5, "interval": [0.4, 0.6]}}, "skipped": {"0": "gone"}}
    other = {"tasks": 4, "giou": 0.7, "headline": {"cIoU": {"value": 0.7, "interval": [0.6, 0.8]}}, "skipped": {}}
    other["protocol"] = {"task": "polygon", "iou": "otherwise", "data": numbers["protocol"]["data"], "agent": "model"}
    for folder, content in ((clicks, numbers), (reply, other)):
        (folder / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="differ in task: 'polygon'"):
        rank([reply, clicks])
    for folder, content in ((clicks, numbers), (reply, other)):
        content["protocol"] |= {"name": "refcoco-umd", "part": "val"}
        (folder / "metrics.json").write_text(json.dumps(content))
    assert main([str(clicks), str(reply), "--out", str(tmp_path / "board")]) == 0
    found = json.loads((tmp_path / "board/leaderboard.json").read_text())
    assert [row["measures"]["cIoU"]["value"] for row in found["rows"]] == [0.7, 0.5]
    assert found["title"].startswith("refcoco-umd: polygon and segment on ")
    assert "4 (1 skipped)" in (tmp_path / "board/leaderboard.md").read_text()
    other["protocol"]["part"] = "test"
    (reply / "metrics.json").write_text(json.dumps(other))
    with pytest.raises(RunError, match="differ in "):
        rank([clicks, reply])


def test_runs_without_a_value_are_last():
    for measure, order in (("NoC@85", ["few", "many", "none"]), ("mIoU", ["many", "few", "none"])):
        rows = [
            {"name": name, "measures": {measure: {"value": value}}}
            for name, value in (("none", None), ("few", 0.0), ("many", 2.0))
        ]
        assert [row["name"] for row in sorted(rows, key=_rank_key)] == order
