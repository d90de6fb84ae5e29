"""The example files of docs/examples run, and what they train is ahead of its controls."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

EXAMPLES = Path(__file__).parent.parent / "docs/examples"
SMALL = {
    "ppo_single_file": {"steps": 32, "num_envs": 2, "rollout": 8, "batch_size": 8, "pool": 4, "tasks": 3},
    "ppo_sb3": {"steps": 32, "num_envs": 2, "n_steps": 8, "pool": 4, "tasks": 3},
}


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    found = parts["main"](parts["Args"](**SMALL[name], tool="disc:radius=40", grid=4, size=32))
    assert set(found) == {"random", "stop at once", "policy"} and not found["stop at once"].any()
    assert all(ious.shape == (3,) and np.isfinite(ious).all() for ious in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_example_ends_above_its_controls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    found = parts["main"](parts["Args"]())
    assert found["policy"].mean() > found["random"].mean() > found["stop at once"].mean()
