"""What of a reply is read: thoughts, replies that were cut, and actions that end an episode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segenv import codec
from segenv.codec.reading import split
from segenv.types import Absent, Box, Click, Invalid, Stop, Task
from tests.segenv.test_codec import SCENE, Scene

CLICK = "Positive point: (500, 250)"


@pytest.mark.parametrize(
    ("text", "thought", "answer", "whole"),
    [
        ("Finish", "", "Finish", True),
        ("<think>a</think>Finish", "a", "Finish", True),
        ("a</think>Finish", "a", "Finish", True),
        ("<THINK>a\nb</THINK>\nFinish", "a\nb", "\nFinish", True),
        ("◁think▷a◁/think▷Finish", "a", "Finish", True),
        ("<think>a</think>Fin<think>b</think>ish", "a\nb", "Finish", True),
        ("<think>a", "a", "", False),
        ("<think>a</think>Finish<think>b", "a\nb", "Finish", False),
        ("a</think><think>", "a", "", False),
        ("", "", "", True),
    ],
)
def test_a_thought_is_kept_apart(text, thought, answer, whole):
    assert split(text) == (thought, answer, whole)


@pytest.mark.parametrize("opened", ["<think>", "◁think▷", "<thinking>"])
def test_what_is_thought_is_never_read(opened):
    closed = opened.replace("<", "</").replace("◁", "◁/")
    spoken, thought = codec.make("segagent"), "Current IOU: 12\nNegative point: (1, 1)\nFinish"
    read = spoken.read(f"{opened}{thought}{closed}\nCurrent IOU: 74\n{CLICK}", SCENE)
    assert (read.action, read.thinking, read.stated_iou) == (Click(160, 240), thought, 0.74)
    assert spoken.stated_iou(f"{opened}{thought}{closed}{CLICK}") is None
    assert spoken.read(CLICK, SCENE, thinking="a").thinking == "a"
    for text in (f"{opened}{thought}", f"{CLICK}{opened}{thought}", f"{opened}{thought}{closed}"):
        read = spoken.read(text, SCENE)
        assert isinstance(read.action, Invalid) and read.action.text == text and read.thinking == thought
    assert "ends inside its thought" in spoken.parse(f"{opened}{thought}", SCENE).reason


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS"])
def test_a_reply_that_was_cut_is_invalid_and_says_after_how_many_tokens(reason):
    read = codec.make("segagent").read(CLICK, SCENE, finish_reason=reason, tokens=64)
    assert isinstance(read.action, Invalid) and read.action.reason.startswith("cut after 64 tokens")
    for whole in ("stop", "end_turn", None):
        assert codec.make("segagent").read(CLICK, SCENE, finish_reason=whole, tokens=64).action == Click(160, 240)


HERE = Click(320, 240)
CLICKS = {  # of the codec pixels on an image of 640 x 480; the sign stated
    "Positive point: (320,240)",
    "positive point (320, 240)",
    "POSITIVE POINT: [320; 240]",
    "Positive point: 320, 240",
    "Positive point: (320 px, 240 px)",
    "Positive point: (50%, 50%)",
    "Positive point: (~320, ~240)",
    "Positive point: (320 240)",
    "Positive point: (x=320, y=240)",
    "Positive Point: x = 320, y = 240",
    "Positive point: (y=240, x=320)",
    "Positive point: (row=240, column=320)",
    "Positive point: ('320', '240')",
    "Positive point：（320，240）",
    "Positive point：【320、240】",
    "Positive point: (３２０, 240)",
    "Positive point: (3.2e2, 24e1)",
    "Positive point: $(320, 240)$",
    "Positive point: \\((320, 240)\\)",
    "**Positive point: (320, 240)**",
    "`Positive point: (320, 240)`",
    "Positive point: (320,\n240)",
    "Positive point - (320, 240)",
    "positive_point(320, 240)",
    "Positive: (320, 240)",
    "Positive click: (320, 240)",
    "Foreground point: (320, 240)",
    "Positive point: (320, 240)<|im_end|>",
    "add_point(x=320, y=240, label='positive')",
    "I would click on (320, 240) as positive.",
    "The mask misses the handle. Positive point: (320, 240). This adds it.",
    "Next action: positive point at (320, 240)",
    "Options: `Undo` takes back. I choose:\nPositive point: (320, 240)",
    '{"point": {"x": 320, "y": 240}, "label": "positive"}',
    '{"point_2d": [320, 240], "label": "Positive"}',
    '{"label": "positive", "why": "it is {there}", "point": [320, 240]}',
    "{'point': (320, 240), 'label': 'positive'}",
    "{point: [320, 240], label: positive}",
    '{"positive_point": [320, 240]}',
    '{"x": 320, "y": 240, "positive": true}',
    '{"action": "add", "point": ["320", "240"], "label": "positive"}',
    '{"name": "click", "arguments": "{\\"x\\": 320, \\"y\\": 240, \\"label\\": \\"positive\\"}"}',
    '```json\n[{"point": [320, 240], "label": 1}]\n```',
    '{"points": [[320, 240]], "labels": [1]}',
    '<tool_call>\n{"name": "add_point", "arguments": {"point_2d": [320, 240], "point_type": "positive"}}\n</tool_call>',
    '{"thought": "so", "action": "Positive point: (320, 240)"}',
}


@pytest.mark.parametrize("text", sorted(CLICKS))
def test_a_click_is_read_however_it_is_written(text):
    spoken = codec.make("pixels")
    read = spoken.read(text, SCENE)
    assert (read.action, read.extra, read.unsigned) == (HERE, 0, False) and not read.exact
    negative = text.replace("ositive", "egative").replace("pegative", "negative").replace("Pegative", "Negative")
    negative = negative.replace("POSITIVE", "NEGATIVE").replace("Foreground", "Background").replace('"add"', '"remove"')
    negative = negative.replace('"label": 1', '"label": 0').replace('"labels": [1]', '"labels": [0]')
    negative = negative.replace('"negative": true', '"positive": false')
    assert spoken.parse(negative, SCENE) == Click(320, 240, False), negative


@pytest.mark.parametrize(
    "text",
    [
        "(320, 240)",
        "[320, 240]",
        "x=320, y=240",
        "Point: (320, 240)",
        "Click at (320, 240).",
        '{"point": [320, 240]}',
        '{"point": [320, 240], "label": "red cup"}',
        "<point>320 240</point>",
        '<point x="320" y="240" alt="cup">cup</point>',
        "Current IOU: 20\n```\n(320, 240)\n```",
        "I would click on (320, 240).",
        '{"click": [320, 240], "reason": "cup"}',
    ],
)
def test_a_point_without_a_sign_is_a_positive_click_and_counted(text):
    read = codec.make("pixels").read(text, SCENE)
    assert (read.action, read.extra, read.unsigned, read.exact) == (HERE, 0, True, False)


@pytest.mark.parametrize(
    "text",
    [
        "Box: (200, 100, 600, 400)",
        "Box: [[200, 100], [600, 400]]",
        "Box: (200,100),(600,400)",
        "[200, 100, 600, 400]",
        "Bounding box: [200, 100, 600, 400]",
        "box: (x0=200, y0=100, x1=600, y1=400)",
        '{"bbox": [200, 100, 600, 400]}',
        '{"x1": 200, "y1": 100, "x2": 600, "y2": 400}',
        '{"box": {"xmin": 200, "ymin": 100, "xmax": 600, "ymax": 400}}',
        "<ref>cup</ref><box>(200,100),(600,400)</box>",
        "<box>[200, 100, 600, 400]</box>",
        "<box>200 100 600 400</box>",
        "<|begin_of_box|>[[200, 100, 600, 400]]<|end_of_box|>",
        "<|det|>[[200, 100, 600, 400]]<|/det|>",
        "<|box_start|>(200,100),(600,400)<|box_end|>",
        "<loc0200><loc0100><loc0600><loc0400> cup",
        "cup<loc_200><loc_100><loc_600><loc_400>",
    ],
)
def test_a_box_is_read_however_it_is_written(text):
    read = codec.make("pixels").read(text, SCENE)
    assert (read.action, read.extra, read.unsigned) == (Box(200, 100, 600, 400), 0, False)


STOPS = [
    "Finish",
    "**Finish**",
    "- Finish",
    "1. Finish",
    "Action: `Finish`",
    "The mask is fine: finish",
    "【Finish】",
    "Finish - the mask covers it",
    "I choose to finish.",
    "Done",
    '{"action": "finish"}',
    '{"finish": true}',
    '{"action":"Finish","reason":"mask is right","point":null}',
    "I would choose `Finish` since it is right.",
    '<tool_call>{"name": "stop_action", "arguments": {}}</tool_call>',
    "<action>Terminate</action><answer>A cup.</answer>",
]
ABSENTS = [
    "No object found",
    "No Object Found.",
    "There is no red cup in the image.",
    "The cup is not in the image.",
    "I cannot find a red cup in this image.",
    "[]",
    "```json\n[]\n```",
    "There are none.",
    '{"bbox_2d": null}',
    '{"objects": []}',
    '{"action": "no_object"}',
    "The requested object does not exist in this picture.",
]
INVALIDS = [
    "",
    "I am done.",
    "I should not `Finish` yet.",
    "Finish the cup",
    "Let's finish",
    "Options: `Undo`, `Finish`.",
    "I'm sorry, but I can't help with identifying that.",
    "I can't see the image.",
    "The mask is right: I cannot see any errors.",
    "There are no mistakes in the image.",
    "I can't find any part that remains uncovered.",
    "The green mask is not visible.",
    "Positive point: (320, 24",
    "Positive point: (-5, 240)",
    "Positive point: (−320, 240)",
    "Positive point: (a, b)",
    "Positive point: (nan, 3)",
    "Positive point: (inf, 3)",
    "Positive point: (1e999, 3)",
    "Positive point: (640, 1)",
    "Positive point: (320, 240, 5)",
    "Positive point: (x=1, x=2)",
    '{"point": [320, 2',
    "Box: (600, 400, 200, 100)",
    '{"point": [320, 240], "label": "positive", "type": "negative"}',
    '{"action": "finish", "point": [320, 240]}',
    "[[1, 2], [3, 4]]",
    "Positive point: (1, 2)\nNegative point: (3,",
    "The cup spans from (10, 20) to (300, 400).",
]


@pytest.mark.parametrize(
    ("text", "kind"),
    [*((text, Stop) for text in STOPS), *((text, Absent) for text in ABSENTS), *((text, Invalid) for text in INVALIDS)],
)
def test_what_is_no_place(text, kind):
    read = codec.make("pixels").read(text, SCENE)
    assert type(read.action) is kind and not read.unsigned and not read.extra
    assert read.exact == (text in ("Finish", "No object found"))


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ("Positive point: (320, 240)\nNegative point: (10, 10)", 1),
        ("Positive point: (320, 240), Negative point: (10, 10) and Finish", 1),
        ("Positive point: (320, 240)\n\nFinish", 1),
        ("1. Positive point: (320, 240) - the cup\n2. Negative point: (10, 10) - the table\n3. Finish", 2),
        ("Positive points: (320, 240), (1, 2), (3, 4)", 2),
        ("Positive point: [[320, 240], [1, 2]]", 1),
        ('{"clicks": [{"x": 320, "y": 240, "label": "positive"}, {"x": 1, "y": 2, "label": "negative"}]}', 1),
        ('```json\n[\n{"point": [320, 240], "label": "positive"},\n{"point": [1, 2], "label": "negative"}]\n```', 1),
        ('<points x1="320" y1="240" x2="1" y2="2" alt="positive">positive</points>', 1),
        ("Maybe Negative point: (1, 1)? No, that is outside.\nPositive point: (320, 240)", 0),
        ("First I thought of this:\nNegative point: (1, 1)\n\nBut no:\n\nPositive point: (320, 240)\nFinish", 1),
        ("Negative point: (x, y) takes away.\nPositive point: (320, 240)", 0),
        ("Negative point: (1, 1)\n" * 3000 + "So:\nPositive point: (320, 240)", 0),
    ],
)
def test_the_first_of_the_last_block_is_played_and_the_others_are_counted(text, extra):
    read = codec.make("pixels").read(text, SCENE)
    assert (read.action, read.extra, read.unsigned) == (HERE, extra, False)


def test_a_list_longer_than_what_is_read_is_invalid():
    read = codec.make("pixels").read("Positive point: (320, 240)\n" * 3000, SCENE)
    assert isinstance(read.action, Invalid) and "are one list of actions" in read.action.reason


@pytest.mark.parametrize(
    ("spec", "text", "action"),
    [
        ("molmo", '<point x="61.5" y="40.4" alt="negative">negative</point>', Click(393, 193, False)),
        ("molmo2", '<points coords="1 1 615 404 2 073 160">red cups</points>', Click(393, 193)),
        ("gemini", '{"point": [404, 615], "label": "negative"}', Click(393, 193, False)),
        ("gemini", '{"point": {"y": 404, "x": 615}}', Click(393, 193)),
        ("gemini", '[{"box_2d": [0, 250, 500, 750], "label": "cup"}]', Box(160, 0, 480, 240)),
        ("seg-zero", '<answer>[{"bbox_2d": [210, 0, 420, 840], "point_2d": [9, 9]}]</answer>', Box(160, 0, 320, 480)),
        ("ibisagent", "<think>a</think><action>Negative Point (0.5000, 0.2500)</action>", Click(320, 120, False)),
        ("glm", "<|begin_of_box|>{250, 0, 750, 500}<|end_of_box|>", Box(160, 0, 480, 240)),
        ("glm", "<|begin_of_box|>(500, 500)<|end_of_box|>", HERE),
        ("kimi-vl", '{"bbox_2d": [0.25, 0, 0.750, 5e-1]}', Box(160, 0, 480, 240)),
        ("minicpm-v", "Negative <point>500 500</point>", Click(320, 240, False)),
        ("internvl", "<ref>cup</ref><box>[[250, 0, 750, 500], [1, 2, 3, 4]]</box>", Box(160, 0, 480, 240)),
        ("llava-1.5", "[0.25, 0.125, 0.75, 0.5]", Box(160, 0, 480, 240)),
        ("swim", '[{"label": "cup", "bbox_2d": [250, 0, 750, 500], "point_2d": [300, 300]}]', Box(160, 0, 480, 240)),
        ("segagent", "<ref>cup</ref><box>(1,2),(3,4)</box>\nNegative point: (500, 500)", Click(320, 240, False)),
        ("qwen-vl", "<box>(250,0),(750,500)</box>Positive point: (1, 2)", Box(160, 0, 480, 240)),
    ],
)
def test_each_family_s_own_words_count_in_its_frame(spec, text, action):
    assert codec.make(spec).parse(text, SCENE) == action


def test_units_that_contradict_the_frame_are_refused():
    assert codec.make("molmo").parse("Positive point: (50%, 50%)", SCENE) == HERE
    read = codec.make("qwen3-vl").parse("Positive point: (500px, 500px)", SCENE)
    assert isinstance(read, Invalid) and "is in pixels; expected numbers over 0..1000" in read.reason
    assert codec.make("pixels").parse("Positive point: (1,920, 1,080)", Scene(2160, 3840)) == Click(1920, 1080)


REPLIES = json.loads(Path(__file__).with_name("family_replies.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("one", REPLIES, ids=lambda one: f"{one['codec']} {one['reply'][:20]}")
def test_replies_as_families_write_them(one):
    """`read` is the kind of action, with its numbers in pixels of 640 x 480 and its sign; judged by hand."""
    kind, *values = one["read"]
    found = codec.make(one["codec"]).read(one["reply"], SCENE, asked=one.get("asked", ""))
    action = found.action
    assert type(action).__name__.lower() == kind, action
    if kind in ("click", "box"):
        assert list(vars(action).values()) == pytest.approx(values, abs=1.5 if kind == "box" else 0)
    for name in ("extra", "unsigned"):
        assert getattr(found, name) == one.get(name, getattr(found, name))


@pytest.mark.parametrize(
    "text",
    [
        "The image does not show the whole dog, but all of it that is visible is covered.",
        "The scene does not have any dog parts left to add, so the mask is complete.",
        "The picture does not show the dog's tail.",
        "The image doesn't have anything else to add.",
        "The image does not include the legs in the mask.",
    ],
)
def test_a_remark_about_the_object_does_not_empty_its_mask(text):
    task = Task("made", np.zeros((480, 640, 3), np.uint8), np.ones((480, 640), bool), "the dog")
    assert isinstance(codec.make("segagent").parse(text, task), Invalid)
    assert codec.make("segagent").parse("The image does not show a dog.", task) == Absent()


@pytest.mark.parametrize("point", ['{"x": 100, "y": 120}', '{"point_2d": [100, 120]}', "Point: (100, 120)"])
def test_a_label_on_the_next_line_is_the_sign(point):
    task = Task("made", np.zeros((1000, 1000, 3), np.uint8), np.ones((1000, 1000), bool), "the dog")
    assert not codec.make("grid1000-xy").parse(f"{point}\nLabel: negative", task).positive
