"""Clicks as numbers reach the pixels they name, and RL libraries learn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import check_env, data_equivalence
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segenv.envs.features import VOCABULARY
from segenv.envs.numbers import shrunk_mask
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
        state, seen = env.state, env.mdp.observation(env.state)
        clicks = [env._parse(int(action), seen) for action in np.flatnonzero(allowed[: 2 * grid * grid])]
        afters = env.mdp.transition([state] * len(clicks), clicks)
        known = {(c.x, c.y) for c in state.clicks}
        fresh = [
            (c.x, c.y) not in known and after.mask[c.y, c.x] != seen.mask[c.y, c.x]
            for c, after in zip(clicks, afters, strict=True)
        ]
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


@given(st.integers(0, 2**32 - 1), st.integers(1, 99), st.integers(1, 500), st.integers(1, 500))
@example(0, 84, 256, 192)
@example(1, 84, 480, 640)
def test_a_mask_shrinks_as_in_the_whole_image(seed: int, size: int, height: int, width: int) -> None:
    rng, mask = np.random.default_rng(seed), np.zeros((height, width), bool)
    (y0, y1), (x0, x1) = (np.sort(rng.integers(0, side + 1, 2)) for side in mask.shape)
    mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < rng.random()
    whole = cv2.resize(mask.view(np.uint8) * np.uint8(255), (size, size), interpolation=cv2.INTER_AREA)
    assert np.array_equal(shrunk_mask(mask, size), whole)


def test_an_instruction_is_seen_as_the_indices_of_its_words(make_env: Callable[..., gym.Env], task: Task) -> None:
    env = make_env("segenv/HLMATGrid-v0", observe="instruction")
    for text, words in [
        ("the largest red star", ("largest", "red", "star")),
        ("the ring", (None, None, "ring")),
        ("the blue object", (None, "blue", None)),
        ("", (None, None, None)),
    ]:
        seen, _ = env.reset(options={"task": replace(task, instruction=text)})
        expected = [0 if w is None else 1 + known.index(w) for w, known in zip(words, VOCABULARY, strict=True)]
        assert seen["instruction"].tolist() == expected and seen in env.observation_space
    with pytest.raises(ValueError, match="'the mug' names no superlative, colour or shape.*give an embedding"):
        env.reset(options={"task": replace(task, instruction="the mug")})


def test_an_instruction_is_seen_by_an_embedding_of_ones_own(make_env: Callable[..., gym.Env], task: Task) -> None:
    env = make_env("segenv/HLMATPoint-v0", observe=lambda text: [len(text), text.count("disc")])
    seen, _ = env.reset(options={"task": task})
    assert seen["instruction"].tolist() == [len(task.instruction), 1] and seen in env.observation_space
    for observe, message in (
        (lambda text: 3.0, "gives .. for an empty text"),
        (["instruction", len], "one instruction or embedding, not two"),
        ("instructions", "unknown observe 'instructions'.*did you mean 'instruction'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_env("segenv/HLMATPoint-v0", observe=observe)


def test_reference_channels_show_the_object(make_env: Callable[..., gym.Env], task: Task) -> None:
    """The disc of radius 12 px around (40, 20) of 64 x 48 px, seen at 96 x 96: x grows by 1.5, y by 2."""
    env = make_env("segenv/HLMATGrid-v0", observe="click+box", size=96)
    seen, _ = env.reset(options={"task": task})
    assert seen["image"].shape == (96, 96, 6) and seen in env.observation_space
    click, box = seen["image"][..., 4], seen["image"][..., 5]
    rows, columns = np.nonzero(click)
    assert (columns.mean(), rows.mean()) == (60, 41) and set(np.unique(click)) == {0, 255}
    rows, columns = np.nonzero(box)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (42, 79, 16, 65) and box[16:66, 42:80].all()
    later, *_ = env.step(0)
    np.testing.assert_array_equal(later["image"][..., [0, 1, 2, 4, 5]], seen["image"][..., [0, 1, 2, 4, 5]])
    seen, _ = env.reset(options={"task": replace(task, target=np.zeros((48, 64), bool))})
    assert not seen["image"][..., 4:].any()


@pytest.mark.parametrize("actions", ["discrete", "multidiscrete"])
def test_masks_of_actions_are_given_on_request(make_env: Callable[..., gym.Env], actions: str) -> None:
    """As int8, which `sample` of the action space takes as it is."""
    options = {"actions": actions, "grid": 4, "tool": "disc:radius=9", "max_steps": 4}
    told = make_env("segenv/HLMATGrid-v0", action_mask="info", **options)
    seen_in = make_env("segenv/HLMATGrid-v0", action_mask="observation", **options)
    (_, info), (seen, _) = told.reset(seed=2), seen_in.reset(seed=2)
    ended = False
    while not ended:
        mask = told.unwrapped.action_masks()  # type: ignore[attr-defined]
        flat = np.concatenate(info["action_mask"]) if actions == "multidiscrete" else info["action_mask"]
        assert flat.dtype == seen["action_mask"].dtype == np.int8 and seen in seen_in.observation_space
        np.testing.assert_array_equal(flat, mask)
        np.testing.assert_array_equal(seen["action_mask"], mask)
        action = told.action_space.sample(mask=info["action_mask"])
        (_, _, ended, _, info), (seen, *_) = told.step(action), seen_in.step(action)
    with pytest.raises(ValueError, match="action_mask is 'obs'; expected 'info', 'observation' or None"):
        make_env("segenv/HLMATGrid-v0", action_mask="obs")
    with pytest.raises(ValueError, match="points are not masked"):
        make_env("segenv/HLMATPoint-v0", action_mask="info")


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())
@settings(max_examples=25)
def test_multidiscrete_clicks_are_the_discrete_ones(seed: int, grid: int, stop: bool) -> None:
    """Both spaces hold the same clicks, and a number is allowed where it is part of an allowed click."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*rng.integers(3, 30, 2), 3), dtype=np.uint8)
    options = {"data": [Task("t", image, rng.random(image.shape[:2]) < 0.5)], "tool": "disc:radius=2", "stop": stop}
    one, two = (
        gym.make("segenv/HLMATGrid-v0", grid=grid, actions=actions, **options).unwrapped
        for actions in ("discrete", "multidiscrete")
    )
    one.reset(), two.reset()
    for _ in range(4):
        joint = one.action_masks()[: 2 * grid * grid].reshape(2, grid, grid)
        kinds, columns, rows = np.split(two.action_masks(), np.cumsum(two.action_space.nvec)[:-1])
        assert (joint <= (kinds[:2, None, None] & rows[None, :, None] & columns[None, None, :])).all()
        kind, row, column = (int(rng.integers(n)) for n in (2, grid, grid))
        first = one.step(kind * grid * grid + row * grid + column)
        second = two.step(np.array([kind, column, row]))
        assert first[4]["parsed"] == second[4]["parsed"] and first[1] == second[1]
    if stop:
        assert two.step(np.array([2, 0, 0]))[4]["parsed"] == Stop()


