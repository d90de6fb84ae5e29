"""Which frame a model's numbers are in, from numbers that it wrote for targets at known places.

A frame maps a place of the image to numbers: each axis has a scale and an offset in one of a few units, and the two
numbers have an order. Published frames have no offset and a known scale; they come first, and a free fit is proposed
only where none of them explains the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from segenv.codec.file import UNITS, Unit

SCALES = (1.0, 100.0, 840.0, 1000.0, 1024.0)  # numbers of the right edge, where they are parts of the image
FREE: tuple[Unit, ...] = ("image", "pixels", "padded")  # units in which scales and offsets are fitted
CAPS = (768.0, 1024.0, 1344.0, 1568.0, 2048.0, 2576.0)  # long edges to which hosts are known to shrink images
KEPT = 0.8  # the part of the replies that a frame must explain; the others may be slips of the model
FITS = 0.03  # the largest error of a frame that fits, in parts of the image
APART = 0.03  # frames whose readings differ by more than this are different ones
BETTER = 1.5  # a frame is ahead of another whose error is this many times as large


@dataclass(frozen=True)
class Probes:
    """Replies to N targets: the two `numbers` of each, float [N, 2] as written, the middle of its target in pixels
    (x, y), float [N, 2], and the width and height of its image and of what was sent, float [N, 2]."""

    numbers: np.ndarray
    targets: np.ndarray
    sizes: np.ndarray
    sent: np.ndarray


@dataclass(frozen=True)
class FittedFrame:
    """Numbers `scale`·place + `offset` for x and y, written in `order`, and the `error` of their readings: the root
    mean square over the replies that are kept, in parts of the image.

    The place is a part of the image (`image`), a pixel of it (`pixels`) or of what was sent (`sent`), a part of the
    square that padding makes of it, around (`padded`) or right and below (`cornered`), or a pixel of the image shrunk
    until its long edge is `cap` (`long-edge`).
    """

    unit: Unit
    order: Literal["xy", "yx"]
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)
    cap: float | None = None
    free: bool = False  # fitted, instead of published
    error: float = float("inf")

    @property
    def fitted(self) -> int:
        """How many of its numbers were fitted."""
        return 4 if self.free else int(self.unit == "long-edge")

    def gauge(self, sizes: np.ndarray, sent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factor and shift that take pixels of the images to places, float [N, 2] each."""
        longest = sizes.max(1, keepdims=True)
        nothing = np.zeros_like(sizes)
        match self.unit:
            case "pixels":
                return nothing + 1, nothing
            case "sent":
                return sent / sizes, nothing
            case "padded":
                return nothing + 1 / longest, (longest - sizes) / 2 / longest
            case "cornered":
                return nothing + 1 / longest, nothing
            case "long-edge":
                return nothing + np.minimum(1, (self.cap or np.inf) / longest), nothing
        return 1 / sizes, nothing

    def read(self, numbers: np.ndarray, sizes: np.ndarray, sent: np.ndarray) -> np.ndarray:
        """Pixels (x, y) of numbers as written, float [N, 2]."""
        factor, shift = self.gauge(sizes, sent)
        ordered = numbers if self.order == "xy" else numbers[:, ::-1]
        return ((ordered - self.offset) / self.scale - shift) / factor

    def write(self, pixels: np.ndarray, sizes: np.ndarray, sent: np.ndarray) -> np.ndarray:
        """Numbers of pixels (x, y), as written, float [N, 2]."""
        factor, shift = self.gauge(sizes, sent)
        numbers = (pixels * factor + shift) * self.scale + self.offset
        return numbers if self.order == "xy" else numbers[:, ::-1]

    def errors(self, probes: Probes) -> np.ndarray:
        """Distance of each reading from its target, in parts of the image, float [N]."""
        found = self.read(probes.numbers, probes.sizes, probes.sent)
        return np.linalg.norm((found - probes.targets) / probes.sizes, axis=1) / np.sqrt(2)

    def measured(self, probes: Probes) -> "FittedFrame":
        """This frame with its error on the probes."""
        return replace(self, error=_kept_error(self.errors(probes)))


def fit(probes: Probes) -> list[FittedFrame]:
    """Frames in the order of their errors: published ones, and a free fit of scale and offset in each unit."""
    frames = [frame.measured(probes) for frame in published(probes)]
    for order in ("xy", "yx"):
        for unit in FREE:
            if (frame := _free(probes, unit, order)) is not None:
                frames.append(frame.measured(probes))
    return sorted(frames, key=lambda frame: frame.error)


