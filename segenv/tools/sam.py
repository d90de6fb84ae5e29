"""SAM, SAM-HQ, SAM 2 and EdgeTAM through transformers, and what all promptable models of that kind share."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from segenv.checkpoints import CheckpointError, is_local, load_pretrained, reading, weights_hash
from segenv.metrics import box_of
from segenv.tools.base import SegTool
from segenv.tools.cache import Encoding, EncodingCache
from segenv.tools.finish import Finish
from segenv.tools.grabcut import shrink
from segenv.tools.recorded import Recorded
from segenv.types import Box, Click, Prediction, Prompt, ToolError

EMBEDDED = Path(__file__).parent / "weights" / "tiny-sam"
MODELS = {  # model_type in config.json: (class in transformers, whether the image keeps its aspect ratio and is padded)
    "sam": ("SamModel", True),
    "sam_hq": ("SamHQModel", True),
    "sam2": ("Sam2Model", False),
    "sam2_video": ("Sam2Model", False),
    "edgetam": ("EdgeTamModel", False),
    "edgetam_video": ("EdgeTamModel", False),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of all released models, for RGB in 0..1
LOGIT_LIMIT = 32.0  # fed-back logits are clamped to it, as in SAM 2's image predictor
MASK_LOGIT = 10.0  # what a given mask counts as, where there are no logits: SAM 2's scale for mask prompts


@dataclass(frozen=True)
class Frame:
    """The square of `side` px that a model sees of an image of `height` x `width` px, and the way there and back.

    SAM scales the longest side to `side` and pads on the right and below (`padded`); SAM 2 stretches both sides. Points
    and boxes are multiplied by new / old size (the models add half a pixel themselves).
    """

    height: int
    width: int
    side: int
    padded: bool

    @cached_property
    def resized(self) -> tuple[int, int]:
        """(h, w) of the scaled image within the square."""
        if not self.padded:
            return self.side, self.side
        scale = self.side / max(self.height, self.width)
        return max(int(self.height * scale + 0.5), 1), max(int(self.width * scale + 0.5), 1)

    def pixels(self, image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
        """The model's input, float32 [3, side, side], normalised; padding is zero after normalisation."""
        h, w = self.resized
        scaled = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        square = np.zeros((3, self.side, self.side), np.float32)
        for channel in range(3):  # (value / 255 - mean) / std
            factor = 1 / (255 * std[channel])
            np.multiply(scaled[..., channel], np.float32(factor), out=square[channel, :h, :w])
            square[channel, :h, :w] -= np.float32(mean[channel] / std[channel])
        return square

    def points(self, clicks: Iterable[Click]) -> np.ndarray:
        """float32 [N, 2], (x, y) in pixels of the square."""
        return np.array([(click.x, click.y) for click in clicks], np.float32).reshape(-1, 2) * self._scale

    def box(self, box: Box) -> np.ndarray:
        """float32 [4], (x0, y0, x1, y1) in pixels of the square."""
        return (np.array([[box.x0, box.y0], [box.x1, box.y1]], np.float32) * self._scale).reshape(4)

    @cached_property
    def _scale(self) -> np.ndarray:
        h, w = self.resized
        return np.array([w / self.width, h / self.height], np.float32)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """bool [height, width]: logits [g, g] over the square, interpolated to the original image, above 0."""
        return self.unpadded(logits, (self.height, self.width)) > 0

    def unpadded(self, logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """float32 of `shape`: logits [g, g] over the square, interpolated over the original image."""
        if self.padded:  # the original implementation's two steps, with the padding cut off between them
            h, w = self.resized
            logits = cv2.resize(logits, (self.side, self.side), interpolation=cv2.INTER_LINEAR)[:h, :w]
        return cv2.resize(logits, shape[::-1], interpolation=cv2.INTER_LINEAR)

    def logits(self, mask: np.ndarray, grid: int) -> np.ndarray:
        """float32 [grid, grid]: a mask (bool [height, width]) as a prompt, -10 outside to 10 inside, smooth between."""
        h, w = self.resized
        square = np.zeros((self.side, self.side), np.float32)
        square[:h, :w] = cv2.resize(mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA).reshape(h, w)
        share = cv2.resize(square, (grid, grid), interpolation=cv2.INTER_AREA)  # of each cell that the mask covers
        return (2 * cv2.GaussianBlur(share, (3, 3), 0) - 1) * np.float32(MASK_LOGIT)


class PromptedSam(SegTool):
    """Base of the tools of this family: preprocessing, grouping of prompts, choice of mask, upsampling.

    All clicks so far, the box and the previous logits go in; without logits, a given mask that is not empty stands in
    for them. `multimask` says when the best of the model's three masks (by its own predicted IoU) is taken, and not its
    single one: "first" (at a single click without box, logits or mask, which is ambiguous), "always" or "never". The
    score is the predicted IoU. Prompts are decoded in batches of equal numbers of points, with or without box and
    logits; nothing is padded, because a padding point changes what SAM answers.
    """

    side: int  # of the model's input, px
    grid: int  # side of the logits, in and out
    padded: bool
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __init__(self, device: str, multimask: str, refine: str, cache: EncodingCache | None) -> None:
        super().__init__(cache)
        if refine not in ("none", "grabcut"):
            raise ValueError(f"refine is {refine!r}; expected 'none' or 'grabcut'")
        self.finish = Finish() if refine == "grabcut" else None
        if multimask not in ("first", "always", "never"):
            raise ValueError(f"multimask is {multimask!r}; expected 'first', 'always' or 'never'")
        self.multimask = multimask
        self.device = torch.device(device)

    @abstractmethod
    def _embed(self, pixels: torch.Tensor) -> list[Encoding]:
        """The encodings of images [B, 3, side, side] float32 on the tool's device."""

    @abstractmethod
    def _decode(
        self,
        encodings: Sequence[Encoding],
        points: torch.Tensor | None,  # [B, N, 2] float32, (x, y)
        labels: torch.Tensor | None,  # [B, N] int32, 1 positive, 0 negative
        boxes: torch.Tensor | None,  # [B, 4] float32
        logits: torch.Tensor | None,  # [B, 1, grid, grid] float32
        multimask: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, M, grid, grid] and predicted IoU [B, M]."""

    def frame(self, height: int, width: int) -> Frame:
        """How the model sees an image of `height` x `width` px."""
        return Frame(height, width, self.side, self.padded)

    def _encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        encodings: list[Encoding] = []
        at_once = max((1 << (17 if self.device.type == "cpu" else 20)) // self.side**2, 1)  # bounds memory
        for start in range(0, len(images), at_once):
            chunk = images[start : start + at_once]
            pixels = np.stack([self.frame(*image.shape[:2]).pixels(image, self.mean, self.std) for image in chunk])
            with torch.inference_mode():
                embedded = self._embed(torch.from_numpy(pixels).to(self.device))
            for image, encoding in zip(chunk, embedded, strict=True):
                beside = {} if self.finish is None else {"image": shrink(image, self.finish.size)}
                encodings.append({"size": np.array(image.shape[:2]), **beside, **encoding})
        return encodings

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        groups: dict[tuple, list[int]] = {}
        frames = [self.frame(*encoding["size"].tolist()) for encoding in encodings]
        given, prompts = prompts, [self._asked(prompt) for prompt in prompts]
        logits = [self._fed_back(frame, prompt) for frame, prompt in zip(frames, prompts, strict=True)]
        for i, prompt in enumerate(prompts):
            key = (len(prompt.clicks), prompt.box is not None, logits[i] is not None)
            groups.setdefault(key, []).append(i)
        predictions: dict[int, Prediction] = {}
        at_once = max((1 << 24) // self.side**2, 1)  # bounds memory; a CPU is as fast with few
        at_once = min(at_once, 8) if self.device.type == "cpu" else at_once
        for places in groups.values():
            for start in range(0, len(places), at_once):
                chunk = places[start : start + at_once]
                items = [(encodings[i], frames[i], prompts[i], logits[i]) for i in chunk]
                predictions.update(zip(chunk, self._predict_alike(items), strict=True))
        ordered = [predictions[i] for i in range(len(prompts))]
        if self.finish is None:
            return ordered
        return [self._finished(*item) for item in zip(ordered, encodings, frames, given, strict=True)]

    def _asked(self, prompt: Prompt) -> Prompt:
        """The prompt for the model: a finish asks for the box of a given mask beside the mask."""
        if self.finish is None or prompt.logits is not None or prompt.mask is None or not prompt.clicks:
            return prompt
        return replace(prompt, box=prompt.box or box_of(prompt.mask))

    def _finished(self, found: Prediction, encoding: Encoding, frame: Frame, prompt: Prompt) -> Prediction:
        """The prediction with the finish's mask. Without logits, a mask stays a given one."""
        assert self.finish is not None and found.logits is not None
        small = encoding["image"]
        logits = frame.unpadded(found.logits, small.shape[:2])
        mask = self.finish.mask(small, logits, prompt, (frame.height, frame.width))
        given = prompt.clicks and prompt.logits is None and prompt.mask is not None and prompt.mask.any()
        return replace(found, mask=mask, logits=None if given else found.logits)

    def _fed_back(self, frame: Frame, prompt: Prompt) -> np.ndarray | None:
        if prompt.logits is not None:
            if prompt.logits.shape != (self.grid, self.grid):
                raise ToolError(
                    f"{self.spec}: logits are {list(prompt.logits.shape)}; expected {[self.grid, self.grid]}, as this "
                    "tool returned them (those of another tool cannot be fed back: give the mask alone)"
                )
            return prompt.logits.astype(np.float32).clip(-LOGIT_LIMIT, LOGIT_LIMIT)
        if prompt.mask is None or not prompt.mask.any():
            return None
        if prompt.mask.shape != (frame.height, frame.width):
            raise ToolError(
                f"{self.spec}: mask is {list(prompt.mask.shape)}; expected the image's {[frame.height, frame.width]}"
            )
        return frame.logits(prompt.mask, self.grid)

    def _predict_alike(self, items: Sequence[tuple[Encoding, Frame, Prompt, np.ndarray | None]]) -> list[Prediction]:
        """Predictions for prompts with the same number of clicks, all with or all without a box, and logits."""
        encodings = [encoding for encoding, _, _, _ in items]
        _, _, prompt, fed_back = items[0]
        points = labels = boxes = logits = None
        if prompt.clicks:
            points = self._tensor([frame.points(prompt.clicks) for _, frame, prompt, _ in items])
            labels = self._tensor(
                [np.array([c.positive for c in prompt.clicks], np.int32) for _, _, prompt, _ in items]
            )
        if prompt.box is not None:
            boxes = self._tensor([frame.box(prompt.box) for _, frame, prompt, _ in items if prompt.box is not None])
        if fed_back is not None:
            logits = self._tensor([array[None] for _, _, _, array in items if array is not None])
        ambiguous = len(prompt.clicks) == 1 and boxes is None and logits is None
        multimask = self.multimask == "always" or (self.multimask == "first" and ambiguous)
        with torch.inference_mode():
            decoded, scored = self._decode(encodings, points, labels, boxes, logits, multimask)
            found, scores = decoded.float().cpu().numpy(), scored.float().cpu().numpy()
        if not (np.isfinite(found).all() and np.isfinite(scores).all()):
            raise ToolError(f"{self.spec}: the model gave values that are not finite; if dtype is float16, try float32")
        best = scores.argmax(1)
        return [
            Prediction(
                frame.mask(found[i, best[i]]),
                found[i, best[i]].clip(-LOGIT_LIMIT, LOGIT_LIMIT),
                float(scores[i, best[i]].clip(0, 1)),
            )
            for i, (_, frame, _, _) in enumerate(items)
        ]

    def _tensor(self, arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)


class SamTool(PromptedSam):
    """A model of transformers: SamModel, SamHQModel, Sam2Model or EdgeTamModel, whichever config.json says.

    `name_or_path` is a folder or a name on the Hugging Face Hub (None: the embedded tiny SAM), or a model in memory,
    whose weights must not change afterwards. Only safetensors are read, and no code from a checkpoint is run. `refine`
    "grabcut" finishes each mask near the image's resolution (see `segenv.tools.finish`), "none" does not; None is
    "grabcut" for the embedded model and "none" for all others. `device` None is the CPU for the embedded model and
    otherwise a GPU where there is one. `dtype` is "float32", "float16" or "bfloat16".
    """

    def __init__(
        self,
        name_or_path: str | Path | torch.nn.Module | None = None,
        device: str | None = None,
        dtype: str = "float32",
        multimask: str = "first",
        refine: str | None = None,
        cache: EncodingCache | None = None,
    ) -> None:
        if dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype is {dtype!r}; expected 'float32', 'float16' or 'bfloat16'")
        usual = "grabcut" if name_or_path is None else "none"
        refine = usual if refine is None else refine
        if device is None:
            device = "cuda" if name_or_path is not None and torch.cuda.is_available() else "cpu"
        super().__init__(device, multimask, refine, cache)
        source = EMBEDDED if name_or_path is None else name_or_path
        self.spec = "sam" if name_or_path is None else f"sam:{_name_of(source)}"
        self.dtype = getattr(torch, dtype)
        if isinstance(source, torch.nn.Module):
            model: Any = source
        else:
            model = _load(str(source), self.dtype)
            self.mean, self.std = _normalisation(str(source))
        self.model = model.to(self.device, self.dtype).eval()
        self.family = model.config.model_type
        self.padded = MODELS[self.family][1]
        self.side = int(model.prompt_encoder.input_image_size)
        self.grid = 4 * int(model.prompt_encoder.image_embedding_size[0])
        recordable = self.family == "sam" and self.device.type == "cpu" and source is not model
        self.recorded = Recorded(self.model) if recordable else None
        self.fingerprint = "|".join(
            ("sam", self.family, weights_hash(model, _facts(model.config.to_dict())), str((*self.mean, *self.std)))
            + (dtype, self.device.type, self.cache.precision)
            + ((repr(self.finish),) if self.finish else ())
        )
        options = {"dtype": (dtype, "float32"), "multimask": (multimask, "first"), "refine": (refine, usual)}
        given = [f"{key}={value}" for key, (value, default) in options.items() if value != default]
        self.spec += ("," if ":" in self.spec else ":") * bool(given) + ",".join(given)

    def _embed(self, pixels: torch.Tensor) -> list[Encoding]:
        embeddings = self.model.get_image_embeddings(pixels.to(self.dtype))
        if self.family == "sam":
            levels = {"embedding": embeddings}
        elif self.family == "sam_hq":  # the decoder reads only the first of the intermediate embeddings
            levels = {"embedding": embeddings[0], "intermediate": embeddings[1][0]}
        else:
            levels = {f"level{i}": level for i, level in enumerate(embeddings)}  # fine to coarse
        return to_encodings(levels)

    def _decode(self, encodings, points, labels, boxes, logits, multimask):
        levels = [
            self._tensor([encoding[name] for encoding in encodings]).to(self.dtype)
            for name in encodings[0]
            if name not in ("size", "image")
        ]
        if self.family == "sam":
            embeddings: dict[str, Any] = {"image_embeddings": levels[0]}
        elif self.family == "sam_hq":
            embeddings = {"image_embeddings": levels[0], "intermediate_embeddings": [levels[1]]}
        else:
            embeddings = {"image_embeddings": levels}
        inputs = embeddings | {
            "input_points": None if points is None else points[:, None],
            "input_labels": None if labels is None else labels[:, None],
            "input_boxes": None if boxes is None else boxes[:, None],
            "input_masks": None if logits is None else logits.to(self.dtype),
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if self.recorded is not None:
            return self.recorded(inputs, multimask)
        output = self.model(**inputs, multimask_output=multimask)
        return output.pred_masks[:, 0], output.iou_scores[:, 0]


def to_encodings(levels: dict[str, torch.Tensor]) -> list[Encoding]:
    """Tensors [B, ...] by name as a dict of arrays for each image. NumPy has no bfloat16: it becomes float32."""
    arrays = {k: (v.float() if v.dtype == torch.bfloat16 else v).cpu().numpy() for k, v in levels.items()}
    count = len(next(iter(arrays.values())))
    return [{name: array[i].copy() for name, array in arrays.items()} for i in range(count)]


def _facts(config: dict[str, Any]) -> str:
    """Settings of a configuration that change a model's answers: not where it lies, or who wrote it."""
    aside = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    kept = {k: _facts(v) if isinstance(v, dict) else v for k, v in config.items() if k not in aside}
    return json.dumps(kept, sort_keys=True, default=str)


def _name_of(source: str | Path | torch.nn.Module) -> str:
    return type(source).__name__ if isinstance(source, torch.nn.Module) else str(source)


def _load(source: str, dtype: torch.dtype) -> Any:
    import transformers

    if source == str(EMBEDDED) and not (EMBEDDED / "model.safetensors").is_file():
        raise ToolError(
            f"sam: the embedded weights are missing from {EMBEDDED}; install segenv with its package data, or name a "
            "checkpoint: sam:NAME_OR_PATH"
        )
    with reading(source, "SAM checkpoint"):
        config, _ = transformers.PreTrainedConfig.get_config_dict(source, local_files_only=is_local(source))
        kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        raise CheckpointError(f"sam:{source}: model_type is {kind!r}; expected one of {', '.join(MODELS)}")
    return load_pretrained(getattr(transformers, MODELS[kind][0]), source, "SAM checkpoint", dtype=dtype)


def _normalisation(source: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of RGB in 0..1, from the checkpoint's preprocessor_config.json where it has one."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts, _ = ImageProcessingMixin.get_image_processor_dict(source, local_files_only=is_local(source))
    except OSError:
        return MEAN, STD
    mean, std = (facts.get(name) or usual for name, usual in (("image_mean", MEAN), ("image_std", STD)))
    for name, values in (("image_mean", mean), ("image_std", std)):
        numbers = isinstance(values, (list, tuple)) and all(type(one) in (int, float) for one in values)
        if (
            not numbers
            or len(values) != 3
            or not np.isfinite(values).all()
            or (name == "image_std" and min(values) <= 0)
        ):
            raise CheckpointError(
                f"sam:{source}: {name} in preprocessor_config.json is {values!r}; expected three numbers, of image_std "
                "above 0"
            )
    return tuple(mean), tuple(std)
