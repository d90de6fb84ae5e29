"""Pickles of plain data, as RefCOCO's are, read without Python's unpickler.

Only the operations that build dictionaries, lists, texts and numbers are known here. Those that look up a class or a
function, call one, set an object's state or name an extension are refused at the byte where they stand, so nothing that
a file says is ever imported or run.

Operations and their arguments: the standard library's pickletools.
"""

import codecs
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segenv.data.base import DataError
from segenv.texts import shown

MAX_BYTES = 1 << 27  # of a file; the largest published one has about half
MAX_DEPTH = 16  # of containers in containers; refs have four
MAX_VALUES = 100_000_000  # with each container counted wherever it is used
_LARGEST = 2**63
_STOP = ord(".")
_DIGITS = 40  # bytes of a number in decimal

_MACHINERY = {  # operations that are refused by name: the rest of the protocol is refused by its byte
    "c": "GLOBAL, which imports a name",
    "\x93": "STACK_GLOBAL, which imports a name",
    "i": "INST, which imports and calls a class",
    "o": "OBJ, which calls a class",
    "R": "REDUCE, which calls a function",
    "\x81": "NEWOBJ, which calls a class",
    "\x92": "NEWOBJ_EX, which calls a class",
    "b": "BUILD, which sets an object's state",
    "\x82": "EXT1, which names an extension",
    "\x83": "EXT2, which names an extension",
    "\x84": "EXT4, which names an extension",
    "P": "PERSID, which names an object elsewhere",
    "Q": "BINPERSID, which names an object elsewhere",
}


class PickleError(ValueError):
    """A pickle is damaged, or holds more than plain data; the message says at which byte."""


