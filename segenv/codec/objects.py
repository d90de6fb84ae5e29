"""Statements in JSON objects, also within tool calls, code fences, and objects that are no JSON by the letter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from segenv.codec.values import Statement, numbered, values

_SIGN = r"(?:positive|negative|foreground|background)"
_POINT_WORD = r"(?:points?|clicks?|coords?|coordinates?|position|location|pixel|xy)(?:_?2d|_xy|_?[0-9])?"
_POINT_KEY = rf"(?:{_SIGN}[_ ]?)?{_POINT_WORD}|{_SIGN}"
_BOX_KEY = r"(?:b|bounding_?)?box(?:es)?(?:_?2d|_xyxy)?|rect(?:angle)?"
_LIST_KEY = r"objects|detections|results"
_NAMED_KEY = r"[xy](?:_?min|0|1)?|left|top|row|col(?:umn)?"
_EVENT = re.compile(
    r"(?P<open>\{)|(?P<close>\})"
    rf"|(?<=[{{,\s\"'])(?=[a-z])(?P<key>(?P<box>{_BOX_KEY})|(?P<point>{_POINT_KEY})|(?P<list>{_LIST_KEY})|(?P<named>{_NAMED_KEY})"
    r"|(?P<word>[a-z_]{2,20}))(?P<quote>[\"']?)\s*[:=]\s*"
    r"(?:(?P<none>null|none|\[\s*(?:\[\s*\])?\s*\])|(?(word)(?:\[\s*)?(?P<bit>[01])(?=\s*[,}\]])|(?!))"
    r"|(?P<at>(?=[\"']?(?:[\[({]|[-+~]?[0-9.])))"
    r"|(?P<text>\"(?![{\[])[^\"\n]{0,60}\"|'[^'\n]{0,60}'|true|false|[a-z_]{1,20}(?=\s*[,}])))"
)
_QUOTES = re.compile(r"[{\"']")
_STOP = {"finish", "finished", "stop", "terminate", "terminated", "done", "submit", "end", "complete", "stop_action"}
_UNDO = {"undo", "undo_action", "undo_last"}
_ABSENT = {"absent", "no_object", "no object", "not_found", "not found", "no target", "no_target", "no object found"}
_ACTIONS = {**dict.fromkeys(_STOP, "stop"), **dict.fromkeys(_UNDO, "undo"), **dict.fromkeys(_ABSENT, "absent")}
_ACTION_KEYS = {"action", "name", "type", "command", "function", "tool", "tool_name", "act", "decision", "operation"}
_SIGN_KEYS = {"label", "sign", "click", "polarity", "kind", "mode", "category", "prompt", "alt", "positive"}
_POSITIVE, _NEGATIVE = {"positive", "foreground", "pos", "fg"}, {"negative", "background", "neg", "bg"}
_BITS = {"0": "negative", "1": "positive"}  # as SAM labels points
_PLAIN = _POSITIVE | _NEGATIVE | {"point", "points", "click", "prompt", "add", "label", "type", "a", "is"}
_WEAK_SIGNS = {"add": "positive", "include": "positive", "+": "positive"}
_WEAK_SIGNS |= {"remove": "negative", "exclude": "negative", "subtract": "negative", "-": "negative"}


@dataclass
class _Object:
    """A pair of braces: what stands in it, and the object around it."""

    start: int
    around: _Object | None = None
    pairs: list[tuple[str, str]] = field(default_factory=list)
    numbers: bool = False  # it, or one within it, holds a point or a box

    def sign(self) -> str:
        """The sign that its pairs state, or those of the objects around it; `both` where they contradict."""
        here: _Object | None = self
        while here is not None:
            if signs := {sign for key, text in here.pairs if (sign := _sign(key, text))}:
                return signs.pop() if len(signs) == 1 else "both"
            weak = {_WEAK_SIGNS[text] for key, text in here.pairs if text in _WEAK_SIGNS}
            if len(weak) == 1:
                return weak.pop()
            here = here.around
        return ""

    def action(self) -> str:
        """The action without numbers that it or an object around it names, or nothing."""
        here: _Object | None = self
        while here is not None:
            for key, text in here.pairs:
                said = key if text == "true" else text if key in _ACTION_KEYS else ""
                if said in _ACTIONS:
                    return _ACTIONS[said]
            here = here.around
        return ""


def _sign(key: str, text: str) -> str:
    """The sign that one pair states, or nothing."""
    if key in ("positive", "is_positive", "foreground", "is_foreground") and text in ("true", "false"):
        return "positive" if text == "true" else "negative"
    words = set(re.findall(r"[a-z]+", text))
    if not (key in _SIGN_KEYS or key in _ACTION_KEYS or "type" in key or "label" in key) or words - _PLAIN:
        return ""
    signs = {"positive"} if words & _POSITIVE else set()
    signs |= {"negative"} if words & _NEGATIVE else set()
    return "both" if len(signs) == 2 else "".join(signs)


def statements_of_objects(text: str) -> Iterator[Statement]:
    """The statements that objects of a `lowered` text make."""
    top: _Object | None = None
    found: list[tuple[Statement, _Object | None]] = []
    done = 0  # up to where numbers have been read
    for event in _EVENT.finditer(text) if _QUOTES.search(text) else ():
        if event["open"]:
            top = _Object(event.start(), top)
        elif event["close"]:
            top = top.around if top is not None else None
        elif event["text"] or event["bit"]:
            said = (event["text"] or _BITS[event["bit"]]).strip("\"'").strip()
            if top is not None and (event["text"] or "label" in event["key"]):
                top.pairs.append((event["key"], said))
            said = event["key"] if said == "true" else said if event["key"] in _ACTION_KEYS else ""
            if said in _ACTIONS:
                found.append((Statement(_ACTIONS[said], event.start(), event.end()), top))
        elif event["none"]:
            if top is not None and not event["named"] and not event["word"]:
                found.append((Statement("absent", event.start(), event.end()), top))
        elif (
            event.start() >= done
            and event["at"] is not None
            and not event["word"]
            and not event["list"]
            and (top is not None or event["quote"])
        ) and (one := _place(text, event)) is not None:
            done = one.end
            found.append((one, top))
            around = top
            while around is not None and not around.numbers:
                around.numbers, around = True, around.around
    return _signed(found)


def _place(text: str, event: re.Match[str]) -> Statement | None:
    """The point or box whose key has been found."""
    named, want = event["named"], 4 if event["box"] else 2
    if named:
        want = 2 if named in ("x", "y", "row", "col", "column") else 4
    read = values(text, event.start() if named else event.end(), want)
    if want == 2 and not named and read.groups == (4,):
        want = 4  # the four coordinates of a box
    if named and not read.fits(want) and read.state != "cut":
        return None
    if not read.fits(want) and "{" in text[event.end() : event.end() + 8]:
        return None  # objects, which are read by themselves
    if not read.bracketed and read.state == "whole" and not text[read.end :].lstrip(" \n\r\t\"'"):
        read = replace(read, state="cut")
    one = numbered("box" if want == 4 else "point", event.start(), read, want)
    sign = re.match(_SIGN, event["point"] or "")
    if one.kind == "point" and sign:
        return replace(one, sign="positive" if sign[0] in _POSITIVE else "negative")
    return one


def _signed(found: list[tuple[Statement, _Object | None]]) -> Iterator[Statement]:
    """Points with the signs of their objects; nothing absent beside other things, and no place in a stop."""
    for one, inside in found:
        if inside is not None:
            other = inside.action()
            if one.kind not in ("point", "box", "broken") and inside.numbers:
                continue
            if one.kind == "absent" and other in ("stop", "undo"):
                continue
            if one.kind in ("point", "box") and other:
                one = replace(one, kind="broken", why="states both a place and an action without one")
            if one.kind == "point" and not one.sign:
                one = replace(one, sign=inside.sign())
        yield one
