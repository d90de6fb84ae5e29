"""Codecs: how an agent writes actions as text. The same object writes the prompt, parses the reply and formats an
action.

A codec is three declared parts: a `Frame` for points and one for boxes (what the numbers mean), a `Grammar` (how
statements look) and a prompt. A new model family is one line in `CODECS`, with a new grammar where its syntax is new. A
codec belongs to a checkpoint and is named before the run; nothing about it is ever guessed from a reply. This is the
only module that knows normalised numbers.

**Which statement counts.** A reply may hold a line `Current IOU: 74` and any reasoning. Of all statements in it
(points, boxes, Finish, Undo) the last one counts, because reasoning comes before its conclusion. (SegAgent's published
code takes the first match of its pattern.) A point or box is read anywhere; Finish and Undo count only at the end of a
line and at its start, or after a colon, a number or a tag, so that "I will finish soon" is no stop. A last statement
that breaks off, as in `Positive point: (12,`, makes the reply invalid: it never falls back to an earlier one.

**Quantum.** The pixel with index x of W is written as the middle (x + ½)/W, rounded to the frame's grid (halves down),
and v is read as pixel ⌊v·W⌋ at most W - 1. Both are done in whole numbers and fractions: `parse(format(click))` is the
same click while the grid is not coarser than the pixels, and at most one grid step away otherwise. Box corners are
continuous and come back within one grid step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import Protocol

from segenv.types import Action, Box, Click, Invalid, Stop, Undo


class Scene(Protocol):
    """What a codec needs to know: a `Task` or an `Observation`. The `error` of an observation is told in the prompt."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def instruction(self) -> str: ...


# ----------------------------------------------------------------------------------------------------------------
# frames


def image_size(width: int, height: int) -> tuple[int, int]:
    """The extent of numbers that are pixels of the original image."""
    return width, height


def qwen_size(width: int, height: int) -> tuple[int, int]:
    """Width and height to which Qwen2.5-VL's processor resizes an image: multiples of 28, of 3,136 to 12,845,056 pixels
    in all. Whoever sends the image must leave the processor's limits as they are."""
    w, h = max(28, round(width / 28) * 28), max(28, round(height / 28) * 28)
    if w * h > 12_845_056 or w * h < 3_136:
        shrink = (width * height / (12_845_056 if w * h > 12_845_056 else 3_136)) ** 0.5
        snap = floor if shrink > 1 else ceil
        w, h = max(28, snap(width / shrink / 28) * 28), max(28, snap(height / shrink / 28) * 28)
    return w, h


@dataclass(frozen=True)
class Frame:
    """What numbers mean. They run from 0 to `extent` across the image, with `decimals` digits behind the point, x first
    (`xy`) or y first (`yx`). Where `extent` is a function of the image's width and height, numbers are pixels of that
    size."""

    extent: int | Callable[[int, int], tuple[int, int]]
    order: str = "xy"
    decimals: int = 0

    def extents(self, scene: Scene) -> tuple[int, int]:
        """What the right and the lower edge of the image are in this frame."""
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
        """The numbers x, y, x, y … in pixels of the image, or None where one lies outside the frame. A point in a frame
        of pixels is an index, which ends before the extent; all else may lie on it."""
        pixels: list[Fraction] = []
        for i, text in enumerate(self.ordered(texts)):
            value, extent = _number(text), self.extents(scene)[i % 2]
            if value < 0 or value > extent or (value == extent and callable(self.extent) and len(texts) == 2):
                return None
            pixels.append(value * (scene.width, scene.height)[i % 2] / extent)
        return pixels

    def range(self, scene: Scene, point: bool) -> str:
        """The numbers allowed, in words: `0..1000`, or `0..639, 0..479` where the sides differ."""
        lasts = [extent - 1 if point and callable(self.extent) else extent for extent in self.extents(scene)]
        ranges = [f"0..{last}" for last in self.ordered(lasts)]
        return ranges[0] if not callable(self.extent) else ", ".join(ranges)

    def names(self, point: bool) -> list[str]:
        """Names of the numbers for a prompt."""
        if point:
            return ["x", "y"] if self.order == "xy" else ["row", "column"]
        return self.ordered(["x0", "y0", "x1", "y1"])


def _number(text: str) -> Fraction:
    """The value of [-]digits[.digits], exact to 30 decimals, with anything of more than 12 digits before the point as
    10¹²."""
    whole, _, decimals = text.lstrip("-").partition(".")
    whole = whole.lstrip("0") or "0"
    value = Fraction(f"{whole}.{decimals[:30] or 0}") if len(whole) <= 12 else Fraction(10**12)
    return -value if text.startswith("-") else value


