"""Grammars: how the statements of a codec look, to write them and to find the last one in a reply.

Statements are searched from the end of a reply, by `str.rfind` of the literal that they start with and a pattern at
that place. Patterns see lower-case ASCII and stay flat: neighbouring repeats share no character. So any text is
searched in linear time, and a reply that ends with its action at once.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property

_GAP = r"[\s*`_]*"  # what may stand between tokens: white space and emphasis
_COLON = rf"{_GAP}(?::{_GAP})?"
_COMMA = rf"{_GAP},{_GAP}"
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_BACK = 64  # how many characters before a statement may be looked at


def _numbers(*names: str) -> str:
    """A pattern of numbers between commas, as named groups."""
    return _COMMA.join(f"(?P<{name}>{_NUMBER})" for name in names)


_POINT, _BOX = _numbers("p0", "p1"), _numbers("b0", "b1", "b2", "b3")


def lowered(text: str) -> str:
    """`text` in lower-case ASCII, each other character as `?`: of the same length, so that places are the same."""
    return text.encode("ascii", "replace").lower().decode("ascii")


@dataclass(frozen=True)
class Statement:
    """One kind of statement. `template` has the places {0}, {1} … and, for a point, {sign}.

    It starts with one of the literals `starts` and is the pattern `head`, then `rest`; without its `rest` it breaks
    off. With `alone` it must open its line, or follow a colon, a number or a tag.
    """

    template: str
    starts: tuple[str, ...]
    head: str
    rest: str
    alone: bool = False

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?:{self.head})(?P<rest>{self.rest})?", re.ASCII)

    def last(self, lower: str) -> re.Match[str] | None:
        """The last one in a `lowered` text; its group `rest` is None where it breaks off."""
        found: re.Match[str] | None = None
        match_at, find_before = self._pattern.match, lower.rfind
        for start in self.starts:
            first, place = (found.start() if found else 0), len(lower)
            while (place := find_before(start, first, place)) >= 0:
                if (match := match_at(lower, place)) and (
                    not self.alone or _opens(lower[max(0, place - _BACK) : place])
                ):
                    found = match
                    break
        return found


def _opens(before: str) -> bool:
    """Whether a word after `before` opens its line, or follows a colon, a number or a tag."""
    before = before.rstrip(" \t*`_\"'")
    return not before or before[-1] in "\r\n:>0123456789"


@dataclass(frozen=True)
class Grammar:
    """The statements of a codec, and its words for the two signs."""

    point: Statement
    box: Statement
    positive: str = "positive"
    negative: str = "negative"


FINISH = Statement("Finish", ("finish",), r"finish[ \t*`_\"'.!]*(?=[\r\n<]|\Z)", "", alone=True)
UNDO = Statement("Undo", ("undo",), r"undo[ \t*`_\"'.!]*(?=[\r\n<]|\Z)", "", alone=True)
IOU = Statement("Current IOU: {0}", ("current",), rf"current[\s*`_]+iou{_COLON}(?P<percent>[0-9]+(?:\.[0-9]+)?)", "")

_POINT_WORDS = Statement(
    "{sign} point: ({0}, {1})",
    ("positive", "negative"),
    rf"(?P<sign>positive|negative)[\s*`_]+point{_COLON}[(\[]",
    rf"{_GAP}{_POINT}{_GAP}[)\]]",
)
_BOX_WORDS = Statement("Box: ({0}, {1}, {2}, {3})", ("box:",), rf"\bbox:{_GAP}[(\[]", rf"{_GAP}{_BOX}{_GAP}[)\]]")
WORDS = Grammar(_POINT_WORDS, _BOX_WORDS, "Positive", "Negative")
LISTS = replace(
    WORDS,
    point=replace(_POINT_WORDS, template="{sign} point: [{0}, {1}]"),
    box=replace(_BOX_WORDS, template="Box: [{0}, {1}, {2}, {3}]"),
)
QWEN_TAGS = replace(
    WORDS,
    box=Statement(
        "<box>({0},{1}),({2},{3})</box>",
        ("<box>",),
        "<box>",
        rf"{_GAP}\({_GAP}{_numbers('b0', 'b1')}{_GAP}\){_COMMA}\({_GAP}{_numbers('b2', 'b3')}{_GAP}\){_GAP}</box>",
    ),
)
INTERN_TAGS = replace(
    WORDS,
    box=Statement(
        "<box>[[{0}, {1}, {2}, {3}]]</box>", ("<box>",), "<box>", rf"{_GAP}\[\[{_GAP}{_BOX}{_GAP}\]\]{_GAP}</box>"
    ),
)
MOLMO = Grammar(
    Statement(
        '<point x="{0}" y="{1}" alt="{sign}">{sign}</point>',
        ("<point",),
        r"<point(?=\s)",
        rf'\s+x="(?P<p0>{_NUMBER})"\s+y="(?P<p1>{_NUMBER})"\s+alt="(?P<sign>positive|negative)"',
    ),
    _BOX_WORDS,
)


def json_objects(point: str, box: str) -> Grammar:
    """JSON objects of the Qwen and Gemini families; a point's label may stand before or behind it."""
    label = rf'(?:{_COMMA}"label"{_GAP}:{_GAP}"(?P<sign>positive|negative)")?'
    return Grammar(
        Statement(
            f'{{{{"{point}": [{{0}}, {{1}}], "label": "{{sign}}"}}}}',
            (f'"{point}"',),
            rf'"{point}"{_GAP}:{_GAP}\[',
            rf"{_GAP}{_POINT}{_GAP}\]{label}",
        ),
        Statement(
            f'{{{{"{box}": [{{0}}, {{1}}, {{2}}, {{3}}]}}}}',
            (f'"{box}"',),
            rf'"{box}"{_GAP}:{_GAP}\[',
            rf"{_GAP}{_BOX}{_GAP}\]",
        ),
    )


_EARLY = re.compile(rf'"label"{_GAP}:{_GAP}"(positive|negative)"{_COMMA}\Z', re.ASCII)


def sign_of(point: re.Match[str]) -> str | None:
    """`positive` or `negative`, from a whole point or from a label just before it; None where neither tells."""
    before = point.string[max(0, point.start() - _BACK) : point.start()]
    early = None if point["sign"] else _EARLY.search(before)
    return point["sign"] or (early[1] if early else None)