def read_pickle(path: Path, what: str) -> Any:
    """Read a pickle of plain data. Raises `DataError`; `what` says what was expected of the file."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"{path} has {size:,} bytes; expected {what}, at most {MAX_BYTES:,} bytes")
        return loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); expected {what}") from error
    except PickleError as error:
        raise DataError(f"{path} is no pickle of plain data ({error}); expected {what}") from error


def loads(content: bytes) -> Any:
    """The value of a pickle of dictionaries with texts as keys, lists, texts, numbers, truth values and None; tuples
    become lists, and texts of Python 2 are UTF-8. Raises `PickleError`."""
    machine = _Machine(content)
    try:
        value = machine.run()
    except PickleError:
        raise
    except (IndexError, KeyError, ValueError) as error:  # no more bytes or values, an unknown memo, no such number
        raise PickleError(f"damaged at byte {machine.at}: {type(error).__name__}: {error}") from error
    _measure(value, MAX_DEPTH, {})
    return value


class _Machine:
    """The pickle machine without its objects: a stack, the marks on it, and a memo of numbered values."""

    __slots__ = ("at", "below", "content", "memo", "stack")

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks that marks have set aside
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        content, known = self.content, _OPERATIONS
        while (code := content[self.at]) != _STOP:
            operation = known.get(code)
            if operation is None:
                named = _MACHINERY.get(chr(code), f"the operation {chr(code)!a}, which plain data do not need")
                raise PickleError(f"byte {self.at} is {named}")
            self.at += 1
            operation(self)
        if len(self.stack) != 1 or self.below:
            raise PickleError(f"byte {self.at} ends it with {len(self.stack)} values and {len(self.below)} open marks")
        return self.stack[0]

    def take(self, size: int) -> bytes:
        at, self.at = self.at, self.at + size
        if self.at > len(self.content):
            raise PickleError(f"cut within the {size:,} bytes from byte {at}")
        return self.content[at : self.at]

    def size(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self, most: int = MAX_BYTES) -> bytes:
        at = self.at
        end = self.content.index(b"\n", at, at + most)
        self.at = end + 1
        return self.content[at:end]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def whole(self, number: int) -> None:
        if not -_LARGEST <= number < _LARGEST:
            raise PickleError(f"a number of more than 64 bits before byte {self.at}")
        self.stack.append(number)

    def decimal(self) -> None:
        text = self.line(_DIGITS)
        if text in (b"00", b"01"):
            self.stack.append(text == b"01")
        else:
            self.whole(int(text))

    def quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in b"'\"":
            raise PickleError(f"a text without quotes before byte {self.at}")
        text = text[1:-1]
        self.stack.append((codecs.escape_decode(text)[0] if b"\\" in text else text).decode("utf-8"))

    def text(self, width: int) -> None:
        self.stack.append(self.take(self.size(width)).decode("utf-8", "surrogatepass"))

    def keep(self, number: int) -> None:
        if not 0 <= number < 2**32:
            raise PickleError(f"a memo of number {number} before byte {self.at}")
        self.memo[number] = self.stack[-1]

    def fetch(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """The values since the last mark, taken from the stack."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def gather(self) -> None:
        items = self.marked()
        self.stack.append(items)

    def last(self, count: int) -> None:
        """Put the last `count` values as a list in their place."""
        if len(self.stack) < count:
            raise PickleError(f"too few values before byte {self.at}")
        self.stack[-count:] = [self.stack[-count:]]

    def extend(self, items: list[Any]) -> None:
        if type(target := self.stack[-1]) is not list:
            raise PickleError(f"values appended to {shown(target)} before byte {self.at}")
        target.extend(items)

    def insert(self, items: list[Any]) -> None:
        if type(target := self.stack[-1]) is not dict or len(items) % 2:
            raise PickleError(f"names and values put into {shown(target)} before byte {self.at}")
        for name, value in zip(items[::2], items[1::2], strict=True):
            if type(name) is not str or name in target:
                raise PickleError(f"the name {shown(name)} is no text, or there twice, before byte {self.at}")
            target[name] = value

    def dictionary(self) -> None:
        items = self.marked()
        self.stack.append({})
        self.insert(items)

    def append(self) -> None:
        item = self.stack.pop()
        if type(target := self.stack[-1]) is list:
            target.append(item)
        else:
            self.extend([item])  # says what is wrong

    def put(self) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        if type(target := self.stack[-1]) is dict and type(name) is str and name not in target:
            target[name] = value
        else:
            self.insert([name, value])  # says what is wrong


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda machine: machine.take(1),  # PROTO
        "\x95": lambda machine: machine.take(8),  # FRAME
        "N": _push(None),
        "\x88": _push(True),
        "\x89": _push(False),
        "I": _Machine.decimal,
        "L": lambda machine: machine.whole(int(machine.line(_DIGITS).rstrip(b"L"))),
        "J": lambda machine: machine.push(int.from_bytes(machine.take(4), "little", signed=True)),
        "K": lambda machine: machine.push(machine.size(1)),
        "M": lambda machine: machine.push(machine.size(2)),
        "\x8a": lambda machine: machine.whole(int.from_bytes(machine.take(machine.size(1)), "little", signed=True)),
        "F": lambda machine: machine.push(float(machine.line(_DIGITS))),
        "G": lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
        "S": _Machine.quoted,
        "U": lambda machine: machine.text(1),
        "T": lambda machine: machine.text(4),
        "V": lambda machine: machine.push(machine.line().decode("raw-unicode-escape")),
        "\x8c": lambda machine: machine.text(1),
        "X": lambda machine: machine.text(4),
        "(": _Machine.mark,
        "]": lambda machine: machine.push([]),
        ")": lambda machine: machine.push([]),
        "}": lambda machine: machine.push({}),
        "l": _Machine.gather,
        "t": _Machine.gather,
        "\x85": lambda machine: machine.last(1),
        "\x86": lambda machine: machine.last(2),
        "\x87": lambda machine: machine.last(3),
        "d": _Machine.dictionary,
        "a": _Machine.append,
        "e": lambda machine: machine.extend(machine.marked()),
        "s": _Machine.put,
        "u": lambda machine: machine.insert(machine.marked()),
        "p": lambda machine: machine.keep(int(machine.line(_DIGITS))),
        "q": lambda machine: machine.keep(machine.size(1)),
        "r": lambda machine: machine.keep(machine.size(4)),
        "\x94": lambda machine: machine.keep(len(machine.memo)),
        "g": lambda machine: machine.fetch(int(machine.line(_DIGITS))),
        "h": lambda machine: machine.fetch(machine.size(1)),
        "j": lambda machine: machine.fetch(machine.size(4)),
    }.items()
}


def _measure(value: Any, depth: int, sizes: dict[tuple[int, int], int]) -> int:
    """The number of values in a value, each container counted wherever it is used: what a reader would walk through.
    Raises `PickleError` beyond `MAX_VALUES` and `MAX_DEPTH`, and so for containers that hold themselves."""
    if type(value) not in (list, dict):
        return 1
    if (size := sizes.get((id(value), depth))) is not None:  # it may stand deeper elsewhere
        return size
    if not depth:
        raise PickleError(f"containers within containers, more than {MAX_DEPTH} deep")
    size = 1
    for item in value.values() if type(value) is dict else value:
        size += _measure(item, depth - 1, sizes)
        if size > MAX_VALUES:
            raise PickleError(f"more than {MAX_VALUES:,} values, with those counted that stand in several places")
    sizes[id(value), depth] = size
    return size