# --------------------------------------------------------------------------------------------------------------
# grammars
#
# Patterns stay flat: neighbouring repeats never share a character, and every statement starts with a literal, so that
# any text is searched in linear time. A statement is a head and an optional rest: a head without its rest is a
# statement that breaks off.

_GAP = r"[\s*`_]*"
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_COMMA = _GAP + "," + _GAP


def _numbers(*names: str) -> str:
    """A pattern of numbers between commas, as named groups."""
    return _COMMA.join(f"(?P<{name}>{_NUMBER})" for name in names)


@dataclass(frozen=True)
class Grammar:
    """How statements look: templates to write them, and the head and rest of a pattern to find them (groups sign, p0,
    p1 and b0 to b3)."""

    point: str  # template of {sign}, {0} and {1}
    box: str  # template of {0} to {3}
    point_pattern: tuple[str, str]
    box_pattern: tuple[str, str]
    positive: str = "positive"
    negative: str = "negative"

    def compiled(self) -> re.Pattern[str]:
        """One pattern for every statement; group `word` is finish or undo, `point` and `box` are heads."""
        word = r"""(?:^|[:>0-9])[ \t*`_"']*(?P<word>finish|undo)[ \t*`_"'.!]*(?=[\r\n<]|\Z)"""
        (point, point_rest), (box, box_rest) = self.point_pattern, self.box_pattern
        return re.compile(
            f"(?P<point>{point})(?:{point_rest})?|(?P<box>{box})(?:{box_rest})?|{word}", re.ASCII | re.I | re.M
        )


_BOX_WORDS = rf"\bbox{_GAP}:{_GAP}[(\[]", rf"{_GAP}{_numbers('b0', 'b1', 'b2', 'b3')}{_GAP}[)\]]"

WORDS = Grammar(
    point="{sign} point: ({0}, {1})",
    box="Box: ({0}, {1}, {2}, {3})",
    point_pattern=(
        rf"(?P<sign>positive|negative)[\s*`_]+point{_GAP}(?::{_GAP})?[(\[]",
        rf"{_GAP}{_numbers('p0', 'p1')}{_GAP}[)\]]",
    ),
    box_pattern=_BOX_WORDS,
    positive="Positive",
    negative="Negative",
)
LISTS = replace(WORDS, point="{sign} point: [{0}, {1}]", box="Box: [{0}, {1}, {2}, {3}]")
QWEN_TAGS = replace(
    WORDS,
    box="<box>({0},{1}),({2},{3})</box>",
    box_pattern=(
        "<box>",
        rf"{_GAP}\({_GAP}{_numbers('b0', 'b1')}{_GAP}\){_COMMA}\({_GAP}{_numbers('b2', 'b3')}{_GAP}\){_GAP}</box>",
    ),
)
INTERN_TAGS = replace(
    WORDS,
    box="<box>[[{0}, {1}, {2}, {3}]]</box>",
    box_pattern=("<box>", rf"{_GAP}\[\[{_GAP}{_numbers('b0', 'b1', 'b2', 'b3')}{_GAP}\]\]{_GAP}</box>"),
)
MOLMO = Grammar(
    point='<point x="{0}" y="{1}" alt="{sign}">{sign}</point>',
    box="Box: ({0}, {1}, {2}, {3})",
    point_pattern=(
        r"<point\s",
        rf'{_GAP}x="(?P<p0>{_NUMBER})"\s+y="(?P<p1>{_NUMBER})"\s+alt="(?P<sign>positive|negative)"',
    ),
    box_pattern=_BOX_WORDS,
)


def _json(point_key: str, box_key: str) -> Grammar:
    """JSON objects, as the Qwen and Gemini families write them; the label of a point may stand before or behind it."""
    colon = rf"{_GAP}:{_GAP}"
    return Grammar(
        point=f'{{{{"{point_key}": [{{0}}, {{1}}], "label": "{{sign}}"}}}}',
        box=f'{{{{"{box_key}": [{{0}}, {{1}}, {{2}}, {{3}}]}}}}',
        point_pattern=(
            rf'(?:"label"{colon}"(?P<early>positive|negative)"{_COMMA})?"{point_key}"{colon}\[',
            rf'{_GAP}{_numbers("p0", "p1")}{_GAP}\](?:{_COMMA}"label"{colon}"(?P<sign>positive|negative)")?',
        ),
        box_pattern=(rf'"{box_key}"{colon}\[', rf"{_GAP}{_numbers('b0', 'b1', 'b2', 'b3')}{_GAP}\]"),
    )


