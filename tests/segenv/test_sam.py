"""SAM and its relatives: the tool contract on tiny random models, and the laws of prompts, frames and checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

if missing := [name for name in ("torch", "transformers", "segment_anything") if find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)} (the extra `sam`)", allow_module_level=True)

import torch
import transformers
from conftest import disc_task
from test_sam_reference import draw_weights, original_model, transformers_model
from test_tools import IMAGES, PROMPTS, ToolContract, same

from segenv import annotator, data, metrics
from segenv.tools import make
from segenv.tools.sam import EMBEDDED, LOGIT_LIMIT, Frame, SamTool
from segenv.tools.segment_anything import SegmentAnythingTool
from segenv.types import Box, Click, Prompt, ToolError, object_of

SIDE = 128
SAM_2 = {  # what SAM 2 and EdgeTAM have in common
    "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 16},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
}
PYRAMID = {  # channels and sizes at strides 32, 16, 8 and 4
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[SIDE // stride] * 2 for stride in (4, 8, 16)],
    "fpn_hidden_size": 32,
}


def sam_hq_model():
    config = transformers_model().config.to_dict()
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    for part in parts:
        config[part].pop("model_type")
    config["mask_decoder_config"]["vit_dim"] = config["vision_config"]["hidden_size"]
    return transformers.SamHQModel(transformers.SamHQConfig(**{part: config[part] for part in parts}))


def sam_2_model():
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
    )
    vision = transformers.Sam2VisionConfig(backbone_config=backbone, **PYRAMID)
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=vision, **SAM_2))


class PyramidConfig(transformers.PreTrainedConfig):
    model_type = "test_pyramid"


class Pyramid(transformers.PreTrainedModel):
    """Four strided convolutions. EdgeTAM's own backbone comes from timm, which needs torchvision."""

    config_class = PyramidConfig

    def __init__(self, config):
        super().__init__(config)
        widths = [3, *reversed(PYRAMID["backbone_channel_list"])]
        self.stages = torch.nn.ModuleList(
            torch.nn.Conv2d(widths[i], widths[i + 1], 4 if i == 0 else 2, 4 if i == 0 else 2) for i in range(4)
        )
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        levels = []
        for stage in self.stages:
            pixel_values = torch.relu(stage(pixel_values))
            levels.append(pixel_values)
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=levels)


transformers.AutoConfig.register(PyramidConfig.model_type, PyramidConfig)
transformers.AutoModel.register(PyramidConfig, Pyramid)


def edgetam_model():
    vision = transformers.EdgeTamVisionConfig(backbone_config=PyramidConfig(), **PYRAMID)
    return transformers.EdgeTamModel(transformers.EdgeTamConfig(vision_config=vision, **SAM_2))


MODELS = {"sam": transformers_model, "sam_hq": sam_hq_model, "sam2": sam_2_model, "edgetam": edgetam_model}
SEEDS = {"sam": 13, "sam_hq": 13, "sam2": 2, "edgetam": 8}  # such that masks are neither empty nor full


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders with config.json and model.safetensors of tiny random models, by model type."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints")
    for name, build in MODELS.items():
        torch.manual_seed(0)  # for buffers: the positional embeddings of SAM 2
        draw_weights(build(), SEEDS[name]).save_pretrained(root / name)
    return root


