"""Original SAM checkpoints (.pth) through the segment-anything package."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segenv.checkpoints import put_weights, read_weights, weights_hash
from segenv.tools.cache import Encoding, EncodingCache
from segenv.tools.sam import PromptedSam, to_encodings
from segenv.types import ToolError


class SegmentAnythingTool(PromptedSam):
    """`checkpoint` is "ARCHITECTURE@FILE", as in "vit_b@sam_vit_b_01ec64.pth", or a `segment_anything.modeling.Sam`,
    whose weights must not change afterwards. Files are read with `weights_only`, so that nothing in them is executed.
    """

    padded = True

    def __init__(
        self,
        checkpoint: str | torch.nn.Module,
        device: str | None = None,
        multimask: str = "first",
        refine: str = "none",
        cache: EncodingCache | None = None,
    ) -> None:
        super().__init__(device or ("cuda" if torch.cuda.is_available() else "cpu"), multimask, refine, cache)
        in_memory = isinstance(checkpoint, torch.nn.Module)
        self.spec = f"segment-anything:{type(checkpoint).__name__ if in_memory else checkpoint}"
        for name, (value, usual) in {"multimask": (multimask, "first"), "refine": (refine, "none")}.items():
            self.spec += f",{name}={value}" * (value != usual)
        model: Any = checkpoint if in_memory else _load(str(checkpoint))
        self.model = model.to(self.device).eval()
        self.side = model.image_encoder.img_size
        self.grid = model.prompt_encoder.mask_input_size[0]
        self.mean = (model.pixel_mean.flatten() / 255).tolist()
        self.std = (model.pixel_std.flatten() / 255).tolist()
        self.fingerprint = "|".join(
            ("segment-anything", weights_hash(model, f"{model} {self.side}"), str((*self.mean, *self.std)))
            + (self.device.type, self.cache.precision)
            + ((repr(self.finish),) if self.finish else ())
        )

    def __reduce__(self) -> tuple:
        """A tool that imports the package of its model before the model itself is unpickled."""
        return _blank, (), self.__getstate__()

    def _embed(self, pixels: torch.Tensor) -> list[Encoding]:
        return to_encodings({"embedding": self.model.image_encoder(pixels)})

    def _decode(self, encodings, points, labels, boxes, logits, multimask):
        answers = []
        for i, encoding in enumerate(encodings):  # this package's decoder takes one image at a time
            here = slice(i, i + 1)
            sparse, dense = self.model.prompt_encoder(
                points=None if points is None else (points[here], labels[here]),
                boxes=None if boxes is None else boxes[here],
                masks=None if logits is None else logits[here],
            )
            answers.append(
                self.model.mask_decoder(
                    image_embeddings=self._tensor([encoding["embedding"].astype(np.float32)]),
                    image_pe=self.model.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=multimask,
                )
            )
        return torch.cat([masks for masks, _ in answers]), torch.cat([scores for _, scores in answers])


def _blank() -> SegmentAnythingTool:
    import_segment_anything()
    return SegmentAnythingTool.__new__(SegmentAnythingTool)


def _load(checkpoint: str) -> Any:
    architecture, _, file = checkpoint.partition("@")
    registry = import_segment_anything().sam_model_registry
    if architecture not in registry or not file:
        raise ToolError(
            f"segment-anything:{checkpoint}: expected ARCHITECTURE@FILE.pth with an architecture out of "
            f"{', '.join(registry)}"
        )
    if not Path(file).is_file():
        raise ToolError(f"segment-anything:{checkpoint}: there is no file {file}")
    tensors = read_weights(Path(file))
    model = registry[architecture]()
    put_weights(model, tensors, Path(file), f"segment-anything's {architecture}")
    return model


def import_segment_anything() -> types.ModuleType:
    """The package `segment_anything`, with or without a torchvision that works."""
    if "segment_anything" in sys.modules:
        return sys.modules["segment_anything"]
    try:
        return importlib.import_module("segment_anything")
    except (ImportError, RuntimeError):  # no torchvision, or one built for another torch
        with _torchvision_stand_ins():
            return importlib.import_module("segment_anything")


@contextlib.contextmanager
def _torchvision_stand_ins() -> Iterator[None]:
    """For the time of one import: the four names of torchvision that segment_anything imports at its top.

    The package needs torchvision only to resize images for its `SamPredictor` (done with PIL here, as torchvision does)
    and to thin out boxes in its automatic mask generator, which no tool of ours uses. The stand-ins are taken away
    again, because transformers would take them for the real thing.
    """

    def unavailable(*args: Any, **kwargs: Any) -> Any:
        raise ToolError("segment_anything's automatic mask generator needs torchvision; install it beside torch")

    def to_pil_image(image: np.ndarray) -> Any:
        from PIL import Image

        return Image.fromarray(image)

    def resize(image: Any, size: tuple[int, int]) -> Any:
        from PIL import Image

        return image.resize(size[::-1], Image.Resampling.BILINEAR)

    functions: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": unavailable, "box_area": unavailable},
    }
    present = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in present:
        del sys.modules[name]
    for name, content in functions.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in functions:
            del sys.modules[name]
        sys.modules.update(present)