# ---------------------------------------------------------------------------------------------------------------
# prompts

ANNOTATOR = """You are a highly skilled segmentation annotator. The semi-transparent green layer on the image is the \
current mask. Work on it, one action at a time, until it covers exactly this object and nothing else: {instruction}

Your actions:
- `{positive}` adds: place it on a part of the object that is not green yet.
- `{negative}` removes: place it on green that lies outside the object.
- `{box}` marks out the whole object.
- `Undo` takes back the last action.
- `Finish` ends the work when the mask is right.
{numbers}

First state how good the mask is now in a line `Current IOU: n`: n, from 0 to 100, is the intersection of mask and
object \ in percent of their union. Then give one action on the next line."""
SHORT = "Optimize the semi-transparent green mask in a point-wise manner, so that it covers: {instruction}"
PROMPTS = {"annotator": ANNOTATOR, "short": SHORT}  # SegAgent's two kinds (Fig. 6), in words of our own

# ----------------------------------------------------------------------------------------------------------------
# codecs

_IOU = re.compile(rf"current[\s*`_]+iou{_GAP}(?::{_GAP})?([0-9]+(?:\.[0-9]+)?)", re.ASCII | re.I)


class Codec:
    """One way to write actions; see the module's docstring. `name` is the spec that `get` takes."""

    def __init__(self, name: str, points: Frame, boxes: Frame, grammar: Grammar, prompt: str = "annotator") -> None:
        self.name = name
        self.points = points
        self.boxes = boxes
        self.grammar = grammar
        self.template = PROMPTS[prompt]
        self._pattern = grammar.compiled()

    def prompt(self, task: Scene) -> str:
        """What a model is told beside the picture: what to segment, the actions, and why its last action was not
        carried out."""
        grammar, names = self.grammar, self.points.names(point=True)
        text = self.template.format(
            instruction=task.instruction or "the main object",
            positive=grammar.point.format(*names, sign=grammar.positive),
            negative=grammar.point.format(*names, sign=grammar.negative),
            box=grammar.box.format(*self.boxes.names(point=False)),
            numbers=self._numbers(task),
        )
        error = getattr(task, "error", None)
        return f"{text}\nYour last reply was not carried out: {error}" if error else text

    def _numbers(self, task: Scene) -> str:
        """What the numbers mean, in a sentence."""
        point, box = self.points.range(task, point=True), self.boxes.range(task, point=False)
        kind = "pixels" if callable(self.points.extent) else "numbers"
        return f"Point {kind} run over {point} and box {kind} over {box}, from the upper left corner of the image."

    def format(self, action: Action, task: Scene, iou: float | None = None) -> str:
        """The reply that says `action`, after a line that states the current mask's IoU (in 0..1) where it is given. An
        `Invalid` is its own text.

        Raises ValueError for a click or box that is not on the image, and for an IoU outside 0..1."""
        if iou is not None and not 0 <= iou <= 1:
            raise ValueError(f"iou is {iou}; expected a fraction in 0..1")
        return (f"Current IOU: {round(100 * iou)}\n" if iou is not None else "") + self._statement(action, task)

    def _statement(self, action: Action, task: Scene) -> str:
        match action:
            case Click(x, y, positive):
                if not (0 <= x < task.width and 0 <= y < task.height):
                    raise ValueError(f"click ({x}, {y}) lies outside the image of {task.width} x {task.height} pixels")
                sign = self.grammar.positive if positive else self.grammar.negative
                return self.grammar.point.format(*self.points.write_point(action, task), sign=sign)
            case Box(x0, y0, x1, y1):
                if not (0 <= x0 < x1 <= task.width and 0 <= y0 < y1 <= task.height):
                    raise ValueError(
                        f"box ({x0}, {y0}, {x1}, {y1}) is empty or leaves the image of {task.width} x {task.height}"
                    )
                return self.grammar.box.format(*self.boxes.write_box(action, task))
            case Stop():
                return "Finish"
            case Undo():
                return "Undo"
            case Invalid(text):
                return text
        raise TypeError(f"action is {type(action).__name__}; expected Click, Box, Stop, Undo or Invalid")

    def parse(self, text: str, task: Scene) -> Action:
        """The action that a reply states. Total: any text gives an action, and one that states none gives `Invalid`
        with the reason."""
        found = None
        for found in self._pattern.finditer(text):
            pass
        if found is None:
            return Invalid(text, f"no action in `{_clip(text)}`; expected {self._expected()}")
        groups = found.groupdict()
        if groups["word"]:
            return Stop() if groups["word"].lower() == "finish" else Undo()
        return self._point(text, found, task) if groups["point"] else self._box(text, found, task)

    def _point(self, text: str, found: re.Match[str], task: Scene) -> Action:
        groups = found.groupdict()
        numbers, sign = [groups["p0"], groups["p1"]], groups["sign"] or groups.get("early")
        if None in numbers or sign is None:
            return Invalid(text, f"`{_clip(text[found.start() :])}` is not a whole point; expected {self._expected()}")
        pixels = self.points.read(numbers, task)
        if pixels is None:
            return Invalid(text, f"point {_shown(numbers)} lies outside {self.points.range(task, point=True)}")
        x, y = pixels
        return Click(min(int(x), task.width - 1), min(int(y), task.height - 1), sign.lower() == "positive")

    def _box(self, text: str, found: re.Match[str], task: Scene) -> Action:
        numbers = [found[name] for name in ("b0", "b1", "b2", "b3")]
        if None in numbers:
            return Invalid(text, f"`{_clip(text[found.start() :])}` is not a whole box; expected {self._expected()}")
        pixels = self.boxes.read(numbers, task)
        if pixels is None:
            return Invalid(text, f"box {_shown(numbers)} lies outside {self.boxes.range(task, point=False)}")
        x0, y0, x1, y1 = map(float, pixels)
        if x0 >= x1 or y0 >= y1:
            return Invalid(
                text, f"box {_shown(numbers)} is empty; expected its second corner right of the first and below"
            )
        return Box(x0, y0, x1, y1)

    def _expected(self) -> str:
        """The statements that would have been understood."""
        point = self.grammar.point.format(*self.points.names(point=True), sign=self.grammar.positive)
        return f"`{point}`, the same with {self.grammar.negative}, a box, `Undo` or `Finish`"

    def stated_iou(self, text: str) -> float | None:
        """The IoU in 0..1 that a reply states last (`Current IOU: 74`, in percent), or None where it states none within
        0..100."""
        stated = _IOU.findall(text)
        value = float(stated[-1]) / 100 if stated else 2.0
        return value if value <= 1 else None


