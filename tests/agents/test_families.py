"""The families of multimodal models that people fine-tune, each as a tiny random checkpoint of its own classes: they
play as agents, and learn, through the same code as the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import made_models
import numpy as np
import pytest
import torch
from conftest import disc_task
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import FAMILIES
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import agents
from agents.backends.transformers import chat, encode, load
from agents.mllm import MllmAgent, checkpoint
from agents.training import checkpoints
from agents.training.sft import ReplyCollator, SFTOptions, finetune
from segenv.codec.frames import qwen_size
from segenv.mdp import SegMDP
from segenv.tools import make as make_tool
from segenv.types import Click

torch.set_num_threads(1)
QUICK = SFTOptions(steps=8, batch_size=4, micro_batch_size=2, learning_rate=3e-3, bf16=True, log_steps=1)
ADAPTERS = replace(QUICK, lora=4, gradient_checkpointing=True, learning_rate=1e-2)

# What each family reads before its reply, and what it writes, for one picture and the text "it".
CONVERSATIONS = {
    "qwen2.5-vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>it<|im_end|>\n<|im_start|>assistant\n",
        "Finish<|im_end|>",
    ),
    "qwen3-vl": (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>it<|im_end|>\n<|im_start|>assistant\n",
        "Finish<|im_end|>",
    ),
    "internvl": ("<|im_start|>user\n<IMG_CONTEXT>\nit<|im_end|>\n<|im_start|>assistant\n", "Finish<|im_end|>"),
    "llava-onevision": ("<|im_start|>user <image>\nit<|im_end|><|im_start|>assistant\n", "Finish<|im_end|>"),
    "llava-1.5": ("USER: <image>\nit ASSISTANT:", " Finish</s>"),
}


class Rows(Sequence):
    """Pictures of several sizes, and a different reply to each; `limit` pulls the plug after so many rows."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i):
        self.limit -= 1
        if self.limit < 0:
            raise KeyboardInterrupt
        size = [(48, 64), (70, 33), (32, 32), (64, 96)][i]
        image = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        return {"image": image, "prompt": "the bright disc", "reply": f"Current IOU: {i}\nPositive point: ({9 * i}, 3)"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(family, tmp_path_factory) -> Path:
    return made_models.save(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def half(family, tmp_path_factory) -> Path:
    """The same in bfloat16, as such models are published."""
    return made_models.save(family, tmp_path_factory.mktemp(f"{family}-bf16"), dtype=torch.bfloat16)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def loss_of(folder: Path) -> float:
    """Mean loss a reply token, of all logits of a checkpoint in float32."""
    model, processor = load(folder, "float32")
    inputs = ReplyCollator(processor, Rows())([{"row": i} for i in range(4)])
    labels = inputs.pop("labels")[:, 1:]
    with torch.inference_mode():
        return float(cross_entropy(model(**inputs).logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100))


def test_a_batch_of_pictures_of_all_sizes_is_answered_as_one_by_one(base, tasks):
    mdp = SegMDP(make_tool("disc"))
    empty = [mdp.initial(task) for task in [*tasks, disc_task(90, 150, 40, 20, 12, "large")]]
    states = empty + mdp.transition(empty, [Click(5, 5)] * len(empty))
    observations, seeds = [mdp.observation(state) for state in states], list(range(len(states)))
    for temperature in (0.0, 1.0):
        agent = agents.make(f"mllm:{base}", prompt="instruction", max_new_tokens=8, temperature=temperature)
        together = agent.act(observations, seeds)
        assert [agent.act([item], [seed])[0] for item, seed in zip(observations, seeds, strict=True)] == together
        assert agent.act(observations[::-1], seeds[::-1]) == together[::-1]
        assert len(set(together)) > len(states) // 2, "a reply depends on its picture"


def test_it_is_asked_and_taught_in_its_own_form_of_conversation(family, base):
    processor = load(base)[1]
    assert chat(processor, "it", "Finish") == CONVERSATIONS[family]
    asked = CONVERSATIONS[family][0]
    pictures = [np.zeros((60, 90, 3), np.uint8), np.zeros((200, 120, 3), np.uint8)]
    ids = encode(processor, [asked, asked], pictures)["input_ids"].tolist()
    tokens = [row.count(processor.image_token_id) for row in ids]
    assert all(count > 1 for count in tokens)
    shown = [processor.tokenizer.decode(row).replace(processor.image_token, "") for row in ids]
    assert all("it" in text and text.endswith(asked[-10:]) for text in shown)


def test_words_that_stand_for_pictures_and_videos_are_words_in_a_prompt(base):
    agent = MllmAgent(base, max_new_tokens=2)
    words = "<image> <|image_pad|> <IMG_CONTEXT> <video> <|video_pad|>"
    assert agent.backend.generate([np.zeros((48, 64, 3), np.uint8)], [words], [0])


def test_a_spec_says_at_which_size_pictures_are_sent(base, task):
    mdp = SegMDP(make_tool("disc"))
    observation = mdp.observation(mdp.initial(task))
    for size, shape in (("", (48, 64, 3)), ("#32", (24, 32, 3)), ("#56x40", (56, 40, 3))):
        agent = MllmAgent(f"{base}{size}", max_new_tokens=1)
        crop = agent.backend.processor.image_processor
        if not size and getattr(
            crop, "do_center_crop", False
        ):  # it would cut the image: the whole is sent at the size of the cut
            shape = (crop.crop_size["height"], crop.crop_size["width"], 3)
        assert agent.picture(observation).shape == shape
        assert agents.make(agent.spec, max_new_tokens=1).settings == agent.settings
        assert checkpoint(agent.spec) == str(base)
    with pytest.raises(ValueError, match="'big' is no size of images; expected pixels such as 448 or 336x448"):
        agents.make(f"mllm:{base}#big")


def test_labels_cover_the_reply_and_its_end_alone(base):
    processor = load(base)[1]
    batch = ReplyCollator(processor, Rows())([{"row": i} for i in (2, 0, 1)])
    for labels, ids, i in zip(batch["labels"], batch["input_ids"], (2, 0, 1), strict=True):
        learned = labels != -100
        assert torch.equal(labels[learned], ids[learned])
        assert processor.tokenizer.decode(labels[learned]).strip() == Rows()[i]["reply"] + processor.tokenizer.eos_token
        assert Rows()[i]["prompt"] in processor.tokenizer.decode(ids[~learned])


@pytest.mark.parametrize("options", [QUICK, ADAPTERS], ids=["all", "adapters"])
def test_it_learns_and_what_is_written_is_what_was_trained(half, options, tmp_path, monkeypatch):
    trained: dict[str, torch.Tensor] = {}
    models: list[weakref.ref] = []

    def spy(model, *rest):
        trained.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        models.append(weakref.ref(model))
        return save(model, *rest)

    save, out = checkpoints.save, tmp_path / "out"
    monkeypatch.setattr(checkpoints, "save", spy)
    finetune(half, Rows(), out, options, declare={"codec": "grid1000-xy", "image_size": 64})
    assert models[0]() is None, "the next model needs its place"
    assert loss_of(out) < 0.8 * loss_of(half)
    assert same(load(out)[0].state_dict(), trained)
    before, after = weights(half), weights(out)
    assert {name: (value.dtype, value.shape) for name, value in before.items()} == {
        name: (value.dtype, value.shape) for name, value in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    if options.lora:
        assert not any("embed" in name or "norm" in name or name.endswith("bias") for name in changed)
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (out / name).read_text() == (half / name).read_text()
    one, other = (json.loads((folder / "processor_config.json").read_text()) for folder in (half, out))
    assert ("video_processor" in one) == ("video_processor" in other), "other programs need what is not used here"
    agent = MllmAgent(out)
    assert (agent.codec.name, agent.backend.image_size) == ("grid1000-xy", 64)


@pytest.mark.slow
@pytest.mark.parametrize("options", [QUICK, ADAPTERS], ids=["all", "adapters"])
def test_training_that_was_cut_ends_with_the_weights_of_training_that_was_not(half, options, tmp_path):
    options = replace(options, steps=6, save_steps=2)
    whole = finetune(half, Rows(), tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        finetune(half, Rows(limit=4 * 5 - 1), tmp_path / "cut", options)
    assert (tmp_path / "cut.training" / "checkpoint-4").is_dir()
    rest = Rows()
    assert finetune(half, rest, tmp_path / "cut", options)["log"] == whole["log"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert Rows().limit - rest.limit < 4 * 4, "steps 1 to 4 are not made again"


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 4])
def test_recomputed_activations_change_nothing(base, lora, tmp_path):
    options = replace(QUICK, steps=2, lora=lora, bf16=False)
    finetune(base, Rows(), tmp_path / "kept", options)
    finetune(base, Rows(), tmp_path / "recomputed", replace(options, gradient_checkpointing=True))
    kept, recomputed = weights(tmp_path / "kept"), weights(tmp_path / "recomputed")
    assert all(torch.allclose(kept[name], recomputed[name], atol=1e-6) for name in kept)


@pytest.mark.slow
def test_a_round_of_star_from_rollouts_to_report(half, tmp_path):
    sizes = "--limit 4 --rollout-tasks 2 --samples 1 --eval-limit 2 --max-steps 2 --sft-steps 2 --round-steps 2"
    trainer = "--batch-rows 4 --trainer.micro-batch-size 2 --trainer.lora 2 --trainer.bf16"
    command = f"-m experiments.star --tool disc {sizes} {trainer} --trainer.gradient-checkpointing".split()
    run = [sys.executable, *command, "--agent", f"mllm:{half}", "--out", str(tmp_path / "run")]
    done = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["policies"]) == 2
    assert {value.dtype for value in weights(tmp_path / "run" / "round1" / "policy").values()} == {torch.bfloat16}
    assert weights(tmp_path / "run" / "round1" / "policy").keys() == weights(half).keys()


@given(st.integers(4, 400), st.integers(4, 400))
@settings(max_examples=50)
def test_the_codec_of_qwen2_5_vl_counts_the_pixels_that_its_processor_makes(height, width):
    inputs = made_models.qwen_pictures(14)([Image.new("RGB", (width, height))], return_tensors="pt")
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert (14 * columns, 14 * rows) == qwen_size(width, height)


@pytest.mark.parametrize("size", ["", "#448", "#300x500"])
@pytest.mark.parametrize("shape", [(720, 1280), (90, 60)])
def test_pixels_of_a_resized_image_are_those_that_the_model_sees(shape, size, tmp_path):
    """Whatever limits its processor has, and whatever size is sent: the middle of what it sees is the middle."""
    made_models.save("qwen2.5-vl", tmp_path)
    file = tmp_path / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 256 * 28 * 28}
    file.write_text(json.dumps(config))
    agent, mdp = agents.make(f"mllm:{tmp_path}{size}", codec="qwen2.5-vl"), SegMDP(make_tool("disc"))
    seen = mdp.observation(mdp.initial(disc_task(*shape, 20, 20, 9)))
    picture = Image.fromarray(agent.picture(seen))
    _, rows, columns = agent.backend.processor.image_processor([picture], return_tensors="np")["image_grid_thw"][0]
    reply = f'{{"point_2d": [{14 * columns // 2}, {14 * rows // 2}], "label": "positive"}}'
    click = agent.codec.parse(reply, seen)
    assert abs(click.x - shape[1] / 2) <= 2 and abs(click.y - shape[0] / 2) <= 2
    assert f"0..{14 * columns}, 0..{14 * rows}" in agent.prompt(seen)


def test_a_codec_of_pixels_that_no_processor_tells_is_refused():
    with pytest.raises(ValueError, match="does not tell the size at which the model sees an image.*normalised"):
        agents.make("mllm", codec="qwen2.5-vl")
