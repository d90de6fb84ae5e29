"""The middle and the corners of what a model sees are read as those of the image, whatever size it saw."""

import json
import random

import numpy as np
import pytest
from PIL import Image

import agents
from segenv.mdp import Observation
from tests import made_models

PATCHES = [(4, 16_384), (256, 1_280), (4, 300)]  # fewest and most tokens, of 28 x 28 pixels (32 x 32 of Qwen3-VL)
SQUARES = [1, 4, 12]  # InternVL: squares of 56 x 56 pixels that an image becomes at most
SIDES = [56, 112, 336]  # LLaVA: pixels of the square that it sees
CAPS = {"qwen2.5-vl": PATCHES, "qwen3-vl": PATCHES, "internvl": SQUARES, "llava-onevision": SIDES, "llava-1.5": SIDES}
CODECS = {"llava-onevision": "grid1000-xy"}  # of a family that counts in no way of its own
TEXTS = {
    "qwen2.5-vl": '{{"point_2d": [{x}, {y}], "label": "positive"}}',
    "qwen3-vl": '{{"point_2d": [{x}, {y}], "label": "positive"}}',
    "internvl": "Positive point: ({x}, {y})",
    "grid1000-xy": "Positive point: ({x}, {y})",
    "llava-1.5": "Positive point: [{x:.9f}, {y:.9f}]",
}
ODD = [(1, 1), (2, 1), (1, 99), (27, 29), (56, 56), (10, 1000), (1500, 12), (1919, 1081), (2160, 1440)]


def sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Widths and heights, odd ones first, of which none is longer than 150 times the other."""
    draw, found = random.Random(seed), list(ODD[: count // 2])
    while len(found) < count:
        width, height = (round(2 ** draw.uniform(0, 10)) for _ in range(2))
        if max(width, height) < 150 * min(width, height):
            found.append((width, height))
    return found


def view(width: int, height: int, image: np.ndarray | None = None) -> Observation:
    image = np.zeros((height, width, 3), np.uint8) if image is None else image
    return Observation("a", image, np.zeros((height, width), bool), "it", 0, 1)


def made(family: str, caps: object, folder) -> agents.Agent:
    """An agent of the family whose processor has these caps."""
    made_models.save(family, folder)
    agent = agents.make(f"mllm:{folder}", codec=CODECS.get(family, family))
    pictures = agent.backend.processor.image_processor
    if family.startswith("qwen"):
        area = (2 * pictures.patch_size) ** 2
        pictures.size = {"shortest_edge": caps[0] * area, "longest_edge": caps[1] * area}
        agent.backend._seen.clear()
    elif family == "internvl":
        pictures.max_patches = caps
    elif family == "llava-onevision":
        pictures.size = {"height": caps, "width": caps}
        pictures.image_grid_pinpoints = [[caps * i, caps * j] for i in range(1, 4) for j in range(1, 4)]
    else:
        pictures.size, pictures.crop_size = {"shortest_edge": caps}, {"height": caps, "width": caps}
    return agent


def numbers_of_edges(agent, seen: Observation) -> tuple[float, float, float, float]:
    """The numbers at the left, upper, right and lower edge of the image, by what the processor made of its picture."""
    pictures, picture = agent.backend.processor.image_processor, agent.picture(seen)
    height, width = picture.shape[:2]
    found = pictures([Image.fromarray(picture)], return_tensors="np")
    if agent.codec.name == "qwen2.5-vl":  # pixels of what it made
        rows, columns = (int(n) * pictures.patch_size for n in found["image_grid_thw"][0][1:])
        return 0, 0, columns, rows
    if agent.codec.name != "llava-1.5":  # thousandths of what it made, which is all of the image
        assert abs(width / height - seen.width / seen.height) <= 0.01 * width / height
        return 0, 0, 1000, 1000
    side = max(seen.width, seen.height)  # the processor cuts the middle out of it, which is all of a square
    assert (width, height) == (side, side) and found["pixel_values"].shape[2:] == (pictures.crop_size["height"],) * 2
    left, top = (side - seen.width) // 2 / side, (side - seen.height) // 2 / side
    return left, top, left + seen.width / side, top + seen.height / side


def check(family: str, caps: object, count: int, folder) -> None:
    agent = made(family, caps, folder)
    for width, height in sizes(count, 1):
        seen = view(width, height)
        left, top, right, bottom = numbers_of_edges(agent, seen)
        for across, down in ((0, 0), (1, 0), (0.5, 0.5), (0, 1), (1, 1)):
            x, y = left + across * (right - left), top + down * (bottom - top)
            found = agent.codec.parse(TEXTS[agent.codec.name].format(x=x, y=y), seen)
            assert hasattr(found, "x"), (width, height, x, y, found)
            away = max(abs(found.x + 0.5 - across * width), abs(found.y + 0.5 - down * height))
            assert away <= 1, (width, height, x, y, found)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("family", CAPS)
def test_a_point_of_what_a_model_sees_is_read_in_that(family, which, tmp_path):
    check(family, CAPS[family][which], 300, tmp_path)


@pytest.mark.parametrize("family", CAPS)
def test_a_point_of_some_sizes_is_read_in_what_the_model_sees(family, tmp_path):
    check(family, CAPS[family][1], 12, tmp_path)


def ramps(width: int, height: int) -> np.ndarray:
    """An image whose red grows to the right and whose green grows downwards; uint8 [H, W, 3]."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.round(np.linspace(0, 255, width))
    image[..., 1] = np.round(np.linspace(0, 255, height))[:, None]
    return image


