"""An analytic tool: its masks can be worked out by hand, so tests and goldens need no model."""

import math
from collections.abc import Sequence

import numpy as np

from segenv.ranges import NotNegative, require
from segenv.tools.base import SegTool
from segenv.tools.cache import Encoding, EncodingCache
from segenv.types import Box, Click, Prediction, Prompt


class DiscTool(SegTool):
    """A click paints (or erases, if negative) the disc of pixels within `radius` px of it: dx² + dy² <= radius².

    A box fills the pixels whose centres it holds, below all clicks. The start is `Prompt.mask`, or an empty mask. There
    are no logits and no score.
    """

    predicts_iou = False

    def __init__(self, radius: int = 24, cache: EncodingCache | None = None) -> None:
        super().__init__(cache)
        require(NotNegative, radius=radius)
        self.radius = radius
        self.spec = self.fingerprint = "disc" if radius == 24 else f"disc:radius={radius}"
        reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
        self._disc = reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2  # [2r+1, 2r+1] bool

    def _encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        return [{"size": np.array(image.shape[:2])} for image in images]

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        sizes = [encoding["size"].tolist() for encoding in encodings]
        return [self._answer(height, width, prompt) for (height, width), prompt in zip(sizes, prompts, strict=True)]

    def _answer(self, height: int, width: int, prompt: Prompt) -> Prediction:
        mask = np.zeros((height, width), bool) if prompt.mask is None else prompt.mask.copy()
        # The given mask shows all clicks but the last. A box may have been given after them, and lies below them.
        clicks = prompt.clicks if prompt.mask is None or prompt.box is not None else prompt.clicks[-1:]
        if prompt.box is not None:
            _fill(mask, prompt.box)
        for click in clicks:
            self._paint(mask, click)
        return Prediction(mask)

    def _paint(self, mask: np.ndarray, click: Click) -> None:
        height, width = mask.shape
        reach = len(self._disc) // 2
        top, left = click.y - reach, click.x - reach
        window = mask[max(top, 0) : max(click.y + reach + 1, 0), max(left, 0) : max(click.x + reach + 1, 0)]
        disc = self._disc[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        window[disc] = click.positive


def _fill(mask: np.ndarray, box: Box) -> None:
    """Set the pixels whose centres (i + 0.5) lie in the box."""
    x0, y0, x1, y1 = (max(math.ceil(corner - 0.5), 0) for corner in (box.x0, box.y0, box.x1, box.y1))
    mask[y0:y1, x0:x1] = True
