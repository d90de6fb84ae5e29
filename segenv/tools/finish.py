"""The finish of a learned tool: one GrabCut near the image's resolution, led by the tool's logits and by the clicks."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from segenv.metrics import distances
from segenv.tools.grabcut import Place, cut, enlarge, labels_of, pixels_of, places_of
from segenv.types import Box, Click, Prompt

COARSE = 160  # the longer side of the image on which a window is looked for, in pixels
Window = tuple[slice, slice]  # rows and columns of the scaled image


@dataclass(frozen=True)
class Finish:
    """GrabCut between what a tool is sure of (`refine=grabcut`), in a window of the image scaled to at most `size` px.

    A pixel is certain where its probability lies beyond `certain` or 1 - `certain` and it is farther from the edge of
    the mask that the cut begins with, the tool's, than `depth` times the radius of a disc of its area, and than `band`.
    Clicks lead the cut as in `segenv.tools.grabcut.labels_of`, with `seed` and `reach`. Each clicked pixel has its
    click's sign. Nothing outside a box stays, unless a positive click lies there; from a box alone, the tool's mask
    stays where the cut loses more than half of it. `band`, `seed`, `reach`, `margin`, `least` are in image diagonals.

    The window holds what may be object, and `margin` around it: beyond it all is certain background. It is scaled to at
    most `pixels` of them, so that a small object is cut at a finer scale. With a box or a given mask it is the whole
    image.

    A mask that has settled (from click number `settled` on) changes only around the last click: within `spread` times
    that click's depth in what it corrects. From click number `local` on the cut begins with that mask, in the square
    of 1.5 times that distance around the click, and of `least` at least, with a seed no wider than that depth.

    To a mask that was given, the last click only adds, or from it only takes away, as its sign says, within `given`
    times its depth; its seed and its reach are at most `near` times that depth. The constants were chosen on VGG_iseg,
    `given` and `near` on synthetic:train.
    """

    size: int = 320
    pixels: int = 19_200
    iterations: int = 1
    certain: float = 0.85
    band: float = 0.02
    depth: float = 0.4
    seed: float = 0.03
    reach: float = 0.1
    margin: float = 0.05
    spread: float = 5.0
    settled: int = 3
    local: int = 5
    least: float = 0.2
    given: float = 2.0
    near: float = 0.5

    def mask(self, image: np.ndarray, logits: np.ndarray, prompt: Prompt, shape: tuple[int, int]) -> np.ndarray:
        """The finished mask, bool [height, width] of `shape`, from the scaled image, uint8 [h, w, 3], the tool's logits
        on it, float32 [h, w], and the prompt that they answer."""
        before, clicks, given = prompt.mask, prompt.clicks, prompt.logits is None
        if before is None or not clicks or not before.any() or not (given or len(clicks) >= self.settled):
            mask = self._cut(image, logits, prompt, shape, self._window(logits, prompt, shape))
        else:
            click, start, seed, reach = clicks[-1], None, math.inf, math.inf
            wrong = before == (not click.positive)
            depth = float(cv2.distanceTransform(wrong.view(np.uint8), cv2.DIST_L2, 5)[click.y, click.x])
            far, share = (self.given if given else self.spread) * depth, depth / math.hypot(*shape)
            if given:
                window, seed, reach = _whole(logits), self.near * share, self.near * share
            elif prompt.box is None and len(clicks) >= self.local:
                window, seed, start = self._around(click, 1.5 * far, shape, logits.shape), share, before
            else:
                window = self._window(logits, prompt, shape)
            after = self._cut(image, logits, prompt, shape, window, seed, reach, start)
            rows, columns = np.ogrid[: shape[0], : shape[1]]
            changes = (rows - click.y) ** 2 + (columns - click.x) ** 2 <= far**2
            if given:
                changes &= wrong & (after == click.positive)
            mask = np.where(changes, after, before)
        for click in clicks:
            mask[click.y, click.x] = click.positive
        return mask

    def _window(self, logits: np.ndarray, prompt: Prompt, shape: tuple[int, int]) -> Window:
        """The window of all that may be object, and of the clicks; with a box the whole image."""
        if prompt.box is not None:
            return _whole(logits)
        step = -(-max(logits.shape) // COARSE)
        coarse = logits[::step, ::step]
        may_be = self._certain(coarse, coarse > 0, float((coarse > 0).sum()), math.hypot(*coarse.shape)) >= 0
        for (x, y), _ in places_of(prompt.clicks, shape, coarse.shape):
            may_be[y, x] = True
        x, y, width, height = cv2.boundingRect(may_be.view(np.uint8))
        margin = self.margin * math.hypot(*coarse.shape)
        x0, y0 = max(int(x - margin), 0) * step, max(int(y - margin), 0) * step
        x1, y1 = math.ceil(x + width + margin) * step, math.ceil(y + height + margin) * step
        return slice(y0, min(y1, logits.shape[0])), slice(x0, min(x1, logits.shape[1]))

    def _around(self, click: Click, far: float, shape: tuple[int, int], scaled: tuple[int, int]) -> Window:
        """The window of what lies within `far` pixels of a click, on the image of `shape`, in the scaled image."""
        half = max(far, self.least * math.hypot(*shape))
        [((x, y), _)] = places_of([click], shape, scaled)

        def side(at: int, old: int, new: int) -> slice:
            return slice(max(int(at - half * new / old), 0), min(math.ceil(at + half * new / old + 1), new))

        return side(y, shape[0], scaled[0]), side(x, shape[1], scaled[1])

    def _certain(self, logits: np.ndarray, start: np.ndarray, area: float, diagonal: float) -> np.ndarray:
        """int8 of the logits' shape: 1 certain object, -1 certain background, 0 neither; the cut begins with the mask
        `start` (bool), and the tool's has `area` pixels in the whole image, whose diagonal is given."""
        limit = max(self.band * diagonal, self.depth * math.sqrt(area / math.pi))
        sure = math.log(self.certain / (1 - self.certain))
        certain = np.zeros(logits.shape, np.int8)
        certain[(logits > sure) & (distances(start) > limit)] = 1
        certain[(logits < -sure) & (distances(~start) > limit)] = -1
        return certain

    def _cut(
        self,
        image: np.ndarray,
        logits: np.ndarray,
        prompt: Prompt,
        shape: tuple[int, int],
        window: Window,
        seed: float = math.inf,
        reach: float = math.inf,
        start: np.ndarray | None = None,
    ) -> np.ndarray:
        """The cut of a window, bool [height, width] of `shape`, with seeds and a reach no larger than these; it begins
        with the mask `start` (bool of `shape`), by default with the tool's."""
        box, clicks, scaled = prompt.box, prompt.clicks, logits.shape
        if box is not None and any(click.positive and not _holds(box, click) for click in clicks):
            box = None
        area, found = float((logits > 0).sum()), np.zeros(scaled, np.uint8)
        height, width = found[window].shape
        scale = min(1.0, math.sqrt(self.pixels / (height * width)))
        small = (max(round(height * scale), 1), max(round(width * scale), 1))
        logits = _scaled(logits[window], small, cv2.INTER_LINEAR)
        begin = logits > 0
        if start is not None:
            share = cv2.resize(start.astype(np.float32), scaled[::-1], interpolation=cv2.INTER_AREA).reshape(scaled)
            begin = _scaled(share[window], small, cv2.INTER_AREA) >= 0.5
        outside = None if box is None else _outside(box, shape, small)
        if outside is not None:
            begin[outside] = False
        diagonal = math.hypot(*scaled) * scale
        certain = self._certain(logits, begin, area * scale**2, diagonal)
        if outside is not None:
            certain[outside] = -1
        places = _inside(places_of(clicks, shape, scaled), window, small)
        reach = diagonal * min(self.reach, reach) / math.sqrt(max(len(clicks), 1))
        labels = labels_of(begin, places, reach, diagonal * min(self.seed, seed), certain)
        piece = cut(_scaled(image[window], small, cv2.INTER_AREA), labels, begin, places, self.iterations)
        if box is not None and not clicks and 2 * (piece & begin).sum() < begin.sum():
            piece = begin.view(np.uint8)
        found[window] = enlarge(piece, (height, width))
        mask = enlarge(found, shape)
        if box is not None:
            mask[_outside(box, shape, shape)] = False
        return mask


