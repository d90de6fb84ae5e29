"""Inspect's own loop plays the episodes of `SegMDP`."""

from __future__ import annotations

from itertools import count

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model
from made_replies import TEXTS, played
from made_tools import BrokenTool

from segenv.adapters import chat, inspect_task
from segenv.tools.disc import DiscTool
from segenv.types import Task


def scripted(texts: tuple[str, ...] = TEXTS) -> Model:
    """A model that says the texts in turn; it counts its tokens itself, since Inspect would fetch a tokenizer."""
    asked = count()

    def reply(messages, tools, choice, config) -> ModelOutput:
        [message] = messages
        picture, prompt = message.content
        assert picture.image.startswith("data:image/png") and "bright disc" in prompt.text
        output = ModelOutput.from_content("mockllm", texts[next(asked) % len(texts)])
        return output.model_copy(update={"usage": ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)})

    return get_model("mockllm/model", custom_outputs=reply, memoize=False)


def test_three_episodes_have_the_rewards_of_the_decision_process(tasks: list[Task], tmp_path) -> None:
    game = chat.make(DiscTool(6), tasks, max_steps=6)
    options = {"log_dir": str(tmp_path), "display": "none", "max_samples": 1}
    [log] = inspect_eval(inspect_task.make(game), model=scripted(), **options)
    assert log.status == "success" and len(log.samples) == 3
    for sample in log.samples:
        [index] = [k for k, one in enumerate(tasks) if one.id == sample.id]
        states, rewards = played(game, index)
        score = sample.scores["last_iou"]
        assert score.metadata["rewards"] == rewards
        assert score.value == game.iou(states[-1]) and score.metadata["steps"] == 4


def test_a_broken_tool_is_an_error_and_no_score(tasks: list[Task], tmp_path) -> None:
    game = chat.make(BrokenTool(6), tasks)
    options = {"log_dir": str(tmp_path), "display": "none", "max_samples": 1, "fail_on_error": False}
    [log] = inspect_eval(inspect_task.make(game), model=scripted(TEXTS[:1]), **options)
    assert all("the tool is gone" in sample.error.message and not sample.scores for sample in log.samples)