@pytest.mark.parametrize("family", ["internvl", "llava-1.5"])
def test_the_model_sees_the_whole_image_where_the_codec_has_it(family, tmp_path):
    """By the colours of an image in which these tell the place: the picture of the whole, and the place of the image
    in it where that is padded."""
    agent = made(family, CAPS[family][1], tmp_path)
    pictures = agent.backend.processor.image_processor
    for width, height in ((64, 48), (100, 300), (301, 120), (640, 480)):
        seen = view(width, height, ramps(width, height))
        values = np.asarray(pictures([Image.fromarray(agent.picture(seen))], return_tensors="np")["pixel_values"])[-1]
        shown = values * np.reshape(pictures.image_std, (3, 1, 1)) + np.reshape(pictures.image_mean, (3, 1, 1))
        side = shown.shape[1]
        for x in (0.35, 0.5, 0.65):
            for y in (0.35, 0.5, 0.65):
                red, green = shown[:2, int(y * side), int(x * side)]
                if family == "llava-1.5":
                    text = TEXTS["llava-1.5"].format(x=x, y=y)
                else:
                    text = TEXTS["internvl"].format(x=1000 * x, y=1000 * y)
                if (found := agent.codec.parse(text, seen)) and hasattr(found, "x"):
                    assert abs(found.x / width - red) < 0.03 and abs(found.y / height - green) < 0.03, (x, y, found)
                else:
                    assert family == "llava-1.5", found  # in the padding


def test_an_image_that_the_processor_would_cut_is_stretched(tmp_path):
    made_models.save("llava-1.5", tmp_path)
    agent = agents.make(f"mllm:{tmp_path}", codec="grid1000-xy")
    assert agent.picture(view(200, 50)).shape == (56, 56, 3) and agent.settings["image_size"] == (56, 56)
    assert agents.make(f"mllm:{tmp_path}", codec="seg-zero").picture(view(200, 50)).shape == (840, 840, 3)


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_a_server_of_qwen_keeps_the_size_that_is_sent(count):
    """With its own limits, and with those that are recommended; also where an image is too long for its processor."""
    agent = agents.make("openai:made@http://localhost:1/v1", codec="qwen2.5-vl")
    for width, height in [(3, 5000), (4000, 7), *sizes(count, 3)]:
        picture = agent.picture(view(width, height))
        for caps in PATCHES[:2]:
            pictures = made_models.qwen_pictures(14)
            pictures.size = {"shortest_edge": caps[0] * 784, "longest_edge": caps[1] * 784}
            found = pictures([Image.fromarray(picture)], return_tensors="np")
            rows, columns = (14 * int(n) for n in found["image_grid_thw"][0][1:])
            assert picture.shape[:2] == (rows, columns), (width, height, json.dumps(caps))
