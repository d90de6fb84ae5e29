"""The finish of a learned tool: one GrabCut near the image's resolution, led by the tool's logits and by the clicks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segenv.metrics import distances
from segenv.tools.grabcut import cut, enlarge, labels_of, places_of
from segenv.types import Click


@dataclass(frozen=True)
class Finish:
    """GrabCut between what a tool is sure of (`refine=grabcut`), on the image scaled to at most `size` px.

    A pixel is certain where its probability lies beyond `certain` or 1 - `certain` and it is farther from the edge of
    the tool's mask than `depth` times the radius of a disc of that mask's area, and than `band`. Clicks lead the cut as
    in `segenv.tools.grabcut.labels_of`, with `seed` and `reach`. `band`, `seed` and `reach` are in image diagonals.
    Each clicked pixel has its click's sign.

    A mask that has settled (from click number `settled` on) changes only around the last click: within `spread` times
    that click's depth in what it corrects. To a mask that was given, the last click only adds, or from it only takes
    away, as its sign says, within `given` times its depth. The constants were chosen on VGG_iseg.
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

    def mask(
        self, image: np.ndarray, logits: np.ndarray, clicks: Sequence[Click], shape: tuple[int, int]
    ) -> np.ndarray:
        """The finished mask, bool [height, width] of `shape`, from the scaled image, uint8 [h, w, 3], and the tool's
        logits on it, float32 [h, w]."""
        places, start = places_of(clicks, shape, logits.shape), (logits > 0).view(np.uint8)
        limit = max(self.band * math.hypot(*logits.shape), self.depth * math.sqrt(float(start.sum()) / math.pi))
        sure = math.log(self.certain / (1 - self.certain))
        certain = np.zeros(logits.shape, np.int8)
        certain[(logits > sure) & (distances(start) > limit)] = 1
        certain[(logits < -sure) & (distances(1 - start) > limit)] = -1
        labels = labels_of(start, places, self.reach, self.seed, certain)
        return enlarge(cut(image, labels, start, places, self.iterations), shape)

    def edited(self, before: np.ndarray, after: np.ndarray, clicks: Sequence[Click], given: bool) -> np.ndarray:
        """The mask `after` [H, W], or the mask `before` with what changes in `after` around the last click, where that
        mask was given or has settled."""
        if not given and len(clicks) < self.settled:
            return after
        click = clicks[-1]
        wrong = before == (not click.positive)
        depth = cv2.distanceTransform(wrong.view(np.uint8), cv2.DIST_L2, 5)[click.y, click.x]
        rows, columns = np.ogrid[: before.shape[0], : before.shape[1]]
        reach = (self.given if given else self.spread) * float(depth)
        near = (rows - click.y) ** 2 + (columns - click.x) ** 2 <= reach**2
        if given:
            near &= wrong & (after == click.positive)
        return np.where(near, after, before)
