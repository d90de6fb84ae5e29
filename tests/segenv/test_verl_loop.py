"""verl's own worker of agent loops plays the episodes of `SegMDP`, with a scripted client for its GPU server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl")

import made_models
from hydra import compose, initialize_config_module
from made_replies import TEXTS, played
from made_tools import BrokenTool
from transformers import AutoProcessor, PreTrainedTokenizerBase, Qwen3VLProcessor
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from agents.backends import processors
from segenv.adapters import chat, verl_loop
from segenv.tools.disc import DiscTool
from segenv.types import AgentError, Task, ToolError

LOOP = """
- name: segenv_clicks
  _target_: segenv.adapters.verl_loop.ClickAgentLoop
  tool: disc
  data: synthetic:train
  max_steps: 6
"""


class Scripted(LLMServerClient):
    """A client that says the texts in turn in each episode, and keeps what it was asked."""

    words: PreTrainedTokenizerBase

    def __init__(self, stop_reason: str | None = None) -> None:
        self.stop_reason = stop_reason
        self.asked: dict[str, list[tuple[list[int], list]]] = {}

    async def generate(self, request_id, *, prompt_ids, sampling_params, image_data=None, **more) -> TokenOutput:
        turns = self.asked.setdefault(request_id, [])
        turns.append((prompt_ids, image_data))
        ids = self.words.encode(f"{TEXTS[len(turns) - 1]}<|im_end|>")[: sampling_params["max_tokens"]]
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason=self.stop_reason)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    network, processor = made_models.qwen3_vl()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load_processor(source, **options):
    """A processor without its part for videos, which needs torchvision."""
    return processors.without_videos(Qwen3VLProcessor).from_pretrained(source)


def play(
    game: chat.Chat,
    model: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int = 2000,
    stop: str = "completed",
):
    """Play every task by verl's worker: its batch, and the client."""
    monkeypatch.setattr(verl_loop, "game_of", lambda *arguments: game)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", load_processor)
    (folder / "loop.yaml").write_text(LOOP)
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [
            f"actor_rollout_ref.model.path={model}", "actor_rollout_ref.rollout.name=vllm",
            f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder / 'loop.yaml'}",
            "data.max_prompt_length=1000", f"data.max_response_length={room}",
            "actor_rollout_ref.rollout.calculate_log_probs=true",
        ])  # fmt: skip
    client = Scripted(stop)
    worker = AgentLoopWorker(config, client)
    client.words = worker.tokenizer
    rows = [{"raw_prompt": row["prompt"], **row, **row["extra_info"]} for row in verl_loop.rows(len(game.data))]
    batch = DataProto(batch=None)
    for name in ("raw_prompt", "agent_name", "index"):
        batch.non_tensor_batch[name] = np.array([None] * len(rows))
        batch.non_tensor_batch[name][:] = [row[name] for row in rows]
    return asyncio.run(worker.generate_sequences(batch)), client


def test_three_episodes_have_the_rewards_of_the_decision_process(
    tasks: list[Task], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = chat.make(DiscTool(6), tasks, max_steps=6)
    out, client = play(game, model, tmp_path, monkeypatch)
    assert len(out) == len(client.asked) == 3
    for index in range(3):
        states, rewards = played(game, index)
        shown = [game.picture(state) for state in states[:-1]]
        [turns] = [turns for turns in client.asked.values() if turns[0][1] == shown[:1]]  # in any order
        for k, (tokens, images) in enumerate(turns):
            assert images == shown[: k + 1] and game.prompt(states[k]) in client.words.decode(tokens)
        assert len(turns) == 4 and out.batch["rm_scores"][index].sum().item() == pytest.approx(sum(rewards))
        written = out.batch["responses"][index][out.batch["response_mask"][index].bool()]
        assert client.words.decode(written) == "".join(f"{text}<|im_end|>" for text in TEXTS)
        grids = out.non_tensor_batch["multi_modal_inputs"][index]["image_grid_thw"]
        assert len(grids) == 4 and out.non_tensor_batch["turn_scores"][index] == rewards
        assert out.non_tensor_batch["iou"][index] == game.iou(states[-1])


def test_an_episode_that_outgrows_its_room_keeps_its_rewards(
    tasks: list[Task], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = chat.make(DiscTool(6), tasks[:1], max_steps=6)
    out, _ = play(game, model, tmp_path, monkeypatch, room=300)
    _, reward, _ = game.advance(game.start(0), TEXTS[0])
    assert reward > 0 and out.non_tensor_batch["turn_scores"][0] == [reward]
    assert out.batch["rm_scores"].sum().item() == pytest.approx(reward)
    out, _ = play(game, model, tmp_path, monkeypatch, room=4)  # not even the first reply is whole
    assert out.non_tensor_batch["turn_scores"][0] == [0.0] and out.batch["response_mask"].sum() == 4


def test_a_broken_tool_and_a_reply_that_was_broken_off_end_the_training(
    tasks: list[Task], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ToolError, match="gone"):
        play(chat.make(BrokenTool(6), tasks), model, tmp_path, monkeypatch)
    with pytest.raises(AgentError, match="broke off"):
        play(chat.make(DiscTool(6), tasks), model, tmp_path, monkeypatch, stop="aborted")