class FromCheckpoint(ToolContract):
    family: str

    @pytest.fixture(autouse=True)
    def _checkpoints(self, checkpoints):
        self.checkpoints = checkpoints

    def make_tool(self, cache=None):
        return make(f"sam:{self.checkpoints / self.family}", cache=cache)

    def test_the_masks_are_worth_testing(self, tool):
        """Neither all empty nor all full, and not the same for every image."""
        shares = [p.mask.mean() for p in tool.predict(tool.encode(IMAGES), [PROMPTS[1]] * len(IMAGES))]
        assert len(set(shares)) > 1 and any(0.001 < share < 0.999 for share in shares)

    def test_the_best_of_three_masks_at_the_first_click(self, tool):
        """`first` is `always` for one click alone, and `never` from then on."""
        tools = {when: make(f"sam:{self.checkpoints / self.family},multimask={when}") for when in ("always", "never")}
        (encoding,) = tool.encode(IMAGES[:1])
        first = tool.predict([encoding], [PROMPTS[0]])[0]
        same(first, tools["always"].predict([encoding], [PROMPTS[0]])[0])
        if self.family in ("sam", "sam_hq"):  # SAM 2's single mask falls back on the best of three where it is unstable
            assert not np.array_equal(first.logits, tools["never"].predict([encoding], [PROMPTS[0]])[0].logits)
        later = [
            *PROMPTS[1:4],
            Prompt(PROMPTS[0].clicks, logits=first.logits),
            Prompt(PROMPTS[0].clicks, mask=first.mask),
        ]
        for prompt in later:
            same(tool.predict([encoding], [prompt])[0], tools["never"].predict([encoding], [prompt])[0])

    def test_fed_back_logits_are_clamped(self, tool):
        (encoding,) = tool.encode(IMAGES[:1])
        logits = tool.predict([encoding], PROMPTS[:1])[0].logits
        assert np.abs(logits).max() <= LOGIT_LIMIT
        huge, limit, none = (
            tool.predict([encoding], [Prompt(PROMPTS[0].clicks, logits=fed)])[0]
            for fed in (logits * 1e6, np.sign(logits) * LOGIT_LIMIT, None)
        )
        same(huge, limit)
        assert not np.array_equal(limit.logits, none.logits)

    def test_logits_of_another_tool_are_refused(self, tool):
        with pytest.raises(ToolError, match=r"logits are \[7, 7\]; expected \[\d+, \d+\]"):
            tool.predict(tool.encode(IMAGES[:1]), [Prompt(PROMPTS[0].clicks, logits=np.zeros((7, 7), np.float32))])

    def test_half_precision_gives_nearly_the_same(self, tool):
        half = make(f"sam:{self.checkpoints / self.family},dtype=bfloat16")
        assert half.fingerprint != tool.fingerprint
        one, other = (t.predict(t.encode(IMAGES[:1]), PROMPTS[1:2])[0] for t in (tool, half))
        assert np.abs(one.logits - other.logits).mean() < 0.2 * np.abs(one.logits).mean()

    def test_a_tool_is_known_by_its_spec_and_its_weights(self, tool):
        assert make(tool.spec).fingerprint == tool.fingerprint
        model = MODELS[self.family]()
        model.load_state_dict(tool.model.state_dict())
        assert SamTool(model).fingerprint == tool.fingerprint
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1
        assert SamTool(model).fingerprint != tool.fingerprint

    def test_a_checkpoint_without_some_weights_is_refused(self, tool, tmp_path):
        state = {name: t for name, t in tool.model.state_dict().items() if "mask_decoder.iou_token" not in name}
        tool.model.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(ToolError, match=r"lacks 1 weights of \w+: .*iou_token"):
            make(f"sam:{tmp_path}")


class TestSam(FromCheckpoint):
    family = "sam"

    def test_preprocessing_is_that_of_transformers(self, tool):
        """Its own image processor resizes, normalises and pads to the same numbers."""
        processor = transformers.SamImageProcessorPil(
            size={"longest_edge": tool.side}, pad_size={"height": tool.side, "width": tool.side}
        )
        for image in IMAGES:
            expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
            frame = tool.frame(*image.shape[:2])
            np.testing.assert_allclose(frame.pixels(image, tool.mean, tool.std), expected, atol=1e-5)

    def test_normalisation_comes_from_the_checkpoint(self, tool, tmp_path):
        tool.model.save_pretrained(tmp_path)
        transformers.SamImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
        other = make(f"sam:{tmp_path}")
        assert (other.mean, other.std) == ((0.5,) * 3, (0.25,) * 3)
        assert other.fingerprint != tool.fingerprint


class TestSamHQ(FromCheckpoint):
    family = "sam_hq"


class TestSam2(FromCheckpoint):
    family = "sam2"

    def test_a_video_checkpoint_is_read_as_an_image_model(self, tool, tmp_path):
        """Published SAM 2 checkpoints say `sam2_video`."""
        tool.model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
        video = make(f"sam:{tmp_path}")
        same(*(t.predict(t.encode(IMAGES[:1]), PROMPTS[:1])[0] for t in (tool, video)))


class TestEdgeTam(FromCheckpoint):
    family = "edgetam"


