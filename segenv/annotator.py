"""The simulated annotator (the clicker of RITM, Sofiiuk et al. 2021; F_sim in SegAgent) and its human-like variants.

    FN = target ∧ ¬prediction        FP = ¬target ∧ prediction        (ignored pixels are in neither)

The next click falls on the pixel that lies deepest inside the error: depth is the exact Euclidean distance to the
nearest pixel outside that error, counting what lies beyond the image as outside, and 0 on pixels already clicked. It is
positive when the deepest false negative is deeper than the deepest false positive; a tie is negative. Among equals the
first in row-major order is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from segenv import specs
from segenv.metrics import distances, errors
from segenv.ranges import Count, NotNegative, Share, require
from segenv.types import Click

Clicked = Iterable["Click | tuple[int, int]"]  # earlier clicks, or their (x, y)
Annotator = Callable[[np.ndarray, np.ndarray, Clicked, np.random.Generator], "Click | None"]


def next_click(target: np.ndarray, prediction: np.ndarray, clicked: Clicked = ()) -> Click | None:
    """The published clicker's next click, or None where no error pixel is left to click.

    `target` is uint8 or bool [H, W] as in `segenv.types`; `prediction` is bool (or 0/non-zero) [H, W]; `clicked` are
    earlier clicks or their (x, y). (The published code clicks the corner (0, 0) on a perfect mask; here there is no
    such click.)
    """
    pixels = _pixels(clicked)
    missing, extra = (_Depth.of(error, pixels) for error in errors(target, prediction))
    # The exact depth takes most of the time: ask where the error is deeper roughly, and elsewhere only if that can win.
    if missing.bound > extra.bound:
        positive = missing.deepest()
        negative = extra.deepest() if extra.bound**2 >= positive[0] else (0, 0, 0)
    else:
        negative = extra.deepest()
        positive = missing.deepest() if missing.bound**2 > negative[0] else (0, 0, 0)
    squared, x, y = max(negative, positive, key=lambda found: found[0])
    return Click(x, y, positive[0] > negative[0]) if squared else None


def _pixels(clicked: Clicked) -> list[tuple[int, int]]:
    """(x, y) of each click."""
    return [(click.x, click.y) if isinstance(click, Click) else (click[0], click[1]) for click in clicked]


@dataclass(frozen=True, eq=False)
class _Depth:
    """How deep the pixels of an error lie. Everything is cut to the error's bounding box with a rim of one pixel, as no
    pixel beyond the rim is nearer than the rim.

    `error` is uint8 [h, w] with its first pixel at column `x` and row `y` of the image (-1 on the rim), `rough` float32
    [h, w] the depth within 2 % by a 5×5 chamfer mask, and `bound` a depth that no pixel exceeds. Clicked pixels have
    depth 0.
    """

    x: int
    y: int
    error: np.ndarray
    rough: np.ndarray
    bound: float
    clicked: Sequence[tuple[int, int]]  # (x, y) in `error`

    @classmethod
    def of(cls, error: np.ndarray, clicked: Sequence[tuple[int, int]]) -> _Depth:
        x, y, width, height = cv2.boundingRect(error.view(np.uint8))
        cut = error[y : y + height, x : x + width].view(np.uint8)
        if not cut.size:
            return cls(0, 0, cut, np.zeros(cut.shape, np.float32), 0.0, ())
        padded = cv2.copyMakeBorder(cut, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        x, y = x - 1, y - 1
        inside = [(i - x, j - y) for i, j in clicked if 0 <= i - x < width + 2 and 0 <= j - y < height + 2]
        rough = _forget(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5), inside)
        return cls(x, y, padded, rough, float(rough.max()) * 1.03, inside)

    def exact(self) -> np.ndarray:
        """The Euclidean depth, float32 [h, w]."""
        if not self.error.size:
            return self.rough
        return _forget(distances(self.error), self.clicked)

    def deepest(self) -> tuple[int, int, int]:
        """Squared depth, x and y of the deepest pixel, the first in row-major order among equals; zeros where there is
        none.

        The exact depth is computed only around the pixels that the rough one leaves as candidates, and squared depths
        are the whole numbers that they should be only at these, as `metrics.distances` does everywhere.
        """
        if not self.bound:
            return 0, 0, 0
        candidates = (self.rough >= self.bound * 0.92 - 0.1) & (self.rough > 0)
        x, y, width, height = cv2.boundingRect(candidates.view(np.uint8))
        margin = int(self.bound) + 2  # what is farther than this is no candidate's nearest pixel
        x0, y0 = max(0, x - margin), max(0, y - margin)
        near = self.error[y0 : y + height + margin, x0 : x + width + margin]
        depth = cv2.distanceTransform(near, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[y - y0 :, x - x0 :][:height, :width]
        rows, columns = np.nonzero(candidates[y : y + height, x : x + width])
        squared = np.rint(depth[rows, columns].astype(np.float64) ** 2)
        first = int(squared.argmax())  # of the first maximum; nonzero lists pixels in row-major order
        return int(squared[first]), self.x + x + int(columns[first]), self.y + y + int(rows[first])


def _forget(depth: np.ndarray, clicked: Sequence[tuple[int, int]]) -> np.ndarray:
    """`depth` with 0 at the clicked (x, y)."""
    for x, y in clicked:
        depth[y, x] = 0.0
    return depth


def _candidates(
    target: np.ndarray, prediction: np.ndarray, clicked: Clicked
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every error pixel that was not clicked: columns, rows, depths and whether it is a false negative, [N] each."""
    pixels, parts = _pixels(clicked), []
    for error, positive in zip(errors(target, prediction), (True, False), strict=True):
        region = _Depth.of(error, pixels)
        depth = region.exact()
        rows, columns = np.nonzero(depth)
        parts.append((columns + region.x, rows + region.y, depth[rows, columns], np.full(len(rows), positive)))
    xs, ys, depths, signs = (np.concatenate(both) for both in zip(*parts, strict=True))
    return xs, ys, depths, signs


