"""Stable-Baselines3 plays and learns on the batched environments as on single ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from segenv.tools.disc import DiscTool
from segenv.types import Task

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from segenv.adapters.sb3 import SegVecEnv

GRID = "segenv/HLMATGrid-v0"


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return set(first) == set(second) and all(same(first[key], second[key]) for key in first)
    return bool(np.array_equal(first, second))


@pytest.mark.parametrize("name", [GRID, "segenv/HLMATPoint-v0"])
def test_it_plays_what_their_own_batch_plays(name: str, tasks: list[Task]) -> None:
    options = {"tool": DiscTool(6), "data": tasks, "max_steps": 3}
    both = SegVecEnv(name, 3, **options), DummyVecEnv([partial(gym.make, name, **options)] * 3)
    for envs in both:
        envs.seed(7)
    assert same(*(envs.reset() for envs in both))
    both[0].action_space.seed(1)
    for _ in range(7):
        actions = np.array([both[0].action_space.sample() for _ in range(3)])
        (seen, rewards, ends, infos), theirs = (envs.step(actions) for envs in both)
        assert same(seen, theirs[0]) and rewards.dtype == theirs[1].dtype == np.float32
        np.testing.assert_array_equal(rewards, theirs[1])
        np.testing.assert_array_equal(ends, theirs[2])
        assert all(same(one, two) for one, two in zip(infos, theirs[3], strict=True))
        assert all(same(one, two) for one, two in zip(both[0].reset_infos, both[1].reset_infos, strict=True))


def test_tasks_and_attributes_reach_the_environments(tasks: list[Task]) -> None:
    envs = SegVecEnv(GRID, 2, tool=DiscTool(6), data=tasks, grid=4, render_mode="rgb_array", render_size=40)
    envs.set_options([{"task": "tall"}, {"task": 2}])
    envs.reset()
    assert [info["task_id"] for info in envs.reset_infos] == ["tall", "ignored"]
    assert np.stack(envs.env_method("action_masks")).shape == (2, 33) and envs.has_attr("action_masks")
    assert envs.render().shape == (124, 40, 3)  # type: ignore[union-attr]
    envs.set_attr("render_size", 50, indices=[1])
    assert envs.get_attr("render_size") == [40, 50]
    assert envs.env_is_wrapped(gym.Wrapper) == [False, False]
    envs.set_options({"tusk": 1})
    with pytest.raises(ValueError, match="no option 'tusk'"):
        envs.reset()
    with pytest.raises(ValueError, match="needs 'SameStep'"):
        SegVecEnv(gym.make_vec(GRID, 2, tool="disc", data=tasks).unwrapped)  # type: ignore[arg-type]


def test_maskable_ppo_learns_on_it(tasks: list[Task]) -> None:
    ppo = pytest.importorskip("sb3_contrib").MaskablePPO
    import torch

    torch.set_num_threads(1)
    envs = VecMonitor(SegVecEnv(GRID, 4, tool=DiscTool(6), data=tasks, grid=4, max_steps=3, size=36))
    model = ppo("MultiInputPolicy", envs, n_steps=8, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    assert model.num_timesteps == 32 and model.ep_info_buffer
    seen = envs.reset()
    allowed = np.stack(envs.env_method("action_masks"))
    actions, _ = model.predict(seen, action_masks=allowed)
    assert allowed[np.arange(4), actions].all()
