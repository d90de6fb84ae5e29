"""GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) through OpenCV: a tool that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segenv.tools.base import Encoding, SegTool
from segenv.tools.cache import EncodingCache
from segenv.types import Prediction, Prompt

SAMPLES = 10  # fewer pixels of one class than this cannot fit its colour model


class GrabCutTool(SegTool):
    """Every click so far is a small disc of certain object or background; the rest follows from colour and edges.

    Works on the image scaled to at most `size` px on its longest side. What is probably object at the start of a cut is the
    current mask, or without one the box, or without one the neighbourhood (`reach` times the diagonal) of the positive clicks.
    Outside a box all is background. No logits and no score. The same input gives the same mask: OpenCV's random numbers, which
    start its colour models, are seeded before each cut.
    """

    def __init__(
        self,
        size: int = 320,
        iterations: int = 3,
        seed_radius: float = 0.01,
        reach: float = 0.2,
        cache: EncodingCache | None = None,
    ) -> None:
        super().__init__(cache)
        self.size, self.iterations, self.seed_radius, self.reach = size, iterations, seed_radius, reach
        self.spec = self.fingerprint = (
            f"grabcut:size={size},iterations={iterations},seed_radius={seed_radius},reach={reach}"
        )

    def _encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        return [{"image": self._scaled(image), "size": np.array(image.shape[:2])} for image in images]

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale = self.size / max(height, width)
        if scale >= 1:
            return image
        return cv2.resize(
            image, (max(round(width * scale), 1), max(round(height * scale), 1)), interpolation=cv2.INTER_AREA
        )

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        return [self._answer(encoding, prompt) for encoding, prompt in zip(encodings, prompts)]

    def _answer(self, encoding: Encoding, prompt: Prompt) -> Prediction:
        image = np.ascontiguousarray(encoding["image"])
        height, width = encoding["size"].tolist()
        labels = self._labels(image.shape[0] / height, image.shape[1] / width, image.shape[:2], prompt)
        samples = np.bincount(labels.ravel() & 1, minlength=2)  # odd labels are (certain or probable) object
        if samples.min() >= SAMPLES:
            cv2.setRNGSeed(0)
            models = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(image, labels, None, *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        mask = labels & 1
        if image.shape[:2] != (height, width):
            mask = cv2.resize(mask * 255, (width, height), interpolation=cv2.INTER_LINEAR) > 127
        return Prediction(mask.astype(bool))

    def _labels(self, sy: float, sx: float, shape: tuple[int, ...], prompt: Prompt) -> np.ndarray:
        """GrabCut's start, uint8 [h, w]: GC_BGD, GC_FGD, GC_PR_BGD or GC_PR_FGD for each pixel of the scaled image."""
        labels = np.full(shape, cv2.GC_PR_BGD, np.uint8)
        diagonal = float(np.hypot(*shape))
        places = [
            (
                (min(int((click.x + 0.5) * sx), shape[1] - 1), min(int((click.y + 0.5) * sy), shape[0] - 1)),
                click.positive,
            )
            for click in prompt.clicks
        ]
        known = prompt.mask is not None and prompt.mask.any()
        if prompt.box is not None:
            x0, x1 = (round(x * sx) for x in (prompt.box.x0, prompt.box.x1))
            y0, y1 = (round(y * sy) for y in (prompt.box.y0, prompt.box.y1))
            inside = labels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].copy()
            labels[:] = cv2.GC_BGD
            labels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = inside if known else cv2.GC_PR_FGD
        if known:
            mask = cv2.resize(prompt.mask.view(np.uint8) * 255, shape[::-1], interpolation=cv2.INTER_AREA) > 127
            labels[mask & (labels == cv2.GC_PR_BGD)] = cv2.GC_PR_FGD
        elif prompt.box is None:
            for place, positive in places:
                if positive:
                    cv2.circle(labels, place, max(round(self.reach * diagonal), 1), cv2.GC_PR_FGD, -1)
        for place, positive in places:
            cv2.circle(labels, place, round(self.seed_radius * diagonal), cv2.GC_FGD if positive else cv2.GC_BGD, -1)
        return labels