def _clip(text: str) -> str:
    """The first 60 characters, on one line."""
    return " ".join(text[:60].split()) + ("…" if len(text) > 60 else "")


def _shown(numbers: Sequence[str]) -> str:
    return f"({', '.join(number if len(number) <= 12 else number[:12] + '…' for number in numbers)})"


CODECS: dict[str, tuple[Frame, Frame, Grammar]] = {
    # The released SegAgent checkpoint: points are (row, column)/1000, and boxes (x, y)/999, in one reply.
    "segagent": (Frame(1000, "yx"), Frame(999), QWEN_TAGS),
    "unit-xy": (Frame(1, decimals=3), Frame(1, decimals=3), LISTS),
    "grid1000-xy": (Frame(1000), Frame(1000), WORDS),
    "grid1000-yx": (Frame(1000, "yx"), Frame(1000, "yx"), WORDS),
    "pixels": (Frame(image_size), Frame(image_size, decimals=3), WORDS),
    "qwen2.5-vl": (Frame(qwen_size), Frame(qwen_size), _json("point_2d", "bbox_2d")),
    "qwen3-vl": (Frame(1000), Frame(1000), _json("point_2d", "bbox_2d")),
    "internvl": (Frame(1000), Frame(1000), INTERN_TAGS),
    "molmo": (Frame(100, decimals=1), Frame(100, decimals=1), MOLMO),
    "gemini": (Frame(1000, "yx"), Frame(1000, "yx"), _json("point", "box_2d")),
}


def get(spec: str) -> Codec:
    """The codec of a spec: a name in `CODECS`, alone or with a prompt in `PROMPTS`, as in `segagent:prompt=short`."""
    name, _, option = spec.partition(":")
    key, _, prompt = option.partition("=")
    if name not in CODECS or (option and (key != "prompt" or prompt not in PROMPTS)):
        raise ValueError(
            f"unknown codec {spec!r}; expected one of {', '.join(CODECS)}, alone or followed by :prompt={'|'.join(PROMPTS)}"
        )
    return Codec(spec, *CODECS[name], prompt=prompt or "annotator")
