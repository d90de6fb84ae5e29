"""A codec writes the prompt, parses the reply and formats an action: one way to write actions as text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from segenv.codec import reading, statements, values
from segenv.codec.frames import Frame, Scene
from segenv.codec.grammars import IOU, STATED_IOU, UNDO, Forms, Grammar
from segenv.codec.reading import Reading
from segenv.codec.values import Statement
from segenv.types import Absent, Action, Box, Click, Invalid, Stop, Undo

ANNOTATOR = """You are a highly skilled segmentation annotator. The semi-transparent green layer on the image is the \
current mask. Work on it, one action at a time, until it covers exactly this object and nothing else: {instruction}

Your actions:
- `{positive}` adds: place it on a part of the object that is not green yet.
- `{negative}` removes: place it on green that lies outside the object.
- `{box}` marks out the whole object.
- `Undo` takes back the last action.
- `{finish}` ends the work when the mask is right.
- `{absent}` ends the work when the object is not in the image.
{numbers}

First state how good the mask is now in a line `Current IOU: n`: n, from 0 to 100, is the intersection of mask and \
object in percent of their union. Then give one action on the next line."""


SHORT = "Optimize the semi-transparent green mask in a point-wise manner, so that it covers: {instruction}"


KNOWN = 4096  # texts that a codec keeps
PROMPTS = {"annotator": ANNOTATOR, "short": SHORT}  # SegAgent's two kinds (Fig. 6), in words of our own


class Codec:
    """One way to write actions; see the module's docstring. `name` is the spec that `make` takes."""

    def __init__(self, name: str, points: Frame, boxes: Frame, grammar: Grammar, prompt: str = "annotator") -> None:
        if prompt not in PROMPTS:
            raise ValueError(f"codec {name!r}: prompt is {prompt!r}; expected one of {', '.join(PROMPTS)}")
        self.name = name
        self.writes = name.partition(":")[0]  # the family whose way of writing it has
        self.content_hash: str | None = None  # of the file that it comes from
        self.points = points
        self.boxes = boxes
        self.grammar = grammar
        self.template = PROMPTS[prompt]
        self._texts: dict[tuple, str] = {}  # of the latest clicks on images of a size: RL libraries repeat them

    def seen_at(self, size: Callable[[int, int], tuple[int, int]]) -> Codec:
        """The codec of a model that sees images of a width and height at `size(width, height)`: numbers that are pixels
        of a resized image count in that one."""
        seen = copy.copy(self)
        seen._texts = {}
        seen.points, seen.boxes = (
            replace(frame, extent=size) if frame.resized else frame for frame in (self.points, self.boxes)
        )
        return seen

    @cached_property
    def forms(self) -> Forms:
        """The texts that are exactly as asked."""
        return Forms(self.grammar, self.points, self.boxes)

    def prompt(self, task: Scene) -> str:
        """Build the text beside the picture: object, actions, and why the last one was not carried out."""
        grammar, names = self.grammar, self.points.names(point=True)
        text = self.template.format(
            instruction=task.instruction or "the main object",
            positive=grammar.point.format(*names, sign=grammar.positive),
            negative=grammar.point.format(*names, sign=grammar.negative),
            finish=grammar.finish,
            absent=grammar.absent,
            box=grammar.box.format(*self.boxes.names(point=False)),
            numbers=self._numbers(task),
        )
        error = getattr(task, "error", None)
        return f"{text}\nYour last reply was not carried out: {error}" if error else text

    def _numbers(self, task: Scene) -> str:
        """Say in a sentence what the numbers mean."""
        point, box = self.points.range(task, point=True), self.boxes.range(task, point=False)
        kind = "pixels" if self.points.pixels else "numbers"
        return f"Point {kind} run over {point} and box {kind} over {box}, from the upper left corner of the image."

    def format(self, action: Action, task: Scene, iou: float | None = None) -> str:
        """The reply that says `action`, after a line that states the current mask's IoU (in 0..1) where it is given. An
        `Invalid` is its own text.

        Raises ValueError for a click or box that is not on the image, and for an IoU outside 0..1."""
        if iou is not None and not 0 <= iou <= 1:
            raise ValueError(f"iou is {iou}; expected a fraction in 0..1")
        return (IOU.format(round(100 * iou)) + "\n" if iou is not None else "") + self._statement(action, task)

    def _statement(self, action: Action, task: Scene) -> str:
        match action:
            case Click():
                return self._click(action, task)
            case Box(x0, y0, x1, y1):
                if not (0 <= x0 < x1 <= task.width and 0 <= y0 < y1 <= task.height):
                    raise ValueError(
                        f"box ({x0}, {y0}, {x1}, {y1}) is empty or leaves the image of {task.width} x {task.height}"
                    )
                return self.grammar.box.format(*self.boxes.write_box(action, task))
            case Stop():
                return self.grammar.finish
            case Absent():
                return self.grammar.absent
            case Undo():
                return UNDO
            case Invalid(text):
                return text
        raise TypeError(f"action is {type(action).__name__}; expected Click, Box, Stop, Absent, Undo or Invalid")

    def _click(self, click: Click, task: Scene) -> str:
        x, y, width, height = click.x, click.y, task.width, task.height
        text = self._texts.get((x, y, click.positive, width, height))
        if text is None:
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(f"click ({x}, {y}) lies outside the image of {width} x {height} pixels")
            sign = self.grammar.sign(click.positive)
            text = self.grammar.point.format(*self.points.write_point(click, task), sign=sign)
            if len(self._texts) >= KNOWN:
                self._texts.clear()
            self._texts[x, y, click.positive, width, height] = text
        return text

    def parse(self, text: str, task: Scene) -> Action:
        """The action that a reply states. Total: any text gives an action, and one that states none gives `Invalid`
        with the reason."""
        return self.read(text, task).action

    def read(
        self,
        text: str,
        task: Scene,
        finish_reason: str | None = None,
        tokens: int | None = None,
        thinking: str = "",
        asked: str = "",
    ) -> Reading:
        """Read a reply: its action, and how it was written. `finish_reason` and `tokens` are what the backend says of
        its end: a reply that was cut by its length is invalid. `thinking` is a thought that came apart from the text.
        `asked` is `point` or `box` where only one of those answers the question.
        Total, as `parse` is."""
        thought, answer, whole = reading.split(text)
        thinking = "\n".join(filter(None, (thinking, thought)))
        reason = reading.cut(finish_reason, tokens)
        if reason is None and not whole:
            reason = "the reply ends inside its thought; expected an action behind it, so allow more tokens"
        if reason is not None:
            return Reading(Invalid(text, reason), thinking=thinking, answer=answer)
        found = self._read(answer, task, asked)
        action = Invalid(text, found.action.reason) if isinstance(found.action, Invalid) else found.action
        return replace(found, action=action, thinking=thinking, answer=answer, stated_iou=self._stated_iou(answer))

    def _read(self, answer: str, task: Scene, asked: str = "") -> Reading:
        """Read an answer without its thought. `asked` is `point` or `box` where only such a statement answers."""
        text = statements.tail(values.lowered(answer[-statements.TAIL :]))
        place = len(answer) - len(text)
        found = statements.find(text, asked)
        block = statements.last_block(text, found)
        if asked:
            block = [one for one in block if one.kind in (asked, "broken", "absent")]
        if not block:
            return Reading(Invalid(answer, f"no action in `{_clip(answer)}`; expected {self._expected()}"))
        if place and block[0] is found[0] and len(block) > 1:
            return Reading(Invalid(answer, f"the last {len(text)} characters are one list of actions; expected one"))
        leads = 0
        while self.grammar.lead and not asked and block[leads].kind == "box" and leads + 1 < len(block):
            leads += 1
        one = block[leads if block[leads].kind == "point" else 0]
        if block[-1].kind == "broken" and block[-1].why == "breaks off":
            one = block[-1]
        shown = _clip(answer[place:][one.start : one.end])
        action, extra = self._action(one, shown, task), sum(1 + other.more for other in block) - 1
        if isinstance(action, Invalid):
            return Reading(replace(action, text=answer))
        extra -= leads if one is block[leads] else 0
        unsigned = one.kind == "point" and not one.sign
        exact = not extra and (asked == "point" or not unsigned) and self.forms.exact(answer, asked)
        return Reading(action, exact, extra, unsigned)

    def _action(self, one: Statement, shown: str, task: Scene) -> Action:
        """The action of a statement that is `shown` in errors."""
        match one.kind:
            case "stop":
                return Stop()
            case "undo":
                return Undo()
            case "absent":
                return Absent()
            case "broken":
                return Invalid("", f"`{shown}` {one.why}; expected {self._expected()}")
        assert one.values is not None
        point = one.kind == "point"
        numbers = one.values.numbers[: 2 if point else 4]
        texts = [number.text if len(number.text) <= 12 else number.text[:12] + "…" for number in numbers]
        what = f"{one.kind} ({', '.join(texts)})"
        if one.sign == "both":
            return Invalid("", f"{what} is both positive and negative; expected one of them")
        try:
            pixels = (self.points if point else self.boxes).read(numbers, task)
        except ValueError as error:
            return Invalid("", f"{what} {error}")
        if point:
            x, y = pixels
            return Click(min(int(x), task.width - 1), min(int(y), task.height - 1), one.sign != "negative")
        x0, y0, x1, y1 = map(float, pixels)
        if x0 >= x1 or y0 >= y1:
            return Invalid("", f"{what} is empty; expected its second corner right of the first and below")
        return Box(x0, y0, x1, y1)

    def _expected(self) -> str:
        """The statements that would have been understood."""
        point = self.grammar.point.format(*self.points.names(point=True), sign=self.grammar.positive)
        return f"`{_clip(point)}`, the same with {self.grammar.negative}, a box, `Undo` or `Finish`"

    def stated_iou(self, text: str) -> float | None:
        """IoU in 0..1 that a reply states last (`Current IOU: 74`, in percent), outside its thought and in the last
        `TAIL` characters; None without one in 0..100."""
        return self._stated_iou(reading.split(text)[1])

    def _stated_iou(self, answer: str) -> float | None:
        lower, value = values.lowered(answer[-statements.TAIL :]), None
        for stated in STATED_IOU.finditer(lower):
            value = float(stated[1][:12]) / 100
        return value if value is not None and value <= 1 else None


def _clip(text: str) -> str:
    """The first 60 characters, on one line and printable."""
    shown = "".join(character if character.isprintable() else " " for character in text[:60])
    return " ".join(shown.split()) + ("…" if len(text) > 60 else "")
