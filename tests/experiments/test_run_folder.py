"""A run's folder survives kills, full disks and second starts."""

import json
import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.common import config, run_folder
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder

RECORDS = [
    {"task": "a", "text": "Positive point: (1, 2)\n\u2028 </script> \ud800"},
    {"task": "b", "ious": [0.1, 1 / 3]},
]


@dataclass(frozen=True)
class Training:
    rate: float = 1e-3
    sizes: tuple[int, ...] = (64, 128)


@dataclass(frozen=True)
class Args:
    data: str = "synthetic"
    steps: int = 20
    limit: int | None = None
    workers: int = 1
    training: Training = field(default_factory=Training)
    out: str | None = None
    resume: str | None = None


@given(cut=st.integers(0, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_a_kill_cuts_the_file_whole_records_stay_and_the_run_goes_on(tmp_path, cut):
    folder, path = RunFolder(tmp_path), tmp_path / "episodes.jsonl"
    path.unlink(missing_ok=True)
    with folder.appending("episodes.jsonl") as file:
        for record in RECORDS:
            file.add(record)
    assert list(folder.records("episodes.jsonl")) == RECORDS
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = RECORDS[: whole[:cut].count(b"\n")]
    assert list(folder.records("episodes.jsonl")) == kept
    with folder.appending("episodes.jsonl") as file:
        file.add({"task": "c"})
    assert list(folder.records("episodes.jsonl")) == [*kept, {"task": "c"}]


def test_a_damaged_line_in_the_middle_is_named_and_not_passed_over(tmp_path):
    (tmp_path / "episodes.jsonl").write_text('{"task": "a"}\n{"task"\n{"task": "c"}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        list(RunFolder(tmp_path).records("episodes.jsonl"))


def test_a_folder_holds_one_run(tmp_path):
    out = tmp_path / "run"
    with RunFolder.create(out, Args()) as folder:
        folder.write_json("metrics.json", {"miou": float("nan"), "iou_at": {1: 0.5}})
        assert not folder.done("train")
        folder.finish("train")
        assert folder.read_json("metrics.json") == {"miou": None, "iou_at": {"1": 0.5}}
        with pytest.raises(RunError, match="another process is writing"):
            RunFolder.resume(out, Args())
    with pytest.raises(RunError, match=f"--resume {out}"):
        RunFolder.create(out, Args())
    with RunFolder.resume(out, replace(Args(), workers=8), frozenset({"workers"})) as again:
        assert again.done("train") and again.read_json("nothing.json") is None
    with pytest.raises(RunError, match="steps: was 20, now 7"):
        RunFolder.resume(out, replace(Args(), steps=7), frozenset({"workers"}))
    with pytest.raises(RunError, match="no config.yaml"):
        RunFolder.resume(tmp_path / "other", Args())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "file", Args())


def test_the_command_line_goes_on_with_the_settings_of_the_run(tmp_path):
    out = str(tmp_path / "run")
    began = config.parse_args(Args, ["--steps", "7", "--limit", "3", "--training.sizes", "32", "--out", out])
    RunFolder.create(out, began).close()
    again = config.parse_args(Args, ["--resume", out, "--workers", "4"])
    assert again == replace(began, workers=4, resume=out)
    assert again.training == Training(sizes=(32,))
    with pytest.raises(RunError, match="two folders"):
        config.parse_args(Args, ["--resume", out, "--out", str(tmp_path / "other")])
    (tmp_path / "run" / "config.yaml").write_text("stepz: 3\n")
    with pytest.raises(RunError, match="stepz"):
        config.parse_args(Args, ["--resume", out])


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("metrics.json", {"miou": 0.5})
    with pytest.raises(TypeError):
        folder.write_json("metrics.json", {"miou": object()})
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        run_folder.write_atomic(tmp_path / "taken", "x")
    assert folder.read_json("metrics.json") == {"miou": 0.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "taken"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_told_as_one():
    with pytest.raises(RunError, match="disk is full.*/dev/full.*--resume"), run_folder.disk_errors(Path("/dev/full")):
        Path("/dev/full").write_text("x")


def test_the_manifest_names_neither_machine_nor_home(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/evaluate.py", "--data", os.path.expanduser("~/photos")])
    made = run_folder.manifest(3, {"tool": "disc"}, {"data": "abc"})
    text = json.dumps(made)
    assert made["command"] == ["evaluate.py", "--data", "~/photos"] and made["seed"] == 3
    assert os.path.expanduser("~") not in text and socket.gethostname() not in text
    assert made["versions"]["numpy"] and made["hashes"] == {"data": "abc"} and made["protocol"] == {"tool": "disc"}


def test_a_folder_in_the_place_of_records_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "episodes.jsonl").mkdir()
    with pytest.raises(RunError, match="episodes.jsonl is no file; expected records"):
        list(folder.records("episodes.jsonl"))
