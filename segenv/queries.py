"""Questions about tasks: any of text, point, box and mask, asked from any other (SimpleSeg, arXiv 2601.19228).

A task names one object in four ways: by its instruction, by a point inside it, by its box and by its mask. A query
gives one of the four and asks for another: `text` to `mask` is referring segmentation, `mask` to `text` is captioning,
and so on. Points and boxes stand in the prompt as numbers of the codec; a given mask is painted over the image in
green.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from segenv import annotator, metrics, render
from segenv.codec.frames import Scene
from segenv.codec.polygons import QUESTION, PolygonCodec
from segenv.types import Absent, Box, Click, Invalid, Polygons, Task, object_of

KINDS = ("text", "point", "box", "mask")
PAIRS = tuple(permutations(KINDS, 2))  # what is given, what is asked
STYLES = ("codec", "instruction")

GIVEN = {  # how an object is named, in several phrasings
    "text": ("{}",),
    "point": ("the object at {}", "what lies at the point {}", "the thing under {}"),
    "box": ("the object in the box {}", "what fills the box {}", "the thing inside {}"),
    "mask": ("the object under the green mask", "what the green layer covers", "the thing painted green"),
}
ASKED = {  # what is asked about it; how to write the answer is the codec's to say
    "mask": (QUESTION, "Segment {}.", "Draw the mask of {}."),
    "box": ("Give the bounding box of {}.", "Put a box around {}.", "Where is {}? Answer with its box."),
    "point": ("Point at {}.", "Give a point inside {}.", "Click on {}."),
    "text": ("Describe {} so that it can be told from everything else.", "Name {}.", "What is {}?"),
}
SHORT = {  # for small models: the object alone is a mask's question, and one word tells the others
    "text": "{}",
    "point": "the object at {}",
    "box": "the object in box {}",
    "mask": "the object in mask",
}


@dataclass(frozen=True, eq=False)
class Query:
    """One question about a task: `prompt` and `picture` (uint8 [H, W, 3]) are what a model gets, `answer` is the right
    one: `Polygons` for a mask, a `Box`, a positive `Click`, the text, or `Absent` where there is no point or box."""

    task: Task
    given: str
    asked: str
    prompt: str
    answer: Polygons | Box | Click | Absent | str

    @property
    def id(self) -> str:
        return f"{self.task.id}:{self.given}-{self.asked}"

    @property
    def picture(self) -> np.ndarray:
        mask = object_of(self.task.target)
        return render.overlay(self.task.image, mask) if self.given == "mask" else self.task.image


def query(
    task: Task,
    codec: PolygonCodec,
    given: str = "text",
    asked: str = "mask",
    style: str = "codec",
    seed: int | None = None,
) -> Query:
    """The question of a task that gives `given` and asks `asked` (of `KINDS`).

    `style` "codec" words it with all that a model must know to answer, "instruction" as shortly as a small model needs
    it. `seed` chooses among the phrasings of "codec"; without one, the first is taken, which for `text` to `mask` is
    the codec's own prompt. A task without an instruction gives "the main object" as its text. Raises ValueError where
    there is nothing to give, a point, box or painted mask of an object that is not there, or where a text is asked and
    there is no instruction.
    """
    check(given, asked, style)
    named = _named(task, codec, given)
    if style == "instruction":
        text = SHORT[given].format(named)
        return Query(task, given, asked, text if asked == "mask" else f"{asked} {text}", answer(task, codec, asked))
    rng = np.random.default_rng(seed)
    thing, question = (table[0 if seed is None else rng.integers(len(table))] for table in (GIVEN[given], ASKED[asked]))
    prompt = question.format(thing.format(named))
    if seed is None and given == "text" and (own := codec.question(asked, named)):
        prompt = own  # a family is asked as it was trained
    elif how := codec.ask(asked, task) or (codec.numbers(task) if given in ("point", "box") else ""):
        prompt += f"\n\n{how}"
    return Query(task, given, asked, prompt, answer(task, codec, asked))


def check(given: str, asked: str, style: str = "codec") -> None:
    """Raise ValueError where there is no such question."""
    if (given, asked) not in PAIRS or style not in STYLES:
        raise ValueError(
            f"given {given!r}, asked {asked!r}, style {style!r}; expected two different ones of {', '.join(KINDS)}, "
            f"and a style of {', '.join(STYLES)}"
        )


def _named(task: Task, codec: PolygonCodec, given: str) -> str:
    """The object of a task, in words, or in the numbers of a point or a box; nothing for a mask, which is painted."""
    if given == "text":
        return task.instruction or "the main object"
    if given == "mask":
        _check_object(task, "mask to show")
        return ""
    _check_object(task, f"{given} to give")
    shown = answer(task, codec, given)
    assert not isinstance(shown, str)
    return codec.format(shown, task)


def answer(task: Task, codec: PolygonCodec, asked: str) -> Polygons | Box | Click | Absent | str:
    """The right answer: the outline in the codec's dialect, the tight box, the pixel deepest inside the object, or the
    instruction. An object that is not there has an empty outline, and its box and point are `Absent`."""
    target = object_of(task.target)
    if asked == "mask":
        return codec.outline(target)
    if asked == "text":
        if not task.instruction:
            raise ValueError(f"task {task.id} has no instruction; ask for its mask, box or point")
        return task.instruction
    found = metrics.box_of(target) if asked == "box" else annotator.next_click(task.target, np.zeros_like(target))
    return Absent() if found is None else found


def _check_object(task: Task, lacking: str) -> None:
    if not object_of(task.target).any():
        raise ValueError(f"task {task.id} has no object, and so no {lacking}")


def reply(asked: Query, codec: PolygonCodec, budget: int | None = None, length: Callable[[str], int] = len) -> str:
    """Reply that answers a query; a mask by its best polygons of a `length` within `budget`, if given."""
    if isinstance(asked.answer, str):
        return asked.answer
    if budget is not None and isinstance(asked.answer, Polygons):
        return codec.reply(object_of(asked.task.target), asked.task, budget, length)
    return codec.format(asked.answer, asked.task)


def read(
    text: str, task: Scene, codec: PolygonCodec, asked: str = "mask"
) -> Polygons | Box | Click | Absent | str | Invalid:
    """Read a reply to a question for `asked`; `Absent` where it says that there is no point or box to give, and
    `Invalid` where it answers nothing, or something else."""
    if asked not in KINDS:
        raise ValueError(f"asked is {asked!r}; expected one of {', '.join(KINDS)}")
    if asked == "text":
        return text.strip() or Invalid(text, "the reply is empty; expected a text")
    found = codec.read(text, task, asked=asked).action if asked in ("point", "box") else codec.parse(text, task)
    if asked != "mask" and isinstance(found, Polygons) and not found.rings:
        return Absent()
    kind = {Polygons: "mask", Box: "box", Click: "point"}.get(type(found))
    if kind in (asked, None):  # None: invalid already
        return found  # type: ignore[return-value]
    return Invalid(text, f"the reply is a {kind}; expected a {asked}")
