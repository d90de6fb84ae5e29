"""The contract that every tool inherits, and what is particular to each of them."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import disc_task
from hypothesis import given, settings
from hypothesis import strategies as st

from segenv import metrics
from segenv.tools import EncodingCache, SegTool, make
from segenv.tools.grabcut import pixels_of
from segenv.types import Box, Click, Prompt, ToolError, frozen

SIZES = [(48, 64), (70, 33), (32, 32), (48, 64)]
IMAGES = [disc_task(h, w, w // 2 + i, h // 3, min(h, w) // 4, str(i)).image for i, (h, w) in enumerate(SIZES)]
PROMPTS = [  # for images at least 32 px high and wide
    Prompt((Click(20, 10),)),
    Prompt((Click(20, 10), Click(3, 30, False))),
    Prompt((), Box(2, 2, 20.5, 31)),
    Prompt((Click(9, 9), Click(1, 1, False), Click(30, 20)), Box(2, 2, 32, 31)),
    Prompt((Click(31, 0),)),
]


def same(one, other, exact: bool = True) -> None:
    """Equal predictions; not exact: logits within 1e-4, and masks but for pixels at a logit of about 0."""
    assert one.mask.dtype == np.bool_ and one.mask.shape == other.mask.shape
    assert (one.mask != other.mask).sum() <= (0 if exact else 0.001 * one.mask.size)
    assert (one.logits is None) == (other.logits is None)
    if one.logits is not None:
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=0 if exact else 1e-4)
    assert one.score == pytest.approx(other.score, abs=0 if exact else 1e-4, nan_ok=True)


class ToolContract:
    """Laws of `SegTool`. A test class of a tool inherits it and gives `make_tool`."""

    def make_tool(self, cache: EncodingCache | None = None) -> SegTool:
        raise NotImplementedError

    @pytest.fixture
    def tool(self) -> SegTool:
        return self.make_tool()

    def after(self, tool: SegTool, image: np.ndarray, *clicks: Click):
        """The last prediction of an episode in which `clicks` came one by one."""
        (encoding,), prompt = tool.encode([image]), Prompt()
        for click in clicks:
            prompt = Prompt((*prompt.clicks, click), None, prompt.mask, prompt.logits)
            prediction = tool.predict([encoding], [prompt])[0]
            prompt = Prompt(prompt.clicks, None, prediction.mask, prediction.logits)
        return prediction

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_a_prediction_has_the_image_s_shape(self, tool, prompt):
        for image, prediction in zip(IMAGES, tool.predict(tool.encode(IMAGES), [prompt] * len(IMAGES)), strict=True):
            assert prediction.mask.shape == image.shape[:2] and prediction.mask.dtype == np.bool_
            assert math.isnan(prediction.score) or 0 <= prediction.score <= 1
            assert prediction.logits is None or (prediction.logits.ndim, prediction.logits.dtype) == (2, np.float32)

    def test_a_batch_gives_what_its_items_give_alone(self, tool):
        """Items differ in image, size, clicks, box and fed-back logits; the order does not matter either."""
        firsts = tool.predict(tool.encode(IMAGES), [PROMPTS[0]] * len(IMAGES))
        images = [image for image in IMAGES for _ in range(len(PROMPTS) + 1)]
        prompts = []
        for first in firsts:
            prompts += [*PROMPTS, Prompt((*PROMPTS[0].clicks, Click(5, 5)), None, first.mask, first.logits)]
        order = np.random.default_rng(0).permutation(len(images))
        batch = tool.predict(tool.encode([images[i] for i in order]), [prompts[i] for i in order])
        alone = self.make_tool(EncodingCache(max_bytes=0))
        for i, prediction in zip(order, batch, strict=True):
            same(prediction, alone.predict(alone.encode([images[i]]), [prompts[i]])[0], exact=False)

    def test_a_tool_crosses_to_another_process_and_its_cache_starts_empty_there(self, tool):
        (encoding,) = tool.encode(IMAGES[:1])
        [before] = tool.predict([encoding], [PROMPTS[0]])
        copy = pickle.loads(pickle.dumps(tool))
        assert (copy.spec, copy.fingerprint, len(copy.cache)) == (tool.spec, tool.fingerprint, 0)
        assert copy.calls == {"encode": 0, "decode": 0}
        # its weights lie elsewhere in memory, on which some processors' last bits depend
        same(before, copy.predict(copy.encode(IMAGES[:1]), [PROMPTS[0]])[0], exact=False)

    def test_the_same_input_gives_the_same_output(self, tool):
        cv2.setRNGSeed(17)  # somebody else's random numbers change nothing
        one = self.after(tool, IMAGES[0], *PROMPTS[3].clicks)
        cv2.setRNGSeed(18)
        same(one, self.after(tool, IMAGES[0], *PROMPTS[3].clicks))
        same(one, self.after(self.make_tool(), IMAGES[0], *PROMPTS[3].clicks))

    def test_every_click_so_far_counts(self, tool):
        """The last click and the mask are the same; an earlier click is not."""
        a, b, c = Click(25, 15), Click(32, 8, False), Click(38, 20)  # all on the disc
        (encoding,) = tool.encode([IMAGES[0]])
        with_a, with_b, with_both = (
            tool.predict([encoding], [Prompt(clicks)])[0] for clicks in ((a, c), (b, c), (a, b, c))
        )
        for other in (with_b, with_both):
            assert (with_a.mask != other.mask).any() or not np.array_equal(with_a.logits, other.logits)

    def test_a_cached_encoding_is_as_good_as_a_new_one(self, tool, tmp_path):
        missed = tool.predict(tool.encode(IMAGES), [PROMPTS[3]] * len(IMAGES))
        assert tool.calls == {"encode": len(IMAGES), "decode": len(IMAGES)}, "distinct images are encoded once"
        hit = tool.predict(tool.encode(IMAGES), [PROMPTS[3]] * len(IMAGES))
        assert tool.calls == {"encode": len(IMAGES), "decode": 2 * len(IMAGES)}
        assert all(seconds > 0 for seconds in tool.seconds.values())
        for one, other in zip(missed, hit, strict=True):
            same(one, other)

    def test_disk_and_no_room_give_the_same_answers(self, tmp_path):
        """Written, read by another tool, or kept nowhere: with a directory in use, all is rounded alike."""
        answers = []
        for memory in (1 << 20, 1 << 20, 0):
            tool = self.make_tool(EncodingCache(memory, tmp_path))
            answers.append(tool.predict(tool.encode(IMAGES), [PROMPTS[1]] * len(IMAGES)))
        assert tool.calls["encode"] == 0
        for written, read, kept_nowhere in zip(*answers, strict=True):
            same(written, read)
            same(written, kept_nowhere)

    def test_tools_that_differ_do_not_share_encodings(self, tool):
        """One cache for all: what another tool put there is not found."""
        other = make("grabcut:size=31", cache=tool.cache)
        other.encode(IMAGES)
        tool.encode(IMAGES)
        assert tool.calls["encode"] == len(IMAGES)

    @pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (2, 300)])
    def test_thin_images(self, tool, size):
        image = np.full((*size, 3), 200, np.uint8)
        image[: size[0] // 2, : size[1] // 2] = 20
        clicks = (Click(size[1] - 1, size[0] - 1), Click(0, 0, False))
        assert self.after(tool, image, *clicks).mask.shape == size
        box = Prompt(clicks[:1], Box(0, 0, size[1], size[0]))
        assert tool.predict(tool.encode([image]), [box])[0].mask.shape == size

    def test_an_initial_mask_is_a_prompt(self, tool):
        """Refinement: a mask that did not come from the tool, without logits."""
        (encoding,) = tool.encode([IMAGES[0]])
        given_mask = frozen(np.pad(np.ones((20, 18), bool), ((5, 23), (22, 24))))  # most of the disc
        click = (Click(60, 40, False),)
        refined, plain = tool.predict([encoding] * 2, [Prompt(click, mask=given_mask), Prompt(click)])
        assert (refined.mask != plain.mask).any() or not np.array_equal(refined.logits, plain.logits)
        empty = tool.predict([encoding], [Prompt(click, mask=np.zeros_like(given_mask))])[0]
        same(empty, plain, exact=False)

    @pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
    def test_what_is_no_image_is_refused(self, tool, image):
        with pytest.raises(ToolError, match=r"expected uint8 \[H, W, 3\]"):
            tool.encode([image])


class TestDisc(ToolContract):
    def make_tool(self, cache=None):
        return make("disc", cache=cache)

    @given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 50), st.booleans())
    def test_a_click_paints_the_disc_around_it(self, radius, x, y, start):
        tool = make(f"disc:radius={radius}")
        mask = np.full((51, 61), start)
        rows, columns = np.ogrid[:51, :61]
        within = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        for positive in (True, False):
            prompt = Prompt((Click(x, y, positive),), mask=mask)
            found = tool.predict(tool.encode([np.zeros((51, 61, 3), np.uint8)]), [prompt])[0].mask
            np.testing.assert_array_equal(found, mask | within if positive else mask & ~within)
        assert (mask == start).all(), "the given mask is left as it is"

    @given(st.permutations(["box", "a", "b", "c"]))
    def test_step_by_step_equals_all_at_once(self, order):
        """Also where the box is given after some clicks: it lies below them all."""
        tool, box = make("disc:radius=8"), Box(10, 5, 40, 30)
        clicks = {"a": Click(12, 12), "b": Click(20, 15, False), "c": Click(45, 20)}
        (encoding,), mask, made, given_box = tool.encode([IMAGES[0]]), None, (), None
        for name in order:
            made, given_box = (made, box) if name == "box" else ((*made, clicks[name]), given_box)
            mask = tool.predict([encoding], [Prompt(made, given_box, mask)])[0].mask
        same_prompt = Prompt(tuple(clicks[name] for name in order if name != "box"), box)
        np.testing.assert_array_equal(mask, tool.predict([encoding], [same_prompt])[0].mask)

    def test_a_box_fills_the_pixels_whose_centres_it_holds(self, tool):
        mask = tool.predict(tool.encode([IMAGES[0]]), [Prompt(box=Box(2, 3.5, 6, 4.5))])[0].mask
        np.testing.assert_array_equal(np.argwhere(mask), [[3, x] for x in range(2, 6)])

    def test_published_clicks_give_the_published_ious(self, shared_data):
        """Every eighth episode of the golden: clicks of the published clicker, [row, column, positive], and IoUs."""
        golden = json.loads((shared_data.parent / "golden" / "ritm_disc_clicks.json").read_text())
        files = {item["name"]: item["mask"] for item in json.loads((shared_data / "click" / "index.json").read_text())}
        tool = make("disc")
        for episode in golden["episodes"][::8]:
            target = cv2.imread(str(shared_data / "click" / files[episode["name"]]), cv2.IMREAD_GRAYSCALE)
            encoding, mask, clicks = tool.encode([np.zeros((*target.shape, 3), np.uint8)], [episode["name"]]), None, ()
            for (row, column, positive), published in zip(episode["clicks"], episode["iou"], strict=True):
                clicks = (*clicks, Click(column, row, bool(positive)))
                mask = tool.predict(encoding, [Prompt(clicks, mask=mask)])[0].mask
                union = ((mask | (target == 255)) & (target != 128)).sum()
                assert (mask & (target == 255)).sum() / union == pytest.approx(published, abs=1e-6), episode["name"]


class TestGrabCut(ToolContract):
    def make_tool(self, cache=None):
        return make("grabcut", cache=cache)

    @settings(max_examples=20)
    @given(st.lists(st.builds(Click, st.integers(0, 63), st.integers(0, 47), st.booleans()), min_size=1, max_size=6))
    def test_every_click_holds(self, clicks):
        """The mask has each clicked pixel as it was last clicked, in any order and number of clicks."""
        mask = self.after(self.make_tool(), IMAGES[0], *clicks).mask
        for (x, y), positive in {(c.x, c.y): c.positive for c in clicks}.items():
            assert mask[y, x] == positive

    def test_one_click_finds_what_differs_in_colour(self, tool):
        image = np.full((90, 120, 3), (40, 90, 200), np.uint8)
        image[20:60, 30:80] = (220, 60, 40)
        image = (image + np.random.default_rng(0).integers(0, 20, image.shape)).astype(np.uint8)
        mask = self.after(tool, image, Click(55, 40)).mask
        target = np.zeros((90, 120), bool)
        target[20:60, 30:80] = True
        assert (mask & target).sum() / (mask | target).sum() > 0.97

    def test_nothing_leaves_the_box(self, tool):
        mask = tool.predict(tool.encode([IMAGES[0]]), [Prompt((Click(20, 20),), Box(10, 10, 40, 30))])[0].mask
        mask[10:30, 10:40] = False
        assert not mask.any()

    @pytest.mark.parametrize("color", [0, 128, 255])
    def test_an_image_without_contrast(self, tool, color):
        image = np.full((40, 60, 3), color, np.uint8)
        assert self.after(tool, image, Click(30, 20), Click(3, 3, False)).mask[20, 30]

    def test_only_negative_clicks_give_an_empty_mask(self, tool):
        assert not self.after(tool, IMAGES[0], Click(30, 20, False), Click(3, 3, False)).mask.any()


def test_specs_name_tools():
    assert make("disc").spec == "disc" and make("disc:radius=7").spec == "disc:radius=7"
    assert make("disc", radius=7).fingerprint == make("disc:radius=7").fingerprint
    tool = make("grabcut:size=99", iterations=1)
    assert make(tool) is tool
    assert make(tool.spec).fingerprint == tool.fingerprint != make("grabcut").fingerprint
    assert make("grabcut").spec == "grabcut"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("dsic", "expected one of sam, segment-anything, grabcut, disc"),
        ("disc:24", "'24' is no option"),
        ("disc:diameter=3", "'diameter=3' is no option of disc; expected KEY=VALUE of radius"),
        ("disc:radius=-1", "radius is -1; expected 0 or more"),
    ],
)
def test_a_wrong_spec_is_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        make(spec)


def test_encodings_and_prompts_must_match():
    tool = make("disc")
    with pytest.raises(ValueError, match="1 encodings and 2 prompts"):
        tool.predict(tool.encode(IMAGES[:1]), PROMPTS[:2])


def test_a_fault_inside_a_tool_is_a_tool_error():
    tool = make("grabcut")
    with pytest.raises(ToolError, match="grabcut: predict failed"):
        tool.predict(tool.encode(IMAGES[:1]), [Prompt((Click(1, 1),), mask=np.ones((3, 3, 3), bool))])


def test_the_simple_tools_load_no_torch():
    code = "import sys; from segenv.tools import make; make('disc'); make('grabcut'); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_grabcut_finds_the_object_in_a_box_without_a_click():
    y, x = np.mgrid[:80, :100]
    target = (x - 50) ** 2 + (y - 40) ** 2 < 20**2
    rng = np.random.default_rng(0)
    image = np.where(target[..., None], (200, 60, 40), (30, 60, 120)) + rng.normal(0, 8, (80, 100, 3))
    image = np.clip(image, 0, 255).astype(np.uint8)
    tool = make("grabcut")
    [found] = tool.predict(tool.encode([image]), [Prompt(box=Box(25, 15, 75, 65))])
    assert metrics.iou(target, found.mask) > 0.9


def test_a_box_at_the_far_edge_has_pixels_in_a_smaller_image():
    for side in range(990, 1000):
        rows, columns = pixels_of(Box(0, side, 500, 1000), 0.16, 0.16)
        assert 0 <= rows.start < rows.stop <= 160 and columns == slice(0, 80)
    assert pixels_of(Box(0, 0, 1, 1), 0.1, 0.1) == (slice(0, 1), slice(0, 1))
