"""Judging given masks: the environment, and `python -m experiments.evaluate --task filter`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from hypothesis import given
from hypothesis import strategies as st

import agents
from agents.base import Agent
from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__, config, evaluate
from segenv import codec, data, metrics
from segenv.envs.filter import Judgement, random_prompt
from segenv.types import Invalid, Task

# --------------------------------------------------------------------------------------------------- the environment


def test_it_is_an_environment_like_the_others(make_env: Callable[..., gym.Env]) -> None:
    check_env(make_env("segenv/Filter-v0", render_mode="rgb_array").unwrapped, skip_render_check=False)
    one, two = make_env("segenv/Filter-v0"), make_env("segenv/Filter-v0", data="synthetic:val#easy", tool="disc")
    again = gym.make(gym.envs.registration.EnvSpec.from_json(two.spec.to_json()))  # type: ignore[union-attr]
    assert data_equivalence(two.reset(seed=3), again.reset(seed=3), exact=True)
    masks = [one.reset(seed=seed)[0]["mask"] for seed in (1, 1, 2, 3)]
    assert masks[0].any() and np.array_equal(masks[0], masks[1])
    assert len({mask.tobytes() for mask in masks}) == 3


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_masks_are_made_of_random_points_in_the_box_the_first_positive(seed: int, k: int) -> None:
    rows, columns = np.ogrid[:48, :64]
    task = Task("t", np.zeros((48, 64, 3), np.uint8), (columns - 40) ** 2 + (rows - 20) ** 2 <= 12**2)
    clicks = random_prompt(task, np.random.default_rng(seed), k).clicks
    assert 1 <= len(clicks) <= k and clicks[0].positive
    assert all(28 <= click.x <= 52 and 8 <= click.y <= 32 for click in clicks)


def test_points_are_of_both_signs_and_every_number(task: Task) -> None:
    prompts = [random_prompt(task, np.random.default_rng(seed)) for seed in range(200)]
    assert {len(prompt.clicks) for prompt in prompts} == {1, 2, 3, 4, 5}
    later = [click.positive for prompt in prompts for click in prompt.clicks[1:]]
    assert 0.4 < np.mean(later) < 0.6
    off = [not task.target[click.y, click.x] for prompt in prompts for click in prompt.clicks]
    assert 0.1 < np.mean(off) < 0.4  # a disc leaves 21 % of its box


@pytest.mark.parametrize(("reward", "worth"), [("absolute", -0.25), ("squared", -0.0625), (None, 0.5)])
def test_an_episode_is_one_statement(
    make_env: Callable[..., gym.Env], task: Task, reward: str | None, worth: float
) -> None:
    """Half of the object is masked: its IoU is what 441 pixels leave of it."""
    half = task.target & (np.arange(64) < 40)
    true = metrics.iou(task.target, half)

    def own(task, before, action, after, terminal):
        return 0.5 if isinstance(action, Judgement) and terminal else -9.0

    env = make_env("segenv/Filter-v0", start="given", reward=reward or own)
    seen, info = env.reset(options={"task": replace(task, initial_mask=half)})
    assert seen["steps_left"] == 1 and info["iou"] == true and np.array_equal(seen["mask"], half)
    stated = round(100 * (true + 0.25), 6)
    seen, got, terminated, truncated, info = env.step(f"Current IOU: {stated}\nPositive point: (1, 1)")
    assert (terminated, truncated) == (True, False) and np.array_equal(seen["mask"], half)
    assert got == pytest.approx(worth, abs=1e-6)
    assert isinstance(info["parsed"], Judgement) and info["parsed"].stated == pytest.approx(true + 0.25)
    assert info["valid"] and info["iou"] == true
    with pytest.raises(ResetNeeded):
        env.step("Current IOU: 1")


@pytest.mark.parametrize("text", ["", "Finish", "Positive point: (3, 4)", "Current IOU: 250", "The IoU is 40"])
def test_a_reply_without_a_statement_is_the_worst_answer(make_env: Callable[..., gym.Env], text: str) -> None:
    env = make_env("segenv/Filter-v0")
    env.reset(seed=0)
    seen, got, terminated, _, info = env.step(text)
    assert terminated and got == -1 and isinstance(info["parsed"], Invalid) and not info["valid"]
    assert "expected a line `Current IOU: n`" in seen["error"]


def test_swapping_the_target_changes_no_observation(make_env: Callable[..., gym.Env], task: Task) -> None:
    task = replace(task, initial_mask=np.random.default_rng(0).random((48, 64)) < 0.2)
    other = replace(task, target=~task.target)
    one, two = (make_env("segenv/Filter-v0", start="given") for _ in range(2))
    assert data_equivalence(one.reset(options={"task": task})[0], two.reset(options={"task": other})[0], exact=True)
    (seen, first, *_), (same, second, *_) = one.step("Current IOU: 10"), two.step("Current IOU: 10")
    assert data_equivalence(seen, same, exact=True) and first != second


def test_what_it_refuses(make_env: Callable[..., gym.Env], task: Task) -> None:
    with pytest.raises(ValueError, match="reward is 'iou_gain'; expected one of absolute, squared"):
        make_env("segenv/Filter-v0", reward="iou_gain")
    with pytest.raises(ValueError, match="no object pixel"):
        make_env("segenv/Filter-v0").reset(options={"task": replace(task, target=np.zeros((48, 64), bool))})
    env = make_env("segenv/Filter-v0")
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="action is int"):
        env.step(3)


# ------------------------------------------------------------------------------------------------------- the command


class Judge(Agent):
    """Knows the answers, and states the true IoU of whatever mask it sees; nothing of an empty one."""

    spec = "judge"

    def __init__(self, tasks) -> None:
        super().__init__(codec.make("segagent"))
        self.targets = {task.id: task.target for task in tasks}

    def _act(self, observations, seeds):
        ious = [metrics.iou(self.targets[seen.task_id], seen.mask) for seen in observations]
        return [f"Current IOU: {100 * iou:.4f}\nFinish" if iou else "Finish" for iou in ious]


FLAGS = ["--task", "filter", "--data", "synthetic:val#easy", "--tool", "disc:radius=20", "--limit", "6"]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agents.make
    known = Judge([data.make("synthetic:val#easy")[k] for k in range(6)])
    monkeypatch.setattr(agents, "make", lambda spec, *a, **k: known if spec == "judge" else made(spec, *a, **k))


def test_one_who_knows_keeps_what_is_good(judge: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    flags = [*FLAGS, "--agent", "judge", "--filter.threshold", "0.4", "--filter.masks", "5", "--batch-size", "4"]
    assert __main__.main([*flags, "--out", str(out)]) == 0
    numbers = RunFolder(out).read_json("metrics.json")
    assert (numbers["tasks"], numbers["masks"]) == (6, 30) and list(numbers["readings"]) == ["greedy"]
    found, kept = numbers["readings"]["greedy"], numbers["acceptance"]["greedy"]
    assert found["mae"] < 1e-6 and found["pearson"] > 0.999 and found["ranking"] == 1
    assert kept["precision"] == kept["recall"] == 1 and kept["kept"] == kept["good"] not in (0, 1)
    assert kept["iou_kept"] > kept["iou_all"]
    assert "at IoU 0.4 precision 1.000, recall 1.000" in capsys.readouterr().out
    assert (out / "plots/reliability.png").stat().st_size and "judge" in (out / "report.html").read_text()

    records = (out / "masks.jsonl").read_bytes().splitlines(keepends=True)
    (out / "masks.jsonl").write_bytes(b"".join(records[:5]) + records[5][:40])  # a kill, in the middle of a write
    (out / "metrics.json").unlink()
    assert __main__.main(["--resume", str(out)]) == 0
    assert (out / "masks.jsonl").read_bytes() == b"".join(records)
    assert RunFolder(out).read_json("metrics.json") == numbers


def test_who_cannot_judge_is_told(judge: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for agent, flags, message in (
        ("annotator", [], "reads the target, and states nothing"),
        ("random", [], "states no IoU of any mask"),
        ("judge", ["--executor", "process"], "leave out --executor"),
        ("judge", ["--filter.masks", "0"], "--filter.masks is 0; expected 1 or more"),
    ):
        assert __main__.main([*FLAGS, "--agent", agent, *flags, "--out", str(tmp_path / agent)]) == 1
        assert message in capsys.readouterr().err


def test_the_embedded_model_is_read_in_both_ways(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = evaluate.run(
            config.Args(
                task="filter",
                data="synthetic:val",
                tool="disc:radius=20",
                agent="mllm",
                limit=2,
                out=str(tmp_path / "run"),
            ),
            quiet=True,
        )
    assert list(numbers["readings"]) == ["greedy", "mean"] and numbers["silent"] == 0
