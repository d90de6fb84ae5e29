"""Tasks left out by a file, and tasks that the annotator could not solve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_data import photo, save, square

from agents import Agent
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__, run
from experiments.evaluate.config import Args


class Judge(Agent):
    """States an IoU of one half."""

    spec = "judge"

    def _answer(self, item, rng):
        return "Current IOU: 50"


IDS = ["a#1", "a#2", "b #1", "b #2", "c"]


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Five tasks on four photos; no disc solves the stripes of c."""
    root = tmp_path / "photos"
    for name in IDS:
        save(root / "images" / f"{name.partition('#')[0]}.png", photo(ord(name[0])))
        mask = square(ring=0)
        save(root / "masks" / f"{name}.png", mask if name != "c" else np.where(np.arange(30) % 6 == 0, 255, 0 * mask))
    return f"berkeley:{root}"


def played(out: Path) -> list[str]:
    return [record["task"] for record in RunFolder(out).records("episodes.jsonl")]


def test_tasks_that_a_file_names_are_left_out_and_others_are_said(photos, tmp_path, capsys):
    file = tmp_path / "wrong.txt"
    file.write_text("# wrong labels\n\na#2  # half of it\nb #1\nb #2\t# nothing there\nzebra # of another set\n")
    flags = ["--data", photos, "--tool", "disc", "--max-steps", "2", "--exclude", str(file)]
    assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert "1 ids are of no task" in printed.err and "'zebra'" in printed.err
    assert played(tmp_path / "run") == ["a#1", "c"] and "3 tasks excluded" in printed.out
    excluded = json.loads((tmp_path / "run/metrics.json").read_text())["protocol"]["exclude"]
    assert excluded["tasks"] == 3 and excluded["unknown"] == 1 and len(excluded["hash"]) == 32
    assert excluded["hash"] in (tmp_path / "run/report.html").read_text()
    assert __main__.main([*flags, "--limit", "1", "--executor", "process", "--out", str(tmp_path / "one")]) == 0
    assert played(tmp_path / "one") == ["a#1"]
    file.write_text(file.read_text() + "c\n")
    assert __main__.main(["--resume", str(tmp_path / "run")]) == 1
    assert "exclude: was" in capsys.readouterr().err


def test_a_run_with_a_file_goes_on_where_it_was_cut(photos, tmp_path):
    (tmp_path / "wrong.txt").write_text("a#1\n")
    args = Args(data=photos, tool="disc", max_steps=2, batch_size=2, exclude=str(tmp_path / "wrong.txt"))
    whole = run(replace(args, out=str(tmp_path / "run")), quiet=True)
    file = tmp_path / "run/episodes.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]))
    again = run(replace(args, resume=str(tmp_path / "run")), quiet=True)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0} and sorted(played(tmp_path / "run")) == IDS[1:]


def test_no_file_and_a_file_of_all_are_refused(photos, tmp_path):
    args = Args(data=photos, tool="disc", out=str(tmp_path / "run"), exclude=str(tmp_path / "none.txt"))
    with pytest.raises(RunError, match="--exclude .*none.txt cannot be read"):
        run(args, quiet=True)
    (tmp_path / "none.txt").write_text("\n".join(IDS))
    with pytest.raises(RunError, match="names all 5 tasks"):
        run(args, quiet=True)


@pytest.mark.parametrize("task", ["filter", "polygon"])
def test_other_tasks_leave_them_out_too(photos, tmp_path, task):
    (tmp_path / "wrong.txt").write_text("a#1\nc\n")
    agent = {"filter": f"{__name__}:Judge", "polygon": "annotator"}[task]
    args = Args(task=task, data=photos, tool="disc", agent=agent, exclude=str(tmp_path / "wrong.txt"))
    numbers = run(replace(args, out=str(tmp_path / "run")), quiet=True)
    assert numbers["tasks"] == 3 and numbers["protocol"]["exclude"]["tasks"] == 2


def test_tasks_that_the_annotator_does_not_solve_are_listed_for_a_file(photos, tmp_path):
    args = Args(data=photos, tool="disc:radius=5", max_steps=3)
    numbers = run(replace(args, out=str(tmp_path / "first")), quiet=True)
    assert list(numbers["unsolved"]) == ["c"] and numbers["unsolved"]["c"] < 0.5
    assert "Tasks not solved (1)" in (tmp_path / "first/report.html").read_text()
    file = str(tmp_path / "first/unsolved.txt")
    rest = run(replace(args, exclude=file, out=str(tmp_path / "second")), quiet=True)
    assert rest["unsolved"] == {} and rest["episodes"] == 4 and rest["protocol"]["exclude"]["unknown"] == 0
    other = run(replace(args, agent="random", out=str(tmp_path / "random")), quiet=True)
    assert other["unsolved"] is None and not (tmp_path / "random/unsolved.txt").exists()
