"""A limit on the size of a file, and inodes that are used up, are told as a full disk; then the run goes on."""

import errno
import importlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.common.config import RunError
from experiments.common.run_folder import disk_errors

resource = pytest.importorskip("resource", reason="needs POSIX limits")
DATA = ["--data", "synthetic:val#easy", "--tool", "disc"]
COMMANDS = {  # a run of each, and how large a file it may write, in bytes, before the limit
    "evaluate": ([*DATA, "--agent", "annotator", "--limit", "6", "--max-steps", "3", "--report-episodes", "1"], 2500),
    "tree_search": (
        ["--tool", "disc", "--limit", "1", "--k", "1", "--depths", "1", "--values", "oracle", "--steps", "1"],
        1500,
    ),
    "trajectories": ([*DATA, "--limit", "3", "--max-clicks", "2"], 2500),
}


@contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def call(name, *flags):
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{name}.__main__")
    return module.main([*(["generate"] if name == "trajectories" else []), *map(str, flags)])


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in ("seconds", "file")}
    return [without_times(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one == "tree_search")) for one in COMMANDS]
)
def test_a_limit_on_the_size_of_files_stops_a_run_which_goes_on_without_it(tmp_path, capsys, name):
    flags, size = COMMANDS[name]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert call(name, *flags, "--out", whole) == 0
    capsys.readouterr()
    with largest_file(size):
        assert call(name, *flags, "--out", cut) == 1
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert "the disk is full (File too large)" in line and "go on with --resume" in line and str(cut) in line
    assert call(name, "--resume", cut) == 0
    one, two = (without_times(json.loads((run / "metrics.json").read_text("utf-8"))) for run in (whole, cut))
    assert one == two


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_every_kind_of_a_full_disk_is_told_as_one(tmp_path, number, kind):
    error = OSError(number, os.strerror(number), str(tmp_path / "x"))
    if kind is RuntimeError:  # as safetensors and torch tell it
        error = RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    with pytest.raises(RunError, match="the disk is full.*--resume"), disk_errors(Path(tmp_path)):
        raise error
