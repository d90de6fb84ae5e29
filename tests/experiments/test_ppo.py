"""`python -m experiments.ppo`: clones, trains and measures, and goes on after a kill to the same policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.common import suite
from experiments.common.run_folder import RunFolder
from experiments.common.suite import RlTask

pytest.importorskip("stable_baselines3")

import experiments.ppo
from experiments.evaluate import Args as EvaluateArgs
from experiments.evaluate import run as evaluate
from experiments.ppo import __main__, report
from experiments.ppo.config import Args
from experiments.ppo.training import Training

TINY = RlTask(
    *("a tiny one", "distort", 2),
    **{"tool": "disc:radius=40", "train": "synthetic:train#single", "val": "synthetic:val#single"},
    **{"test": "synthetic:test#single", "grid": 4, "size": 32},
)
SMALL = Args(
    seeds=(0, 1),
    demonstrations=32,
    clone_epochs=2,
    steps=48,
    num_envs=2,
    n_steps=8,
    batch_size=16,
    epochs=2,
    pool=6,
    val_tasks=2,
    test_tasks=3,
    measure_every=2,
    checkpoint_every=2,
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's tasks, with a tool that costs nothing."""
    monkeypatch.setitem(suite.TASKS, "repair", TINY)
    monkeypatch.setitem(suite.TASKS, "name", replace(TINY, start="empty", observe="instruction"))


def test_a_training_that_is_cut_ends_with_the_same_policy(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    numbers = experiments.ppo.run(replace(SMALL, out=str(whole)), quiet=True)
    update, left = Training.update, [4 + 3]  # in the second training, after its checkpoint

    def cutting(training: Training) -> dict[str, float]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return update(training)

    monkeypatch.setattr(Training, "update", cutting)
    with pytest.raises(KeyboardInterrupt):
        experiments.ppo.run(replace(SMALL, out=str(cut)), quiet=True)
    assert not (cut / "ppo.DONE").exists()
    monkeypatch.setattr(Training, "update", update)
    assert experiments.ppo.run(replace(SMALL, resume=str(cut)), quiet=True) == numbers
    for seed in SMALL.seeds:
        for name in SMALL.algorithms:
            place = f"seed{seed}/{name}"
            for file in ("policy/policy.safetensors", "policy/config.json", "curve.jsonl", "checkpoint.safetensors"):
                assert (whole / place / file).read_bytes() == (cut / place / file).read_bytes(), (place, file)
    assert not [path for path in whole.rglob("*") if path.suffix in (".pkl", ".pth", ".pt", ".zip")]
    for file in ("report.html", "table.md", "plots/curve.png", "plots/learning.png", "manifest.json"):
        assert (whole / file).stat().st_size > 0
    assert list((whole / "tensorboard" / "seed0" / "PPO").iterdir())


def test_a_policy_is_evaluated_as_in_its_training(tiny: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = replace(SMALL, seeds=(3,), algorithms=("MaskablePPO",), task="name", out=str(out))
    numbers = experiments.ppo.run(args, quiet=True)
    assert set(numbers["policies"]) == {"clone, MaskablePPO", "MaskablePPO"} and numbers["tasks"] == 3
    assert numbers["levels"]["stop at once"]["miou"] == 0 and numbers["protocol"]["suite"].startswith("none")
    assert set(numbers["levels"]) == set(report.LEVELS)
    for name, policy in (("begin", "clone"), ("end", "MaskablePPO/policy")):
        folder = out / "seed3" / policy
        if policy == "clone":  # saved as PPO's, which is not asked with a mask
            file = folder / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"algorithm": "MaskablePPO"}))
        flags = {"data": TINY.test, "tool": TINY.tool, "start": "empty", "max_steps": 2, "limit": 3}
        evaluate(EvaluateArgs(**flags, agent=f"sb3:{folder}", out=str(tmp_path / name)), quiet=True)
        records = RunFolder(tmp_path / name).records("episodes.jsonl")
        played = json.loads((out / "seed3/MaskablePPO/test.json").read_text())[name]
        assert [one["steps"][-1]["iou"] for one in records] == played["iou"]


def test_differences_are_paired_by_seed_and_task() -> None:
    rng = np.random.default_rng(0)
    levels = {name: rng.random(50).tolist() for name in report.LEVELS}
    hard = rng.random(50)
    seeds = [
        {
            "begin": {"iou": (hard + 0.01 * seed).tolist(), "steps": [2] * 50, "stopped": [True] * 50},
            "end": {"iou": (hard + 0.01 * seed + 0.1).tolist(), "steps": [3] * 50, "stopped": [False] * 50},
        }
        for seed in range(5)
    ]
    numbers = report.summarise(levels, {"PPO": seeds, "MaskablePPO": seeds[::-1]}, {"suite": "rl-v1, task repair"})
    mean, low, high = numbers["differences"]["PPO over clone"]
    assert np.allclose([mean, low, high], 0.1)
    mean, low, high = numbers["differences"]["PPO over random"]
    assert low < mean < high and high - low > 0.1
    assert numbers["policies"]["PPO"]["stop_rate"] == 0 and len(numbers["policies"]["PPO"]["seeds"]) == 5
    assert numbers["differences"]["PPO over MaskablePPO"][0] == pytest.approx(0)
    room = np.mean(levels["best single action"]) - np.mean(levels["stop at once"])
    assert numbers["differences"]["best single action over stop at once"][0] == pytest.approx(room)
    assert "PPO over stop at once" in report.text(numbers) and "policy (rl-v1, task repair)" in report.text(numbers)


def test_settings_out_of_range_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for flags, told in ((["--steps", "0"], "--steps is 0"), (["--seeds", "1", "1"], "--seeds is (1, 1)")):
        assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 1
        assert told in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_every_task_on_the_page_of_results_has_headroom() -> None:
    page = (Path(__file__).parents[2] / "docs/results/rl.md").read_text()
    tables = page.split("| difference in mIoU (")[1:]
    tasks = [text.partition("task ")[2].partition(")")[0] for text in tables]
    assert "repair" in tasks and set(tasks) <= suite.TASKS.keys()
    for text in tables:
        row = text.partition("| best single action over stop at once | ")[2]
        assert float(row.partition(" |")[0]) > report.HEADROOM
