"""Specs of registries: `name`, `name:argument`, `name:key=value,…` or `name:argument,key=value,…`."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from segenv.ranges import Range

_PAIR = re.compile(r"\s*([a-z_]+)\s*=\s*(.*?)\s*", re.DOTALL)


def name_of(
    what: str, spec: str, names: Iterable[str], expected: str = "", error: type[Exception] = ValueError
) -> tuple[str, str]:
    """Split a spec into its name, which is one of `names`, and what follows the colon. Raises `error` for any other
    name; `expected` says what there is in other words than the names."""
    name, _, rest = spec.partition(":")
    known = list(names)
    if name not in known:
        expected = expected or f"one of {', '.join(known)}"
        raise error(f"unknown {what} {spec!r}; expected {expected}{nearest(name, known)}")
    return name, rest


def nearest(name: str, known: Iterable[str]) -> str:
    """The question after a known name that is nearly `name`, or nothing."""
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def defaults_of(function: Any, skip: int = 0) -> dict[str, Any]:
    """The options of a function by name with their defaults, but for its first `skip` parameters."""
    return {key: known.default for key, known in list(signature(function).parameters.items())[skip:]}


def options_of(what: str, spec: str, defaults: Mapping[str, Any], argument: str | None = None) -> dict[str, Any]:
    """The options that a spec gives, each of its default's type; of an option whose default is no number or text, a
    number where it is one. What stands before them is the option `argument`. Raises ValueError for an unknown option or
    a wrong value."""
    name, _, rest = spec.partition(":")
    parts = rest.split(",") if argument else [part for part in rest.split(",") if part.strip()]
    options: dict[str, Any] = {}
    while parts and (pair := _PAIR.fullmatch(parts[-1])) and pair[1] in defaults:
        if pair[1] in options:
            raise ValueError(f"{what} {spec!r}: {pair[1]} is given twice; give it once")
        options[pair[1]] = _value(f"{what} {spec!r}: {pair[1]}", pair[2], type(defaults[pair[1]]))
        parts.pop()
    if parts and (pair or not argument):
        raise unknown_option(what, spec, parts[-1].strip(), defaults)
    if argument and any(parts):
        options[argument] = ",".join(parts)
    return options


def unknown_option(what: str, spec: str, option: str, known: Iterable[str]) -> ValueError:
    """The error that says which options there are."""
    names, name = list(known), spec.partition(":")[0]
    there = f"expected KEY=VALUE of {', '.join(names)}" if names else "it has none"
    hint = nearest(option.partition("=")[0], names)
    return ValueError(f"{what} {spec!r}: {option!r} is no option of {name}; {there}{hint}")


def _value(where: str, text: str, kind: type) -> int | float | str:
    if kind is str:
        return text
    for read in (float,) if kind is float else (int, float):
        try:
            value = read(text)
        except ValueError:
            continue
        if value not in Range() or (kind is int and value % 1):
            continue
        if kind is not int:
            return value
        if int(value) in Range():
            return int(value)
    if kind in (int, float):
        raise ValueError(f"{where} is {text!r}; expected {'a whole number' if kind is int else 'a number'}")
    return text
