"""Polygon codecs: a whole mask in one reply, as lists of vertices.

`simpleseg` is the published grammar of SimpleSeg: `[[[x, y], …], …]`, a list of polygons, with numbers from 0 to 1 and
three decimals; `rings` is ours: the same nested lists of whole numbers from 000 to 999, without blanks, after a line
`Vertices: n` that plans the length. In both, a point alone is `[x, y]`, a box `[x0, y0, x1, y1]`, and nothing `[]`.

| dialect | what it draws | how a reply is filled |
|---|---|---|
| `simpleseg` | the outermost contours, through pixel middles | each polygon by itself |
| `simpleseg:contour=edges` | the outermost contours, along pixel edges | each polygon by itself |
| `rings` | all parts and holes, along pixel edges | even-odd: a ring in a ring is a hole |

**The published contours** are OpenCV's external ones, of pixel *indices* divided by width and height, in its order
(counterclockwise on the screen; clockwise in the paper's frame, where y points up) and simplified by 0.001 of their
length. COCO's rule fills them as continuous coordinates, and so loses half a pixel all around; this caps the IoU of
small objects, and is kept so that released checkpoints are read as they were trained. Contours that have less than
three vertices then are left out. The other two dialects give a mask back.

**Reading.** The last list of polygons in a reply counts; without one, the last point, box or `[]`. A list that breaks
off gives its complete vertices, marked `truncated`; so does a list with fewer vertices than it planned. A single
polygon without the outer brackets is read as a list of one. A vertex outside the frame makes a reply invalid. Any text
is read in time linear in its length.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import cv2
import numpy as np

from segenv.codec import reading
from segenv.codec.base import Codec, _clip
from segenv.codec.frames import Frame, Scene
from segenv.codec.grammars import LISTS
from segenv.codec.reading import Reading
from segenv.codec.values import lowered, numbered, values
from segenv.geometry import canonical, fit, mask_to_polygons, polygons_to_mask, simplify
from segenv.types import Absent, Action, Box, Click, Invalid, Polygons

QUESTION = "Outline exactly this object and nothing else: {}"
FORMS: dict[str, Sequence] = {"point": ["x", "y"], "box": ["x0", "y0", "x1", "y1"], "mask": [[["x", "y"], "…"], "…"]}

# No pattern has repeats of the same characters next to each other, or an end that could fail behind a long repeat.
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]{1,3})?"
_VERTEX = rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]"
_NEXT = r"\s*(?:,\s*|\]\s*(?:,\s*)?\[\s*)"  # between two vertices of one ring, or of two
_MASK = re.compile(rf"\[\s*(?:\[\s*)?{_VERTEX}(?:{_NEXT}{_VERTEX})*|\[\s*\[\s*\[", re.ASCII)
_CLOSED = re.compile(r"\s*(?:,\s*)?\]", re.ASCII)
_BOX = r"\s*,\s*".join(f"(?P<b{i}>{_NUMBER})" for i in range(4))
_FLAT = re.compile(rf"\[\s*(?:(?P<x>{_NUMBER})\s*,\s*(?P<y>{_NUMBER})\s*|{_BOX}\s*)?\]", re.ASCII)
_TUPLES = re.compile(rf"\((\s*{_NUMBER}\s*,\s*{_NUMBER}\s*)\)", re.ASCII)
_PLAN = re.compile(r"vertices\s*:\s*([0-9]{1,9})\b", re.ASCII)
_DENIES = re.compile(r"no|n't|absent")  # what a reply may say that draws nothing
_BLANKS = str.maketrans("[],", "   ")


@dataclass(frozen=True)
class Dialect:
    """Meaning of the numbers, contours that are written (`centres`, `edges` or `rings`, the rows of the table above),
    what stands between numbers, and whether the number of vertices comes first."""

    frame: Frame
    contour: str
    comma: str
    planned: bool = False


DIALECTS = {
    "simpleseg": Dialect(Frame(1, decimals=3), "centres", ", "),
    "simpleseg:contour=edges": Dialect(Frame(1, decimals=3), "edges", ", "),
    "rings": Dialect(Frame(999), "rings", ",", planned=True),
}


def make(spec: str) -> PolygonCodec:
    """The polygon codec of a spec in `DIALECTS`; `segenv.codec.make` gives it too."""
    if spec not in DIALECTS:
        raise ValueError(f"unknown polygon codec {spec!r}; expected one of {', '.join(DIALECTS)}")
    return PolygonCodec(spec, DIALECTS[spec])


def of_family(codec: Codec, asked: str = "mask") -> PolygonCodec:
    """The codec of masks that counts as a codec of clicks does: all rings of a mask in its frame and order; points and
    boxes by the family's own questions. Raises ValueError where a mask is `asked`, and points and boxes count
    differently."""
    if isinstance(codec, PolygonCodec):
        return codec
    if asked == "mask" and (
        codec.points.order != codec.boxes.order
        or codec.points.start != codec.boxes.start
        or (codec.points.extent != codec.boxes.extent)
    ):
        raise ValueError(
            f"codec {codec.name!r} counts points and boxes differently, and so has no numbers for vertices"
        )
    return PolygonCodec(codec.name, Dialect(codec.points, "rings", ", "), codec)


class PolygonCodec(Codec):
    """A codec of `Polygons`; also of points (a positive `Click`) and boxes, for tasks that ask for those. See the
    module's docstring."""

    def __init__(self, name: str, dialect: Dialect, family: Codec | None = None) -> None:
        points, boxes = (family.points, family.boxes) if family else (dialect.frame, dialect.frame)
        super().__init__(name, points, boxes, LISTS)
        self.dialect = dialect
        self.family = family
        self.union = dialect.contour != "rings"

    def seen_at(self, size: Callable[[int, int], tuple[int, int]]) -> PolygonCodec:
        """The codec of a model that sees images at another size; see `Codec.seen_at`."""
        seen = cast(PolygonCodec, super().seen_at(size))
        seen.dialect = replace(self.dialect, frame=seen.points)
        seen.family = self.family and self.family.seen_at(size)
        return seen

    def prompt(self, task: Scene) -> str:
        """Build the text beside the picture: the object, the format, and what was wrong with the last reply."""
        text = f"{QUESTION.format(task.instruction or 'the main object')}\n\n{self.ask('mask', task)}"
        error = getattr(task, "error", None)
        return f"{text}\nYour last reply was not carried out: {error}" if error else text

    def question(self, asked: str, named: str) -> str:
        """The question for a `point` or a `box` of the object `named`, in the family's own words; "" where it has
        none."""
        own = self.family.grammar.questions.get(asked, "") if self.family else ""
        return own.format(named)

    def ask(self, asked: str, task: Scene) -> str:
        """How a `point`, a `box` or a `mask` must be written, and what its numbers mean; nothing for a `text`."""
        if asked == "text":
            return ""
        if asked not in FORMS:
            raise ValueError(f"asked is {asked!r}; expected one of text, {', '.join(FORMS)}")
        form, rest = f"`{self._list(self._form(FORMS[asked], self._frame(asked)))}`", ""
        if asked == "mask":
            form = f"a list of polygons, {form}"
            if self.dialect.planned:
                form = f"the number of vertices in a line `Vertices: n`, and {form}"
            fill = "Draw each part of the object by itself." if self.union else "A polygon inside another cuts a hole."
            nothing = self._statement(Polygons(()), task).replace("\n", " ")
            rest = f" {fill} If the object is not in the image, answer `{nothing}`."
        return f"Answer with {form}, and nothing else.{rest}\n{self.numbers(task, asked)}"

    def _frame(self, asked: str) -> Frame:
        """The frame of a point, a box or a mask."""
        return {"point": self.points, "box": self.boxes}.get(asked, self.dialect.frame)

    def _form(self, form: Sequence, frame: Frame) -> Sequence:
        """A form with its numbers in the order of the frame."""
        if all(isinstance(one, str) and one != "…" for one in form):
            return frame.ordered(form)
        return [one if isinstance(one, str) else self._form(one, frame) for one in form]

    def numbers(self, task: Scene, asked: str = "mask") -> str:
        """Say in a sentence what the numbers of a point, a box or a mask mean."""
        across = self._frame(asked).range(task, point=False)
        return f"Numbers run over {across}, from the upper left corner of the image to the lower right one."

    def outline(self, mask: np.ndarray, ratio: float = 0.001) -> Polygons:
        """A mask, bool [H, W], as this dialect draws it, simplified by `ratio` of each ring's length (0 for not)."""
        height, width = mask.shape
        if self.dialect.contour == "centres":
            found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            rings = simplify([ring[:, 0] for ring in found], ratio=ratio)
        else:
            rings = mask_to_polygons(mask)
            if self.dialect.contour == "edges":  # each ring by itself fills the holes
                rings = mask_to_polygons(polygons_to_mask(rings, height, width, union=True))
            rings = canonical(simplify(rings, ratio=ratio))
        return Polygons(tuple(np.clip(ring, 0, (width, height)) for ring in rings), self.union)

    def reply(self, mask: np.ndarray, task: Scene, budget: int, length: Callable[[str], int] = len) -> str:
        """The reply that draws a mask in the best outline, in canonical order, whose `length` is within `budget`:
        characters, or tokens where `length` counts those. Raises ValueError where not even a rectangle fits."""
        whole = self.outline(mask, ratio=0).rings
        return self.drawn(fit(whole, lambda rings: length(self.drawn(rings, task)) <= budget, self.union), task)

    def drawn(self, rings: Sequence[np.ndarray], task: Scene) -> str:
        """The reply that draws rings as they are, but for vertices outside the image, which are moved to its edge."""
        clipped = (np.clip(ring, 0, (task.width, task.height)) for ring in rings)
        return self.format(Polygons(tuple(clipped), self.union), task)

    def _statement(self, action: Action, task: Scene) -> str:
        match action:
            case Polygons(rings):
                texts = [self._vertices(ring, task) for ring in rings]
                plan = f"Vertices: {sum(map(len, texts))}\n" if self.dialect.planned else ""
                return plan + self._list(texts)
            case Click(positive=False):
                raise ValueError("a polygon codec has no word for a negative click; expected a positive one")
            case Click() | Box():
                super()._statement(action, task)  # raises where it is not on the image
                if isinstance(action, Click):
                    numbers = self.points.write_point(action, task)
                else:
                    numbers = self.boxes.write_box(action, task)
                return self._list([number.zfill(self._width) for number in numbers])
            case Absent():
                return self._list([])
            case Invalid(text):
                return text
        raise TypeError(f"action is {type(action).__name__}; expected Polygons, Click, Box, Absent or Invalid")

    def _vertices(self, ring: np.ndarray, task: Scene) -> list[list[str]]:
        """The numbers of a ring's vertices, rounded to the frame's grid, without repeats of the vertex before."""
        size = np.array([task.width, task.height])
        outside = ~((ring >= 0) & (ring <= size)).all(axis=1)
        if outside.any():
            x, y = ring[outside][0]
            raise ValueError(f"vertex ({x:g}, {y:g}) lies outside the image of {task.width} x {task.height} pixels")
        frame = self.dialect.frame
        unit = 10**frame.decimals
        start, extent = (np.array(one, np.float64) for one in (frame.starts(task), frame.extents(task)))
        grid = np.floor((ring / size * extent + start) * unit + 0.5).astype(int)
        moved = np.append(True, (grid[1:] != grid[:-1]).any(axis=1))[: len(grid)]
        return [
            [text.zfill(self._width) for text in frame.ordered(list(map(frame.text, vertex)))]
            for vertex in grid[moved].tolist()
        ]

    @property
    def _width(self) -> int:
        """Digits before the point, so that every vertex is as long as the other."""
        extent = self.dialect.frame.extent
        return len(str(extent)) if self.dialect.planned and isinstance(extent, int) else 1

    def _list(self, items: str | Sequence) -> str:
        """Nested lists as text."""
        return items if isinstance(items, str) else f"[{self.dialect.comma.join(map(self._list, items))}]"

    def _read(self, answer: str, task: Scene, asked: str = "") -> Reading:
        if self.family is not None and asked in ("point", "box"):
            return self.family._read(answer, task, asked)
        action = self._parse(answer, task)
        return Reading(action, exact=not isinstance(action, Invalid) and self._is_exact(answer.strip(), action, task))

    def _is_exact(self, answer: str, action: Action, task: Scene) -> bool:
        """Whether an answer is written as asked."""
        found = self._exact.fullmatch(answer)
        if found is None or not isinstance(action, Polygons):
            return found is not None
        return found["plan"] is None or int(found["plan"]) == sum(map(len, action.rings))

    @cached_property
    def _exact(self) -> re.Pattern[str]:
        """The pattern of answers that are written as asked."""
        decimals = self.dialect.frame.decimals
        number = rf"-?[0-9]{{{self._width},9}}" + (rf"\.[0-9]{{{decimals}}}" if decimals else "")
        vertex, comma = rf"\[{number}{self.dialect.comma}{number}\]", self.dialect.comma
        ring = rf"\[{vertex}(?:{comma}{vertex})*\]"
        plan = r"Vertices: (?P<plan>[0-9]{1,9})\n" if self.dialect.planned else "(?P<plan>(?!))?"
        return re.compile(rf"{plan}\[(?:{ring}(?:{comma}{ring})*)?\]|{vertex}|\[{comma.join([number] * 4)}\]", re.ASCII)

    def _parse(self, text: str, task: Scene) -> Action:
        """The mask, point or box that a reply states; `Invalid` with the reason where it states none."""
        lower = lowered(text)
        if "[(" in lower:  # a list of tuples
            lower = _TUPLES.sub(r"[\1]", lower)
        for found in deque(_MASK.finditer(lower), maxlen=1):
            return self._polygons(text, found, task)
        for found in deque(_FLAT.finditer(lower), maxlen=1):
            kind, want = ("box", 4) if found["b0"] else ("point", 2)
            if not found["b0"] and not found["x"]:
                return Polygons((), self.union, self._lacks(text, 0))
            stated = numbered(kind, found.start(), values(lower, found.start(), want), want)
            action = self._action(stated, _clip(found[0]), task)
            return Invalid(text, action.reason) if isinstance(action, Invalid) else action
        if _DENIES.search(lower) and isinstance(super()._read(text, task).action, Absent):
            return Polygons((), self.union)
        return Invalid(text, f"no list in `{_clip(text)}`; expected {self._expected()}")

    def parse(self, text: str, task: Scene) -> Action:
        """The action that a reply states; see `Codec.parse`."""
        _, answer, whole = reading.split(text)
        if not whole:
            return super().parse(text, task)
        action = self._parse(answer, task)
        return Invalid(text, action.reason) if isinstance(action, Invalid) else action

    def planned(self, text: str) -> int | None:
        """The number of vertices that a reply states last (`Vertices: 12`), or None."""
        lower = lowered(text)
        found = _PLAN.match(lower, max(0, lower.rfind("vertices")))
        return int(found[1]) if found else None

    def _lacks(self, text: str, vertices: int) -> bool:
        """Whether a reply has fewer vertices than it planned, in a dialect that plans."""
        return self.dialect.planned and vertices < (self.planned(text) or 0)

    def _polygons(self, text: str, found: re.Match[str], task: Scene) -> Action:
        numbers = found[0].translate(_BLANKS).split()
        if not numbers:
            return Invalid(text, f"`{_clip(text[found.start() :])}` has no whole vertex; expected {self._expected()}")
        frame = self.dialect.frame
        written = np.array(numbers, np.float64).reshape(-1, 2)[:, :: 1 if frame.order == "xy" else -1]
        start, extent = (np.array(one, np.float64) for one in (frame.starts(task), frame.extents(task)))
        outside = ~((written >= start) & (written <= start + extent)).all(axis=1)
        if outside.any():
            first = 2 * int(outside.argmax())
            shown = ", ".join(one if len(one) <= 12 else one[:12] + "…" for one in numbers[first : first + 2])
            return Invalid(text, f"vertex ({shown}) lies outside {self.points.range(task, point=False)}")
        sizes, closed = _structure(found)
        vertices = (written - start) * (task.width, task.height) / extent
        ends = np.cumsum(sizes).tolist()
        rings = tuple(vertices[first:last] for first, last in zip([0, *ends], ends, strict=False))
        return Polygons(rings, self.union, not closed or self._lacks(text, len(vertices)))

    def _expected(self) -> str:
        """Name the answers that would have been understood."""
        return f"`{self._list(self._form(FORMS['mask'], self.dialect.frame))}`"


def _structure(found: re.Match[str]) -> tuple[np.ndarray, bool]:
    """How many vertices each ring has, and whether the last ring and the list are closed."""
    characters = np.frombuffer(found[0].encode("ascii"), np.uint8)
    opens, closes = characters == ord("["), characters == ord("]")
    depth = np.cumsum(opens.astype(np.int32) - closes)
    deepest = int(depth.max())
    ends = depth[closes]  # of a vertex where it falls to deepest - 1, of a ring below
    sizes = np.bincount(np.cumsum(ends < deepest - 1)[ends == deepest - 1])
    place = found.end()
    for _ in range(deepest - 1):
        bracket = _CLOSED.match(found.string, place)
        if bracket is None:
            return sizes, False
        place = bracket.end()
    return sizes, True
