"""Clicks as numbers reach the pixels they name, and RL libraries learn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from hypothesis import given
from hypothesis import strategies as st

from segenv.types import Click, Stop, Task


def test_grid_cells_cover_the_image(make_env: Callable[..., gym.Env]) -> None:
    """`tall` has 70 rows and 33 columns: the middles of a 4 x 4 grid lie at 8.75 (2i + 1) and 4.125 (2i + 1)."""
    env = make_env("segenv/HLMATGrid-v0", grid=4, max_steps=100)
    clicks = []
    for action in range(33):
        env.reset(options={"task": "tall"})
        clicks.append(env.step(action)[4]["parsed"])
    middles = [(x, y) for y in (8, 26, 43, 61) for x in (4, 12, 20, 28)]
    assert clicks == [Click(x, y) for x, y in middles] + [Click(x, y, False) for x, y in middles] + [Stop()]
    env.reset()
    for wrong in (33, -1, 0.5, "3"):
        with pytest.raises(InvalidAction, match=r"expected one of Discrete\(33\)"):
            env.step(wrong)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_action_masks_allow_what_could_correct_an_error(seed: int, grid: int, stop: bool) -> None:
    """Along random play: the allowed clicks are those that change the tool's mask at their pixel and are new."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*rng.integers(3, 30, 2), 3), dtype=np.uint8)
    task = Task("t", image, rng.random(image.shape[:2]) < 0.5)
    env: Any = gym.make("segenv/HLMATGrid-v0", tool="disc:radius=2", data=[task], grid=grid, stop=stop).unwrapped
    env.reset(seed=seed)
    for _ in range(6):
        allowed = env.action_masks()
        assert allowed.dtype == bool and allowed.shape == (env.action_space.n,) and allowed.any()
        state, fresh = env.state, []
        for action in np.flatnonzero(allowed[: 2 * grid * grid]):
            click = env._parse(int(action), env.mdp.observation(state))
            [after] = env.mdp.transition([state], [click])
            new = (click.x, click.y) not in {(c.x, c.y) for c in state.clicks}
            fresh.append(new and after.mask[click.y, click.x] != state.mask[click.y, click.x])
        assert all(fresh) or (not stop and allowed.all()), "everything is allowed only where nothing is left"
        assert not stop or allowed[-1]
        choices = np.flatnonzero(allowed[: 2 * grid * grid])
        if not len(choices):
            break
        env.step(int(rng.choice(choices)))


def test_points_reach_the_edges_and_not_beyond(make_env: Callable[..., gym.Env]) -> None:
    """`wide` is 64 px wide and 48 px high."""
    env = make_env("segenv/HLMATPoint-v0")
    for action, click in (
        ((-1, -1, 1), Click(0, 0)),
        ((1, 1, 0), Click(63, 47)),
        ((0, 0, -0.1), Click(32, 24, False)),
        ((7, -7, 1), Click(63, 0)),
    ):
        env.reset(options={"task": "wide"})
        assert env.step(np.array(action, np.float32))[4]["parsed"] == click
    for wrong in (np.array([np.nan, 0, 0]), np.zeros(4)):
        with pytest.raises(InvalidAction, match="expected finite numbers in Box"):
            env.step(wrong)
    env = make_env("segenv/HLMATPoint-v0", stop=True)
    env.reset(seed=0)
    assert env.step(np.array([0, 0, 1, -0.5], np.float32))[2] is False
    assert env.step(np.array([0, 0, 1, 0.5], np.float32))[2] is True


@pytest.mark.parametrize("name", ["segenv/HLMATGrid-v0", "segenv/HLMATPoint-v0"])
def test_a_numeric_episode_replays_as_text(name: str, make_env: Callable[..., gym.Env]) -> None:
    """The text that `info` gives for a number does the same in the text environment."""
    numbers, text = make_env(name, codec="pixels", stop=True), make_env("segenv/HLMAT-v0", codec="pixels")
    numbers.reset(options={"task": "tall"}), text.reset(options={"task": "tall"})
    numbers.action_space.seed(0)
    ended = False
    while not ended:
        _, reward, ended, _, info = numbers.step(numbers.action_space.sample())
        _, again, ended_too, _, retold = text.step(info["text"])
        assert (again, ended_too, retold["parsed"]) == (reward, ended, info["parsed"])


def test_numeric_observations_show_image_mask_and_budget(make_env: Callable[..., gym.Env], task: Task) -> None:
    env = make_env("segenv/HLMATGrid-v0", size=48, max_steps=4, tool="disc:radius=12")
    square = replace(task, image=task.image[:, 16:].copy(), target=task.target[:, 16:].copy())
    seen, info = env.reset(options={"task": square})
    np.testing.assert_array_equal(seen["image"][..., :3], square.image)
    assert not seen["image"][..., 3].any() and seen["steps_left"] == 1.0 and info["instruction"] == "the bright disc"
    seen, *_ = env.step(16 * 7 + 8)
    np.testing.assert_array_equal(seen["image"][..., 3] == 255, env.unwrapped.state.mask)  # type: ignore[attr-defined]
    assert seen["steps_left"] == np.float32(0.75)


@pytest.mark.parametrize(
    ("name", "library", "algorithm"),
    [
        ("segenv/HLMATGrid-v0", "stable_baselines3", "PPO"),
        ("segenv/HLMATPoint-v0", "stable_baselines3", "PPO"),
        ("segenv/HLMATGrid-v0", "sb3_contrib", "MaskablePPO"),
    ],
)
def test_stable_baselines_learns_on_it(name: str, library: str, algorithm: str, tasks: list[Task]) -> None:
    pytest.importorskip("stable_baselines3")
    import torch

    torch.set_num_threads(1)
    env = gym.make(name, tool="disc:radius=6", data=tasks, max_steps=4)
    model = getattr(pytest.importorskip(library), algorithm)(
        "MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu"
    )
    model.learn(64)
    assert model.num_timesteps == 64
    network = model.policy.features_extractor.extractors["image"]
    assert type(network).__name__ == "NatureCNN" and network.cnn[0].in_channels == 4, "image and mask reach a CNN"
    seen, _ = env.reset(seed=0)
    if algorithm == "MaskablePPO":
        allowed = env.get_wrapper_attr("action_masks")()
        drawn = [int(model.predict(seen, action_masks=allowed)[0]) for _ in range(20)]
        assert allowed[drawn].all()
    else:
        assert model.predict(seen)[0] in env.action_space
