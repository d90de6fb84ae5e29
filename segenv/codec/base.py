"""A codec writes the prompt, parses the reply and formats an action: one way to write actions as text."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from segenv.codec import reading
from segenv.codec.frames import Frame, Scene
from segenv.codec.grammars import FINISH, IOU, UNDO, Grammar, lowered, sign_of
from segenv.codec.reading import Reading
from segenv.types import Action, Box, Click, Invalid, Stop, Undo

ANNOTATOR = """You are a highly skilled segmentation annotator. The semi-transparent green layer on the image is the \
current mask. Work on it, one action at a time, until it covers exactly this object and nothing else: {instruction}

Your actions:
- `{positive}` adds: place it on a part of the object that is not green yet.
- `{negative}` removes: place it on green that lies outside the object.
- `{box}` marks out the whole object.
- `Undo` takes back the last action.
- `Finish` ends the work when the mask is right.
{numbers}

First state how good the mask is now in a line `Current IOU: n`: n, from 0 to 100, is the intersection of mask and \
object in percent of their union. Then give one action on the next line."""


SHORT = "Optimize the semi-transparent green mask in a point-wise manner, so that it covers: {instruction}"


PROMPTS = {"annotator": ANNOTATOR, "short": SHORT}  # SegAgent's two kinds (Fig. 6), in words of our own


class Codec:
    """One way to write actions; see the module's docstring. `name` is the spec that `make` takes."""

    def __init__(self, name: str, points: Frame, boxes: Frame, grammar: Grammar, prompt: str = "annotator") -> None:
        if prompt not in PROMPTS:
            raise ValueError(f"codec {name!r}: prompt is {prompt!r}; expected one of {', '.join(PROMPTS)}")
        self.name = name
        self.points = points
        self.boxes = boxes
        self.grammar = grammar
        self.template = PROMPTS[prompt]

    def seen_at(self, size: Callable[[int, int], tuple[int, int]]) -> Codec:
        """The codec of a model that sees images of a width and height at `size(width, height)`: numbers that are pixels
        of a resized image count in that one."""
        seen = copy.copy(self)
        seen.points, seen.boxes = (
            replace(frame, extent=size) if frame.resized else frame for frame in (self.points, self.boxes)
        )
        return seen

    def prompt(self, task: Scene) -> str:
        """Build the text beside the picture: object, actions, and why the last one was not carried out."""
        grammar, names = self.grammar, self.points.names(point=True)
        text = self.template.format(
            instruction=task.instruction or "the main object",
            positive=grammar.point.template.format(*names, sign=grammar.positive),
            negative=grammar.point.template.format(*names, sign=grammar.negative),
            box=grammar.box.template.format(*self.boxes.names(point=False)),
            numbers=self._numbers(task),
        )
        error = getattr(task, "error", None)
        return f"{text}\nYour last reply was not carried out: {error}" if error else text

    def _numbers(self, task: Scene) -> str:
        """Say in a sentence what the numbers mean."""
        point, box = self.points.range(task, point=True), self.boxes.range(task, point=False)
        kind = "pixels" if callable(self.points.extent) else "numbers"
        return f"Point {kind} run over {point} and box {kind} over {box}, from the upper left corner of the image."

    def format(self, action: Action, task: Scene, iou: float | None = None) -> str:
        """The reply that says `action`, after a line that states the current mask's IoU (in 0..1) where it is given. An
        `Invalid` is its own text.

        Raises ValueError for a click or box that is not on the image, and for an IoU outside 0..1."""
        if iou is not None and not 0 <= iou <= 1:
            raise ValueError(f"iou is {iou}; expected a fraction in 0..1")
        return (IOU.template.format(round(100 * iou)) + "\n" if iou is not None else "") + self._statement(action, task)

    def _statement(self, action: Action, task: Scene) -> str:
        match action:
            case Click(x, y, positive):
                if not (0 <= x < task.width and 0 <= y < task.height):
                    raise ValueError(f"click ({x}, {y}) lies outside the image of {task.width} x {task.height} pixels")
                sign = self.grammar.positive if positive else self.grammar.negative
                return self.grammar.point.template.format(*self.points.write_point(action, task), sign=sign)
            case Box(x0, y0, x1, y1):
                if not (0 <= x0 < x1 <= task.width and 0 <= y0 < y1 <= task.height):
                    raise ValueError(
                        f"box ({x0}, {y0}, {x1}, {y1}) is empty or leaves the image of {task.width} x {task.height}"
                    )
                return self.grammar.box.template.format(*self.boxes.write_box(action, task))
            case Stop():
                return FINISH.template
            case Undo():
                return UNDO.template
            case Invalid(text):
                return text
        raise TypeError(f"action is {type(action).__name__}; expected Click, Box, Stop, Undo or Invalid")

    def parse(self, text: str, task: Scene) -> Action:
        """The action that a reply states. Total: any text gives an action, and one that states none gives `Invalid`
        with the reason."""
        return self.read(text, task).action

    def read(
        self, text: str, task: Scene, finish_reason: str | None = None, tokens: int | None = None, thinking: str = ""
    ) -> Reading:
        """Read a reply: its action, and how it was written. `finish_reason` and `tokens` are what the backend says of
        its end: a reply that was cut by its length is invalid. `thinking` is a thought that came apart from the text.
        Total, as `parse` is."""
        thought, answer, whole = reading.split(text)
        thinking = "\n".join(filter(None, (thinking, thought)))
        reason = reading.cut(finish_reason, tokens)
        if reason is None and not whole:
            reason = "the reply ends inside its thought; expected an action behind it, so allow more tokens"
        if reason is not None:
            return Reading(Invalid(text, reason), thinking=thinking, answer=answer)
        found = self._read(answer, task)
        action = Invalid(text, found.action.reason) if isinstance(found.action, Invalid) else found.action
        return replace(found, action=action, thinking=thinking, answer=answer, stated_iou=self._stated_iou(answer))

    def _read(self, text: str, task: Scene) -> Reading:
        return Reading(self._parse(text, task))

    def _parse(self, text: str, task: Scene) -> Action:
        text = text[-reading.TAIL :]
        lower, kinds = lowered(text), {self.grammar.point: self._point, self.grammar.box: self._box}
        found = [(match, kind) for kind in (*kinds, FINISH, UNDO) if (match := kind.last(lower))]
        if not found:
            return Invalid(text, f"no action in `{_clip(text)}`; expected {self._expected()}")
        last, kind = max(found, key=lambda pair: pair[0].start())
        if kind in (FINISH, UNDO):
            return Stop() if kind is FINISH else Undo()
        if last["rest"] is None:
            return Invalid(text, f"`{_clip(text[last.start() :])}` breaks off; expected {self._expected()}")
        return kinds[kind](text, last, task)

    def _point(self, text: str, found: re.Match[str], task: Scene) -> Action:
        numbers, sign = [found["p0"], found["p1"]], sign_of(found)
        if sign is None:
            reason = f"point {_shown(numbers)} is neither {self.grammar.positive} nor {self.grammar.negative}"
            return Invalid(text, f"{reason}; expected {self._expected()}")
        pixels = self.points.read(numbers, task)
        if pixels is None:
            return Invalid(text, f"point {_shown(numbers)} lies outside {self.points.range(task, point=True)}")
        x, y = pixels
        return Click(min(int(x), task.width - 1), min(int(y), task.height - 1), sign == "positive")

    def _box(self, text: str, found: re.Match[str], task: Scene) -> Action:
        numbers = [found[name] for name in ("b0", "b1", "b2", "b3")]
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
        point = self.grammar.point.template.format(*self.points.names(point=True), sign=self.grammar.positive)
        return f"`{point}`, the same with {self.grammar.negative}, a box, `Undo` or `Finish`"

    def stated_iou(self, text: str) -> float | None:
        """IoU in 0..1 that a reply states last (`Current IOU: 74`, in percent), outside its thought and in the last
        `reading.TAIL` characters; None without one in 0..100."""
        return self._stated_iou(reading.split(text)[1])

    def _stated_iou(self, answer: str) -> float | None:
        stated = IOU.last(lowered(answer[-reading.TAIL :]))
        value = float(stated["percent"]) / 100 if stated else None
        return value if value is not None and value <= 1 else None


def _clip(text: str) -> str:
    """The first 60 characters, on one line and printable."""
    shown = "".join(character if character.isprintable() else " " for character in text[:60])
    return " ".join(shown.split()) + ("…" if len(text) > 60 else "")


def _shown(numbers: Sequence[str]) -> str:
    return f"({', '.join(number if len(number) <= 12 else number[:12] + '…' for number in numbers)})"
