"""Episodes as a chat give the states and rewards of `SegMDP`, and so do the adapters over it."""

from __future__ import annotations

import asyncio
import configparser
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from made_tools import BrokenTool

from segenv import render
from segenv.adapters import chat
from segenv.adapters.vagen import SegImageEnv
from segenv.annotator import next_click
from segenv.mdp import SegMDP
from segenv.tools.disc import DiscTool
from segenv.types import Click, Invalid, Stop, Task, ToolError


def replies(game: chat.Chat, task: Task) -> list[str]:
    """The annotator's first clicks, a text that is no action, and the end."""
    state, texts = game.start(task), []
    for _ in range(2):
        click = next_click(task.target, state.mask) or Click(1, 1, False)
        texts.append(game.codec.format(click, task))
        state, _, _ = game.advance(state, texts[-1])
    return [*texts, "I would rather not", game.codec.format(Stop(), task)]


def test_a_chat_is_the_decision_process(tasks: list[Task]) -> None:
    game = chat.make(DiscTool(6), tasks, max_steps=5)
    rules = SegMDP(game.mdp.tool, 5)
    for task in tasks[:3]:
        state, mine, done = rules.initial(task), game.start(task), False
        for text in replies(game, task):
            assert not done
            [message] = game.conversation(mine)
            picture, prompt = message["content"]
            assert np.array_equal(np.asarray(picture["image"]), render.overlay(task.image, state.mask))
            assert prompt["text"] == game.codec.prompt(rules.observation(state))
            action = game.codec.parse(text, task)
            [following] = rules.transition([state], [action])
            reward = rules.reward(state, action, following)
            mine, got, done = game.advance(mine, text)
            assert got == reward and np.array_equal(mine.mask, following.mask) and done == rules.terminal(following)
            state = following
        assert done


def test_the_starts_of_refinement_are_the_same_each_time(tasks: list[Task]) -> None:
    game = chat.make(DiscTool(6), tasks, start="distort")
    first, again = game.start(0), game.start(0)
    assert first.mask.any() and np.array_equal(first.mask, again.mask)


def test_rows_hold_what_the_conversation_does(tasks: list[Task]) -> None:
    game = chat.make(DiscTool(6), tasks)
    made = list(chat.rows(game, 2))
    assert [row["task_id"] for row in made] == [task.id for task in tasks[:2]]
    [message] = game.conversation(game.start(1))
    assert made[1]["prompt"][0]["content"][1] == message["content"][1]
    assert made[1]["images"] == [message["content"][0]["image"]]
    assert render.data_url(made[1]["images"][0]).startswith("data:image/png;base64,iVBOR")


def test_vagen_plays_the_same_episodes(tasks: list[Task]) -> None:
    game = chat.make(DiscTool(6), tasks, max_steps=5)

    async def play(env: SegImageEnv, index: int) -> None:
        task = tasks[index]
        state = game.start(task)
        seen, info = await env.reset(index + len(tasks))
        assert info["task_id"] == task.id and await env.system_prompt() == {"obs_str": ""}
        for text in replies(game, task):
            assert seen["obs_str"].count("<image>") == len(seen["multi_modal_input"]["<image>"]) == 1
            assert seen["multi_modal_input"]["<image>"][0] == game.picture(state)
            seen, reward, done, info = await env.step(text)
            state, expected, ended = game.advance(state, text)
            assert (reward, done) == (expected, ended)
            assert info["iou"] == game.iou(state) and bool(info["error"]) == (state.error is not None)
        await env.close()

    for index in range(3):
        asyncio.run(play(SegImageEnv({"tool": DiscTool(6), "data": tasks, "max_steps": 5}), index))


def test_a_broken_tool_is_a_fault_and_no_reward(task: Task) -> None:
    game = chat.make(BrokenTool(6), [task])
    with pytest.raises(ToolError, match="gone"):
        game.act(game.start(0), Click(3, 3))
    _, reward, _ = game.act(game.start(0), Invalid("no action", "nothing"))
    assert reward == 0

    async def play() -> None:
        env = SegImageEnv({"tool": BrokenTool(6), "data": [task]})
        with pytest.raises(ValueError, match="reset"):
            await env.step("Finish")
        await env.reset(0)
        await env.step("Positive point: (100, 100)")

    with pytest.raises(ToolError, match="gone"):
        asyncio.run(play())


@pytest.mark.parametrize(
    ("module", "framework"),
    [
        ("inspect_task", "inspect_ai"),
        ("lmms_task", "lmms_eval"),
        ("openenv_server", "openenv"),
        ("verifiers_env", "verifiers"),
        ("verl_loop", "verl"),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(module: str, framework: str, monkeypatch) -> None:
    for name in {framework, *(name for name in sys.modules if name.startswith(f"{framework}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"segenv.adapters.{module}", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'segenv\[\w+\]'") as told:
        importlib.import_module(f"segenv.adapters.{module}")
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[2] / "setup.cfg")
    extra = str(told.value).partition("segenv[")[2].partition("]")[0]
    assert framework.replace("_", "-") in settings["options.extras_require"][extra]
