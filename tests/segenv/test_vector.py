"""A batched environment plays what as many single ones play, with one call of the tool a step."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from segenv import data
from segenv.data.pool import Pool
from segenv.envs.vector import SegVectorEnv
from segenv.tools import EncodingCache
from segenv.tools.disc import DiscTool
from segenv.types import Task, ToolError

IDS = ["HLMAT", "HLMATGrid", "HLMATPoint", "Refine", "Filter", "Polygon"]
MODES = list(AutoresetMode)
REPLIES = ["Positive point: (500, 480)", "Negative point: (300, 700)", "Undo", "Finish", "no idea", "Current IOU: 40"]


def same(first: Any, second: Any) -> bool:
    """Whether two results are equal, with types, shapes and every number."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, np.ndarray):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        if first.dtype == object:
            return all(same(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True))
        return bool(np.array_equal(first, second))
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def make(name: str, num_envs: int, tasks: Any, **options: Any) -> SegVectorEnv:
    """The batched environment, with the disc."""
    tool = {} if name == "Polygon" else {"tool": DiscTool(6)}
    envs = gym.make_vec(f"segenv/{name}-v0", num_envs, **{**tool, "data": tasks, **options})
    assert isinstance(envs.unwrapped, SegVectorEnv)
    return envs.unwrapped


def singles(name: str, num_envs: int, tasks: Any, mode: AutoresetMode, **options: Any) -> gym.vector.VectorEnv:
    """Gymnasium's batch of single environments."""
    tool = {} if name == "Polygon" else {"tool": DiscTool(6)}
    return gym.make_vec(
        f"segenv/{name}-v0",
        num_envs,
        "sync",
        vector_kwargs={"autoreset_mode": mode},
        **{**tool, "data": tasks, **options},
    )


def budget(name: str, steps: int = 3) -> dict[str, int]:
    return {} if name in ("Filter", "Polygon") else {"max_steps": steps}


def play(name: str, both: list[gym.vector.VectorEnv], seed: int, steps: int, mode: AutoresetMode) -> int:
    """Step two batches with the same random actions, check that they are equal, and count the episodes that ended."""
    rng, ends = np.random.default_rng(seed), 0
    first, second = both
    assert same(first.reset(seed=seed), second.reset(seed=seed))
    first.action_space.seed(seed)
    for _ in range(steps):
        if "Grid" in name or "Point" in name:
            actions = first.action_space.sample()
        else:
            actions = tuple(rng.choice(REPLIES, first.num_envs).tolist())
        one, two = first.step(actions), second.step(actions)
        assert same(one, two)
        over = one[2] | one[3]
        ends += int(over.sum())
        if mode is AutoresetMode.DISABLED and over.any():
            again = [envs.reset(options={"reset_mask": over.copy()}) for envs in both]
            assert same(*again)
    return ends


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", IDS)
def test_a_batch_plays_what_single_environments_play(name: str, mode: AutoresetMode, tasks: list[Task]) -> None:
    """Observations, rewards, ends and information are equal bit by bit, over images of different sizes."""
    options = budget(name)
    both = [make(name, 3, tasks, autoreset_mode=mode, **options), singles(name, 3, tasks, mode, **options)]
    assert both[0].metadata["autoreset_mode"] is mode
    assert both[0].single_observation_space == both[1].single_observation_space
    assert both[0].observation_space == both[1].observation_space and both[0].action_space == both[1].action_space
    assert play(name, both, 5, 8, mode) >= 3


