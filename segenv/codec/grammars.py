"""Grammars: how the statements of a codec are written, and how a family is asked in its own words.

They are for writing alone: a reply is read by `segenv.codec.statements`, whatever its grammar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property

from segenv.codec.frames import Frame

FINISH, UNDO, ABSENT, IOU = "Finish", "Undo", "No object found", "Current IOU: {0}"
STATED_IOU = re.compile(r"current[\s*`_]+iou[\s*`_]*(?::[\s*`_]*)?([0-9]+(?:\.[0-9]+)?)", re.ASCII)


@dataclass(frozen=True)
class Grammar:
    """Templates of a point and a box, with the places {0}, {1} … and, for a point, {sign}; words for the two signs.

    `lead`: a box before a point is only what the point is about (SegAgent). `questions` ask for a `point`, `box` or
    `mask` in the family's own words, with the object at {0}; `answers` are the templates of what then is answered
    where they are others than `point` and `box`.
    """

    point: str
    box: str
    positive: str = "positive"
    negative: str = "negative"
    finish: str = FINISH
    absent: str = ABSENT
    lead: bool = False
    questions: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    def sign(self, positive: bool) -> str:
        """The word for a sign."""
        return self.positive if positive else self.negative


@dataclass(frozen=True)
class Forms:
    """The texts that are exactly as a codec asks for them."""

    grammar: Grammar
    points: Frame
    boxes: Frame

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        grammar = self.grammar
        signs = f"(?:{re.escape(grammar.positive)}|{re.escape(grammar.negative)})"
        templates = {
            "click": [_pattern(grammar.point, self.points, signs)],
            "box": [_pattern(grammar.box, self.boxes, signs)],
            "words": [re.escape(word) for word in (grammar.finish, UNDO, grammar.absent)],
        }
        whole = "|".join(text for texts in templates.values() for text in texts)
        iou = re.escape(IOU).replace(r"\{0\}", "(?:100|[0-9]{1,2})") + "\n"
        asked = {kind: _pattern(grammar.answers[kind], self._frame(kind), signs) for kind in grammar.answers}
        listed = {kind: rf"(?:```json\s+)?(?:\[\s*)?{form}(?:\s*\])?(?:\s+```)?" for kind, form in asked.items()}
        return {
            "": re.compile(f"(?:{iou})?(?:{whole})"),
            **{kind: re.compile(form) for kind, form in listed.items()},
        }

    def _frame(self, kind: str) -> Frame:
        return self.boxes if kind == "box" else self.points

    def exact(self, answer: str, asked: str = "") -> bool:
        """Whether an answer, but for white space around it, is a statement as asked, alone or after an IoU."""
        answer = answer.strip()
        pattern = self._patterns.get(asked)
        return bool(self._patterns[""].fullmatch(answer) or (pattern and pattern.fullmatch(answer)))


def _pattern(template: str, frame: Frame, signs: str) -> str:
    """The pattern of a template that is filled with numbers of the frame."""
    number = "-?[0-9]{1,12}" + (rf"\.[0-9]{{{frame.decimals}}}" if frame.decimals else "")
    text = re.escape(re.sub(r"\{([0-9]|sign|label)(?::[^}]*)?\}", lambda match: f"\0{match[1][0]}\0", template))
    text = text.replace(r"\{\{", r"\{").replace(r"\}\}", r"\}").replace("\\\0", "\0").replace("\\\n", "\n")
    text = re.sub("\0[0-9]\0", lambda _: number, text)
    return text.replace("\0s\0", signs).replace("\0l\0", '[^"<>]{0,100}').replace("\n", r"\s+")


REGION = "Please provide the bounding box coordinate of the region this sentence describes"  # LLaVA and InternVL

WORDS = Grammar("{sign} point: ({0}, {1})", "Box: ({0}, {1}, {2}, {3})", "Positive", "Negative")
LISTS = replace(WORDS, point="{sign} point: [{0}, {1}]", box="Box: [{0}, {1}, {2}, {3}]")
LLAVA = replace(LISTS, questions={"box": f"{REGION}: {{0}}"})
SEGAGENT = replace(WORDS, box="<box>({0},{1}),({2},{3})</box>", absent="No Object Found", lead=True)
QWEN_TAGS = replace(
    WORDS,
    box="<box>({0},{1}),({2},{3})</box>",
    questions={"box": "Give the bounding box of <ref>{0}</ref>."},
)
QWEN2_TAGS = replace(
    WORDS,
    box="<|box_start|>({0},{1}),({2},{3})<|box_end|>",
    questions={"box": "Give the bounding box of <|object_ref_start|>{0}<|object_ref_end|>."},
)
INTERN_TAGS = replace(
    WORDS,
    box="<box>[[{0}, {1}, {2}, {3}]]</box>",
    questions={"box": f"{REGION}: <ref>{{0}}</ref>"},
)
MOLMO = Grammar(
    '<point x="{0}" y="{1}" alt="{sign}">{sign}</point>',
    "Box: ({0}, {1}, {2}, {3})",
    questions={"point": "Point to {0}."},
    answers={"point": '<point x="{0}" y="{1}" alt="{label}">{label}</point>'},
)
MOLMO2 = Grammar(
    '<points coords="1 1 {0} {1}">{sign}</points>',
    "Box: ({0}, {1}, {2}, {3})",
    questions={"point": "Point to {0}."},
    answers={"point": '<points coords="1 1 {0} {1}">{label}</points>'},
)
MINICPM = replace(
    WORDS,
    point="{sign} <point>{0} {1}</point>",
    box="<box>{0} {1} {2} {3}</box>",
    questions={
        "box": "Please give the bounding box of <ref>{0}</ref>.",
        "point": "Please give the point of <ref>{0}</ref>.",
    },
    answers={"point": "<point>{0} {1}</point>"},
)
GLM = replace(
    WORDS,
    point="<|begin_of_box|>{sign} point: [{0}, {1}]<|end_of_box|>",
    box="<|begin_of_box|>[{0}, {1}, {2}, {3}]<|end_of_box|>",
    finish="<|begin_of_box|>Finish<|end_of_box|>",
    questions={
        "box": "Help me to locate {0} in the image and give me its bounding box as [x1, y1, x2, y2] within "
        "<|begin_of_box|> and <|end_of_box|>.",
        "point": "Help me to locate {0} in the image and give me its point as [x, y] within <|begin_of_box|> and "
        "<|end_of_box|>.",
    },
    answers={"point": "<|begin_of_box|>[{0}, {1}]<|end_of_box|>"},
)
IBISAGENT = Grammar(
    "<action>{sign} Point ({0}, {1})</action>",
    "<action>Box ({0}, {1}, {2}, {3})</action>",
    "Positive",
    "Negative",
    finish="<action>Terminate</action>",
)
DEEPSEEK = replace(
    LISTS,
    box="<|det|>[[{0}, {1}, {2}, {3}]]<|/det|>",
    questions={"box": "<|ref|>{0}<|/ref|>."},
)
PALIGEMMA = replace(
    WORDS,
    box="<loc{0:0>4}><loc{1:0>4}><loc{2:0>4}><loc{3:0>4}>",
    questions={"box": "detect {0}"},
)
FLORENCE = replace(
    WORDS,
    box="<loc_{0}><loc_{1}><loc_{2}><loc_{3}>",
    questions={"box": "Locate the phrases in the caption: {0}."},
)


def json_objects(point: str, box: str, questions: dict[str, str]) -> Grammar:
    """JSON objects of the Qwen and Gemini families, with these keys."""
    return Grammar(
        f'{{{{"{point}": [{{0}}, {{1}}], "label": "{{sign}}"}}}}',
        f'{{{{"{box}": [{{0}}, {{1}}, {{2}}, {{3}}]}}}}',
        questions=questions,
        answers={
            "point": f'{{{{"{point}": [{{0}}, {{1}}], "label": "{{label}}"}}}}',
            "box": f'{{{{"{box}": [{{0}}, {{1}}, {{2}}, {{3}}], "label": "{{label}}"}}}}',
        },
    )


QWEN_JSON = json_objects(
    "point_2d",
    "bbox_2d",
    {
        "box": "Locate {0}, output its bbox coordinates using JSON format.",
        "point": 'Point to {0}, output its coordinates using JSON format like {{"point_2d": [x, y], "label": "name"}}.',
    },
)
GEMINI = json_objects(
    "point",
    "box_2d",
    {
        "box": "Detect {0}. Output a JSON list where each entry contains the 2D bounding box in `box_2d`, as [ymin, "
        "xmin, ymax, xmax] normalized to 0-1000, and a text label in `label`.",
        "point": 'Point to {0}. The answer should follow the JSON format: [{{"point": [y, x], "label": "name"}}]. The '
        "points are in [y, x] format normalized to 0-1000.",
    },
)
SEG_ZERO = replace(
    QWEN_JSON,
    questions={
        kind: "Find {0} with its box and a point in it. Think within <think> </think>, and give the answer within "
        '<answer> </answer> as [{{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}}].'
        for kind in ("box", "point")
    },
)
MEDSAM = Grammar(
    '<tool_call>\n{{"name": "add_point", "arguments": {{"point_2d": [{0}, {1}], "point_type": "{sign}"}}}}\n'
    "</tool_call>",
    '<tool_call>\n{{"name": "add_bbox", "arguments": {{"bbox_2d": [{0}, {1}, {2}, {3}]}}}}\n</tool_call>',
    finish='<tool_call>\n{"name": "stop_action", "arguments": {}}\n</tool_call>',
)
