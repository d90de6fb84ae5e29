"""The training of the embedded model moves, resumes and exports."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agents import tiny
from agents.backends.transformers import TransformersBackend, chat, encode
from agents.mllm import MllmAgent
from agents.tiny.vision_tower import fold
from agents.training import auxiliary_heads
from agents.training.auxiliary_heads import IGNORED, Collator, Heads, encode_images, forward_text, pixels, reply_loss
from agents.training.checkpoints import identity
from agents.training.click_examples import (
    ClickExamples,
    Mixture,
    Rollout,
    correct_action,
)
from experiments.common.config import RunError
from experiments.sft import __main__, config
from experiments.sft import clicks as sft
from experiments.sft.trainer import keep_heads
from segenv import codec, tools
from segenv.data.synthetic.scenes import Synthetic
from segenv.mdp import SegMDP
from segenv.types import Click

torch.set_num_threads(1)
SMALL = {"image_size": 64, "width": 32, "vision_layers": 1, "text_layers": 2, "heads": 2}
MIXED = Mixture(first=2, trajectory=2, cheap=2, crossed=2)
CODEC = codec.make("segagent")


@pytest.fixture(scope="module")
def examples():
    return ClickExamples(MIXED, Rollout(tools.make("disc")), image_size=64, grid=4, seed=3)


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.build(seed=1, **SMALL)
    model.set_attn_implementation("eager")  # as a training does
    return model, processor


def test_labels_cover_the_reply_and_nothing_else(examples, pair):
    collate = Collator(pair[1])
    some = [examples[0], examples[1]]
    batch = collate(some)
    asked = [(question, example) for example in some for question in example.questions]
    lengths = batch["attention"].sum(1).tolist()
    assert len(lengths) == len(asked) and lengths == sorted(lengths)
    for row, (ids, labels, weights) in enumerate(zip(batch["ids"], batch["labels"], batch["weights"], strict=True)):
        covered = labels != IGNORED
        assert torch.equal(ids[covered], labels[covered])
        assert torch.equal(covered, weights > 0)
        picture = batch["pictures"][batch["which"][row]]
        [question] = [
            question
            for question, example in asked
            if pair[1].tokenizer.decode(labels[covered]) == question.reply + tiny.END
            and np.array_equal(batch["shares"][row], question.shares)
            and np.array_equal(picture, example.pictures[question.picture])
        ]
        prompt, written = chat(pair[1], question.instruction, question.reply)
        inputs = encode(pair[1], [prompt + written], [picture.numpy()])
        assert ids[batch["attention"][row] > 0].tolist() == inputs["input_ids"][0].tolist()
        assert pixels(picture[None]).numpy() == pytest.approx(inputs["pixel_values"].numpy(), abs=1e-5)


@torch.no_grad()
def test_reading_gives_the_logits_of_the_whole_model(examples, pair):
    model, processor = pair
    batch = Collator(processor)([examples[2], examples[3]])
    logits, tokens, _ = forward_text(model, encode_images(model, batch["pictures"]), batch)
    whole = model(
        input_ids=batch["ids"],
        attention_mask=batch["attention"],
        pixel_values=pixels(batch["pictures"])[batch["which"]],
    ).logits[:, :-1]
    assert len(batch["ids"]) > auxiliary_heads.ROWS, "it is read in parts"
    assert torch.allclose(logits, whole[batch["labels"][:, 1:] != IGNORED], atol=1e-4)
    assert tokens.shape == (len(batch["ids"]), 16, SMALL["width"])
    four, six = tiny.deepen(model, 4), tiny.deepen(model, 6)
    tiny.initialise(six, seed=1)
    for name, parameter in four.named_parameters():
        parameter.copy_(six.get_parameter(name))
    features = encode_images(four, batch["pictures"])
    of_four, of_six = (forward_text(one, features, batch)[1] for one in (four, six))
    assert torch.equal(of_four, of_six), "heads are on the tokens after three layers, however many follow"
    only = {**batch, "weights": (batch["labels"] != IGNORED).float()}
    assert reply_loss(logits, only) == pytest.approx(
        torch.nn.functional.cross_entropy(whole.flatten(0, 1), batch["labels"][:, 1:].flatten()).item(),
        rel=1e-4,
    )


def _args(out, **changes):
    """Settings of a training of eight small steps."""
    steps = {"look_steps": 2, "easy_steps": 2, "click_steps": 1, "state_steps": 3, "cooldown": 2}
    return config.ClickArgs(
        out=str(out), tool="disc", lessons=2, probe=2, measure_every=4, save_every=4, **{**SMALL, **steps, **changes}
    )


def _train(args, steps, trainer=None):
    trainer = trainer or sft.ClickTrainer(args)
    examples = {stage: trainer.open_stage(stage) for stage in config.STAGES}
    while trainer.step < steps:
        stage, first, _ = trainer.stage(trainer.step)
        trainer.train_step([examples[stage][10 * (trainer.step - first) + k] for k in range(2)])
    return trainer


def test_a_step_moves_the_weights_and_resuming_equals_never_having_stopped(tmp_path):
    args = _args(tmp_path)
    whole = _train(args, 8)
    half = _train(args, 6)
    fresh = sft.ClickTrainer(args)
    moved = [name for name, p in half.parameters.items() if not torch.equal(p, fresh.parameters[name])]
    assert {name.split(".")[1] for name in moved} >= {"model", "seen", "told"}
    half.save(tmp_path)
    fresh.load(tmp_path)
    assert fresh.step == 6
    _train(args, 8, fresh)
    assert all(torch.equal(p, fresh.parameters[name]) for name, p in whole.parameters.items())
    means = zip(whole.averaged.parameters(), fresh.averaged.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in means)


def test_a_run_is_resumed_in_its_own_mode(tmp_path):
    (tmp_path / "config.yaml").write_text("mode: polygon\n")
    assert __main__.mode(["--resume", str(tmp_path), "--draw-steps", "9"]) == "polygon"
    assert __main__.mode([f"--resume={tmp_path}", "--mode", "clicks"]) == "clicks"
    assert __main__.mode(["--mode=polygon"]) == "polygon"
    assert __main__.mode(["--resume", str(tmp_path / "missing")]) == __main__.mode(["--out", "polygon"]) == "clicks"


def test_a_checkpoint_is_trained_further_on_masks_of_any_kind(tmp_path):
    _train(_args(tmp_path), 2).export(tmp_path / "base")
    few = {"look_steps": 0, "easy_steps": 0, "click_steps": 0, "state_steps": 2, "base": str(tmp_path / "base")}
    args = _args(tmp_path / "run", states="any", workers=0, seed=1, **few)
    fresh = sft.ClickTrainer(args)
    before = load_file(tmp_path / "base" / "model.safetensors")
    words = next(name for name in before if name.endswith("embed_tokens.weight"))
    assert torch.equal(fresh.model.get_input_embeddings().weight.half(), before[words])
    (first, _) = fresh.batches()
    asked = [[question.picture for question in example.questions] for example in first]
    assert any(len(set(some) - {0}) < sum(map(bool, some)) for some in asked), "masks are asked about for other objects"
    assert max(len(example.pictures) for example in first) > 1 + sft.MIXTURES["state"].trajectory, (
        "there are cheap masks"
    )
    model = sft.run(args)
    now = load_file(model / "model.safetensors")
    assert now.keys() == before.keys() and not torch.equal(now[words], before[words])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["hashes"]["base"] == identity(args.base)
    assert fresh.model.config.segenv["codec"] == "segagent"
    larger = sft.ClickTrainer(replace(args, image_size=128))
    (first, _) = larger.batches()
    assert first[0].pictures.shape[1:] == (128, 128, 3)
    deeper = sft.ClickTrainer(replace(args, text_layers=3))
    assert len(deeper.model.model.language_model.layers) == 3
    stretched = sft.ClickTrainer(replace(args, rope_theta=1e6))
    assert stretched.model.config.text_config.rope_parameters["rope_theta"] == 1e6
    with pytest.raises(RunError, match="--rope-theta cannot be 0.5: theta is 0.5; expected more than 1"):
        sft.run(replace(args, out=str(tmp_path / "other"), rope_theta=0.5))
    with pytest.raises(RunError, match="cannot be deepened: layers is 1; the model has 2 already"):
        sft.run(replace(args, out=str(tmp_path / "other"), text_layers=1))
    wider = sft.ClickTrainer(replace(args, image_size=96))
    (first, _) = wider.batches()
    assert first[0].pictures.shape[1:] == (96, 96, 3)
    assert wider.model.config.image_seq_length == wider.collate.image_tokens == len(first[0].questions[0].fine)
    with pytest.raises(RunError, match="image_size is 70; expected a multiple of 16"):
        sft.run(replace(args, out=str(tmp_path / "other"), image_size=70))
    with pytest.raises(RunError, match="cannot start from --base 'nowhere'"):
        sft.run(replace(args, out=str(tmp_path / "other"), base="nowhere"))
    assert not (tmp_path / "other").exists(), "what cannot begin leaves no folder"


@torch.no_grad()
def test_folding_the_norms_changes_nothing_but_that_training_has_none():
    model, _ = tiny.build(seed=2, **SMALL)
    vision_tower = model.model.vision_tower
    pictures = torch.rand(6, 3, 64, 64) * 2 - 1
    vision_tower.train()(pictures)  # moves the running statistics
    vision_tower.eval()
    expected = vision_tower(pictures).last_hidden_state
    fold(vision_tower)
    assert not [part for part in vision_tower.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert torch.allclose(vision_tower(pictures).last_hidden_state, expected, atol=1e-4)
    assert torch.allclose(vision_tower.train()(pictures[:1]).last_hidden_state, expected[:1], atol=1e-4)


def test_without_other_processes_the_training_makes_the_same_examples(tmp_path):
    args = _args(tmp_path, workers=0)
    trainer = sft.ClickTrainer(args)
    [first, second] = trainer.batches()
    source = trainer.open_stage("look")
    expected = [[source[3 * step + k] for k in range(3)] for step in (0, 1)]  # 1.6 * 2 scenes
    for actual, right in zip([first, second], expected, strict=True):
        assert [example.pictures.tolist() for example in actual] == [example.pictures.tolist() for example in right]


def test_a_model_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    trainer, out = sft.ClickTrainer(_args(tmp_path)), tmp_path / "model"
    trainer.export(out)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    with torch.no_grad():
        for parameter in trainer.averaged.parameters():
            parameter += 1

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.processor), "save_pretrained", full)
        with pytest.raises(RunError, match="disk is full.*--resume"):
            trainer.export(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    trainer.export(out)
    now = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {name for name in now if now[name] != files[name]} == {"model.safetensors"} and now.keys() == files.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_first_click_that_is_negative_is_not_in_the_object(tmp_path, monkeypatch):
    args = _args(tmp_path)
    trainer = sft.ClickTrainer(args)
    trainer.held_out = [state for state in trainer.held_out if not state.mask.any()]
    for positive, expected in ((True, 1.0), (False, 0.0)):
        replies = []
        for state in trainer.held_out:
            best = state.action or correct_action(state.task, state.mask, (), 0.9)
            assert isinstance(best, Click)
            replies.append(CODEC.format(replace(best, positive=positive), state.task))
        monkeypatch.setattr(TransformersBackend, "generate", lambda *_, texts=replies: texts)
        assert trainer.measure()["first"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"look_steps": -1}, "--look-steps is -1; expected 0 or more"),
        (dict.fromkeys((f"{stage}_steps" for stage in config.STAGES), 0), "all stages have 0 steps"),
        ({"lessons": 0}, "--lessons is 0; expected 1 or more"),
        ({"workers": -2}, "--workers is -2; expected 0 or more"),
        ({"seed": -1}, "--seed is -1; expected 0 or more"),
        ({"image_size": 100}, "image_size is 100; expected a multiple of 16"),
        ({"width": 36, "heads": 8}, "width is 36; expected an even number for each of the 8 heads"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"stop_iou": 90.0}, "--stop-iou is 90.0; expected above 0 and at most 1"),
        ({"probe": 10**9}, "synthetic:val has no more than"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"tool": "chisel"}, "cannot set up tool 'chisel': .* expected one of sam"),
    ],
)
def test_settings_without_sense_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        sft.run(replace(_args(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_trains_measures_and_writes_an_agent_that_clicks(tmp_path):
    out = tmp_path / "run"
    sft.run(_args(out))
    rows = [json.loads(line) for line in (out / "log.jsonl").open()]
    assert [row["stage"] for row in rows] == ["look", "easy", "click", "state"]
    assert {"val_first", "val_iou_error", "val_stop"} <= set(rows[-1])
    with pytest.raises(RunError, match="--resume"):
        sft.run(_args(out))
    with pytest.raises(RunError, match="width: was 32, now 48"):
        sft.run(replace(_args(out, width=48), resume=str(out)))
    assert __main__.main(["--resume", str(out)]) == 0  # finished: nothing left to do
    assert __main__.main(["--resume", str(out), "--state-steps", "4"]) == 0
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 9
    agent = MllmAgent(out / "model")
    assert agent.settings["prompt"] == "instruction" and agent.settings["image_size"] == (64, 64)
    task = Synthetic("val").load(0)
    state = SegMDP(tools.make("disc")).initial(task)
    assert len(agent.act([SegMDP(tools.make("disc")).observation(state)], [0])) == 1


def test_heads_of_a_base_go_on_and_new_outputs_come_last(tmp_path):
    trainer = _train(_args(tmp_path), 3)
    trainer.export(tmp_path / "model")
    further = sft.ClickTrainer(_args(tmp_path / "further", base=str(tmp_path / "model"), seed=1))
    again = further.heads.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in trainer.heads.state_dict().items())
    fewer = {name: value[:4] if name.startswith("told.1") else value for name, value in again.items()}
    save_file({name: value.contiguous() for name, value in fewer.items()}, tmp_path / "heads.safetensors")
    fresh = Heads(SMALL["width"])
    before = fresh.state_dict()["told.1.weight"].clone()
    keep_heads(fresh, tmp_path / "heads.safetensors")
    after = fresh.state_dict()["told.1.weight"]
    assert torch.equal(after[:4], again["told.1.weight"][:4]) and torch.equal(after[4:], before[4:])
    assert torch.equal(fresh.state_dict()["seen.1.weight"], again["seen.1.weight"])
