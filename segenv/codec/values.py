"""Numbers as models write them: `(320, 240)`, `[x=320, y=240]`, `{"x": 320, "y": 240}`, `(~320px 240px)`, `(1,920,
1,080)`.

They make the statements of points and boxes. All functions take text that is `lowered`, and read it once from left to
right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAIN = {
    **dict(zip("（）［］【】｛｝〔〕〈〉《》", "()[][]{}()<><>", strict=True)),
    **dict(zip("，、；：。％＝＋－−–—‐‑‒", ",,;:.%=+-------", strict=True)),
    **dict(zip("“”„‟«»‘’‚′″", '""""""\'\'\'\'"', strict=True)),
    **dict(zip("０１２３４５６７８９", "0123456789", strict=True)),
    **dict.fromkeys("≈∼～", "~"),
    **dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000\u200b\ufeff", " "),
}
_TO_PLAIN = str.maketrans(_PLAIN)

_NAME = r"x_?(?:min|max|[0-2])?|y_?(?:min|max|[0-2])?|row|col(?:umn)?|left|top|right|bottom"
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]{1,4})?|[-+]?(?:nan|inf(?:inity)?)"
_THOUSANDS = r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?=\s*(?:px\s*)?(?:,\s|;|\s|[)\]}]|\Z))"


def _item(number: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?:(?P<name>{_NAME})(?:[\s\"'*`]*[:=]|\s)[\s\"'*`]*)?~?\s*(?P<number>{number})"
        r"(?:\s*(?P<unit>px|pixels?|%)(?![a-z]))?(?![a-z0-9])",
        re.ASCII,
    )


_ITEM, _LONG_ITEM = _item(_NUMBER), _item(f"{_THOUSANDS}|{_NUMBER}")
_OPEN = re.compile(r"[\s*`_\"'$\\:=]*((?:[(\[{][\s\"'*`\\]*)*)", re.ASCII)
_GAP = re.compile(r"(?:[\s,;/|()\[\]{}\"'*`$\\]|(?:and|to)\b|-(?=[\s(\[]))*", re.ASCII)
_MORE = re.compile(r"\s*,\s*~?[-+]?[0-9.]", re.ASCII)


@dataclass(frozen=True)
class Number:
    """One number of a reply: its text, and the name and the unit that stand beside it, or nothing."""

    text: str
    name: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Values:
    """Numbers that belong together, `groups` of them by the innermost brackets, and where they end in the text.

    `state` is `whole`, `cut` where the text ends within them, or `bad` where something else stands between them.
    """

    numbers: tuple[Number, ...]
    groups: tuple[int, ...]
    end: int
    state: str
    bracketed: bool

    @property
    def named(self) -> bool:
        """Whether each number has a name."""
        return all(number.name for number in self.numbers)

    def fits(self, want: int) -> bool:
        """Whether they are one or more tuples of `want` numbers."""
        if self.state != "whole" or not self.numbers:
            return False
        return set(self.groups) == {want} or (want == 4 and self.groups == (2, 2))


def lowered(text: str) -> str:
    """`text` in lower-case ASCII, of the same length, so that places are the same: full-width and typographic signs
    become plain ones, escapes what they stand for, TeX's words for brackets spaces, each other character `?`."""
    if not text.isascii():
        text = text.translate(_TO_PLAIN).encode("ascii", "replace").decode("ascii")
    text = text.replace('\\"', '" ').replace("\\n", " \n").lower()
    for word in ("\\left", "\\right", "\\boxed") if "\\" in text else ():
        text = text.replace(word, " " * len(word))
    return text


def values(text: str, place: int, want: int) -> Values:
    """The numbers at `place`: all within its brackets, or `want` of them where it opens none. Commas between digits
    part thousands only where the numbers are as many as wanted in no other way."""
    found = _scan(text, place, want, _ITEM)
    if found.state == "whole" and not found.fits(want):
        other = _scan(text, place, want, _LONG_ITEM)
        return other if other.fits(want) else found
    return found


def _scan(text: str, place: int, want: int, item: re.Pattern[str]) -> Values:
    opened = _OPEN.match(text, place)
    assert opened is not None
    depth = sum(map(opened[1].count, "([{"))
    numbers: list[Number] = []
    groups: list[int] = []
    bracketed, place, since = depth > 0, opened.end(), 0

    def result(end: int, state: str) -> Values:
        if len(numbers) > since:
            groups.append(len(numbers) - since)
        return Values(tuple(numbers), tuple(groups), end, state, bracketed)

    while found := item.match(text, place):
        numbers.append(Number(found["number"], found["name"] or "", (found["unit"] or "")[:2]))
        place = found.end()
        if not bracketed and len(numbers) == want:
            return result(place, "bad" if _MORE.match(text, place) else "whole")
        gap = _GAP.match(text, place)
        assert gap is not None
        for i, character in enumerate(gap[0], place):
            if character in ")]}":
                depth -= 1
                if len(numbers) > since:
                    groups.append(len(numbers) - since)
                    since = len(numbers)
                if depth <= 0 and bracketed and (len(numbers) >= want or len(numbers) % 2):
                    return result(i + 1, "whole")
            elif character in "([{":
                depth += 1
        if gap.end() == place:
            break
        place = gap.end()
    return result(place, "cut" if not text[place:].strip(" \n\r\t+-.~\"'") else "bad")


@dataclass(frozen=True)
class Statement:
    """One statement: a `point`, `box`, `stop`, `undo`, `absent` or `broken` one, and where it stands in the text.

    `values` are the numbers of a point or box. `sign` is `positive`, `negative`, `both` or nothing. `more`: how many
    further actions it holds. `weak` ones count where there is no other; `why` says what is wrong with a broken one.
    """

    kind: str
    start: int
    end: int
    values: Values | None = None
    sign: str = ""
    more: int = 0
    weak: bool = False
    why: str = ""


def numbered(kind: str, start: int, found: Values, want: int, sign: str = "") -> Statement:
    """The statement of a point (`want` 2) or box (4) with these numbers."""
    if found.fits(want):
        return Statement(kind, start, found.end, found, sign, len(found.numbers) // want - 1)
    shown = "breaks off" if found.state == "cut" else f"holds no {'two' if want == 2 else 'four'} numbers of a {kind}"
    return Statement("broken", start, max(found.end, start + 1), why=shown)
