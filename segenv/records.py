"""Values read from JSON and YAML, checked against the types that are expected of them.

`reader(kind)` makes the check of a type once, and is fast enough for every record of a run. A kind is a type hint:
scalars, `list`, `tuple`, `dict`, unions, `Literal`, `Path`, dataclasses (whose names must be known) and `TypedDict`s
(where further names may stand). A dataclass says by a method `check`, which raises ValueError, what types do not.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from segenv.texts import shown
from segenv.types import RunError

T = TypeVar("T")
Read = Callable[[Any], Any]
NAMES: dict[Any, str] = {
    **{str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing (null)"},
    **{list: "a list", tuple: "a list", dict: "values by name", Path: "a path"},
}


class Misfit(ValueError):
    """A value of another type than expected; the message says where in the record it stands."""

    def __init__(self, message: str, *place: str | int) -> None:
        self.message, self.place = message, place
        super().__init__(message)

    def __str__(self) -> str:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place).lstrip(".")
        return f"{where} {self.message}" if where else self.message

    def within(self, part: str | int) -> "Misfit":
        """The misfit as seen from the value around."""
        return Misfit(self.message, part, *self.place)


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8. Raises ValueError, also for NaN and infinities, which have no place in JSON."""

    def refuse(name: str) -> Any:
        raise ValueError(f"it holds {name}, which is no JSON")

    if not content.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, read: Callable[[Any], T], advice: str) -> T:
    """The content of a JSON file as `read`, for one a `reader`, makes it. Raises RunError, which names the file, what
    is wrong with it and, by `advice`, what to do."""
    try:
        return read(parse_json(path.read_bytes()))
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}); {advice}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {advice}") from error


def reader(kind: type[T]) -> Callable[[Any], T]:
    """Make a function that checks a value from JSON or YAML, and returns it as a `kind`. It raises ValueError, which
    says what arrived and what was expected, and where."""
    return _reader(typing.cast(Any, kind))


def checked(read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """Make a reader that returns a record as it stands, once `read` has accepted it."""

    def check(value: Any) -> dict[str, Any]:
        read(value)
        return value

    return check


@cache
def _reader(kind: Any) -> Read:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        return _union(kind, options)
    if origin is Literal:
        return lambda value: _expect(value in options, value, " or ".join(map(repr, options)))
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _fields(kind)
    plain = origin or kind
    if plain is tuple:
        return _tuple(options)
    if plain in (list, Sequence):
        return _list(options)
    if plain in (dict, Mapping):
        return _dict(options)
    if kind is Path:
        return lambda value: Path(_expect(isinstance(value, str), value, "a path"))
    accepted = (int, float) if kind is float else kind
    return lambda value: _expect(
        isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)), value, _name(kind)
    )


def _expect(fits: bool, value: Any, expected: str) -> Any:
    if not fits:
        raise Misfit(f"is {shown(value)}; expected {expected}")
    return value


def _name(kind: Any) -> str:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_name, typing.get_args(kind)))
    return NAMES.get(typing.get_origin(kind) or kind) or str(getattr(kind, "__name__", kind))


def _union(kind: Any, options: Sequence[Any]) -> Read:
    inner = [(option, _reader(option)) for option in options if option is not type(None)]

    def read(value: Any) -> Any:
        if value is None and type(None) in options:
            return None
        for _, one in inner:
            try:
                return one(value)
            except Misfit as misfit:
                if misfit.place or (len(inner) == 1 and isinstance(value, (dict, list))):
                    raise  # it is this option, with a fault within
        return _expect(False, value, _name(kind))

    return read


def _fields(kind: Any) -> Read:
    """Reader of a dataclass or a TypedDict."""
    typed, check = typing.is_typeddict(kind), getattr(kind, "check", None)
    readers = {name: _reader(hint) for name, hint in typing.get_type_hints(kind).items()}
    if typed:
        needed = kind.__required_keys__
    else:
        fields = [field for field in dataclasses.fields(kind) if field.init]
        readers = {field.name: readers[field.name] for field in fields}
        missing = dataclasses.MISSING
        needed = {one.name for one in fields if one.default is missing and one.default_factory is missing}

    def read(value: Any) -> Any:
        _expect(isinstance(value, dict), value, "values by name" if typed else f"the values of {kind.__name__} by name")
        for name in needed:
            if name not in value:
                raise Misfit(f"has no {name!r}")
        made = {}
        for name, one in value.items():
            if name not in readers:
                if not typed:
                    raise Misfit(
                        f"has {name!r}, which {kind.__name__} does not know; another version may have written it"
                    )
                made[name] = one
                continue
            try:
                made[name] = readers[name](one)
            except Misfit as misfit:
                raise misfit.within(name) from None
        if typed:
            return made
        built = kind(**made)
        if check is not None:
            check(built)
        return built

    return read


def _list(options: Sequence[Any]) -> Read:
    one = _reader(options[0]) if options else None

    def read(value: Any) -> Any:
        _expect(isinstance(value, list), value, "a list")
        return value if one is None else _each(value, one)

    return read


def _tuple(options: Sequence[Any]) -> Read:
    length = None if not options or options[-1] is ... else len(options)
    readers = [_reader(option) for option in options if option is not ...]

    def read(value: Any) -> Any:
        _expect(isinstance(value, (list, tuple)), value, "a list")
        _expect(length in (None, len(value)), value, f"a list of {length}")
        if length is None:
            return tuple(_each(value, readers[0])) if readers else tuple(value)
        pairs = iter(readers)
        return tuple(_each(value, lambda one: next(pairs)(one)))

    return read


def _each(values: Sequence[Any], read: Read) -> list[Any]:
    made = []
    for k, value in enumerate(values):
        try:
            made.append(read(value))
        except Misfit as misfit:
            raise misfit.within(k) from None
    return made


def _dict(options: Sequence[Any]) -> Read:
    keys, values = (_reader(option) for option in options) if options else (None, None)

    def read(value: Any) -> Any:
        _expect(isinstance(value, dict), value, "values by name")
        if keys is None or values is None:
            return value
        made = {}
        for name, one in value.items():
            keys(name)
            try:
                made[name] = values(one)
            except Misfit as misfit:
                raise misfit.within(str(name)) from None
        return made

    return read
