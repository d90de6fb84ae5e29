"""Supervised attention: from the tokens that foretell a place, one head looks at the image token that holds it."""

import re
from itertools import groupby

import pytest
import torch

from agents import tiny
from agents.training.auxiliary_heads import IGNORED, Collator, encode_images, forward_text, look_loss
from agents.training.click_examples import ClickExamples, Mixture, Rollout
from agents.training.polygon_examples import TOKENS, PolygonExamples
from segenv import tools

torch.set_num_threads(1)
GRID = 4
SIZES = {"image_size": 64, "grid": GRID, "seed": 3}


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.build(seed=1, image_size=64, width=32, vision_layers=1, text_layers=6, heads=2)
    tiny.extend(model, processor, list(TOKENS))
    model.set_attn_implementation("eager")
    return model, processor


def _lessons(kind):
    if kind == "clicks":
        return ClickExamples(Mixture(first=2, trajectory=3), Rollout(tools.make("disc")), **SIZES)
    return PolygonExamples(Mixture(first=6), kind, rows=kind == "rings", **SIZES)


@pytest.mark.parametrize("kind", ["clicks", "rings", "simpleseg"])
def test_a_place_is_foretold_while_looking_at_its_patch(pair, kind):
    first_is_y = kind == "clicks"  # SegAgent's order
    lessons, words, seen = _lessons(kind), pair[1].tokenizer, 0
    batch = Collator(pair[1])([lessons[0], lessons[1], lessons[2]])
    for ids, looks, labels in zip(batch["ids"], batch["looks"].tolist(), batch["labels"], strict=True):
        foretold = groupby(zip(looks, ids[1:].tolist(), strict=False), key=lambda pair: pair[0])
        spans = [(patch, words.decode([token for _, token in told])) for patch, told in foretold]
        assert all(patch == -1 or 0 <= patch < GRID**2 for patch, _ in spans)
        for patch, text in spans:
            numbers = [int(thousandths) for thousandths in re.findall(r"[0-9]+(?![0-9.])", text)]
            for place in zip(numbers[::2], numbers[1::2], strict=True) if patch >= 0 else ():
                row, column = (min(GRID * number // 1000, GRID - 1) for number in place[:: 1 if first_is_y else -1])
                assert patch == row * GRID + column, (text, patch)
                seen += 1
        if "Finish" in (reply := words.decode(labels[labels != IGNORED])) or "[]" in reply:
            assert set(looks) == {-1}, "a stop is nowhere"
    assert seen > 12


@torch.no_grad()
def test_attention_is_that_of_the_model(pair):
    model, lessons = pair[0], _lessons("rings")
    batch = Collator(pair[1])([lessons[0], lessons[1]])
    features = encode_images(model, batch["pictures"])
    attention = forward_text(model, features, batch)[2]
    projected = model.model.multi_modal_projector(features)[batch["which"]]
    image = batch["ids"] == model.config.image_token_index
    embedded = model.get_input_embeddings()(batch["ids"]).masked_scatter(image[..., None], projected)
    whole = model.model.language_model(inputs_embeds=embedded, output_attentions=True).attentions
    row, place = (batch["looks"] >= 0).nonzero(as_tuple=True)
    there = image.int().argmax(1)[row] + batch["looks"][row, place]
    expected = torch.stack([whole[layer][row, 0, place, there] for layer in (3, 4)])
    assert torch.allclose(attention, expected, atol=1e-5)
    del batch["looks"]
    assert forward_text(model, features, batch)[2].numel() == 0 and look_loss(attention[:, :0]) == 0.0


def test_its_loss_turns_attention_to_the_places(pair):
    model, processor = pair
    batch = Collator(processor)([_lessons("rings")[0]])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = look_loss(forward_text(model, encode_images(model, batch["pictures"]), batch)[2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
