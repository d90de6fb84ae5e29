"""The finish of a learned tool: one GrabCut near the image's resolution, led by the tool's logits and by the clicks."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from segenv.metrics import distances
from segenv.tools.grabcut import cut, enlarge, labels_of, pixels_of, places_of
from segenv.types import Box, Click, Prompt


@dataclass(frozen=True)
class Finish:
    """GrabCut between what a tool is sure of (`refine=grabcut`), on the image scaled to at most `size` px.

    A pixel is certain where its probability lies beyond `certain` or 1 - `certain` and it is farther from the edge of
    the tool's mask than `depth` times the radius of a disc of that mask's area, and than `band`. Clicks lead the cut as
    in `segenv.tools.grabcut.labels_of`, with `seed` and `reach`. `band`, `seed` and `reach` are in image diagonals.
    Each clicked pixel has its click's sign. Nothing outside a box stays, unless a positive click lies there; from a box
    alone, the tool's mask stays where the cut loses more than half of it.

    A mask that has settled (from click number `settled` on) changes only around the last click: within `spread` times
    that click's depth in what it corrects. To a mask that was given, the last click only adds, or from it only takes
    away, as its sign says, within `given` times its depth; its seed and its reach are at most `near` times that depth.
    The constants were chosen on VGG_iseg, `given` and `near` on synthetic:train.
    """

    size: int = 160
    iterations: int = 1
    certain: float = 0.8
    band: float = 0.02
    depth: float = 0.5
    seed: float = 0.03
    reach: float = 0.1
    spread: float = 4.0
    settled: int = 3
    given: float = 2.0
    near: float = 0.5

    def mask(self, image: np.ndarray, logits: np.ndarray, prompt: Prompt, shape: tuple[int, int]) -> np.ndarray:
        """The finished mask, bool [height, width] of `shape`, from the scaled image, uint8 [h, w, 3], the tool's logits
        on it, float32 [h, w], and the prompt that they answer."""
        before, clicks, given = prompt.mask, prompt.clicks, prompt.logits is None
        if before is None or not clicks or not before.any() or not (given or len(clicks) >= self.settled):
            mask = self._cut(image, logits, prompt, shape, self.reach, self.seed)
        else:
            click = clicks[-1]
            wrong = before == (not click.positive)
            depth = float(cv2.distanceTransform(wrong.view(np.uint8), cv2.DIST_L2, 5)[click.y, click.x])
            most = self.near * depth / math.hypot(*shape) if given else math.inf
            after = self._cut(image, logits, prompt, shape, min(self.reach, most), min(self.seed, most))
            rows, columns = np.ogrid[: shape[0], : shape[1]]
            reach = (self.given if given else self.spread) * depth
            changes = (rows - click.y) ** 2 + (columns - click.x) ** 2 <= reach**2
            if given:
                changes &= wrong & (after == click.positive)
            mask = np.where(changes, after, before)
        for click in clicks:
            mask[click.y, click.x] = click.positive
        return mask

    def _cut(
        self, image: np.ndarray, logits: np.ndarray, prompt: Prompt, shape: tuple[int, int], reach: float, seed: float
    ) -> np.ndarray:
        """The cut of the whole image, bool [height, width] of `shape`."""
        clicks, box = prompt.clicks, prompt.box
        places, start = places_of(clicks, shape, logits.shape), (logits > 0).view(np.uint8)
        if box is not None and any(click.positive and not _holds(box, click) for click in clicks):
            box = None
        outside = None if box is None else _outside(box, shape, logits.shape)
        if outside is not None:
            start[outside] = 0
        limit = max(self.band * math.hypot(*logits.shape), self.depth * math.sqrt(float(start.sum()) / math.pi))
        sure = math.log(self.certain / (1 - self.certain))
        certain = np.zeros(logits.shape, np.int8)
        certain[(logits > sure) & (distances(start) > limit)] = 1
        certain[(logits < -sure) & (distances(1 - start) > limit)] = -1
        if outside is not None:
            certain[outside] = -1
        found = cut(image, labels_of(start, places, reach, seed, certain), start, places, self.iterations)
        if box is not None and not clicks and 2 * (found & start).sum() < start.sum():
            found = start
        mask = enlarge(found, shape)
        if box is not None:
            mask[_outside(box, shape, shape)] = False
        return mask


def _holds(box: Box, click: Click) -> bool:
    """Whether the centre of a click's pixel lies in the box."""
    return box.x0 <= click.x + 0.5 <= box.x1 and box.y0 <= click.y + 0.5 <= box.y1


def _outside(box: Box, shape: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    """bool [h, w] of shape `small`: the pixels of the scaled image that have no part in the box on that of `shape`."""
    outside = np.ones(small, bool)
    outside[pixels_of(box, small[0] / shape[0], small[1] / shape[1])] = False
    return outside
