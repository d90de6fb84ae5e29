"""Objects cross to other processes; the tools do so in `test_tools.py`."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import agents
from segenv import annotator, codec, data, rewards, tools
from segenv.data.base import Dataset
from segenv.mdp import SegMDP
from segenv.tools import EncodingCache
from segenv.types import Click, Task

IDS = ("HLMAT", "HLMATGrid", "HLMATPoint", "Refine", "Filter", "Polygon")
DATA = ("synthetic:val#easy", "absent:0.5:synthetic:val#easy")


def crossed(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def test_a_cache_keeps_its_bounds_and_its_directory(tmp_path: Any) -> None:
    cache = EncodingCache(1 << 20, tmp_path / "cache", 1 << 21)
    cache.put("key", {"a": np.zeros(3, np.float32)})
    copy = crossed(cache)
    assert (copy.max_bytes, copy.directory, copy.max_disk_bytes) == (1 << 20, tmp_path / "cache", 1 << 21)
    assert not len(copy) and copy.get("key") is not None, "the directory is shared"


@pytest.mark.parametrize("spec", DATA)
@pytest.mark.parametrize("part", [lambda whole: whole, lambda whole: whole[4:9], lambda whole: whole.select([7, 2])])
def test_a_dataset_reads_the_same_tasks(spec: str, part: Callable[[Dataset], Dataset]) -> None:
    dataset = part(data.make(spec))
    copy = crossed(dataset)
    assert (copy.spec, copy.fingerprint, len(copy)) == (dataset.spec, dataset.fingerprint, len(dataset))
    assert copy.ids[1] == dataset.ids[1]
    np.testing.assert_array_equal(copy[1].target, dataset[1].target)


@pytest.mark.parametrize("name", IDS)
def test_an_environment_plays_on_where_it_was(name: str, make_env: Callable[..., gym.Env]) -> None:
    env = make_env(f"segenv/{name}-v0") if name != "Polygon" else gym.make("segenv/Polygon-v0", data="synthetic:val")
    env.reset(seed=3)
    copy = crossed(env)
    action = env.action_space.sample()
    (_, *told), (_, *copied) = env.step(action), copy.step(action)
    assert told[:3] == copied[:3]
    assert env.reset()[1]["task_id"] == copy.reset()[1]["task_id"], "the generator goes along"


@pytest.mark.parametrize("reward", ["iou_gain", "iou_gain+0.1*format", "2*net_gain", "-0.01*step"])
def test_a_reward_and_the_decision_process_that_gives_it(reward: str, task: Task) -> None:
    mdp = SegMDP(tools.make("disc"), 3, reward)
    copy, click = crossed(mdp), Click(40, 20)
    start = mdp.initial(task)
    [following] = mdp.transition([start], [click])
    assert copy.reward(start, click, following) == mdp.reward(start, click, following)
    step = task, start.mask, click, following.mask, False
    assert crossed(rewards.make(reward))(*step) == rewards.make(reward)(*step)


@pytest.mark.parametrize("spec", [f"annotator:{name}" for name in annotator.VARIANTS] + ["random:p=0.4", "mllm"])
def test_an_agent_says_the_same(spec: str, task: Task) -> None:
    agent = agents.make(spec)
    copy = crossed(agent)
    mdp = SegMDP(tools.make("disc"))
    state = mdp.initial(task)
    if agent.privileged:
        assert copy.act_on([state], [5]) == agent.act_on([state], [5])
    else:
        assert copy.act([mdp.observation(state)], [5]) == agent.act([mdp.observation(state)], [5])


@pytest.mark.parametrize("name", ["segagent", "pixels", "qwen2.5-vl", "simpleseg", "rings"])
def test_a_codec_writes_the_same(name: str, task: Task) -> None:
    spoken = codec.make(name)
    assert crossed(spoken).prompt(task) == spoken.prompt(task)