def _published(target: np.ndarray, prediction: np.ndarray, clicked: Clicked, rng: np.random.Generator) -> Click | None:
    return next_click(target, prediction, clicked)


def _sampled(
    target: np.ndarray,
    prediction: np.ndarray,
    clicked: Clicked,
    rng: np.random.Generator,
    weigh: Callable[[np.ndarray], np.ndarray],
    k: int = 1,
    deepest: bool = True,
) -> Click | None:
    """Click the deepest (or the shallowest) of `k` error pixels, sampled with the weights `weigh(depths)`."""
    xs, ys, depths, signs = _candidates(target, prediction, clicked)
    if not len(xs):
        return None
    total = np.cumsum(weigh(depths), dtype=np.float64)
    sampled = np.minimum(np.searchsorted(total, rng.random(k) * total[-1], side="right"), len(xs) - 1)
    i = int(sampled[(depths[sampled].argmax() if deepest else depths[sampled].argmin())])
    return Click(int(xs[i]), int(ys[i]), bool(signs[i]))


def _depths(depths: np.ndarray) -> np.ndarray:
    return depths


def _middle(depths: np.ndarray) -> np.ndarray:
    return depths > depths.max() / 2


def _jittered(
    target: np.ndarray, prediction: np.ndarray, clicked: Clicked, rng: np.random.Generator, sigma: float
) -> Click | None:
    click, noise = next_click(target, prediction, clicked), rng.normal(0.0, sigma, 2)
    if click is None:
        return None
    height, width = target.shape
    x, y = round(click.x + noise[0]), round(click.y + noise[1])
    return replace(click, x=min(max(x, 0), width - 1), y=min(max(y, 0), height - 1))


def _jitter(sigma: float = 5.0) -> Annotator:
    """Move the published click by Gaussian noise of `sigma` pixels, within the image; keep its sign."""
    require(NotNegative, sigma=sigma)
    return partial(_jittered, sigma=sigma)


def _flipped(
    target: np.ndarray, prediction: np.ndarray, clicked: Clicked, rng: np.random.Generator, p: float
) -> Click | None:
    click, flipped = next_click(target, prediction, clicked), bool(rng.random() < p)
    return None if click is None else replace(click, positive=click.positive != flipped)


def _flip(p: float = 0.1) -> Annotator:
    """The published click with the wrong sign, with a chance of `p`."""
    require(Share, p=p)
    return partial(_flipped, p=p)


def _best_of(k: int = 3) -> Annotator:
    return _of_k(k, deepest=True)


def _worst_of(k: int = 3) -> Annotator:
    return _of_k(k, deepest=False)


def _of_k(k: int, deepest: bool) -> Annotator:
    require(Count, k=k)
    return partial(_sampled, weigh=_depths, k=k, deepest=deepest)


def _on_grid(
    target: np.ndarray, prediction: np.ndarray, clicked: Clicked, rng: np.random.Generator, cells: int
) -> Click | None:
    (height, width), middles, pixels = target.shape, np.arange(cells) * 2 + 1, _pixels(clicked)
    spots = np.ix_(middles * height // (2 * cells), middles * width // (2 * cells))
    missing, extra = (_forget(distances(np.pad(error, 1))[1:-1, 1:-1], pixels) for error in errors(target, prediction))
    depths = np.stack([missing[spots], extra[spots]])
    sign, row, column = np.unravel_index(int(depths.argmax()), depths.shape)
    if not depths[sign, row, column]:
        return None
    return Click(int(spots[1][0, column]), int(spots[0][row, 0]), bool(sign == 0))


def _grid(cells: int = 8) -> Annotator:
    """Click the middle of that cell of a grid of `cells` a side that lies deepest in an error, as agents do whose
    actions are the cells of `segenv/HLMATGrid-v0`. None where no middle lies in an error."""
    require(Count, cells=cells)
    return partial(_on_grid, cells=cells)


def _always(annotator: Annotator) -> Callable[[], Annotator]:
    """A variant without options."""
    return lambda: annotator


VARIANTS: dict[str, Callable[..., Annotator]] = {  # their annotators cross to other processes: no closures
    "ritm": _always(_published),
    # an error pixel with a chance proportional to its depth: the cheapest realistic human (RClicks, NeurIPS 2024)
    "depth": _always(partial(_sampled, weigh=_depths)),
    "middle": _always(partial(_sampled, weigh=_middle)),  # as in RITM's training
    "uniform": _always(partial(_sampled, weigh=np.ones_like)),  # any error pixel, as in SAM 2's training
    "jitter": _jitter,
    "flip": _flip,
    # of k clicks sampled as by `depth` the deepest or the shallowest: the careful and the careless human
    "best-of": _best_of,
    "worst-of": _worst_of,
    "grid": _grid,
}


def make(variant: str) -> Annotator:
    """The annotator of a spec such as `ritm`, `depth`, `jitter:sigma=3` or `best-of:k=5`: a function of (target,
    prediction, clicked, rng) that gives a `Click`, or None where no error pixel is left to click. A variant that uses
    no chance leaves `rng` alone."""
    name, _ = specs.name_of("annotator", variant, VARIANTS)
    options = specs.options_of("annotator", variant, specs.defaults_of(VARIANTS[name]))
    try:
        return VARIANTS[name](**options)
    except ValueError as error:
        raise ValueError(f"annotator {variant!r}: {error}") from error
