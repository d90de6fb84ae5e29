"""Open-vocabulary detection through transformers: the boxes of the objects that phrases name."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from segenv.checkpoints import check_words, is_local, load_pretrained, reading, weights_hash
from segenv.types import Box, ToolError

GROUNDED = ("grounding-dino", "mm-grounding-dino")  # these read one caption, and score each of its tokens


@dataclass(frozen=True)
class Detection:
    """A box in pixels of the image, its phrase, and the detector's score in 0..1 (None where a person gave the box)."""

    phrase: str
    box: Box
    score: float | None = None


class Detector:
    """A zero-shot object detection checkpoint: GroundingDINO, MM-GroundingDINO, OWL-ViT, OWLv2, …

    `name_or_path` is a folder or a name on the Hugging Face hub. Only safetensors are read, and no code from a
    checkpoint is run. `device` None is a GPU where there is one. A box counts where its score is above `box_threshold`.

    GroundingDINO scores tokens, not phrases, and its own rule glues the tokens of several phrases into one label. Here
    a box goes to the one phrase whose tokens have the highest mean (as in GLIP and MMDetection), its score is that of
    the phrase's best token (as in GroundingDINO), and the mean must be above `text_threshold`; separators count
    nowhere. The other families score phrases, and have no use for `text_threshold`.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        device: str | None = None,
    ) -> None:
        for name, value in (("box_threshold", box_threshold), ("text_threshold", text_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a score in 0..1")
        self.spec = str(name_or_path)
        self.box_threshold, self.text_threshold = box_threshold, text_threshold
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        what = "zero-shot object detection checkpoint"
        self.model = load_pretrained(AutoModelForZeroShotObjectDetection, name_or_path, what)
        with reading(name_or_path, what):
            self.processor: Any = AutoProcessor.from_pretrained(name_or_path, local_files_only=is_local(name_or_path))
            self._check_processor()
        self.model.to(self.device, torch.float32).eval()
        config = self.model.config
        self.grounded = config.model_type in GROUNDED
        text = getattr(config, "text_config", None)
        limits = getattr(config, "max_text_len", None), getattr(text, "max_position_embeddings", None)
        self.max_tokens = min((limit for limit in limits if limit), default=10**9)  # of a caption, or of each phrase
        self.seconds = 0.0

    def _check_processor(self) -> None:
        """Raise ValueError where the processor makes of a picture and a phrase what is no input of the model."""
        check_words(self.processor.tokenizer)
        picture = Image.fromarray(np.full((64, 64, 3), 127, np.uint8))
        inputs = self.processor(images=picture, text="cat.", return_tensors="pt")
        if not inputs["pixel_values"].isfinite().all():
            raise ValueError("the processor makes pixels that are not finite; see image_mean and image_std")
        rows = getattr(getattr(self.model.config, "text_config", None), "vocab_size", None)
        if rows is not None and int(inputs["input_ids"].max()) >= rows:
            raise ValueError(f"the tokenizer has tokens beyond the {rows} of the model: it is of another model")

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, in hex."""
        return weights_hash(self.model, self.model.config.model_type)

    def detect(self, image: np.ndarray, phrases: Sequence[str]) -> list[Detection]:
        """Detect `phrases` in an image, uint8 [H, W, 3] in RGB, best scores first; boxes lie on the image.

        Phrases that do not fit into one caption are split into several. Nothing is suppressed, see `suppress`. Raises
        ValueError as `captions` does, and `ToolError` where the model fails.
        """
        began = time.perf_counter()
        found: list[Detection] = []
        picture, parts = Image.fromarray(image), list(self.captions(phrases))
        try:
            with torch.inference_mode():
                for caption in parts:
                    found += (self._grounded if self.grounded else self._scored)(picture, caption)
        except ToolError:
            raise
        except Exception as error:  # a library that a family needs and is not installed, for one
            raise ToolError(f"{self.spec}: detection failed: {type(error).__name__}: {error}") from error
        self.seconds += time.perf_counter() - began
        return sorted(found, key=lambda one: -(one.score or 0.0))

    def captions(self, phrases: Sequence[str]) -> Iterator[list[str]]:
        """Split the phrases, in order, into captions that the model reads at once; ValueError where one is too long."""
        tokenizer = self.processor.tokenizer
        caption: list[str] = []
        used = 2  # the tokens around a caption
        for phrase in phrases:
            needed = len(tokenizer(_words(phrase), add_special_tokens=False)["input_ids"]) + self.grounded
            if needed + 2 > self.max_tokens:
                raise ValueError(
                    f"phrase {phrase[:60]!r} takes {needed} tokens, and {self.spec} reads {self.max_tokens - 2}; "
                    "make it shorter"
                )
            if self.grounded and used + needed > self.max_tokens:
                yield caption
                caption, used = [], 2
            caption.append(phrase)
            used += needed
        if caption:
            yield caption

    def _grounded(self, picture: Image.Image, phrases: list[str]) -> list[Detection]:
        """Detections of a model that scores the tokens of a caption `a cat. a dog.`"""
        words = [_words(phrase) for phrase in phrases]
        caption = ". ".join(words) + "."
        offsets = self.processor.tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
        spans, start = [], 0
        for text in words:
            end = start + len(text)
            spans.append([i for i, (first, last) in enumerate(offsets) if start <= first < last <= end])
            start = end + 2
        inputs = self.processor(images=picture, text=caption, return_tensors="pt").to(self.device)
        output = self.model(**inputs)
        tokens = output.logits[0].sigmoid().float().cpu().numpy()  # [queries, tokens]
        means = np.stack([tokens[:, span].mean(axis=1) for span in spans], axis=1)  # [queries, phrases]
        peaks = np.stack([tokens[:, span].max(axis=1) for span in spans], axis=1)
        best = means.argmax(axis=1)
        every = np.arange(len(best))
        scores = peaks[every, best]
        kept = np.flatnonzero((scores > self.box_threshold) & (means[every, best] > self.text_threshold))
        middle, size = output.pred_boxes[0].float().cpu().numpy().reshape(-1, 2, 2).swapaxes(0, 1)
        corners = np.concatenate((middle - size / 2, middle + size / 2), axis=1) * (picture.size * 2)
        return self._detections(corners[kept], scores[kept], [phrases[i] for i in best[kept]], picture)

    def _scored(self, picture: Image.Image, phrases: list[str]) -> list[Detection]:
        """Detections of a model that scores phrases."""
        words = [[_words(phrase) for phrase in phrases]]
        inputs = self.processor(images=picture, text=words, return_tensors="pt").to(self.device)
        found = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.box_threshold, target_sizes=[picture.size[::-1]], text_labels=[phrases]
        )[0]
        corners, scores = (found[name].cpu().numpy() for name in ("boxes", "scores"))
        return self._detections(corners, scores, found["text_labels"], picture)

    def _detections(
        self, corners: np.ndarray, scores: np.ndarray, phrases: Sequence[str], picture: Image.Image
    ) -> list[Detection]:
        """Clip boxes [N, 4] to the image, and drop those that lie outside or are thinner than a pixel."""
        if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
            raise ToolError(f"{self.spec}: the detector gave values that are not finite; are its weights whole?")
        clipped = [clip(Box(*map(float, box)), *picture.size) for box in corners]
        found = zip(phrases, clipped, scores, strict=True)
        return [Detection(phrase, box, float(score)) for phrase, box, score in found if box is not None]


