"""Two runs on the same episodes, compared in pairs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from experiments import compare
from experiments.common.config import RunError
from experiments.evaluate import config, evaluate
from experiments.evaluate.__main__ import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for radius in (12, 24):
        evaluate.run(
            config.Args(
                data="synthetic:val", tool=f"disc:radius={radius}", limit=6, max_steps=3, out=str(root / str(radius))
            ),
            quiet=True,
        )
    evaluate.run(
        config.Args(data="synthetic:val", tool="disc", limit=5, max_steps=3, out=str(root / "five")), quiet=True
    )
    return root


def test_differences_are_paired_by_episode(runs):
    result = compare.compare(runs / "24", runs / "12")
    final = {}
    for radius in ("24", "12"):
        records = [json.loads(line) for line in (runs / radius / "episodes.jsonl").read_text().splitlines()]
        final[radius] = {record["task"]: record["steps"][-1]["iou"] for record in records}
    differences = [final["24"][task] - final["12"][task] for task in final["24"]]
    row = result["iou_at"]["3"]
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert row["first"] - row["second"] == pytest.approx(row["difference"])
    assert result["episodes"] == 6


def test_a_run_equals_itself(runs, capsys):
    assert compare.main([str(runs / "24"), str(runs / "24"), "--json", str(runs / "same.json")]) == 0
    assert "IoU@3" in capsys.readouterr().out
    same = json.loads((runs / "same.json").read_text())
    assert all(row["difference"] == 0 and row["interval"] == [0, 0] for row in same["iou_at"].values())


def test_unlike_runs_are_refused(runs):
    with pytest.raises(RunError, match="differ in limit"):
        compare.compare(runs / "24", runs / "five")
    assert compare.main([str(runs / "24"), str(runs / "nowhere")]) == 1


def test_data_that_changed_between_the_runs_is_noticed(runs, tmp_path):
    other = shutil.copytree(runs / "24", tmp_path / "other")
    about = json.loads((other / "manifest.json").read_text())
    about["hashes"]["data"] = "another"
    (other / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="other data under the name 'synthetic:val'"):
        compare.compare(runs / "24", other)


def test_an_episode_that_is_there_twice_is_named(runs, tmp_path, capsys):
    """Two files glued together: the later line would hide the earlier one."""
    glued = shutil.copytree(runs / "24", tmp_path / "glued")
    lines = (glued / "episodes.jsonl").read_text().splitlines(keepends=True)
    (glued / "episodes.jsonl").write_text("".join([*lines, lines[2]]))
    assert compare.main([str(runs / "24"), str(glued)]) == 1
    assert f"two episodes with task and sample ('{json.loads(lines[2])['task']}', 0)" in capsys.readouterr().err


def test_the_run_that_lacks_something_is_named(runs, tmp_path):
    shutil.copytree(runs / "24", tmp_path / "run")
    (tmp_path / "run" / "episodes.jsonl").unlink()
    with pytest.raises(RunError, match="run/episodes.jsonl is missing or empty"):
        compare.compare(tmp_path / "run", runs / "12")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="run/metrics.json has no protocol"):
        compare.compare(runs / "12", tmp_path / "run")


def test_a_run_with_an_episode_twice_is_not_resumed(runs, tmp_path, capsys):
    shutil.copytree(runs / "24", tmp_path / "run")
    episodes = tmp_path / "run" / "episodes.jsonl"
    episodes.write_bytes(episodes.read_bytes() + episodes.read_bytes().splitlines(keepends=True)[0])
    assert main(["--resume", str(tmp_path / "run")]) == 1
    assert "episodes.jsonl lists two episodes of task" in capsys.readouterr().err
