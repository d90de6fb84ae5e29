"""Every environment keeps Gymnasium's contract and ours: bad replies are data, and the target stays private."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence

from segenv.metrics import iou
from segenv.tools.disc import DiscTool
from segenv.types import BadItem, Box, Click, Stop, Task, Undo

TEXT = ["segenv/HLMAT-v0", "segenv/Refine-v0"]
NUMBERS = ["segenv/HLMATGrid-v0", "segenv/HLMATPoint-v0"]
IDS = TEXT + NUMBERS


def say(env: gym.Env, *actions: Click | Box | Stop | Undo) -> list[tuple]:
    """Step a text environment through actions, in the words of its codec."""
    core: Any = env.unwrapped
    return [env.step(core.codec.format(action, core.state.task)) for action in actions]


# --- what every environment does ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_check_env_has_nothing_to_say(name: str, make_env: Callable[..., gym.Env]) -> None:
    check_env(make_env(name, render_mode="rgb_array").unwrapped, skip_render_check=False)


@pytest.mark.parametrize("name", IDS)
def test_it_is_made_from_specs_that_survive_json(name: str) -> None:
    env = gym.make(f"segenv:{name}", tool="disc", data="synthetic:val", codec="unit-xy", reward="iou_gain", max_steps=3)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    first, second = env.reset(seed=3), again.reset(seed=3)
    assert data_equivalence(first, second, exact=True)
    assert again.observation_space == env.observation_space and again.action_space == env.action_space


@pytest.mark.parametrize("name", IDS)
def test_a_seed_gives_the_same_episodes(name: str, make_env: Callable[..., gym.Env]) -> None:
    one, two = make_env(name), make_env(name)
    for seed in (5, None, None, 6):  # later resets go on with the same generator
        assert data_equivalence(one.reset(seed=seed), two.reset(seed=seed), exact=True)
        one.action_space.seed(9)
        for _ in range(3):
            action = one.action_space.sample()
            assert data_equivalence(one.step(action), two.step(action), exact=True)


@pytest.mark.parametrize("name", IDS)
def test_all_tasks_are_drawn(name: str, make_env: Callable[..., gym.Env], tasks: list[Task]) -> None:
    env = make_env(name)
    env.reset(seed=0)
    assert {env.reset()[1]["task_id"] for _ in range(40)} == {task.id for task in tasks}


@pytest.mark.parametrize("name", IDS)
def test_a_task_is_given_as_itself_by_id_or_by_index(
    name: str, make_env: Callable[..., gym.Env], tasks: list[Task], task: Task
) -> None:
    env = make_env(name)
    for option, expected in ((task, task), ("tall", tasks[1]), (2, tasks[2]), (np.int64(-3), tasks[0])):
        _, info = env.reset(options={"task": option})
        assert (info["task_id"], info["instruction"]) == (expected.id, expected.instruction)
        np.testing.assert_array_equal(env.unwrapped.state.task.target, expected.target)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'short' is not in the data, whose ids look like 'wide'"):
        env.reset(options={"task": "short"})
    with pytest.raises(TypeError, match="is float; expected a Task, or the id or index"):
        env.reset(options={"task": 1.5})
    with pytest.raises(ValueError, match="no option 'tasks'; it has 'task'"):
        env.reset(options={"tasks": 1})


def test_tasks_of_a_dataset_are_found_by_id() -> None:
    env = gym.make("segenv/HLMAT-v0", tool="disc", data="synthetic:val#easy")
    assert env.reset(options={"task": "synthetic/val/easy/7"})[1]["task_id"] == "synthetic/val/easy/7"


@pytest.mark.parametrize("name", IDS)
def test_the_budget_terminates_and_never_truncates(name: str, make_env: Callable[..., gym.Env]) -> None:
    env = make_env(name, max_steps=4, **({"stop": False} if name in NUMBERS else {}))
    env.reset(seed=1)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(True, False)]
    with pytest.raises(ResetNeeded, match=r"ended at step 4; call reset\(\)"):
        env.step(env.action_space.sample())
    env.reset()
    env.step(env.action_space.sample())


@pytest.mark.parametrize("name", IDS)
def test_nothing_works_before_reset(name: str, make_env: Callable[..., gym.Env]) -> None:
    env = make_env(name, render_mode="rgb_array").unwrapped
    for call in (lambda: env.step(env.action_space.sample()), env.render):
        with pytest.raises(ResetNeeded, match="came before reset"):
            call()


@pytest.mark.parametrize("name", IDS)
def test_swapping_the_target_changes_no_observation(name: str, make_env: Callable[..., gym.Env], task: Task) -> None:
    """The initial mask is given, since a refinement makes it from the target."""
    task = replace(task, initial_mask=np.random.default_rng(0).random((48, 64)) < 0.2)
    other = replace(task, target=~task.target, meta={"secret": 1})
    options = {"start": "given"} if name != "segenv/HLMAT-v0" else {}
    one, two = make_env(name, **options), make_env(name, **options)
    assert data_equivalence(one.reset(options={"task": task})[0], two.reset(options={"task": other})[0], exact=True)
    one.action_space.seed(4)
    actions = [one.action_space.sample() for _ in range(4)]
    if name in TEXT:
        actions[:2] = [one.unwrapped.codec.format(Click(20, 20), task), one.unwrapped.codec.format(Undo(), task)]  # type: ignore[attr-defined]
    for action in actions:
        seen, reward, *_ = one.step(action)
        assert data_equivalence(seen, two.step(action)[0], exact=True)


@pytest.mark.parametrize("name", IDS)
def test_observations_are_copies(name: str, make_env: Callable[..., gym.Env]) -> None:
    env = make_env(name)
    seen, _ = env.reset(seed=2)
    state = env.unwrapped.state  # type: ignore[attr-defined]
    before = state.task.image.tobytes(), state.mask.tobytes()
    for value in seen.values():
        if isinstance(value, np.ndarray):
            value[...] = 1
    assert (state.task.image.tobytes(), state.mask.tobytes()) == before


@pytest.mark.parametrize("name", IDS)
def test_a_frame_is_for_persons_and_keeps_its_size(name: str, make_env: Callable[..., gym.Env]) -> None:
    env = make_env(name, render_mode="rgb_array")
    env.reset(options={"task": "wide"})
    first = env.render()
    env.step(env.action_space.sample())
    assert env.render().shape == first.shape == (534, 512, 3) and first.dtype == np.uint8  # type: ignore[union-attr]


@pytest.mark.parametrize("name", IDS)
def test_a_recording_goes_on_from_one_image_to_another(name: str, make_env: Callable[..., gym.Env]) -> None:
    """Frames of one environment have one size, whatever the shape of the image, and show the click where it is."""
    shapes = (40, 60), (60, 40), (20, 90)
    tasks = [Task(f"{h}x{w}", np.full((h, w, 3), 90, np.uint8), np.eye(h, w, dtype=bool)) for h, w in shapes]
    env = make_env(name, data=tasks, render_mode="rgb_array", render_size=100)
    for i in range(3):
        env.reset(options={"task": i})
        frame = env.render()
        assert frame.shape == (122, 100, 3)  # type: ignore[union-attr]
        white = (frame[:100] == 255).all(2).mean()  # type: ignore[index]
        assert white == pytest.approx(1 - min(shapes[i]) / max(shapes[i]), abs=0.02)


def test_a_person_without_a_display_watches_on_the_terminal(
    make_env: Callable[..., gym.Env], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env("segenv/HLMAT-v0", render_mode="human")
    env.reset(seed=0)
    assert not capsys.readouterr().out  # nobody reads a pipe
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    env.reset(seed=0)
    first = capsys.readouterr().out
    assert env.render() is None
    say(env, Click(10, 10))
    second = capsys.readouterr().out
    assert "▀" in first and second.startswith(first) and len(second) > len(first)


@pytest.mark.parametrize("name", IDS)
def test_several_run_in_step(name: str, tasks: list[Task]) -> None:
    envs = gym.make_vec(name, 2, "sync", tool="disc", data=tasks, max_steps=2)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(5):  # past the ends of episodes
        seen, rewards, *_, infos = envs.step(envs.action_space.sample())
        assert rewards.shape == (2,) and len(seen["image"]) == 2 and infos["iou"].shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"tool": "disk"}, "unknown tool 'disk'.*did you mean 'disc'"),
        ({"data": []}, "has no tasks"),
        ({"reward": "iuo"}, "iuo"),
        ({"codec": "segagnet"}, "segagnet"),
    ],
)
def test_a_wrong_argument_is_named_when_the_environment_is_made(
    make_env: Callable[..., gym.Env], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("segenv/HLMAT-v0", **options)


@pytest.mark.parametrize("name", IDS)
def test_objects_serve_as_well_as_specs_and_a_copied_environment_shares_the_tool(
    name: str, make_env: Callable[..., gym.Env]
) -> None:
    tool = DiscTool(6)
    env = make_env(name, tool=tool)
    check_env(env.unwrapped)
    assert env.spec is not None, "Gymnasium copies it, arguments included"
    env.reset(seed=0)
    copied = deepcopy(env)
    assert copied.unwrapped.mdp.tool is tool  # type: ignore[attr-defined]
    action = env.action_space.sample()
    assert data_equivalence(copied.step(action), env.step(action), exact=True)


# --- text ---------------------------------------------------------------------------------------------------------


def test_an_episode_in_text(make_env: Callable[..., gym.Env], task: Task) -> None:
    """A click on the object, one beside it, undo, stop: the rewards add up to what the mask gained."""
    env = make_env("segenv/HLMAT-v0", codec="pixels", max_steps=5)
    seen, info = env.reset(options={"task": task})
    np.testing.assert_array_equal(seen["image"], task.image)
    assert seen["instruction"] == "the bright disc" and "the bright disc" in seen["prompt"]
    assert (seen["steps_left"], seen["error"], info["iou"], info["clicks"]) == (5, "", 0.0, ())

    steps = say(env, Click(40, 20), Click(8, 8), Undo(), Stop())
    rows, columns = np.ogrid[:48, :64]
    disc = (columns - 40) ** 2 + (rows - 20) ** 2 <= 36
    for seen, *_ in (steps[0], steps[2], steps[3]):
        np.testing.assert_array_equal(seen["mask"], disc)
        green = np.rint(task.image / 2 + np.array((0, 255, 0)) / 2)
        np.testing.assert_array_equal(seen["image"], np.where(disc[..., None], green, task.image))
    infos = [step[4] for step in steps]
    assert [info["action"]["type"] for info in infos] == ["click", "click", "undo", "stop"]
    assert infos[0]["action"] == {"type": "click", "x": 40, "y": 20, "positive": True}
    assert infos[0]["parsed"] == Click(40, 20) and infos[1]["clicks"] == (Click(40, 20), Click(8, 8))
    assert infos[2]["clicks"] == (Click(40, 20),) and infos[0]["score"] is None, "the disc tool has no opinion"
    assert [step[2] for step in steps] == [False, False, False, True]
    assert [step[0]["steps_left"] for step in steps] == [4, 3, 2, 1]
    assert sum(step[1] for step in steps) == pytest.approx(disc.sum() / task.target.sum())
    assert infos[-1]["iou"] == iou(task.target, disc)


@pytest.mark.parametrize("reply", ["", "I see a disc.", "Positive point: (", "\x00\ud800", "早く" * 2000])
def test_a_bad_reply_takes_a_step_and_is_explained(make_env: Callable[..., gym.Env], reply: str) -> None:
    env = make_env("segenv/HLMAT-v0")
    env.reset(seed=0)
    say(env, Click(12, 12))
    before = env.unwrapped.state.mask  # type: ignore[attr-defined]
    seen, reward, terminated, truncated, info = env.step(reply)
    np.testing.assert_array_equal(seen["mask"], before)
    assert (reward, terminated, truncated, info["valid"], info["step"]) == (0.0, False, False, False, 2)
    assert info["action"]["type"] == "invalid" and seen["error"] == info["action"]["reason"] != ""
    seen, *_, info = say(env, Click(12, 12))[0]
    assert seen["error"] == "" and info["valid"]


def test_what_is_no_text_is_a_fault_of_the_program(make_env: Callable[..., gym.Env]) -> None:
    env = make_env("segenv/HLMAT-v0")
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="action is int; expected a text for codec segagent"):
        env.step(3)


def test_rewards_go_by_name_or_are_functions(make_env: Callable[..., gym.Env], task: Task) -> None:
    """The click paints the target exactly and ends the episode."""
    rewards: list = [("iou+0.5*format", 1.5), ("final-0.25*step", 0.75), (lambda *step: 7.0 * step[-1], 7.0)]
    for reward, expected in rewards:
        env = make_env("segenv/HLMAT-v0", reward=reward, tool="disc:radius=12", max_steps=1, codec="pixels")
        env.reset(options={"task": task})
        _, got, *_, info = say(env, Click(40, 20))[0]
        assert (got, info["iou"]) == (expected, 1.0)
        named = {"iou+0.5*format": {"iou": 1.0, "format": 0.5}, "final-0.25*step": {"final": 1.0, "step": -0.25}}
        assert info["rewards"] == (named[reward] if isinstance(reward, str) else {"reward": 7.0})


def test_bad_items_are_passed_over_where_the_data_skips_them(tmp_path, task: Task) -> None:
    """Two of three masks are broken: without skip_bad the draw fails by name, with it the sound item is drawn."""
    from PIL import Image

    from segenv import data

    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for name in "abc":
        Image.fromarray(task.image).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(task.target).save(tmp_path / "masks" / f"{name}.png")
    for name in "ab":
        (tmp_path / "masks" / f"{name}.png").write_bytes(b"not a picture")
    env = gym.make("segenv/HLMAT-v0", tool="disc", data=data.make(f"folder:{tmp_path}", skip_bad=True))
    assert {env.reset(seed=seed)[1]["task_id"] for seed in range(6)} == {env.unwrapped.data.ids[2]}  # type: ignore[attr-defined]
    env = gym.make("segenv/HLMAT-v0", tool="disc", data=f"folder:{tmp_path}")
    with pytest.raises(BadItem, match=r"masks.[ab]\.png"):
        for seed in range(20):
            env.reset(seed=seed)
