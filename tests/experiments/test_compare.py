"""Runs on the same episodes, compared in pairs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from experiments.common.config import RunError
from experiments.compare import compare
from experiments.compare.__main__ import main as compare_main
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
    args = config.Args(data="synthetic:val", tool="disc", agent="random", limit=6, max_steps=3)
    evaluate.run(replace(args, out=str(root / "random")), quiet=True)
    return root


def test_differences_are_paired_by_episode(runs):
    result = compare.compare(runs / "24", runs / "12")
    final = {}
    for radius in ("24", "12"):
        records = [json.loads(line) for line in (runs / radius / "episodes.jsonl").read_text().splitlines()]
        final[radius] = {record["task"]: record["steps"][-1]["iou"] for record in records}
    differences = [final["24"][task] - final["12"][task] for task in final["24"]]
    row = result["measures"]["IoU@3"]
    (pair,) = row["differences"]
    assert pair["difference"] == pytest.approx(np.mean(differences))
    assert pair["interval"][0] <= pair["difference"] <= pair["interval"][1]
    assert row["values"][0] - row["values"][1] == pytest.approx(pair["difference"])
    assert result["episodes"] == 6


def test_a_run_equals_itself(runs, capsys):
    assert compare_main([str(runs / "24"), str(runs / "24"), "--json", str(runs / "same.json")]) == 0
    assert "IoU@3" in capsys.readouterr().out
    same = json.loads((runs / "same.json").read_text())
    pairs = [pair for row in same["measures"].values() for pair in row["differences"]]
    assert len(pairs) > 5 and all(pair == {"difference": 0, "interval": [0, 0]} for pair in pairs)


def test_unlike_runs_are_refused(runs):
    with pytest.raises(RunError, match="differ in limit"):
        compare.compare(runs / "24", runs / "five")
    assert compare_main([str(runs / "24"), str(runs / "nowhere")]) == 1


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
    assert compare_main([str(runs / "24"), str(glued)]) == 1
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


def test_any_number_of_runs_is_compared_with_the_first_on_a_page_that_shows_where_they_disagree(runs, tmp_path, capsys):
    three = [str(runs / name) for name in ("24", "12", "random")]
    assert compare_main([*three, "--out", str(tmp_path / "page"), "--gallery", "2"]) == 0
    told = capsys.readouterr().out
    assert "A − C" in told and "C: disc / random / pixels" in told
    result = json.loads((tmp_path / "page/comparison.json").read_text())
    assert [len(row["values"]) for row in result["measures"].values()] == [3] * len(result["measures"])
    assert sum(result["better"][1].values()) == result["episodes"] == 6
    finals = []
    for path in three:
        lines = Path(path, "episodes.jsonl").read_text().splitlines()
        finals.append({record["task"]: record["steps"][-1]["iou"] for record in map(json.loads, lines)})
    apart = {task: max(one[task] for one in finals) - min(one[task] for one in finals) for task in finals[0]}
    shown = sorted(apart, key=lambda task: -apart[task])[:2]
    page = (tmp_path / "page/report.html").read_text()
    links = re.findall(r'href="([^"#]+)#task=([^"&]+)"', page)
    assert [unquote(task) for _, task in links] == [task for task in shown for _ in range(3)]
    assert (tmp_path / "page" / links[0][0]).resolve() == (runs / "24/report.html").resolve()
    assert page.count("data:image/jpeg") == 2 * 4 and "plots/" not in page


def test_what_may_differ_is_named_by_a_flag(runs, tmp_path):
    with pytest.raises(RunError, match="differ in limit: 6 .* and 5 .*--any-data"):
        compare.compare(runs / "24", runs / "five")
    result = compare.compare(runs / "24", runs / "five", allowed=["data"])
    assert result["episodes"] == 5 and "differ in limit" in result["differ"][0]
    other = shutil.copytree(runs / "24", tmp_path / "other")
    numbers = json.loads((other / "metrics.json").read_text())
    for name, value in (("name", "ritm-davis"), ("iou", "another definition"), ("start", "from a box")):
        changed = {**numbers, "protocol": {**numbers["protocol"], name: value}}
        (other / "metrics.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match=f"differ in .*{name}.*--any-protocol"):
            compare.compare(runs / "24", other)
        assert compare.compare(runs / "24", other, allowed=["protocol"])["episodes"] == 6


def test_starts_that_the_seed_draws_are_data(runs, tmp_path):
    for name in "ab":
        other = shutil.copytree(runs / "24", tmp_path / name)
        numbers = json.loads((other / "metrics.json").read_text())
        numbers["protocol"] |= {"start": "distort:low=0.5", "seed": int(name == "b")}
        (other / "metrics.json").write_text(json.dumps(numbers))
    with pytest.raises(RunError, match="differ in seed: 0 .* and 1 .*--any-data"):
        compare.compare(tmp_path / "a", tmp_path / "b")
    for name in "ab":
        file = tmp_path / name / "metrics.json"
        file.write_text(file.read_text().replace("distort:low=0.5", "box"))
    assert compare.compare(tmp_path / "a", tmp_path / "b")["episodes"] == 6


def test_judges_of_one_set_of_masks_are_compared_by_their_errors(tmp_path):
    pytest.importorskip("torch")
    options = config.FilterOptions(masks=2)
    for name, agent in (("a", "mllm"), ("b", "mllm:untrained")):
        args = config.Args(task="filter", data="synthetic:val", tool="disc", agent=agent, limit=2, filter=options)
        evaluate.run(replace(args, out=str(tmp_path / name)), quiet=True)
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "page")]) == 0
    result = json.loads((tmp_path / "page/comparison.json").read_text())
    numbers = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab"]
    assert result["episodes"] == 4
    assert result["measures"]["|error| of greedy"]["values"] == pytest.approx(
        [one["readings"]["greedy"]["mae"] for one in numbers]
    )
    record = json.loads((tmp_path / "b/masks.jsonl").read_text().splitlines()[0])
    record["masks"][0]["mask"] = record["masks"][1]["mask"]
    (tmp_path / "b/masks.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RunError, match="judged other masks"):
        compare.compare(tmp_path / "a", tmp_path / "b")