def _scaled(array: np.ndarray, shape: tuple[int, int], interpolation: int) -> np.ndarray:
    """The array [h, w, …] scaled to `shape`."""
    if array.shape[:2] == shape:
        return np.ascontiguousarray(array)
    return cv2.resize(array, shape[::-1], interpolation=interpolation).reshape(*shape, *array.shape[2:])


def _whole(logits: np.ndarray) -> Window:
    """The window of the whole image."""
    return slice(0, logits.shape[0]), slice(0, logits.shape[1])


def _inside(places: list[Place], window: Window, shape: tuple[int, int]) -> list[Place]:
    """The places in the window, on its scaled image of `shape`."""
    rows, columns = window
    clicks = [
        Click(x - columns.start, y - rows.start, positive)
        for (x, y), positive in places
        if rows.start <= y < rows.stop and columns.start <= x < columns.stop
    ]
    return places_of(clicks, (rows.stop - rows.start, columns.stop - columns.start), shape)


def _holds(box: Box, click: Click) -> bool:
    """Whether the centre of a click's pixel lies in the box."""
    return box.x0 <= click.x + 0.5 <= box.x1 and box.y0 <= click.y + 0.5 <= box.y1


def _outside(box: Box, shape: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    """bool [h, w] of shape `small`: the pixels of the scaled image that have no part in the box on that of `shape`."""
    outside = np.ones(small, bool)
    outside[pixels_of(box, small[0] / shape[0], small[1] / shape[1])] = False
    return outside
