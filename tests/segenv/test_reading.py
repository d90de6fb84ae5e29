"""What of a reply is read: thoughts, replies that were cut, and actions that end an episode."""

from __future__ import annotations

import pytest

from segenv import codec
from segenv.codec.reading import split
from segenv.types import Click, Invalid
from tests.segenv.test_codec import SCENE

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
