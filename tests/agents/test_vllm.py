"""The agent `vllm:…`: it asks vLLM's documented API as transformers is asked, and reads in the processor's frame."""

import importlib.util

import numpy as np
import pytest

import agents
from experiments.common.config import RunError
from experiments.evaluate import evaluate
from experiments.evaluate.config import Args
from segenv.mdp import Observation
from tests import made_models, made_vllm


def views(*sizes):
    shown = [np.random.default_rng(k).integers(0, 255, (h, w, 3), np.uint8) for k, (w, h) in enumerate(sizes)]
    return [Observation("a", one, np.zeros(one.shape[:2], bool), f"object {k}", 0, 1) for k, one in enumerate(shown)]


@pytest.mark.parametrize("family", ["qwen2.5-vl", "llava-1.5", None])
def test_greedy_replies_are_those_of_transformers(family, tmp_path):
    if family is not None:
        made_models.save(family, tmp_path)
    name, codec = (str(tmp_path), "grid1000-xy" if family == "llava-1.5" else family) if family else ("tiny-mllm", None)
    seen = views((64, 48), (90, 120))
    own = agents.make(f"mllm:{name}", codec, max_new_tokens=12)
    with made_vllm.installed():
        agent = agents.make(f"vllm:{name}", codec, max_new_tokens=12)
    replies, expected = agent.answer(seen, [1, 2]), own.answer(seen, [1, 2])
    for one, other in zip(replies, expected, strict=True):
        assert (one.text, one.tokens, one.finish_reason) == (other.text, other.tokens, other.finish_reason)
        assert (one.prompt_tokens, one.sent) == (other.prompt_tokens, other.sent)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
        assert one.frame == other.frame or family != "qwen2.5-vl"
    assert agent.prompt(seen[0]) == own.prompt(seen[0]) and agent.codec.name == own.codec.name
    assert agent.backend.tokens == {
        "prompt": sum(one.prompt_tokens for one in expected),
        "reply": sum(one.tokens for one in expected),
    }
    settings = agent.settings
    assert settings["agent"] == f"vllm:{name}" and settings["backend"] == "vllm" and settings["weights"]


def test_sampling_is_as_asked_or_the_checkpoints_own(tmp_path):
    made_models.save("qwen2.5-vl", tmp_path)
    with made_vllm.installed():
        agent = agents.make(f"vllm:{tmp_path}", "qwen2.5-vl", temperature=0.7, top_p=0.9, max_new_tokens=5)
        own = agents.make(f"vllm:{tmp_path}", "qwen2.5-vl", own_sampling=True)
    agent.act(views((64, 48)), [2**40 + 3])
    [(prompt, params)] = agent.backend.llm.asked
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.7, 0.9, 5, 3)
    assert params.logprobs == 0 and not params.skip_special_tokens and "object 0" in prompt
    own.backend.llm.model.generation_config.update(top_p=0.8, repetition_penalty=1.2)
    own.act(views((64, 48)), [1])
    asked = own.backend.llm.asked[0][1]
    assert (asked.top_p, asked.repetition_penalty, params.repetition_penalty) == (0.8, 1.2, 1.0)


def test_without_vllm_it_says_what_to_install(tmp_path):
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(RunError, match=r"needs vLLM and a GPU: pip install 'segenv\[vllm\]'"):
        evaluate.run(Args(agent="vllm:tiny-mllm", out=str(tmp_path / "run")), quiet=True)
    with made_vllm.installed(), pytest.raises(ValueError, match="names no model"):
        agents.make("vllm")


def test_a_run_plays_it_like_any_model(tmp_path):
    with made_vllm.installed():
        args = Args(
            agent="vllm:tiny-mllm", data="synthetic:val", tool="disc", limit=2, max_steps=2, out=str(tmp_path / "run")
        )
        numbers = evaluate.run(args, quiet=True)
    assert numbers["episodes"] == 2 and numbers["protocol"]["backend"] == "vllm" and numbers["finish_reasons"]
    assert len((tmp_path / "run" / "replies.jsonl").read_text().splitlines()) >= 2


def test_choices_of_the_engine_stand_in_the_settings_or_are_refused(tmp_path):
    made_models.save("qwen2.5-vl", tmp_path)
    with made_vllm.installed():
        plain = agents.make(f"vllm:{tmp_path}", "qwen2.5-vl").settings
        other = agents.make(f"vllm:{tmp_path}", "qwen2.5-vl", engine={"max_model_len": 512}).settings
        with pytest.raises(ValueError, match="mm_processor_kwargs"):
            agents.make(f"vllm:{tmp_path}", "qwen2.5-vl", engine={"mm_processor_kwargs": {"max_pixels": 9}})
    assert other["engine"]["max_model_len"] == "512" and plain != other
