"""A small `SamModel` that can be trained from scratch, and the losses of SAM's recipe (Kirillov et al. 2023, app.
A)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

PIXEL_MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]  # SAM's normalisation, in grey levels
PIXEL_STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


def tiny_config(image_size: int, width: int, depth: int, prompt_width: int, patch: int = 8) -> SamConfig:
    """A `SamConfig` of SAM's own parts, small: global attention, absolute positions, sensible initialisation."""
    vision = SamVisionConfig(
        hidden_size=width,
        output_channels=prompt_width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        mlp_dim=4 * width,
        image_size=image_size,
        patch_size=patch,
        use_rel_pos=False,
        window_size=0,
        global_attn_indexes=list(range(depth)),
        num_pos_feats=prompt_width // 2,
        initializer_range=0.02,  # the class's default of 1e-10 makes a dead encoder
    )
    vision.scale = 1  # as in the original SAM; the class's default of width / 2 turns neighbours into white noise
    prompt = SamPromptEncoderConfig(hidden_size=prompt_width, image_size=image_size, patch_size=patch)
    decoder = SamMaskDecoderConfig(
        hidden_size=prompt_width, mlp_dim=4 * prompt_width, num_attention_heads=4, iou_head_hidden_dim=2 * prompt_width
    )
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def sincos(grid: int, width: int) -> torch.Tensor:
    """Sine-cosine positions of a square grid in normalised coordinates, [1, grid, grid, width]."""
    at = (torch.arange(grid) + 0.5) / grid * 16
    angle = at[:, None] / 100 ** (torch.arange(width // 4) / (width // 4))
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = axis[:, None].expand(grid, grid, -1), axis[None, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2)[None] * 0.5


def build(config: SamConfig) -> SamModel:
    """A fresh model that can be trained: live encoder, sine-cosine positions, and a fixed point encoding of scale 1."""
    model: Any = SamModel(config)
    for part in (model.prompt_encoder, model.mask_decoder):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.reset_parameters()  # torch's own: wider than the .02 of the encoder
    with torch.no_grad():
        model.vision_encoder.pos_embed.copy_(sincos(*model.vision_encoder.pos_embed.shape[2:]))
    model.shared_image_embedding.positional_embedding.requires_grad_(False)
    return model


def at_size(model: SamModel, config: SamConfig) -> SamModel:
    """Keep the weights under a configuration of another image size; positions are interpolated."""
    other: Any = build(config)
    weights = model.state_dict()
    grid = other.vision_encoder.pos_embed.shape[2]
    positions = weights["vision_encoder.pos_embed"].permute(0, 3, 1, 2)
    resized = F.interpolate(positions, (grid, grid), mode="bicubic", align_corners=False)
    weights["vision_encoder.pos_embed"] = resized.permute(0, 2, 3, 1)
    other.load_state_dict(weights)
    return other


def mask_losses(logits: torch.Tensor, target: torch.Tensor, balanced: float) -> torch.Tensor:
    """Loss of each mask, [N, M], of logits [N, M, h, w] against soft targets [N, 1, h, w]: 20 focal + dice, which fades
    into class-balanced cross-entropy + dice as `balanced` goes from 0 to 1."""
    target = target.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    focal = ((probability - target).abs() ** 2 * entropy).mean((2, 3))
    overlap = (probability * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    share = target.mean((2, 3), keepdim=True).clamp(0.005, 0.995)
    weight = target / (2 * share) + (1 - target) / (2 * (1 - share))
    return balanced * (weight * entropy).mean((2, 3)) + (1 - balanced) * 20 * focal + dice


def ious(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of each mask, [N, M], without gradient."""
    mask, truth = logits.detach() > 0, target > 0.5
    union = (mask | truth).sum((2, 3))
    return (mask & truth).sum((2, 3)) / union.clamp(min=1)


def same_instance_loss(features: torch.Tensor, instances: torch.Tensor) -> torch.Tensor:
    """Whether two cells of the embedding belong to one instance, from the cosine of `features` [B, C, g, g];
    `instances` is [B, S, S]."""
    grid = features.shape[-1]
    labels = F.interpolate(instances[:, None].float(), (grid, grid), mode="nearest")[:, 0].flatten(1)
    pick = torch.randperm(grid * grid)[:256]
    flat = F.normalize(features.flatten(2)[:, :, pick], dim=1)
    labels = labels[:, pick]
    logits = 8 * flat.transpose(1, 2) @ flat - 4
    same = (labels[:, :, None] == labels[:, None]).float()
    known = ((labels[:, :, None] > 0) | (labels[:, None] > 0)).float()
    weight = known * (same * 3 + 1)
    return (weight * F.binary_cross_entropy_with_logits(logits, same, reduction="none")).sum() / weight.sum().clamp(
        min=1
    )
