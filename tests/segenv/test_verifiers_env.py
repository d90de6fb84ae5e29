"""verifiers' own loop plays the episodes of `SegMDP`, with a scripted server as its model."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("verifiers.v1", exc_type=ImportError)

import verifiers.v1 as vf
from made_replies import TEXTS, played
from made_servers import replies, sends, serving
from made_tools import BrokenTool
from verifiers.v1.cli.eval.runner import run_eval
from verifiers.v1.configs.cli.eval import EvalConfig
from verifiers.v1.utils import loaders

from segenv.adapters import chat
from segenv.tools.disc import DiscTool
from segenv.types import Task


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the command's evaluation over a game in place of the one that its specs name."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(game: chat.Chat, url: str, **more) -> list[vf.Episode]:
        load = loaders.load_environment

        def loaded(config):
            env = load(config)
            env.taskset.game = game
            return env

        monkeypatch.setattr(loaders, "load_environment", loaded)
        env = {"taskset": {"id": "segenv-clicks", "tool": "disc", "data": "synthetic:test#easy"}, **more}
        config = EvalConfig(
            env=env, model="made", client={"base_url": url, "api_key_var": "NONE"}, push=False, rich=None,
            output_dir=tmp_path, max_concurrent=1,
        )  # fmt: skip
        return asyncio.run(run_eval(config))

    return run


def test_three_episodes_have_the_rewards_of_the_decision_process(tasks: list[Task], evaluate) -> None:
    game, asked = chat.make(DiscTool(6), tasks, max_steps=6), count()
    with serving(lambda body, times: replies(TEXTS[next(asked) % len(TEXTS)])) as (url, server):
        episodes = evaluate(game, url)
    assert [episode.task.data.id for episode in episodes] == game.ids and all(one.ok for one in episodes)
    for index, episode in enumerate(episodes):
        states, rewards = played(game, index)
        for body, state in zip(server.bodies[4 * index :], states[:-1], strict=False):
            [message] = body["messages"]
            assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
            assert message["content"][1]["text"] == game.prompt(state)
        [trace] = episode.traces
        assert trace.info["segenv"]["rewards"] == rewards
        assert trace.reward == pytest.approx(sum(rewards)) and trace.num_turns == trace.num_branches == 4
        assert trace.metrics["iou"] == game.iou(states[-1]) and trace.metrics["steps"] == 4


def test_a_broken_tool_is_an_error_and_no_reward(tasks: list[Task], evaluate) -> None:
    with serving(lambda body, times: replies(TEXTS[0])) as (url, _):
        episodes = evaluate(chat.make(BrokenTool(6), tasks), url)
    assert len(episodes) == 3
    for episode in episodes:
        [trace] = episode.traces
        assert not episode.ok and "the tool is gone" in episode.errors[-1].message
        assert not trace.ok and not trace.rewards


def test_a_cut_episode_and_a_broken_server_have_no_reward(tasks: list[Task], evaluate) -> None:
    game = chat.make(DiscTool(6), tasks[:1])
    with serving(lambda body, times: replies(TEXTS[0])) as (url, _):
        [episode] = evaluate(game, url, agent={"max_turns": 2})
    assert not episode.ok and "cut (max_turns)" in episode.traces[0].last_error.message
    with serving(lambda body, times: sends(400, b"{}")) as (url, _):
        [episode] = evaluate(game, url, id="")
    [trace] = episode.traces
    assert not episode.ok and trace.last_error.type == "ProviderError"
    assert all(value is None for value in trace.rewards.values())