class TestFinishedSam(ToolContract):
    """The embedded SAM, its masks finished by GrabCut."""

    def make_tool(self, cache=None):
        return make("sam", cache=cache)

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_a_clicked_pixel_has_its_click_s_sign(self, tool, prompt):
        for image, prediction in zip(IMAGES, tool.predict(tool.encode(IMAGES), [prompt] * len(IMAGES)), strict=True):
            assert prediction.mask.shape == image.shape[:2]
            assert all(prediction.mask[click.y, click.x] == click.positive for click in prompt.clicks)

    def test_the_logits_are_the_model_s_own(self, tool):
        plain = make("sam:refine=none")
        [finished], [own] = (t.predict(t.encode(IMAGES[:1]), PROMPTS[:1]) for t in (tool, plain))
        np.testing.assert_array_equal(finished.logits, own.logits)
        assert finished.score == own.score

    @pytest.mark.parametrize("positive", [True, False])
    def test_a_given_mask_changes_around_the_last_click_alone(self, tool, positive):
        """Within `given` times the click's depth in what it corrects, and by its sign; and it stays a given mask."""
        task = data.make("synthetic:val#easy")[3]
        given = cv2.dilate(object_of(task.target).astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        given[:, : task.width // 2] &= not positive
        click = annotator.next_click(task.target, given)
        [found] = tool.predict(tool.encode([task.image]), [Prompt((click,), mask=given)])
        wrong = (given != click.positive).astype(np.uint8)
        depth = cv2.distanceTransform(wrong, cv2.DIST_L2, 5)[click.y, click.x]
        rows, columns = np.nonzero(found.mask != given)
        assert len(rows) and (np.hypot(rows - click.y, columns - click.x) <= tool.finish.given * depth + 1e-6).all()
        assert (found.mask[rows, columns] == click.positive).all()
        assert found.logits is None

    def test_a_box_bounds_the_mask_unless_a_positive_click_lies_outside(self, tool):
        """Nor does a box alone give an empty mask. The scene is larger than what is cut."""
        task = data.make("synthetic:val#easy")[3]
        target, (encoding,) = object_of(task.target), tool.encode([task.image])
        assert target.size > tool.finish.pixels
        box = metrics.box_of(target)
        half = Box(box.x0, box.y0, (box.x0 + box.x1) // 2, box.y1)
        left, right = (np.argwhere(target & cut) for cut in _halves(target.shape[1], int(half.x1)))
        near, far = (Click(int(x), int(y)) for y, x in (left[len(left) // 2], right[len(right) // 2]))
        prompts = [Prompt(box=half), Prompt((near,), half), Prompt((near, replace(far, positive=False)), half)]
        for prompt in prompts:
            [found] = tool.predict([encoding], [prompt])
            cv2.setRNGSeed(17)
            same(found, tool.predict([encoding], [prompt])[0])
            assert found.mask.any() and not found.mask[:, int(half.x1) :].any()
        [wide] = tool.predict([encoding], [Prompt((near, far), half)])
        assert wide.mask[:, int(half.x1) :].sum() > 1

    def test_the_finish_is_named_in_the_spec_and_the_fingerprint(self, tool):
        plain = make("sam:refine=none")
        assert (tool.spec, plain.spec) == ("sam", "sam:refine=none") and tool.fingerprint != plain.fingerprint
        for spec in (tool.spec, plain.spec, "sam:refine=grabcut"):
            assert make(spec).fingerprint == (plain if "none" in spec else tool).fingerprint

    def test_a_model_that_is_named_is_finished_where_it_is_asked_for(self, tool):
        assert make(f"sam:{EMBEDDED}").finish is None and make("sam", name_or_path=tool.model).finish is None
        assert make(f"sam:{EMBEDDED},refine=grabcut").spec == f"sam:{EMBEDDED},refine=grabcut"
        with pytest.raises(ValueError, match="refine is 'sharp'; expected 'none' or 'grabcut'"):
            make("sam:refine=sharp")


def _halves(width, at):
    """bool [1, width] twice: the columns left of `at`, and the others."""
    left = np.arange(width)[None] < at
    return left, ~left


class TestSegmentAnything(ToolContract):
    def make_tool(self, cache=None):
        torch.manual_seed(0)  # for a buffer: the positional embedding
        return SegmentAnythingTool(draw_weights(original_model()), cache=cache)

    @pytest.mark.slow
    def test_a_checkpoint_is_read_without_running_it(self, tmp_path):
        """`vit_b` is the smallest architecture of the package: 94 M parameters, so it is loaded and not run."""
        from segenv.tools.segment_anything import import_segment_anything

        model = import_segment_anything().sam_model_registry["vit_b"]()
        torch.save(model.state_dict(), tmp_path / "sam_vit_b.pth")
        tool = make(f"segment-anything:vit_b@{tmp_path / 'sam_vit_b.pth'}", multimask="never")
        assert (tool.side, tool.grid) == (1024, 256)
        assert torch.equal(tool.model.pixel_mean, model.pixel_mean)
        assert all(torch.equal(a, b) for a, b in zip(tool.model.parameters(), model.parameters(), strict=True))

    @pytest.mark.parametrize(
        "spec, message",
        [
            ("vit_x@sam.pth", "an architecture out of default, vit_h"),
            ("vit_b", "expected ARCHITECTURE@FILE.pth"),
            ("vit_b@absent.pth", "there is no file absent.pth"),
        ],
    )
    def test_a_wrong_spec_is_explained(self, spec, message):
        with pytest.raises(ToolError, match=message):
            make(f"segment-anything:{spec}")

    def test_a_pickle_is_not_opened(self, tmp_path):
        import pickle

        (tmp_path / "evil.pth").write_bytes(pickle.dumps(print, protocol=2))
        with pytest.raises(ToolError, match="holds more than tensors"):
            make(f"segment-anything:vit_b@{tmp_path / 'evil.pth'}")


def test_what_is_no_checkpoint_is_explained(tmp_path):
    with pytest.raises(ToolError, match="no SAM checkpoint at .*absent"):
        make(f"sam:{tmp_path / 'absent'}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ToolError, match="model_type is 'bert'; expected one of sam, sam_hq, sam2"):
        make(f"sam:{tmp_path}")
    with pytest.raises(ValueError, match="expected 'first', 'always' or 'never'"):
        make(f"sam:{tmp_path}", multimask="sometimes")


sizes = st.integers(1, 300)


@given(sizes, sizes, st.booleans(), st.data())
def test_a_click_lies_in_the_scaled_image(height, width, padded, data):
    """And the corners of the image lie in its corners."""
    frame = Frame(height, width, 64, padded)
    h, w = frame.resized
    assert max(h, w) == 64 and min(h, w) >= 1
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    ((px, py),) = frame.points([Click(x, y)])
    assert 0 <= px < w and 0 <= py < h
    np.testing.assert_allclose([px / w, py / h], [x / width, y / height], atol=1e-5)


@given(st.integers(40, 300), st.integers(40, 300), st.booleans(), st.data())
def test_a_mask_survives_the_way_through_logits(height, width, padded, data):
    frame = Frame(height, width, 64, padded)
    x0, y0 = data.draw(st.integers(0, width // 2)), data.draw(st.integers(0, height // 2))
    mask = np.zeros((height, width), bool)
    mask[y0 : y0 + height // 2, x0 : x0 + width // 2] = True
    assume(min(height, width) / max(height, width) > 0.4)
    logits = frame.logits(mask, 64)
    assert logits.dtype == np.float32 and np.abs(logits).max() <= 10.001
    back = frame.mask(logits)
    assert (back & mask).sum() / (back | mask).sum() > 0.8


def test_padding_is_no_object():
    frame = Frame(50, 100, 64, True)
    assert (frame.logits(np.ones((50, 100), bool), 32)[18:] == -10).all()


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="the embedded weights are not there yet")
def test_the_embedded_model_segments_a_plain_disc():
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 10_000_000
    tool, task = make("sam"), disc_task(96, 128, 70, 40, 24)
    assert tool.spec == "sam" and tool.device.type == "cpu"
    (encoding,), prompt = tool.encode([task.image]), Prompt()
    for click in (Click(70, 40), Click(60, 50), Click(5, 5, False)):
        prompt = Prompt((*prompt.clicks, click), None, prompt.mask, prompt.logits)
        prediction = tool.predict([encoding], [prompt])[0]
        prompt = Prompt(prompt.clicks, None, prediction.mask, prediction.logits)
    assert (prediction.mask & task.target).sum() / (prediction.mask | task.target).sum() > 0.7
