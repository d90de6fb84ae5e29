"""The middle and the corners of what a model sees are read as those of the image, whatever size it saw."""

import json
import random

import numpy as np
import pytest
from PIL import Image

import agents
from segenv.mdp import Observation
from tests import made_models

CAPS = [(4, 16_384), (256, 1_280), (4, 300)]  # fewest and most tokens of 28 x 28 pixels (32 x 32 of Qwen3-VL)
TEXTS = {
    "qwen2.5-vl": '{{"point_2d": [{x:.0f}, {y:.0f}], "label": "positive"}}',
    "qwen3-vl": '{{"point_2d": [{x:.0f}, {y:.0f}], "label": "positive"}}',
    "internvl": "<box>[[{x:.0f}, {y:.0f}, {x:.0f}, {y:.0f}]]</box>",
    "llava-1.5": "[{x:.3f}, {y:.3f}]",
}


def sizes(count, seed):
    """Widths and heights, of which none is longer than 100 times the other."""
    draw = random.Random(seed)
    found = []
    while len(found) < count:
        width, height = (round(2 ** draw.uniform(3, 10)) for _ in range(2))
        if max(width, height) < 100 * min(width, height):
            found.append((width, height))
    return found


def view(width, height):
    return Observation("a", np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool), "it", 0, 1)


def click(agent, seen, x, y):
    action = agent.codec.parse(TEXTS[agent.codec.name].format(x=x, y=y), seen)
    assert hasattr(action, "x"), action
    return action


def off(value, wanted, steps, size):
    """Whether a pixel is farther from where it should be than one pixel and one step of the numbers."""
    return abs(value + 0.5 - wanted) > 1.0 + size / steps


@pytest.mark.slow
@pytest.mark.parametrize("caps", CAPS)
@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_a_point_of_what_qwen_sees_is_read_in_that(family, caps, tmp_path):
    made_models.save(family, tmp_path)
    agent = agents.make(f"mllm:{tmp_path}", codec=family)
    pictures, patch = agent.backend.processor.image_processor, 14 if family == "qwen2.5-vl" else 16
    pictures.size = {"shortest_edge": caps[0] * (2 * patch) ** 2, "longest_edge": caps[1] * (2 * patch) ** 2}
    agent.backend._seen.clear()
    for width, height in sizes(300, 1):
        seen = view(width, height)
        made = pictures([Image.fromarray(agent.picture(seen))], return_tensors="np")
        rows, columns = (patch * int(n) for n in made["image_grid_thw"][0][1:])
        across, down = (columns, rows) if family == "qwen2.5-vl" else (1000, 1000)
        for part in (0, 0.5, 1):
            found = click(agent, seen, part * across, part * down)
            assert not off(found.x, part * width, across, width), (width, height, part, found)
            assert not off(found.y, part * height, down, height), (width, height, part, found)


@pytest.mark.parametrize("family", ["llava-1.5", "internvl"])
def test_a_point_of_a_square_is_read_in_the_image_that_was_padded_or_stretched_to_it(family, tmp_path):
    made_models.save(family, tmp_path)
    agent = agents.make(f"mllm:{tmp_path}", codec=family if family == "llava-1.5" else "qwen3-vl")
    for width, height in sizes(60, 2):
        seen = view(width, height)
        side, sent = max(width, height), agent.picture(seen)
        if family == "llava-1.5":  # what its processor cuts out of a square is the square
            assert sent.shape[:2] == (side, side)
            left, top, unit = (side - width) // 2 / side, (side - height) // 2 / side, 1.0
            across, down = width / side, height / side
        else:
            left = top = 0.0
            across = down = unit = 1000
        found = click(agent, seen, left + across / 2, top + down / 2)
        assert not off(found.x, width / 2, 1000 / (side / width if unit == 1 else 1), width), (width, height, found)
        assert not off(found.y, height / 2, 1000 / (side / height if unit == 1 else 1), height), (width, height, found)


def test_an_image_that_the_processor_would_cut_is_stretched(tmp_path):
    made_models.save("llava-1.5", tmp_path)
    agent = agents.make(f"mllm:{tmp_path}", codec="grid1000-xy")
    assert agent.picture(view(200, 50)).shape == (56, 56, 3) and agent.settings["image_size"] == (56, 56)
    assert agents.make(f"mllm:{tmp_path}", codec="seg-zero").picture(view(200, 50)).shape == (840, 840, 3)


@pytest.mark.slow
def test_a_server_of_qwen_keeps_the_size_that_is_sent():
    """With its own limits, and with those that are recommended."""
    agent = agents.make("openai:made@http://localhost:1/v1", codec="qwen2.5-vl")
    for width, height in sizes(100, 3):
        picture = agent.picture(view(width, height))
        for caps in CAPS[:2]:
            pictures = made_models.qwen_pictures(14)
            pictures.size = {"shortest_edge": caps[0] * 784, "longest_edge": caps[1] * 784}
            made = pictures([Image.fromarray(picture)], return_tensors="np")
            rows, columns = (14 * int(n) for n in made["image_grid_thw"][0][1:])
            assert picture.shape[:2] == (rows, columns), (width, height, json.dumps(caps))
