"""The tiny model's vision tower: a small residual network whose last feature map becomes the tokens of the image.

A Vision Transformer of this size needs millions of pictures before it tells a star from a cross; convolutions know
from the start that shapes are made of neighbouring pixels. Importing this module registers the tower with transformers'
Auto classes, so that LLaVA finds it by its configuration.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class VisionTowerConfig(PretrainedConfig):
    """Sizes of a vision tower: each entry of `channels` divides the resolution by that of `strides` and is followed by
    the number of residual blocks in `blocks`; `layers` attention layers of `hidden_size` and `heads` heads follow.
    Stages of stride 1 see as far as with stride 2, by dilation. `kernels` holds the side of each stage's first
    convolution. `norm` is False where the batch norms are folded into the convolutions."""

    model_type = "segenv_tower"

    def __init__(
        self,
        image_size: int = 128,
        hidden_size: int = 128,
        channels: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 1, 2, 2),
        layers: int = 2,
        heads: int = 4,
        norm: bool = True,
        strides: Sequence[int] | None = None,
        kernels: Sequence[int] | None = None,
        **kwargs,
    ) -> None:
        self.image_size, self.hidden_size, self.layers, self.heads = image_size, hidden_size, layers, heads
        self.channels, self.blocks, self.norm = list(channels), list(blocks), norm
        self.strides = [2] * len(self.channels) if strides is None else list(strides)
        self.kernels = [5] + [3] * (len(self.channels) - 1) if kernels is None else list(kernels)
        super().__init__(**kwargs)

    @property
    def patch_size(self) -> int:
        """The side of the image part behind one token, in pixels."""
        return math.prod(self.strides)


class Convolution(nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, apart: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 * apart, apart, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int, apart: int, norm: bool) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, 3, 1, apart, norm)
        self.second = Convolution(channels, channels, 3, 1, apart, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class VisionTower(PreTrainedModel):
    """Pictures float [P, 3, S, S] in -1..1 to tokens [P, (S / patch_size)², hidden_size], row by row."""

    config_class = VisionTowerConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList()
        inputs, apart = 3, 1  # pixels between the neighbours of a convolution
        sizes = zip(config.channels, config.blocks, config.strides, config.kernels, strict=True)
        for channels, blocks, stride, kernel in sizes:
            down = Convolution(inputs, channels, kernel, stride, apart, config.norm)
            apart *= 2 if stride == 1 else 1
            rest = [Block(channels, apart, config.norm) for _ in range(blocks)]
            self.stages.append(nn.Sequential(down, nn.ReLU(), *rest))
            inputs = channels
        width = config.hidden_size
        self.widen = nn.Linear(inputs, width)
        self.positions = nn.Parameter(torch.zeros((config.image_size // config.patch_size) ** 2, width))
        self.mixing = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights come from `agents.tiny.initialise`."""

    def forward(self, pixel_values: torch.Tensor, **_) -> BaseModelOutput:
        """The tokens, as `last_hidden_state` and as the only hidden state."""
        x = pixel_values.to(self.widen.weight.dtype).contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        x = self.widen(x.flatten(2).transpose(1, 2)) + self.positions
        for layer in self.mixing:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=x, hidden_states=(x,))


@torch.no_grad()
def fold(tower: VisionTower) -> VisionTower:
    """Fold the batch norms into the convolutions, in place: outputs of evaluation stay equal, also in training."""
    for part in tower.modules():
        if isinstance(part, Convolution) and isinstance(part.norm, nn.BatchNorm2d):
            norm, conv = part.norm, part.conv
            assert norm.running_var is not None and norm.running_mean is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
            part.norm = nn.Identity()
    tower.config.norm = False
    return tower


def positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, float32 [side², width], `width` a multiple of 4 (He et al. 2022, MAE)."""
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, width).float()


@torch.no_grad()
def initialise(tower: VisionTower, generator: torch.Generator) -> None:
    """Set fresh weights in the order of their names: He's for convolutions, normal with .05 for other matrices, norms
    at one, biases at zero, positions as sines and cosines."""
    for name, parameter in sorted(tower.named_parameters()):
        if name == "positions":
            parameter.copy_(0.5 * positions(round(math.sqrt(parameter.shape[0])), parameter.shape[1]))
        elif parameter.ndim == 4:
            parameter.normal_(0.0, math.sqrt(2 / parameter[0].numel()), generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0.0, 0.05, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


AutoConfig.register(VisionTowerConfig.model_type, VisionTowerConfig)
AutoModel.register(VisionTowerConfig, VisionTower)
