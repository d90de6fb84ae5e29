"""Policies of Stable-Baselines3 are saved without pickles, and play outside their environment as within it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from segenv.checkpoints import CheckpointError
from segenv.tools.disc import DiscTool
from segenv.types import Task

pytest.importorskip("stable_baselines3")

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC

import agents
from agents import sb3_policy
from search.rollout import rollout
from segenv.mdp import SegMDP

GRID, POINT = "segenv/HLMATGrid-v0", "segenv/HLMATPoint-v0"
SMALL = {"net_arch": {"pi": [], "vf": [8]}}
OWN = {"features_extractor_class": sb3_policy.GridExtractor}
CASES: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    "masked": (MaskablePPO, GRID, {"grid": 4, "observe": "box"}, {"net_arch": [8]}),
    "grid": (MaskablePPO, GRID, {"grid": 5, "stop": False}, {"extractor": "grid", "channels": 8, **SMALL}),
    "seen mask": (PPO, GRID, {"grid": 3, "action_mask": "observation"}, {"extractor": "grid", "channels": 8, **SMALL}),
    "three numbers": (MaskablePPO, GRID, {"grid": 4, "actions": "multidiscrete"}, {"net_arch": [8]}),
    "values": (DQN, GRID, {"grid": 3}, {"net_arch": [8]}),
    "points": (SAC, POINT, {"stop": True, "observe": "click"}, {"net_arch": [8]}),
}


def trained(case: str, tasks: list[Task], folder: Path) -> tuple[Any, gym.Env]:
    """A model with random weights, saved in `folder`, and its environment."""
    kind, name, options, network = CASES[case]
    env = gym.make(name, tool=DiscTool(5), data=tasks, max_steps=3, size=36, **options)
    torch.manual_seed(4)
    arguments: dict[str, Any] = {"net_arch": network["net_arch"]}
    if "extractor" in network:
        own = {"grid": options["grid"], "stop": options.get("stop", True), "channels": network["channels"]}
        arguments |= {**OWN, "features_extractor_kwargs": own}
    buffers = {"buffer_size": 8} if kind in (DQN, SAC) else {"n_steps": 8, "batch_size": 8}
    model = kind("MultiInputPolicy", env, policy_kwargs=arguments, device="cpu", **buffers)
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight += 0.1 * torch.randn_like(weight)
    sb3_policy.save(model, folder, environment=name, size=36, max_steps=3, **options, **network)
    return model, env


@pytest.mark.parametrize("case", CASES)
def test_a_saved_policy_plays_as_in_its_environment_bit_by_bit(case: str, tasks: list[Task], tmp_path: Path) -> None:
    model, env = trained(case, tasks, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "policy.safetensors"]
    agent = agents.make(f"sb3:{tmp_path}")
    assert agent.privileged == ("observe" in CASES[case][2])
    episodes = rollout(SegMDP(DiscTool(5), 3), agent, tasks, batch_size=2)
    for episode in episodes:
        seen, info = env.reset(options={"task": episode.task})
        ious, told, done = [], [], False
        while not done:
            masked = {"action_masks": env.unwrapped.action_masks()} if agent.config.masked else {}  # type: ignore[attr-defined]
            action, _ = model.predict(seen, deterministic=True, **masked)
            seen, _, done, _, info = env.step(action)
            ious.append(info["iou"])
            told.append(info["action"])
        assert episode.ious == ious and [step.action for step in episode.steps] == told
        assert all(step.error is None for step in episode.steps)


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("case", ["seen mask", "three numbers", "values", "told"])
def test_a_zip_is_read_without_running_what_it_holds(case: str, tasks: list[Task], tmp_path: Path) -> None:
    options = {"grid": 3, "observe": "instruction"} if case == "told" else CASES[case][2]
    kind = PPO if case == "told" else CASES[case][0]
    task = replace(tasks[0], instruction="the red disc")
    env = gym.make(GRID, tool=DiscTool(5), data=[task], max_steps=3, size=36, **options)
    model = kind("MultiInputPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu")
    model.bomb = Bomb(tmp_path / "exploded")
    model.save(tmp_path / "model.zip")
    agent = agents.make(f"sb3:{tmp_path / 'model.zip'}")
    assert agent.config.algorithm == kind.__name__
    sb3_policy.save(model, tmp_path / "folder", size=36, net_arch=[8], **options)
    again = agents.make(f"sb3:{tmp_path / 'folder'}")
    mdp = SegMDP(DiscTool(5), 3)
    seen = [mdp.observation(mdp.initial(task))]
    assert agent.propose(seen, 5, [1]) == again.propose(seen, 5, [1]) and not (tmp_path / "exploded").exists()
    assert {name: agent.settings[name] for name in ("weights", "algorithm")}.items() <= again.settings.items()


def test_a_zip_that_needs_a_pickle_is_refused(tasks: list[Task], tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    model, _ = trained("grid", tasks, tmp_path / "folder")
    model.save(file)
    with pytest.raises(CheckpointError, match="which only a pickle tells; in Python, load a file that you trust"):
        agents.make(f"sb3:{file}")
    file.write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match="no file of Stable-Baselines3"):
        agents.make(f"sb3:{file}")


def test_proposals_follow_their_seeds(tasks: list[Task], tmp_path: Path) -> None:
    trained("grid", tasks, tmp_path)
    agent, mdp = agents.make(f"sb3:{tmp_path}"), SegMDP(DiscTool(5), 3)
    seen = [mdp.observation(mdp.initial(task)) for task in tasks]
    first, alone = agent.propose(seen, 4, [1, 2, 3]), agent.propose(seen[1:2], 4, [2])
    assert first[1] == alone[0] and first != agent.propose(seen, 4, [4, 5, 6])
    assert len({text for texts in first for text in texts}) > 3
    assert agent.act(seen, [1, 2, 3]) == agent.act(seen, [7, 8, 9])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"grid": 6}, "its spaces are"),
        ({"algorithm": "os.system"}, "unknown algorithm"),
        ({"policy": "__import__"}, "unknown policy"),
        ({"environment": "segenv/HLMAT-v0"}, "unknown environment"),
        ({"channels": 9}, "shape"),
        ({"channels": 10**6}, "channels"),
        ({"size": 10**6}, "size"),
        ({"net_arch": [10**7]}, "net_arch"),
        ({"extractor": "nature"}, "extractor"),
        ({"extractor": None}, "weights"),
        ({"observe": "instruction"}, "its spaces are"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_changed_configuration_is_refused(
    change: dict[str, Any], told: str, tasks: list[Task], tmp_path: Path
) -> None:
    trained("grid", tasks, tmp_path)
    file = tmp_path / sb3_policy.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=told):
        sb3_policy.load(tmp_path)


def test_damaged_and_missing_files_are_refused(tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no config.json; expected a folder"):
        agents.make(f"sb3:{tmp_path}")
    model, _ = trained("grid", tasks, tmp_path)
    with pytest.raises(CheckpointError):  # weights that the configuration does not describe
        sb3_policy.save(model, tmp_path / "other", grid=5, stop=False, size=36)
    assert not (tmp_path / "other").exists()
    (tmp_path / sb3_policy.WEIGHTS).write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(CheckpointError, match="damaged"):
        sb3_policy.load(tmp_path)


def test_the_random_agent_takes_allowed_cells(tasks: list[Task]) -> None:
    agent, mdp = agents.make("random:grid=3"), SegMDP(DiscTool(2), 30)
    for episode in rollout(mdp, agent, tasks, samples=2):
        spots = [(step.action["x"], step.action["y"]) for step in episode.steps if step.action["type"] == "click"]
        assert len(spots) == len(set(spots)) <= 9 and episode.stopped
    assert np.all([step.error is None for step in episode.steps])
