"""Scenes as values, and a canvas on which the flat ones (charts, interfaces) are drawn with exact masks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_AREA = 60  # visible pixels below which nothing is asked for
Colour = Sequence[float] | np.ndarray  # RGB, 0..255
_FINER = 4  # shapes are drawn so much larger, and averaged


@dataclass(frozen=True)
class SceneObject:
    """One object: its words, its visible area in pixels and the centre (x, y) of its visible part, in pixels."""

    colour: str
    shape: str
    area: int
    centre: tuple[float, float]


@dataclass(frozen=True)
class Thing(SceneObject):
    """A part of a chart or an interface, and all sentences that are true of it alone."""

    label: str = ""  # the text or symbol on it, beside it or in the legend
    state: str = ""
    value: float = 0.0  # that its size or position shows, in parts of the axis
    place: int = 0  # among its like, from the left or the top
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    """`image` uint8 [H, W, 3]; `instances` uint8 [H, W], where k + 1 is `objects[k]` and 0 is background or clutter."""

    image: np.ndarray
    instances: np.ndarray
    objects: tuple[SceneObject, ...]
    difficulty: str
    clutter: tuple[SceneObject, ...] = ()  # small things that nobody asks for, but that words can be true of


Candidates = Callable[[Thing, Sequence[Thing]], Iterable[tuple[str, Callable[[Thing], bool]]]]


class Drawing:
    """A flat picture in the making: `canvas` float32 [H, W, 3] in 0..255, and `instances` uint8 [H, W].

    Every method lays a colour on the canvas, anti-aliased; in its coordinates pixel i covers [i, i + 1). Pixels that it
    covers by more than half become those of thing `number`; of the background where that is 0; and stay whose they are
    where it is None, as a label's do.
    """

    def __init__(self, size: tuple[int, int], colour: Colour) -> None:
        self.canvas = np.empty((*size, 3), np.float32)
        self.canvas[:] = np.asarray(colour, np.float32)
        self.instances = np.zeros(size, np.uint8)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.instances.shape[0], self.instances.shape[1]

    def fill(self, ring: Any, colour: Colour, number: int | None = None) -> None:
        """Fill a polygon, [N, 2] of x and y."""
        self._lay(*self._covered(ring, None), colour, number)

    def line(self, points: Any, colour: Colour, width: int, number: int | None = None) -> None:
        """Draw a line `width` pixels thick through points, [N, 2] of x and y."""
        self._lay(*self._covered(points, width), colour, number)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, number: int | None = None, radius: float = 0
    ) -> None:
        """Fill a rectangle whose corners are rounded by `radius` pixels."""
        radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
        if radius < 1:
            return self.fill([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, number)
        right, low, left, high = x1 - radius, y1 - radius, x0 + radius, y0 + radius
        corners = ((right, high), (right, low), (left, low), (left, high))
        arcs = (round_arc(corner, radius, k / 4 - 0.25, k / 4) for k, corner in enumerate(corners))
        return self.fill([point for arc in arcs for point in arc], colour, number)

    def disc(self, x: float, y: float, radius: float, colour: Colour, number: int | None = None) -> None:
        """Fill a disc."""
        self.fill(round_arc((x, y), radius, 0, 1), colour, number)

    def text(self, text: str, x: float, y: float, height: int, colour: Colour, align: float = 0.0) -> None:
        """Write a line of text with capitals of `height` pixels, centred at `y`; `x` is its left side, or its middle
        (align .5) or right side (align 1)."""
        letters = _letters(text, height)
        h, w = letters.shape
        top, left = round(y - h / 2), round(x - align * w)
        y0, x0, y1, x1 = max(0, top), max(0, left), min(self.size[0], top + h), min(self.size[1], left + w)
        if y1 > y0 and x1 > x0:
            self._lay(letters[y0 - top : y1 - top, x0 - left : x1 - left], (y0, x0), colour, None)

    def _covered(self, points: Any, width: int | None) -> tuple[np.ndarray, tuple[int, int]]:
        """Coverage uint8 [h, w] of a polygon, or of a line of a width, and the row and column of its corner."""
        points, limits = np.asarray(points, np.float64), np.array(self.size[::-1])
        reach = 1 + (width or 0)
        low = np.clip(np.floor(points.min(0)) - reach, 0, limits - 1).astype(int)
        high = np.clip(np.ceil(points.max(0)) + reach, low + 1, limits).astype(int)
        large = np.zeros(_FINER * (high - low)[::-1], np.uint8)
        fixed = np.round(((points - low) * _FINER - 0.5) * 16).astype(np.int32)  # 4 bits of sub-pixel position
        if width is None:
            cv2.fillPoly(large, [fixed], 255, shift=4)
        else:
            cv2.polylines(large, [fixed], False, 255, width * _FINER, shift=4)
        size = int(high[0] - low[0]), int(high[1] - low[1])
        return cv2.resize(large, size, interpolation=cv2.INTER_AREA), (int(low[1]), int(low[0]))

    def _lay(self, alpha: np.ndarray, corner: tuple[int, int], colour: Colour, number: int | None) -> None:
        part = np.s_[corner[0] : corner[0] + alpha.shape[0], corner[1] : corner[1] + alpha.shape[1]]
        cover = (alpha.astype(np.float32) / 255)[..., None]
        self.canvas[part] += cover * (np.asarray(colour, np.float32) - self.canvas[part])
        if number is not None:
            self.instances[part][alpha > 127] = number

    def scene(self, things: Sequence[Thing], name: str, candidates: Candidates, rng: np.random.Generator) -> Scene:
        """The picture as a scene of the class `name`. Thing k + 1 gets its visible area and centre, and those of its
        `candidates` (sentence, and whether that fits a thing or might be taken to) that fit it and nothing else."""
        seen = []
        for number, thing in enumerate(things, 1):
            rows, columns = np.nonzero(self.instances == number)
            centre = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5) if len(rows) else thing.centre
            seen.append(replace(thing, area=len(rows), centre=centre))
        named = []
        for thing in seen:
            found = [text for text, fits in candidates(thing, seen) if fits(thing) and sum(map(fits, seen)) == 1]
            named.append(replace(thing, sentences=tuple(dict.fromkeys(found)) if thing.area >= MIN_AREA else ()))
        return Scene(_screenshot(self.canvas, rng), self.instances, tuple(named), name)


def text_width(text: str, height: int) -> float:
    """About the width in pixels of a text with capitals of `height` pixels, equal with every version of the font."""
    return 0.8 * height * len(text)


def round_arc(centre: tuple[float, float], radius: float, start: float, end: float) -> list[tuple[float, float]]:
    """Points of an arc from `start` to `end`, in turns clockwise on the screen from the right."""
    angles = 2 * np.pi * np.linspace(start, end, max(4, round(128 * abs(end - start))))
    return [(centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)) for angle in angles]


def _letters(text: str, height: int) -> np.ndarray:
    """Coverage uint8 [h, w] of a line of text with capitals of `height` pixels, in the middle of h."""
    font = ImageFont.load_default(height / 0.7)
    image = Image.new("L", (int(font.getlength(text)) + 2, 2 * height))
    ImageDraw.Draw(image).text((1, 1.5 * height), text, 255, font, anchor="ls")
    return np.asarray(image)


def _screenshot(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture as it is passed on: a little noise, often JPEG; float [H, W, 3] in 0..255 to uint8."""
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0, 2))
    image = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))])
        decoded: Any = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        image = np.ascontiguousarray(decoded[..., ::-1])
    return image
