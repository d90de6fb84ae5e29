"""lmms-eval's own evaluator plays the episodes of `SegMDP`, its OpenAI client asking a scripted server."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from made_replies import TEXTS, played
from made_servers import replies, sends, serving
from made_tools import BrokenTool

from segenv.adapters import chat, lmms_task
from segenv.tools.disc import DiscTool
from segenv.types import AgentError, RunError, Task, ToolError

FOLDER = Path(lmms_task.__file__).parent / "lmms_tasks"


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch):
    """Evaluate a game in place of the one that the task's file names."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def run(game: chat.Chat, url: str, chatty: bool = True, **more) -> dict:
        monkeypatch.setattr(chat, "make", lambda **arguments: game)
        tasks = TaskManager(include_path=str(FOLDER), include_defaults=False)
        options = {"model": "openai", "model_args": f"model=made,base_url={url},max_retries=1", "bootstrap_iters": 0}
        return simple_evaluate(tasks=["segenv_clicks"], task_manager=tasks, force_simple=not chatty, **options, **more)

    return run


def test_three_episodes_have_the_rewards_of_the_decision_process(tasks: list[Task], evaluate) -> None:
    game = chat.make(DiscTool(6), tasks, max_steps=6)
    for chatty in (True, False):
        asked = count()
        with serving(lambda body, times, asked=asked: replies(TEXTS[next(asked) % len(TEXTS)])) as (url, server):
            found = evaluate(game, url, chatty)
        returns, ious = [], []
        for index, sample in enumerate(found["samples"]["segenv_clicks"]):
            states, rewards = played(game, index)
            for body, state in zip(server.bodies[4 * index :], states[:-1], strict=False):
                parts = [part for message in body["messages"] for part in message["content"]]
                assert sorted(part["type"] for part in parts) == ["image_url", "text"]
                assert [part["text"] for part in parts if "text" in part] == [game.prompt(state)]
            assert json.loads(sample["filtered_resps"][0])["rewards"] == rewards
            returns.append(sum(rewards))
            ious.append(game.iou(states[-1]))
        scores = found["results"]["segenv_clicks"]
        assert scores["return,none"] == pytest.approx(sum(returns) / 3) and any(returns)
        assert scores["iou,none"] == pytest.approx(sum(ious) / 3) and scores["steps,none"] == 4


def test_a_broken_tool_and_a_broken_server_end_the_evaluation(tasks: list[Task], evaluate) -> None:
    broken, whole = chat.make(BrokenTool(6), tasks), chat.make(DiscTool(6), tasks)
    with serving(lambda body, times: replies(TEXTS[0])) as (url, _), pytest.raises(ToolError, match="gone"):
        evaluate(broken, url)
    with serving(lambda body, times: sends(400, b"{}")) as (url, _), pytest.raises(AgentError, match="no reply"):
        evaluate(whole, url)


def test_a_reply_without_text_costs_a_step(tasks: list[Task], evaluate) -> None:
    game = chat.make(DiscTool(6), tasks[:1], max_steps=2)
    with serving(lambda body, times: replies(None)) as (url, server):
        [sample] = evaluate(game, url)["samples"]["segenv_clicks"]
    assert len(server.bodies) == 2 and json.loads(sample["filtered_resps"][0])["rewards"] == [0.0, 0.0]


@pytest.mark.parametrize("chatty", [True, False])
def test_the_cache_is_refused_since_it_takes_rounds_of_equal_prompts_for_one(
    tasks: list[Task], evaluate, tmp_path: Path, chatty: bool
) -> None:
    game, asked = chat.make(DiscTool(6), tasks, max_steps=6), count()
    with (
        serving(lambda body, times: replies(TEXTS[next(asked) % len(TEXTS)])) as (url, server),
        pytest.raises(RunError, match="leave out --use_cache"),
    ):
        evaluate(game, url, chatty, use_cache=str(tmp_path))
    assert len(server.bodies) == 1
