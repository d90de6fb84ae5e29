"""Frames: what the numbers of a codec mean.

The pixel with index x of W is written as the middle (x + ½)/W, rounded to the frame's grid (halves down), and v is read
as pixel ⌊v·W⌋, at most W - 1. Both are done in whole numbers and fractions: a click comes back as the same click while
the grid is not coarser than the pixels, and at most one grid step away otherwise. Box corners are continuous and come
back within one grid step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, sqrt
from typing import Protocol

from segenv.codec.values import Number
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


def padded_square(width: int, height: int) -> tuple[Fraction, Fraction]:
    """The extent of the image in fractions of the square that it is padded to, equally on both sides."""
    side = max(width, height)
    return Fraction(width, side), Fraction(height, side)


def claude_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which Claude sees an image: a longest side of at most 1,568 pixels. A client that sends
    images at a size of its own puts that in the place of this one."""
    longest = max(width, height)
    if longest <= 1568:
        return width, height
    return max(1, round(width * 1568 / longest)), max(1, round(height * 1568 / longest))


def sent_size(width: int, height: int) -> tuple[int, int]:
    """The size of an image that is sent as it is, until the client says another."""
    return width, height


Extent = int | Fraction | tuple[Fraction, Fraction] | Callable[[int, int], tuple[int, int] | tuple[Fraction, Fraction]]