def published(probes: Probes) -> list[FittedFrame]:
    """Frames that model families use, in both orders; the cap of a shrunk image is estimated from the numbers."""
    frames: list[FittedFrame] = []
    for order in ("xy", "yx"):
        frames += [FittedFrame("image", order, (scale, scale)) for scale in SCALES]
        frames += [FittedFrame(unit, order, (s, s)) for unit in ("padded", "cornered") for s in (1.0, 1000.0)]
        frames += [FittedFrame("pixels", order, (1.0, 1.0)), FittedFrame("sent", order, (1.0, 1.0))]
        if (cap := _cap(probes, order)) is not None:
            frames.append(FittedFrame("long-edge", order, (1.0, 1.0), cap=cap))
    return frames


def choose(probes: Probes) -> tuple[FittedFrame | None, list[FittedFrame], str]:
    """The frame that the numbers are in, all of those tried, and why; None where no frame, or more than one, fits.

    Of frames with about the same error those with the fewest fitted numbers are taken, and frames that agree
    about the corners of the images count as one.
    """
    frames = fit(probes)
    fitting = [frame for frame in frames if frame.error <= FITS]
    if not fitting:
        return None, frames, f"no frame explains the numbers: the best is {frames[0].error:.1%} of the image off"
    near = [frame for frame in fitting if frame.error <= BETTER * max(fitting[0].error, 0.002)]
    fewest = min(frame.fitted for frame in near)
    known = [frame for frame in near if frame.fitted == fewest]
    best = known[0]
    others = [frame for frame in known[1:] if difference(best, frame, probes) > APART]
    if others:
        told = " and ".join(f"{describe(frame)} ({frame.error:.1%} off)" for frame in (best, others[0]))
        return None, frames, f"two frames explain the numbers: {told}; show more images, of other shapes and sizes"
    return best, frames, f"{describe(best)} is {best.error:.1%} of the image off"


def difference(one: FittedFrame, other: FittedFrame, probes: Probes) -> float:
    """The largest distance at which one frame reads what the other writes for places near the images' corners, in
    parts of the image."""
    far = 0.0
    for corner in ((0.1, 0.1), (0.1, 0.9), (0.9, 0.1), (0.9, 0.9)):
        places = probes.sizes * corner
        found = other.read(one.write(places, probes.sizes, probes.sent), probes.sizes, probes.sent)
        far = max(far, float((np.abs(found - places) / probes.sizes).max()))
    return far


def describe(frame: FittedFrame) -> str:
    """A frame in words."""
    numbers = "" if frame.scale == (1.0, 1.0) else f" times {_pair(frame.scale)}"
    shifted = f" plus {_pair(frame.offset)}" if any(frame.offset) else ""
    unit = UNITS[frame.unit].replace("`cap`", f"{frame.cap or 0:.0f}")
    return f"{unit}{numbers}{shifted}, {', '.join(frame.order)}"


def _pair(values: Sequence[float]) -> str:
    x, y = (f"{value:.4g}" for value in values)
    return x if x == y else f"({x}, {y})"


def _kept_error(errors: np.ndarray) -> float:
    """Root mean square of the smallest errors, as many as must be explained."""
    kept = np.sort(errors)[: max(1, round(KEPT * len(errors)))]
    return float(np.sqrt((kept**2).mean()))


def _free(probes: Probes, unit: Unit, order: Literal["xy", "yx"]) -> FittedFrame | None:
    """Scale and offset of each axis by least squares, fitted again without the replies that are farthest off; None
    where the numbers do not follow the places."""
    frame = FittedFrame(unit, order, (1.0, 1.0), free=True)
    factor, shift = frame.gauge(probes.sizes, probes.sent)
    places = probes.targets * factor + shift
    numbers = probes.numbers if order == "xy" else probes.numbers[:, ::-1]
    kept = np.ones(len(numbers), bool)
    for _ in range(3):
        scale, offset = [], []
        for axis in (0, 1):
            x, y = places[kept, axis], numbers[kept, axis]
            slope = np.cov(x, y, bias=True)[0, 1] / max(float(x.var()), 1e-12)
            scale.append(float(slope))
            offset.append(float(y.mean() - slope * x.mean()))
        if min(scale) <= 1e-9:
            return None
        frame = replace(frame, scale=(scale[0], scale[1]), offset=(offset[0], offset[1]))
        errors = frame.errors(probes)
        kept = errors <= np.sort(errors)[max(1, round(KEPT * len(errors))) - 1]
    return frame


def _cap(probes: Probes, order: Literal["xy", "yx"]) -> float | None:
    """The long edge to which the largest images were shrunk, from the ratio of their numbers to their pixels, a known
    one where it is near; None where none were, or numbers are no pixels at all."""
    longest = probes.sizes.max(1)
    large = longest == longest.max()
    numbers = (probes.numbers if order == "xy" else probes.numbers[:, ::-1])[large]
    ratio = float(np.median(numbers / np.maximum(probes.targets[large], 1)))
    if not 0.05 < ratio < 0.98:
        return None
    cap = ratio * float(longest.max())
    near = min(CAPS, key=lambda known: abs(cap - known))
    return near if abs(cap - near) < 0.02 * near else cap