def test_hybrid_actions_name_the_type_and_the_place(make_env: Callable[..., gym.Env]) -> None:
    """`wide` is 64 px wide and 48 px high."""
    env = make_env("segenv/HLMATPoint-v0", actions="hybrid", stop=True)
    env.reset(options={"task": "wide"})
    for kind, click in ((0, Click(32, 24)), (1, Click(32, 24, False)), (2, Stop())):
        assert env.step((kind, np.zeros(2, np.float32)))[4]["parsed"] == click
    env.reset(seed=0)
    for wrong in (0, (3, np.zeros(2)), (0, np.zeros(3)), (0, np.array([np.nan, 0]))):
        with pytest.raises(InvalidAction, match="action is .*; expected"):
            env.step(wrong)
    for name, message in (("HLMATPoint", "expected 'box' or 'hybrid'"), ("HLMATGrid", "'discrete' or 'multidiscrete'")):
        with pytest.raises(ValueError, match=message):
            make_env(f"segenv/{name}-v0", actions="keys")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("HLMATGrid", {"observe": "instruction+click+box", "action_mask": "observation", "actions": "multidiscrete"}),
        ("HLMATGrid", {"action_mask": "info", "start": "empty"}),
        ("HLMATPoint", {"actions": "hybrid", "observe": "box", "start": "distort"}),
    ],
)
def test_checkers_have_nothing_to_say_and_a_batch_plays_the_same(
    name: str, options: dict[str, Any], make_env: Callable[..., gym.Env], tasks: list[Task]
) -> None:
    tasks = [replace(task, instruction="the red ring") for task in tasks]
    check_env(make_env(f"segenv/{name}-v0", data=tasks, **options).unwrapped, skip_render_check=True)
    whole = {"tool": "disc:radius=6", "data": tasks, "max_steps": 3, **options}
    batch, singles = (gym.make_vec(f"segenv/{name}-v0", 3, mode, **whole) for mode in (None, "sync"))
    assert data_equivalence(batch.reset(seed=4)[0], singles.reset(seed=4)[0], exact=True)
    batch.action_space.seed(0)
    for _ in range(5):
        actions = batch.action_space.sample()
        one, two = batch.step(actions), singles.step(actions)
        assert data_equivalence(one[:4], two[:4], exact=True)
        assert list(one[4]) == list(two[4]) and ("action_mask" in one[4]) == (options.get("action_mask") == "info")


def test_an_empty_start_forgets_the_mask_of_the_task(make_env: Callable[..., gym.Env], task: Task) -> None:
    task = replace(task, initial_mask=np.ones((48, 64), bool))
    for name in ("HLMATGrid", "HLMATPoint", "Refine"):
        env = make_env(f"segenv/{name}-v0", start="empty")
        env.reset(options={"task": task})
        assert not env.unwrapped.state.mask.any()  # type: ignore[attr-defined]


def test_the_spec_states_the_budget_and_the_range_of_rewards(make_env: Callable[..., gym.Env], task: Task) -> None:
    env = make_env("segenv/HLMATGrid-v0", max_steps=7, reward="iou_gain-0.01*click")
    assert env.spec is not None and env.spec.max_episode_steps == 7
    assert env.metadata["reward_range"] == (-1.01, 1.0)
    for name, expected in (("Filter", (-1.0, 0.0)), ("Polygon", (0.0, 1.2))):
        made = gym.make(f"segenv/{name}-v0", data=[task], **({"tool": "disc"} if name == "Filter" else {}))
        assert made.metadata["reward_range"] == pytest.approx(expected)
        assert made.spec is not None and made.spec.max_episode_steps == 1


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
