"""The tiny multimodal model and the backend that any checkpoint runs in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from agents import tiny
from agents.backends.transformers import SeededSample, TransformersBackend, chat, encode, load
from agents.tiny import vision_tower
from segenv import render, tools
from segenv.checkpoints import CheckpointError
from segenv.data.synthetic.scenes import Synthetic
from segenv.mdp import SegMDP

torch.set_num_threads(1)
SMALL = {"image_size": 32, "width": 32, "vision_layers": 1, "text_layers": 2, "heads": 2}
NO_IDS = torch.empty(0)
PROMPTS = ["the red circle", "the very small green triangle on the left of the biggest blue square", "☃", ""]


@pytest.fixture(scope="module")
def pair():
    return tiny.build(seed=1, **SMALL)


@pytest.fixture
def backend(pair):
    return TransformersBackend(pair, max_new_tokens=8, image_size=(32, 32))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(40, 60), (32, 32), (3, 90), (20, 10)]]


def test_a_seed_gives_the_same_files_twice_and_they_load_as_any_checkpoint(tmp_path):
    one, two = tiny.save(tmp_path / "one", seed=3, **SMALL), tiny.save(tmp_path / "two", seed=3, **SMALL)
    names = sorted(file.name for file in one.iterdir())
    assert "model.safetensors" in names
    assert names == sorted(file.name for file in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    model, processor = load(one)
    built, original = tiny.build(seed=3, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), built.state_dict().values(), strict=True))
    assert model.config.segenv == built.config.segenv
    assert chat(processor, "the red circle") == chat(original, "the red circle")
    other, _ = tiny.build(seed=4, **SMALL)
    assert not torch.equal(other.lm_head.weight, built.lm_head.weight)


def test_the_default_model_has_about_a_million_parameters_and_none_of_them_is_dead():
    model, processor = tiny.build()
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    asked, written = chat(processor, "the red circle", "Positive point: (175, 483)")
    inputs = encode(processor, [asked + written], [image])
    features = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    assert features.std() > 0.1
    assert features.std(0).mean() > 0.05  # places of the image look different
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a key's bias shifts all scores of a query alike
    assert all("k_proj.bias" in name for name in still), still


@given(st.text(max_size=60))
@settings(max_examples=50)
def test_any_text_comes_back_from_its_tokens(text):
    words = _tokenizer()
    assert words.decode(words(text)["input_ids"]) == text or any(token in text for token in words.all_special_tokens)


@given(st.text(alphabet="0123456789()[]{}, .:ab\n", max_size=40))
@settings(max_examples=50)
def test_every_digit_bracket_and_comma_is_one_token(text):
    words = _tokenizer()
    pieces = [words.decode([token]) for token in words(text)["input_ids"]]
    for piece in pieces:
        assert len(piece) == 1 or not set(piece) & set("0123456789()[]{},")


def _tokenizer(known=[]):  # noqa: B006  # trained once
    known or known.append(tiny.tokenizer())
    return known[0]


def test_every_word_of_the_vocabulary_is_one_token_after_a_space():
    words = _tokenizer()
    assert {word: len(words(" " + word)["input_ids"]) for word in tiny.WORDS} == {word: 1 for word in tiny.WORDS}


def test_the_text_stands_before_the_image(pair):
    asked, written = chat(pair[1], "the red circle", "Positive point: (1, 2)")
    assert asked == "<|user|>the red circle<image><|end|><|assistant|>"
    assert written == "Positive point: (1, 2)<|end|>"


def test_a_prompt_that_names_the_image_token_is_still_about_one_image(backend, images):
    assert backend.generate(images[:1], ["look at <image> and <image>"], [0]) == backend.generate(
        images[:1], ["look at   and  "], [0]
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_does_not_depend_on_the_batch_around_it(backend, images, temperature):
    together = backend.generate(images, PROMPTS, [5, 6, 7, 8], temperature)
    alone = [
        backend.generate([i], [p], [s], temperature)[0] for i, p, s in zip(images, PROMPTS, [5, 6, 7, 8], strict=True)
    ]
    assert together == alone
    assert together[::-1] == backend.generate(images[::-1], PROMPTS[::-1], [8, 7, 6, 5], temperature)
    backend.batch_size = 3
    assert together == backend.generate(images, PROMPTS, [5, 6, 7, 8], temperature)


def test_seeds_drive_samples_and_leave_the_likeliest_reply_alone(backend, images):
    same = [images[0]] * 6, ["the red circle"] * 6
    assert len(set(backend.generate(*same, range(6), temperature=1.0))) > 1
    assert len(set(backend.generate(*same, range(6), temperature=0.0))) == 1
    assert backend.generate(*same, [4] * 6, temperature=1.0) == backend.generate(*same, [4] * 6, temperature=1.0)


def test_padding_leaves_the_scores_of_a_short_prompt_alone(pair, images):
    model, processor = pair
    small = [render.resized(image, (32, 32)) for image in images[:2]]
    asked = [chat(processor, prompt)[0] for prompt in PROMPTS[:2]]
    both, one = encode(processor, asked, small), encode(processor, asked[:1], small[:1])
    assert both["input_ids"].shape[1] > one["input_ids"].shape[1]
    with torch.no_grad():
        padded, alone = model(**both).logits[0, -1], model(**one).logits[0, -1]
    assert torch.allclose(padded, alone, atol=1e-5)


def test_a_sample_follows_the_softmax_at_a_temperature_over_rows_and_over_tokens():
    logits, temperature, n = torch.tensor([[0.0, 1.0, -1.0, -torch.inf, 0.5]]), 0.7, 4000
    one = SeededSample([3], temperature, n)
    over_tokens = torch.cat([one(NO_IDS, logits) for _ in range(n)])
    for samples in (SeededSample(range(n), temperature, 1)(NO_IDS, logits.expand(n, -1)), over_tokens):
        observed = torch.bincount(samples.argmax(1), minlength=5) / n
        assert torch.allclose(observed, (logits[0] / temperature).softmax(0), atol=0.03)  # four standard errors
        assert observed[3] == 0


def test_the_count_of_tokens_and_seconds_grows(backend, images):
    backend.generate(images[:2], PROMPTS[:2], [0, 1])
    assert 0 < backend.tokens["reply"] <= 16 < backend.tokens["prompt"]
    assert backend.seconds > 0


@pytest.mark.parametrize("temperature", [0.0, 1.7])
def test_a_reply_has_the_probability_that_one_pass_over_it_gives(backend, images, temperature, monkeypatch):
    """Whatever temperature drew it; with its end, where it came to one before the limit of tokens."""
    model, generate, written = backend.model, backend.model.generate, []
    monkeypatch.setattr(model, "generate", lambda **how: written.append(generate(**how)) or written[-1])
    backend.generate(images, PROMPTS, [5, 6, 7, 8], temperature)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [int(written.pop()[1, -6])])  # its third token
    backend.generate(images, PROMPTS, [5, 6, 7, 8], temperature)
    assert len(backend.replies) == 4 and backend.replies[1].tokens <= 2
    assert temperature == 0 or max(reply.tokens for reply in backend.replies) == 8
    asked = [chat(backend.processor, prompt)[0] for prompt in PROMPTS]
    pictures = [render.resized(image, (32, 32)) for image in images]
    longest = encode(backend.processor, asked, pictures)["input_ids"].shape[1]
    for k, reply in enumerate(backend.replies):
        taken = written[0][k, longest:][: reply.tokens + 1]
        alone = encode(backend.processor, asked[k : k + 1], pictures[k : k + 1])
        row = torch.cat([alone["input_ids"][0], taken])[None]
        with torch.no_grad():
            scores = model(row, pixel_values=alone["pixel_values"]).logits[0, -len(taken) - 1 : -1].log_softmax(-1)
        assert reply.log_probability == pytest.approx(float(scores.gather(1, taken[:, None]).sum()), abs=1e-4)


def test_the_fingerprint_follows_the_weights(pair):
    one, other = TransformersBackend(pair), TransformersBackend(tiny.build(seed=2, **SMALL))
    assert one.fingerprint == TransformersBackend(tiny.build(seed=1, **SMALL)).fingerprint != other.fingerprint


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64))
def test_resizing_to_a_longest_side_shrinks_only(height, width, size):
    image = np.zeros((height, width, 3), np.uint8)
    sent = render.resized(image, size)
    assert max(sent.shape[:2]) == min(size, max(height, width))
    assert render.resized(image, None) is image
    assert render.resized(image, (7, 9)).shape == (7, 9, 3)


def test_a_missing_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match="no image-text-to-text checkpoint at .*nothing"):
        TransformersBackend(str(tmp_path / "nothing"))


def test_unequal_lists_and_a_negative_temperature_are_refused(backend, images):
    with pytest.raises(ValueError, match="2 images, 1 prompts and 2 seeds"):
        backend.generate(images[:2], PROMPTS[:1], [0, 1])
    with pytest.raises(ValueError, match="temperature is -1"):
        backend.generate(images[:1], PROMPTS[:1], [0], temperature=-1)


def test_a_refined_model_has_four_times_the_tokens_and_its_features_between_them():
    model, processor = tiny.build(seed=2, image_size=64)
    finer, fine_processor = tiny.refine(model, processor)
    towers = [one.model.vision_tower for one in (model, finer)]
    one = other = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for stage, fine_stage in zip(*(tower.stages for tower in towers), strict=True):
            one, other = stage(one), fine_stage(other)
        torch.testing.assert_close(other[:, :, ::2, ::2], one)
        assert [tower(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape[1] for tower in towers] == [16, 64]
    assert (fine_processor.patch_size, finer.config.image_seq_length, model.config.image_seq_length) == (8, 64, 16)


def test_an_enlarged_model_sees_in_twice_the_pixels_what_it_saw_in_their_means(tmp_path):
    model, processor = tiny.build(seed=2, image_size=64)
    vision_tower.fold(model.model.vision_tower)
    larger, large_processor = tiny.enlarge(*tiny.refine(model, processor))
    picture = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        small = tiny.refine(model, processor)[0].model.vision_tower(torch.nn.functional.avg_pool2d(picture, 2))
        large = larger.model.vision_tower(picture)
    torch.testing.assert_close(large.last_hidden_state, small.last_hidden_state)
    larger.save_pretrained(tmp_path)
    large_processor.save_pretrained(tmp_path)
    agent = agents.make(f"mllm:{tmp_path}")
    assert agent.settings["image_size"] == (128, 128) and agent.backend.model.config.image_seq_length == 64
    with pytest.raises(ValueError, match="batch norms are folded"):
        tiny.enlarge(*tiny.build(seed=2, image_size=64))


def test_a_resized_model_sees_the_same_patches_in_a_larger_picture(tmp_path):
    model, processor = tiny.build(seed=2, image_size=64)
    wider, wide_processor = tiny.resize(model, processor, 96)
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        towers = [each.model.vision_tower for each in (model, wider)]
        part, whole = towers[0].stages[0](picture[..., :64, :64]), towers[1].stages[0](picture)
        torch.testing.assert_close(whole[..., :24, :24], part[..., :24, :24])
        assert towers[1](picture).last_hidden_state.shape == (1, 36, 128)
        old, new = (tower.positions.reshape(side, side, -1) for tower, side in zip(towers, (4, 6), strict=True))
        torch.testing.assert_close(new[[0, -1]][:, [0, -1]], old[[0, -1]][:, [0, -1]])
    wider.save_pretrained(tmp_path)
    wide_processor.save_pretrained(tmp_path)
    agent = agents.make(f"mllm:{tmp_path}")
    assert agent.settings["image_size"] == (96, 96) and agent.backend.model.config.image_seq_length == 36
    with pytest.raises(ValueError, match="side is 72; expected a multiple of the patches' 16 pixels"):
        tiny.resize(model, processor, 72)


def test_a_deepened_model_says_what_it_said_and_has_more_to_learn(tmp_path):
    model, processor = tiny.build(seed=2, **SMALL)
    deeper = tiny.deepen(model, 5)
    deeper.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert agents.make(f"mllm:{tmp_path}").backend.model.config.text_config.num_hidden_layers == 5
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        assert torch.equal(deeper(input_ids=ids).logits, model(input_ids=ids).logits)
    loss = deeper(input_ids=ids, labels=ids).loss
    loss.backward()
    last = deeper.model.language_model.layers[-1]
    assert last.mlp.down_proj.weight.grad.abs().max() > 0 and last.self_attn.o_proj.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="layers is 1; the model has 2 already"):
        tiny.deepen(model, 1)


@torch.inference_mode()
def test_a_stretched_model_has_its_weights_and_finds_what_is_far_away(tmp_path):
    model, processor = tiny.build(seed=2, **SMALL)
    far = tiny.stretch(model, 1e7)
    assert all(torch.equal(value, far.state_dict()[name]) for name, value in model.state_dict().items())
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(tiny.stretch(model, 10_000.0)(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not torch.equal(far(input_ids=ids).logits, model(input_ids=ids).logits)
    far.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    read = agents.make(f"mllm:{tmp_path}").backend.model
    turned = [one.model.language_model.rotary_emb.inv_freq for one in (read, model)]
    slow, fast = (int((300 * frequencies < 1).sum()) for frequencies in turned)
    assert slow > fast > 0, "pairs that hardly turn over 300 tokens"
    with pytest.raises(ValueError, match="theta is 0.5; expected more than 1"):
        tiny.stretch(model, 0.5)


def test_a_refined_model_is_read_again(tmp_path):
    finer, processor = tiny.refine(*tiny.build(seed=2, image_size=64))
    finer.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    agent, mdp = agents.make(f"mllm:{tmp_path}"), SegMDP(tools.make("disc"))
    seen = mdp.observation(mdp.initial(Synthetic("val").load(0)))
    assert len(agent.act([seen], [0])) == 1
    assert agent.backend.model.config.vision_config.strides == [2, 2, 2, 1]
