"""Two independent implementations, one set of random weights: transformers' SamModel and segment_anything's Sam.

They must agree through our two tools, and with segment_anything's own predictor, which shares no code with them.
"""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

if missing := [name for name in ("torch", "transformers", "segment_anything") if find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)} (the extra `sam`)", allow_module_level=True)

import torch

from segenv.tools.sam import SamTool
from segenv.tools.segment_anything import SegmentAnythingTool, import_segment_anything
from segenv.types import Box, Click, Prompt

SIDE, PATCH, WIDTH, PROMPT = 192, 16, 64, 32
GRID = SIDE // PATCH  # 12: windows of 5 do not fit it, so that their padding is tested as well

NAMES = [  # original name -> transformers' name, applied in order (as transformers' convert_sam_to_hf.py)
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"^image_encoder\.", "vision_encoder."),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"\.blocks\.", ".layers."),
    (r"\.norm", ".layer_norm"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"point_embeddings", "point_embed"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.0", r"\1.proj_in"),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.1", r"\1.layers.0"),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.2", r"\1.proj_out"),
]


def transformers_name(original: str) -> str:
    for pattern, replacement in NAMES:
        original = re.sub(pattern, replacement, original)
    return original


def transformers_model():
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_dim": 2 * WIDTH,
            "image_size": SIDE,
            "patch_size": PATCH,
            "window_size": 5,
            "global_attn_indexes": [1],
            "output_channels": PROMPT,
            "num_pos_feats": PROMPT // 2,
        },
        prompt_encoder_config={
            "hidden_size": PROMPT,
            "image_size": SIDE,
            "patch_size": PATCH,
            "image_embedding_size": GRID,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": PROMPT,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
            "layer_norm_eps": 1e-5,  # the original's; transformers' default of 1e-6 moves logits by about 1e-5
        },
    )
    return SamModel(config)


def original_model():
    import_segment_anything()
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    return Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=WIDTH,
            img_size=SIDE,
            mlp_ratio=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=PATCH,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=5,
            out_chans=PROMPT,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=PROMPT, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT, mlp_dim=64, num_heads=2),
            transformer_dim=PROMPT,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def draw_weights(model, seed: int = 13):
    """Random weights with which signals neither vanish nor explode; transformers' start is dead (range 1e-10).

    With `seed` 13 the masks of the models here are neither empty nor full.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 1.0 if "embed" in name or "token" in name else weight[0].numel() ** -0.5
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * spread + ("norm" in name and "weight" in name)
            )
            if re.search(r"hypernetworks.*proj_out\.bias", name):  # logits on both sides of 0
                weight.zero_()
            if "iou_prediction_head.proj_out" in name:  # scores around .5
                weight.mul_(0.1).add_(0.5 if name.endswith("bias") else 0.0)
    return model


@pytest.fixture(scope="module")
def tools():
    """The same random weights in both."""
    torch.set_num_threads(1)
    ours, original = draw_weights(transformers_model()), original_model()
    state = ours.state_dict()
    original.load_state_dict({name: state[transformers_name(name)] for name in original.state_dict()})
    return SamTool(ours), SegmentAnythingTool(original)


def photo(height: int, width: int) -> np.ndarray:
    """Smooth colours and noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng([height, width])
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 5, 5)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


IMAGES = [photo(*size) for size in [(130, 200), (211, 97), (192, 192), (60, 80)]]


def prompts_for(image: np.ndarray) -> dict[str, Prompt]:
    height, width = image.shape[:2]
    a, b, c = Click(width // 3, height // 2), Click(width - 1, 0, False), Click(width // 2, height - 1)
    box = Box(width * 0.2, height * 0.1, width * 0.9, height * 0.6)
    return {
        "point": Prompt((a,)),
        "negative point": Prompt((b,)),
        "several points": Prompt((a, b, c)),
        "box": Prompt((), box),
        "box and points": Prompt((b, c), box),
    }


@pytest.mark.parametrize("index", range(len(IMAGES)))
def test_both_implementations_agree(tools, index):
    image = IMAGES[index]
    (encoding,), (reference_encoding,) = (tool.encode([image]) for tool in tools)
    assert encoding["embedding"].std() > 0.1, "a dead encoder would agree with anything"
    np.testing.assert_allclose(encoding["embedding"], reference_encoding["embedding"], atol=1e-3)
    for name, prompt in prompts_for(image).items():
        for turn in ("first", "fed back", "fed back again"):
            found, reference = (
                t.predict([e], [prompt])[0] for t, e in zip(tools, (encoding, reference_encoding), strict=True)
            )
            assert found.logits.std() > 0.1, (name, turn)
            np.testing.assert_allclose(found.logits, reference.logits, atol=1e-3, err_msg=f"{name}, {turn}")
            assert found.score == pytest.approx(reference.score, abs=1e-3)
            assert_equal_masks(found, reference, tools[1], image, (name, turn))
            click = Click((7 * len(prompt.clicks)) % image.shape[1], 5, len(prompt.clicks) % 2 == 0)
            prompt = Prompt((*prompt.clicks, click), prompt.box, found.mask, reference.logits)


def assert_equal_masks(found, reference, tool, image, label) -> None:
    """Equal, but for pixels whose interpolated logit is within 1e-4 of 0: float32 may round those either way."""
    assert 0.01 < reference.mask.mean() < 0.99, (label, "an empty or full mask would agree with anything")
    differ = found.mask != reference.mask
    if differ.any():
        frame = tool.frame(*image.shape[:2])
        near = frame.mask(reference.logits + 1e-4) != frame.mask(reference.logits - 1e-4)
        assert not (differ & ~near).any(), (label, int((differ & ~near).sum()))


@pytest.mark.parametrize("index", range(len(IMAGES)))
@pytest.mark.parametrize("multimask", ["always", "never"])
def test_the_package_s_own_predictor_agrees(tools, index, multimask):
    """SamPredictor does its own resizing, scaling of prompts, choice and upsampling."""
    from segment_anything import SamPredictor

    image = IMAGES[index]
    predictor = SamPredictor(tools[1].model)
    predictor.set_image(image)
    tool = SamTool(tools[0].model, multimask=multimask)
    (encoding,) = tool.encode([image])
    fed_back = None
    for name, prompt in prompts_for(image).items():
        points = np.array([(c.x, c.y) for c in prompt.clicks], float) if prompt.clicks else None
        found = tool.predict([encoding], [Prompt(prompt.clicks, prompt.box, None, fed_back)])[0]
        masks, scores, logits = predictor.predict(
            point_coords=points,
            point_labels=None if points is None else np.array([c.positive for c in prompt.clicks], int),
            box=None if prompt.box is None else np.array([prompt.box.x0, prompt.box.y0, prompt.box.x1, prompt.box.y1]),
            mask_input=None if fed_back is None else fed_back[None],
            multimask_output=multimask == "always",
            return_logits=True,
        )
        best = scores.argmax()
        np.testing.assert_allclose(found.logits, logits[best].clip(-32, 32), atol=1e-3, err_msg=name)
        clear = np.abs(masks[best]) > 1e-3  # elsewhere float32 may round either way
        np.testing.assert_array_equal(found.mask[clear], masks[best][clear] > 0, err_msg=name)
        assert clear.mean() > 0.99
        fed_back = found.logits


def test_stand_ins_for_torchvision_are_gone():
    import sys

    import_segment_anything()
    fakes = [name for name, module in sys.modules.items() if name.startswith("torchvision") and module.__spec__ is None]
    assert fakes == []
