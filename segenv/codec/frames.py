"""Frames: what the numbers of a codec mean.

The pixel with index x of W is written as the middle (x + ½)/W, rounded to the frame's grid (halves down), and v is read
as pixel ⌊v·W⌋, at most W - 1. Both are done in whole numbers and fractions: a click comes back as the same click while
the grid is not coarser than the pixels, and at most one grid step away otherwise. Box corners are continuous and come
back within one grid step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, sqrt
from typing import Protocol

from segenv.types import Box, Click


class Scene(Protocol):
    """A size and an instruction: a `Task` or an `Observation`, whose `error` goes into the prompt."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def instruction(self) -> str: ...


def image_size(width: int, height: int) -> tuple[int, int]:
    """The extent of numbers that are pixels of the original image."""
    return width, height


def qwen_size(width: int, height: int) -> tuple[int, int]:
    """Width and height to which Qwen2.5-VL's processor resizes an image where nobody has changed its limits: multiples
    of 28, with 3,136 to 12,845,056 pixels in all. An agent puts the size that it measures in the place of this one."""
    w, h = round(width / 28) * 28, round(height / 28) * 28
    if w * h > 12_845_056:
        shrink = sqrt(width * height / 12_845_056)
        return max(28, floor(width / shrink / 28) * 28), max(28, floor(height / shrink / 28) * 28)
    if w * h < 3_136:
        grow = sqrt(3_136 / (width * height))
        return ceil(width * grow / 28) * 28, ceil(height * grow / 28) * 28
    return w, h


@dataclass(frozen=True)
class Frame:
    """Meaning of numbers: they run from 0 to `extent` across the image, with `decimals` digits, x first (`xy`) or y
    first (`yx`). Where `extent` is a function of the image's width and height, numbers are pixels of that size."""

    extent: int | Callable[[int, int], tuple[int, int]]
    order: str = "xy"
    decimals: int = 0

    @property
    def resized(self) -> bool:
        """Whether the numbers are pixels of a resized image, whose size follows from the model that sees it."""
        return callable(self.extent) and self.extent is not image_size

    def extents(self, scene: Scene) -> tuple[int, int]:
        """Numbers of the right and the lower edge of the image."""
        if callable(self.extent):
            return self.extent(scene.width, scene.height)
        return self.extent, self.extent

    def ordered(self, values: Sequence) -> list:
        """x, y, x, y … as this frame orders them, and back again."""
        if self.order == "xy":
            return list(values)
        return [value for i in range(0, len(values), 2) for value in (values[i + 1], values[i])]

    def write_point(self, click: Click, scene: Scene) -> list[str]:
        """The two numbers of a click's pixel."""
        steps = []
        for i, size, extent in zip((click.x, click.y), (scene.width, scene.height), self.extents(scene), strict=True):
            grid = extent * 10**self.decimals
            steps.append(-((size - (2 * i + 1) * grid) // (2 * size)))  # ⌈(i + ½)·grid/size - ½⌉
        return self.ordered([self._text(step) for step in steps])

    def write_box(self, box: Box, scene: Scene) -> list[str]:
        """The four numbers of a box, at least one grid step wide and high."""
        sides = []
        for low, high, size, extent in zip(
            (box.x0, box.y0), (box.x1, box.y1), (scene.width, scene.height), self.extents(scene), strict=True
        ):
            ends = [Fraction(end) * extent * 10**self.decimals / size for end in (low, high)]
            first, last = (floor(end + Fraction(1, 2)) for end in ends)
            sides.append((first, last) if first < last else (floor(ends[0]), ceil(ends[1])))
        (x0, x1), (y0, y1) = sides
        return self.ordered([self._text(step) for step in (x0, y0, x1, y1)])

    def _text(self, step: int) -> str:
        return (
            f"{step // 10**self.decimals}.{step % 10**self.decimals:0{self.decimals}}" if self.decimals else str(step)
        )

    def read(self, texts: Sequence[str], scene: Scene) -> list[Fraction] | None:
        """The numbers x, y, x, y … in pixels of the image, or None where one lies outside the frame. A point in
        pixels of the image itself is an index, which ends before the extent; all else may lie on it."""
        pixels: list[Fraction] = []
        for i, text in enumerate(self.ordered(texts)):
            value, extent = _number(text), self.extents(scene)[i % 2]
            if value < 0 or value > extent or (value == extent and self.extent is image_size and len(texts) == 2):
                return None
            pixels.append(value * (scene.width, scene.height)[i % 2] / extent)
        return pixels

    def range(self, scene: Scene, point: bool) -> str:
        """The numbers allowed, in words: `0..1000`, or `0..639, 0..479` where the sides differ."""
        lasts = [extent - 1 if point and self.extent is image_size else extent for extent in self.extents(scene)]
        ranges = [f"0..{last}" for last in self.ordered(lasts)]
        return ranges[0] if not callable(self.extent) else ", ".join(ranges)

    def names(self, point: bool) -> list[str]:
        """Names of the numbers for a prompt."""
        if point:
            return ["x", "y"] if self.order == "xy" else ["row", "column"]
        return self.ordered(["x0", "y0", "x1", "y1"])


def _number(text: str) -> Fraction:
    """Value of [-]digits[.digits], exact to 30 decimals; more than 12 digits before the point are 10¹²."""
    whole, _, decimals = text.lstrip("-").partition(".")
    whole = whole.lstrip("0") or "0"
    value = Fraction(f"{whole}.{decimals[:30] or 0}") if len(whole) <= 12 else Fraction(10**12)
    return -value if text.startswith("-") else value
