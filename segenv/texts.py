"""Texts that come from files and models, as UTF-8 and one line can hold them."""

import re
import reprlib

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def whole(text: str) -> str:
    """A text without halves of surrogate pairs, which UTF-8 cannot hold: two halves that belong together, as a program
    that escapes UTF-16 leaves them, become their character, and a lone one becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def one_line(text: str) -> str:
    """A `whole` text with each run of control characters (line breaks, tabs, NUL) as one space, none at its ends."""
    return _CONTROL.sub(" ", whole(text)).strip() if _CONTROL.search(text) else whole(text)


def shown(value: object) -> str:
    """`value` as an error shows it: on one line, and not at length."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