def clip(box: Box, width: int, height: int) -> Box | None:
    """The part of a box that lies on the image; None where that is thinner than a pixel."""
    x0, x1 = min(max(box.x0, 0.0), width), min(max(box.x1, 0.0), width)
    y0, y1 = min(max(box.y0, 0.0), height), min(max(box.y1, 0.0), height)
    return Box(x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


def suppress(found: Sequence[Detection], iou: float) -> list[Detection]:
    """Detections without those whose box overlaps a better one of the same phrase by more than `iou`; 1 keeps all."""
    if not found:
        return []
    names = {phrase: i for i, phrase in enumerate(dict.fromkeys(one.phrase for one in found))}
    boxes = [(one.box.x0, one.box.y0, one.box.x1 - one.box.x0, one.box.y1 - one.box.y0) for one in found]
    scores = [one.score or 0.0 for one in found]
    kept = cv2.dnn.NMSBoxesBatched(boxes, scores, [names[one.phrase] for one in found], -1.0, iou)
    return [found[i] for i in sorted(np.asarray(kept).ravel().tolist())]


def _words(phrase: str) -> str:
    """Normalise a phrase for detectors: in lower case, without the signs that separate phrases."""
    words = " ".join(re.sub(r"[.?]", " ", phrase.lower()).split())
    if not words:
        raise ValueError(f"phrase {phrase!r} has no word; expected what to look for, such as 'a red cup'")
    return words