@settings(max_examples=12)
@given(
    st.sampled_from(["HLMATGrid", "HLMATPoint", "HLMAT", "Refine"]),
    st.sampled_from(MODES),
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_so_it_does_for_any_seed_and_size(name: str, mode: AutoresetMode, seed: int, size: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = rng.integers(4, 24, (4, 2)).tolist()
    tasks = [Task(f"t{i}", np.full((*s, 3), 9 * i, np.uint8), rng.random(s) < 0.6) for i, s in enumerate(shapes)]
    options = {"max_steps": steps}
    both = [make(name, size, tasks, autoreset_mode=mode, **options), singles(name, size, tasks, mode, **options)]
    play(name, both, seed, 5, mode)


def test_a_time_limit_truncates_as_gymnasium_does(tasks: list[Task]) -> None:
    mode, options = AutoresetMode.NEXT_STEP, {"max_steps": 5, "max_episode_steps": 2, "stop": False}
    both = [make("HLMATGrid", 2, tasks, **options), singles("HLMATGrid", 2, tasks, mode, **options)]
    assert play("HLMATGrid", both, 0, 6, mode) == 4


class Counting(DiscTool):
    """A disc that counts its calls, and can be made to fail."""

    batches: list[int]
    broken = False

    def _predict(self, encodings: Any, prompts: Any) -> Any:
        if self.broken:
            raise ToolError("out of order")
        self.batches.append(len(prompts))
        return super()._predict(encodings, prompts)


def test_a_step_is_one_call_of_one_tool(tasks: list[Task]) -> None:
    tool = Counting(6)
    tool.batches = []
    envs = make("HLMATGrid", 3, tasks, tool=tool, grid=4, max_steps=4)
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(np.array([3, 8, 20]))
    assert tool.batches == [3] * 4
    assert {id(env.mdp.tool) for env in envs.envs} == {id(tool)} and len({id(env.data) for env in envs.envs}) == 1
    envs = make("HLMATGrid", 4, "synthetic:val#easy", tool="disc")
    assert len({id(env.mdp.tool) for env in envs.envs}) == len({id(env.data) for env in envs.envs}) == 1


def test_a_wrong_action_or_a_broken_tool_moves_nothing(tasks: list[Task]) -> None:
    tool = Counting(6)
    tool.batches = []
    envs = make("HLMATGrid", 3, tasks, tool=tool, grid=4)
    envs.reset(seed=0)
    before = [env.state for env in envs.envs]
    with pytest.raises(InvalidAction, match="expected one of Discrete"):
        envs.step(np.array([0, 1, 99]))
    with pytest.raises(InvalidAction, match="got 2 actions; expected one for each of 3"):
        envs.step(np.array([0, 1]))
    tool.broken = True
    with pytest.raises(ToolError, match="out of order"):
        envs.step(np.array([0, 1, 2]))
    assert all(env.state is state for env, state in zip(envs.envs, before, strict=True)) and not tool.batches


def test_buffers_are_kept_and_copied_on_request(tasks: list[Task]) -> None:
    copied, shared = (make("HLMATGrid", 2, tasks, copy=copy) for copy in (True, False))
    for envs, same_memory in ((copied, False), (shared, True)):
        first, _ = envs.reset(seed=0)
        second, *_ = envs.step(np.array([100, 100]))
        assert np.shares_memory(first["image"], second["image"]) is same_memory


def test_episodes_that_ended_want_a_reset_where_it_is_disabled(tasks: list[Task]) -> None:
    envs = make("HLMATGrid", 2, tasks, autoreset_mode="Disabled", grid=4)
    envs.reset(seed=0)
    assert envs.step(np.array([32, 0]))[2].tolist() == [True, False]
    with pytest.raises(ResetNeeded, match=r"episodes \[0\] have ended"):
        envs.step(np.array([0, 0]))
    for mask, message in ((np.zeros(2, bool), "False everywhere"), ([True, False], "list; expected a bool array")):
        with pytest.raises((ValueError, TypeError), match=message):
            envs.reset(options={"reset_mask": mask})
    _, infos = envs.reset(options={"reset_mask": np.array([True, False])})
    assert infos["_step"].tolist() == [True, False]
    assert envs.step(np.array([0, 0]))[4]["step"].tolist() == [1, 2]


def test_each_environment_may_be_given_its_task(tasks: list[Task]) -> None:
    envs = make("HLMATPoint", 2, tasks)
    assert envs.reset(options={"task": ["tall", 2]})[1]["task_id"].tolist() == ["tall", "ignored"]
    assert envs.reset(options={"task": "wide"})[1]["task_id"].tolist() == ["wide", "wide"]
    for options, message in (({"task": ["tall"]}, "has 1 items"), ({"tusk": 1}, "no option 'tusk'")):
        with pytest.raises(ValueError, match=message):
            envs.reset(options=options)
    with pytest.raises(ValueError, match="seed has 3 items"):
        envs.reset(seed=[1, 2, 3])
    envs.reset(seed=[4, 4])
    assert envs.np_random_seed == (4, 4)


@pytest.mark.parametrize("name", ["HLMATGrid", "HLMAT"])
def test_a_batch_crosses_to_another_process(name: str, tasks: list[Task]) -> None:
    envs = make(name, 2, tasks)
    envs.reset(seed=1)
    copy = pickle.loads(pickle.dumps(envs))
    actions = envs.action_space.sample()
    assert same(envs.step(actions)[:4], copy.step(actions)[:4])
    assert copy.envs[0].mdp.tool is copy.envs[1].mdp.tool


def test_wrappers_and_attributes_work_as_on_other_batches(tasks: list[Task]) -> None:
    envs = make("HLMATGrid", 2, tasks, grid=4, max_steps=2, render_mode="rgb_array", render_size=40)
    counted = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    counted.reset(seed=0)
    counted.step(np.array([5, 6]))
    infos = counted.step(np.array([32, 7]))[4]
    assert infos["episode"]["l"].tolist() == [2, 2]
    assert envs.action_masks().shape == (2, 33) and [frame.shape for frame in envs.render()] == [(62, 40, 3)] * 2
    envs.set_attr("render_size", [30, 50])
    assert envs.get_attr("render_size") == (30, 50)
    with pytest.raises(ValueError, match="got 1 values"):
        envs.set_attr("render_size", [30])
    envs.close()
    assert envs.closed


# --- a pool of tasks ----------------------------------------------------------------------------------------------


def test_a_pool_plays_on_a_few_tasks_whose_encodings_stay() -> None:
    tool = Counting(6)
    tool.batches = []
    whole = data.make("synthetic:val#easy")
    envs = make("HLMATGrid", 3, whole, tool=tool, pool=4, max_steps=1, stop=False)
    other = singles("HLMATGrid", 3, Pool(whole, 4), AutoresetMode.NEXT_STEP, max_steps=1, stop=False)
    assert play("HLMATGrid", [envs, other], 2, 8, AutoresetMode.NEXT_STEP) == 12
    assert tool.calls["encode"] <= 4 and len(envs.envs[0].data) == 4


def test_a_pool_is_a_sample_that_is_read_once(tasks: list[Task]) -> None:
    whole = data.make("synthetic:train")
    pool = Pool(whole, 5, seed=1)
    assert len(set(pool.ids)) == len(pool) == 5 and pool.ids != Pool(whole, 5, seed=2).ids
    assert pool[3] is pool[3] and pool[3].id == pool.ids[3]
    assert pickle.loads(pickle.dumps(pool)).ids == pool.ids and pool.place_of(pool.ids[2]) == 2
    assert {task.id for task in Pool(tasks, 99)} == {task.id for task in tasks}
    with pytest.raises(ValueError, match="size is 0"):
        Pool(tasks, 0)


def test_a_pool_without_room_for_its_encodings_is_refused() -> None:
    tool = DiscTool(6, EncodingCache(max_bytes=40))
    with pytest.raises(ValueError, match="pool of 9 tasks needs .* larger EncodingCache"):
        make("HLMATGrid", 1, "synthetic:val", tool=tool, pool=9)


# --- tasks by id --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["synthetic:train", "synthetic:val#hard"])
def test_a_scene_is_found_from_its_id_alone(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million ids are not read for one."""
    scenes = data.make(spec)
    monkeypatch.setattr("segenv.data.synthetic.scenes._Ids.__getitem__", None)
    for i in (0, 1, 2, 3001, len(scenes) - 1):
        assert scenes.place_of(scenes.id(i)) == i  # type: ignore[attr-defined]
    level = "hard" if "hard" in spec else "easy"
    split = scenes.split  # type: ignore[attr-defined]
    for name in (
        "",
        "7",
        f"synthetic/{split}/{level}/-1",
        f"synthetic/{split}/{level}/99999999",
        "synthetic/test/easy/1",
    ):
        assert scenes.place_of(name) is None
    assert scenes.place_of(f"synthetic/{split}/{level}/07") is None


def test_a_list_of_tasks_that_changed_is_searched_again(make_env: Callable[..., gym.Env], tasks: list[Task]) -> None:
    env = make_env("segenv/HLMATGrid-v0", data=(changing := list(tasks)))
    assert env.reset(options={"task": "tall"})[1]["task_id"] == "tall"
    changing.reverse()
    assert env.reset(options={"task": "wide"})[1]["task_id"] == "wide"