Axis = tuple[int, Fraction, Fraction]
Line = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """Meaning of numbers: they run from `start` to `start` + `extent` across the image, with `decimals` digits, x first
    (`xy`) or y first (`yx`). A tuple is x and y. Where `extent` is a function of the image's width and height, numbers
    are pixels of that size, unless it says otherwise; `start` may be one too. Without a `start`, `padded_square` begins
    where the padding ends."""

    extent: Extent
    order: str = "xy"
    decimals: int = 0
    start: tuple[Fraction, Fraction] | Callable[[int, int], tuple[Fraction, Fraction]] | None = None

    @property
    def pixels(self) -> bool:
        """Whether the numbers are pixels."""
        return callable(self.extent) and self.extent is not padded_square and getattr(self.extent, "pixels", True)

    @property
    def resized(self) -> bool:
        """Whether the numbers are pixels of a resized image, whose size follows from the model that sees it."""
        return self.extent in (qwen_size, claude_size, sent_size)

    def extents(self, scene: Scene) -> tuple[Fraction, Fraction]:
        """How far numbers run across and down the image."""
        if callable(self.extent):
            across, down = self.extent(scene.width, scene.height)
        else:
            across, down = self.extent if isinstance(self.extent, tuple) else (self.extent, self.extent)
        return Fraction(across), Fraction(down)

    def starts(self, scene: Scene) -> tuple[Fraction, Fraction]:
        """The numbers of the left and the upper edge of the image."""
        if callable(self.start):
            return self.start(scene.width, scene.height)
        if self.start is not None:
            return self.start
        if self.extent is padded_square:
            side = max(scene.width, scene.height)  # an odd row of padding lies right or below
            return Fraction((side - scene.width) // 2, side), Fraction((side - scene.height) // 2, side)
        return Fraction(0), Fraction(0)

    def ordered(self, values: Sequence) -> list:
        """x, y, x, y … as this frame orders them, and back again."""
        if self.order == "xy":
            return list(values)
        return [value for i in range(0, len(values), 2) for value in (values[i + 1], values[i])]

    def _axes(self, scene: Scene) -> list[Axis]:
        """Size in pixels, extent and start, of the x axis and the y axis."""
        return self._axes_and_lines(scene)[0]

    def _axes_and_lines(self, scene: Scene) -> tuple[list[Axis], list[Line]]:
        """`_axes`, and for each the line on which the numbers of its pixels lie."""
        size = scene.width, scene.height
        found = self._known.get(size)
        if found is None:
            if len(self._known) >= 64:
                self._known.clear()
            axes = list(zip(size, self.extents(scene), self.starts(scene), strict=True))
            found = self._known[size] = axes, [_line(*axis, 10**self.decimals) for axis in axes]
        return found

    @cached_property
    def _known(self) -> dict[tuple[int, int], tuple[list[Axis], list[Line]]]:
        """Axes and lines of the latest sizes of images."""
        return {}

    def write_point(self, click: Click, scene: Scene) -> list[str]:
        """The two numbers of a click's pixel."""
        (a, b, c), (d, e, f) = self._axes_and_lines(scene)[1]
        return self.ordered([self.text(-((a * click.x + b) // c)), self.text(-((d * click.y + e) // f))])  # rounded up

    def write_box(self, box: Box, scene: Scene) -> list[str]:
        """The four numbers of a box, at least one grid step wide and high."""
        sides = []
        for low, high, (size, extent, start) in zip((box.x0, box.y0), (box.x1, box.y1), self._axes(scene), strict=True):
            ends = [(Fraction(end) * extent / size + start) * 10**self.decimals for end in (low, high)]
            first, last = (floor(end + Fraction(1, 2)) for end in ends)
            sides.append((first, last) if first < last else (floor(ends[0]), ceil(ends[1])))
        (x0, x1), (y0, y1) = sides
        return self.ordered([self.text(step) for step in (x0, y0, x1, y1)])

    def text(self, step: int) -> str:
        """A number of so many steps of the grid."""
        sign, step = "-" if step < 0 else "", abs(step)
        if not self.decimals:
            return f"{sign}{step}"
        return f"{sign}{step // 10**self.decimals}.{step % 10**self.decimals:0{self.decimals}}"

    def read(self, numbers: Sequence[Number], scene: Scene) -> list[Fraction]:
        """The numbers x, y, x, y … in pixels of the image; axes that a reply names count as named, and percents as
        parts of the image. Raises ValueError for numbers that are none, lie outside the frame, or are pixels of a frame
        that has none. A point in pixels of the image itself is an index, which ends before the extent; all else may lie
        on it."""
        point, pixels = len(numbers) == 2, []
        for i, number in enumerate(_by_name(numbers) or self.ordered(numbers)):
            size, extent, start = self._axes(scene)[i % 2]
            if number.unit == "px" and not self.pixels:
                raise ValueError("is in pixels; expected numbers over " + self.range(scene, point))
            value = _number(number.text)
            if value is None:
                raise ValueError(f"holds {number.text[:12]}, which is no number")
            part = value / 100 if number.unit == "%" else (value - start) / extent
            step = Fraction(1, 10**self.decimals) / extent if max(start.denominator, extent.denominator) > 1 else 0
            if step and -step < part < 1 + step:  # the edge of the image lies between two steps of the grid
                part = min(max(part, Fraction(0)), Fraction(1))
            inside = 0 <= part <= 1 and not (part == 1 and point and self.extent is image_size)
            if not inside:
                raise ValueError("lies outside " + self.range(scene, point))
            pixels.append(part * size)
        return pixels

    def range(self, scene: Scene, point: bool) -> str:
        """The numbers allowed, in words: `0..1000`, or `0..639, 0..479` where the sides differ."""
        ranges = []
        for _, extent, start in self._axes(scene):
            last = start + extent - (1 if point and self.extent is image_size else 0)
            ranges.append(f"{_shown(start)}..{_shown(last)}")
        ranges = self.ordered(ranges)
        return ranges[0] if not callable(self.extent) and ranges[0] == ranges[1] else ", ".join(ranges)

    def names(self, point: bool) -> list[str]:
        """Names of the numbers for a prompt."""
        if point:
            return ["x", "y"] if self.order == "xy" else ["row", "column"]
        return self.ordered(["x0", "y0", "x1", "y1"])


def _line(size: int, extent: Fraction, start: Fraction, unit: int) -> Line:
    """a, b, c, so that pixel i has the number -(a · i + b) / c: ((i + 1/2) / size · extent + start) · unit - 1/2."""
    below = 2 * size * extent.denominator * start.denominator
    slope = 2 * unit * extent.numerator * start.denominator
    return -slope, below // 2 - slope // 2 - 2 * unit * size * extent.denominator * start.numerator, below


def _shown(value: Fraction) -> str:
    return f"{float(value):.4g}" if value.denominator > 1 else str(value)


_LOWS = ({"x", "x0", "xmin", "left", "col", "column"}, {"y", "y0", "ymin", "top", "row"})
_HIGHS = ({"x2", "xmax", "right"}, {"y2", "ymax", "bottom"})


def _by_name(numbers: Sequence[Number]) -> list[Number] | None:
    """Numbers as x, y, x, y … by the names of their axes; None where not all have one. Raises ValueError for names that
    do not belong together."""
    if not all(number.name for number in numbers):
        return None
    named = {number.name.replace("_", ""): number for number in numbers}
    places = [_LOWS[0], _LOWS[1], _HIGHS[0], _HIGHS[1]][: len(numbers)]
    first = bool(named.keys() & {"x2", "y2"})  # x1 is the first of x1 and x2, and the second of x0 and x1
    for axis, name in enumerate(("x1", "y1")):
        if name in named and len(numbers) == 4:
            places[axis if first else axis + 2] = places[axis if first else axis + 2] | {name}
    found = [[number for name, number in named.items() if name in place] for place in places]
    if len(named) != len(numbers) or any(len(one) != 1 for one in found):
        raise ValueError(f"names its axes {', '.join(number.name for number in numbers)}; expected each of them once")
    return [one for (one,) in found]


def _number(text: str) -> Fraction | None:
    """Value of a number, exact to 30 decimals; far beyond any frame, 10¹². None for one that is no finite number."""
    mantissa, _, exponent = text.replace(",", "").lstrip("+-").partition("e")
    if not mantissa[:1].isdigit() and mantissa[:1] != ".":
        return None
    whole, _, decimals = mantissa.partition(".")
    whole, shift = whole.lstrip("0") or "0", int(exponent or 0)
    if len(whole) > 12 or shift > 12:
        value = Fraction(10**12)
    else:
        value = Fraction(f"{whole}.{decimals[:30] or 0}") * Fraction(10) ** max(shift, -30)
    return -value if text.startswith("-") else value
