"""TRL's own loop of tools plays the episodes of `SegMDP`."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import made_models
from datasets import Dataset
from made_tools import BrokenTool
from transformers import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer, chat_template_utils

from segenv.adapters import chat
from segenv.adapters.trl_tools import ClickTools, click_tools, rows
from segenv.tools.disc import DiscTool
from segenv.types import Click, Stop, Task, ToolError

# The calls of each reply of an episode: a click, one outside the image, one on the background, the end.
CALLS: list[dict[str, Any]] = [
    {"name": "add", "arguments": {"x": 500, "y": 400}},
    {"name": "add", "arguments": {"x": 4000, "y": 1}},
    {"name": "remove", "arguments": {"x": 1000, "y": 0}},
    {"name": "finish", "arguments": {}},
]


class Stacked(Qwen2VLImageProcessorPil):
    """Pictures as tensors, which TRL expects: without torchvision, transformers leaves them as lists."""

    def preprocess(self, *images, **options):
        return super().preprocess(*images, **options | {"return_tensors": options.get("return_tensors") or "pt"})


class Scripted(GRPOTrainer):
    """TRL's trainer over a model that calls the tools of `CALLS` in turn, and then says that it is done."""

    turn = 0
    shown: list[int]

    def _generate_single_turn(self, prompt_ids, images, *more, **named):
        call = CALLS[self.turn] if self.turn < len(CALLS) else None
        text = "Done." if call is None else f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        self.turn = 0 if call is None else self.turn + 1
        self.shown.append(len(images[0]))
        words = self.processing_class.tokenizer
        return [words.encode(f"{text}<|im_end|>") for _ in prompt_ids], None


def trainer_of(environment: type[ClickTools], number: int, out: Path) -> Scripted:
    """A trainer that plays `number` episodes, each twice."""
    model, processor = made_models.qwen3_vl()
    processor.image_processor.__class__ = Stacked
    processor.chat_template = chat_template_utils.qwen3_vl_chat_template
    arguments = GRPOConfig(
        output_dir=str(out), per_device_train_batch_size=2, num_generations=2, max_completion_length=4000,
        max_steps=number, report_to="none", use_cpu=True, bf16=False, logging_steps=1, save_strategy="no",
        shuffle_dataset=False,
    )  # fmt: skip
    data = Dataset.from_list(rows(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's, that environments are an experiment
        made = Scripted(
            model, args=arguments, train_dataset=data, processing_class=processor, environment_factory=environment
        )
    made.shown = []
    return made


def test_three_episodes_have_the_rewards_of_the_decision_process(tasks: list[Task], tmp_path: Path) -> None:
    trainer = trainer_of(click_tools(DiscTool(6), tasks), 3, tmp_path)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    game = chat.make(DiscTool(6), tasks)
    expected = []
    for task in tasks:
        state, total = game.start(task), 0.0
        clicks = Click(task.width // 2, int(0.4 * task.height)), Click(task.width - 1, 0, False)
        for action in (*clicks, Stop()):
            state, reward, _ = game.act(state, action)
            total += reward
        expected.append(total)
    assert rewards == pytest.approx(expected, abs=1e-6) and any(expected)
    assert trainer.shown == [1, 2, 2, 3, 3] * 3  # each click that is carried out shows one picture more


def test_a_broken_tool_ends_the_training(tasks: list[Task], tmp_path: Path) -> None:
    trainer = trainer_of(click_tools(BrokenTool(6), tasks), 1, tmp_path)
    with pytest.raises(ToolError, match="gone"):
        trainer.train()


def test_an_instance_is_played_again_and_its_tools_are_the_three(task: Task) -> None:
    episode = click_tools(DiscTool(6), [task], max_steps=1)()
    for _ in range(2):
        [picture, text] = episode.reset(index=0)
        assert picture["image"].size == (task.width, task.height) and task.instruction in text["text"]
        episode.add(x=625, y=416)
        assert episode.get_reward() > 0
        with pytest.raises(ValueError, match="ended"):
            episode.finish()
    public = {name for name, _ in inspect.getmembers(type(episode), inspect.isfunction) if not name.startswith("_")}
    assert public == {"add", "remove", "finish", "reset", "get_reward"}
