"""Records of what was read in a reply, and the part of a reply that is read.

A model's thought is split off and never read: `<think>…</think>`, `<thinking>…</thinking>`, `<thought>…</thought>` and
`◁think▷…◁/think▷`. What stands before a closing tag without an opening one is thought too, because some chat templates
put the opening tag into the prompt. A reply that ends inside its thought answers nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from segenv.types import Action

_OPEN, _CLOSE = r"(?:<(?:think|thinking|thought)>|◁think▷)", r"(?:</(?:think|thinking|thought)>|◁/think▷)"
_THOUGHT = re.compile(rf"{_OPEN}(.*?)({_CLOSE}|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(f"{_OPEN}|({_CLOSE})", re.IGNORECASE)
CUT = ("length", "max_tokens", "max_output_tokens", "max_new_tokens", "model_length")  # finish reasons of a cut reply


@dataclass(frozen=True)
class Reading:
    """One reply as a codec reads it.

    `exact`: it is written as asked, alone but for the line that states an IoU. `extra`: how many actions follow the one
    that is played, in the same block. `unsigned`: the click that is played stated no sign and counts as positive.
    `thinking` and `answer` are the reply's thought, kept apart, and the text that was read. `stated_iou` is the IoU in
    0..1 that the answer states, or None.
    """

    action: Action
    exact: bool = False
    extra: int = 0
    unsigned: bool = False
    thinking: str = ""
    answer: str = ""
    stated_iou: float | None = None


def split(text: str) -> tuple[str, str, bool]:
    """Split a reply into its thought and its answer, and say whether the thought is whole."""
    lower = text.lower()
    first = _TAG.search(text) if "think" in lower or "thought" in lower else None
    if first is None:
        return "", text, True
    before = text[: first.end()] if first[1] else ""
    thoughts, answers, whole, place = [before[: first.start()]], [], True, len(before)
    for thought in _THOUGHT.finditer(text, place):
        answers.append(text[place : thought.start()])
        thoughts.append(thought[1])
        whole, place = bool(thought[2]), thought.end()
    answers.append(text[place:])
    return "\n".join(filter(None, thoughts)), "".join(answers), whole


def cut(finish_reason: str | None, tokens: int | None) -> str | None:
    """Why a reply that ended for `finish_reason` after `tokens` tokens is not read: it was cut. None where it is."""
    if finish_reason is None or finish_reason.lower() not in CUT:
        return None
    after = "at its longest" if tokens is None else f"after {tokens} tokens"
    return f"cut {after}; expected a whole reply, so allow more tokens or ask for a shorter one"
