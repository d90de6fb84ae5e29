"""Ranges of numbers, declared where a setting or an option is: `steps: Count = 240`.

`faults` finds what is not as declared in a dataclass, and in those within it; `check` raises ValueError for it.
"""

import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Union

from segenv.texts import shown

LARGEST = 2**63 - 1  # the largest whole number that array libraries hold
Fault = tuple[tuple[str, ...], str]  # names that lead to a field, and what is wrong: "is nan; expected 0 or more"


class Constraint(ABC):
    """Condition on a value, as metadata of `typing.Annotated`."""

    @abstractmethod
    def fault(self, value: Any) -> str | None:
        """Say what is wrong with a value that is not None, and what was expected; None for nothing."""


@dataclass(frozen=True)
class Range(Constraint):
    """Finite numbers from `least` to `most`, `above` one number and `below` another."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: Any) -> bool:
        finite = abs(int(value)) <= LARGEST if isinstance(value, Integral) else math.isfinite(value)
        return finite and (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"{} or more": self.least, "above {}": self.above, "at most {}": self.most, "below {}": self.below}
        return " and ".join(text.format(bound) for text, bound in bounds.items() if bound is not None)

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with a number."""
        return None if value in self else f"is {_short(value)}; expected {str(self) or 'a number that can be had'}"


Count = Annotated[int, Range(1)]
CountOrNone = Annotated[int, Range(0)]  # 0 is none, or stands for a default
Processes = Annotated[int, Range(1, 4096)]  # or threads
MOST_SEED = 2**32 - 1
Seed = Annotated[int, Range(0, MOST_SEED)]  # what NumPy, torch and TRL all take
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Gain = Annotated[float, Range(-1, 1)]  # a difference of IoU
Share = Annotated[float, Range(0, 1)]  # a part, a probability, or an IoU


def faults(hint: Any, value: Any, path: tuple[str, ...] = ()) -> Iterator[Fault]:
    """Everything in `value` that is not as its type `hint` says: numbers that are none, not finite or out of range, and
    what breaks another `Constraint`. Numbers without a range have to be finite, too."""
    constraints: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        hint, *constraints = typing.get_args(hint)
    if value is None:
        return
    if is_dataclass(hint) and is_dataclass(value):
        hints = typing.get_type_hints(type(value), include_extras=True)
        for field in fields(value):
            own = hints[field.name]
            inline = any(getattr(mark, "name", None) == "" for mark in typing.get_args(own)[1:])  # tyro's, of flags
            yield from faults(own, getattr(value, field.name), path if inline else (*path, field.name))
    elif typing.get_origin(hint) in (Union, types.UnionType):
        found = [list(faults(one, value, path)) for one in typing.get_args(hint) if one is not types.NoneType]
        yield from found[0] if all(found) else ()
    elif typing.get_origin(hint) in (tuple, list) and isinstance(value, (tuple, list)):
        for one in value:
            yield from ((name, text.replace("is ", "holds ", 1)) for name, text in faults(_first(hint), one, path))
    elif hint in (int, float):
        kind, expected = (Integral, "a whole number") if hint is int else (Real, "a number")
        if not isinstance(value, kind):
            yield path, f"is {_short(value)}; expected {expected}"
            return
        if not any(isinstance(one, Range) for one in constraints):
            constraints.append(Range())
    for constraint in constraints:
        if isinstance(constraint, Constraint) and (text := constraint.fault(value)):
            yield path, text


def _first(hint: Any) -> Any:
    """The type of the items of a tuple or list."""
    return (typing.get_args(hint) or (Any,))[0]


def _short(value: Any) -> str:
    """A value as text that fits a line."""
    if isinstance(value, Integral) and abs(int(value)) > LARGEST:
        return f"{'-' if int(value) < 0 else ''}a number beyond 2**63"
    return shown(value)


def check(config: Any) -> None:
    """Raise ValueError where a field of the dataclass `config`, or of one within it, is not as declared."""
    for path, text in faults(type(config), config):
        raise ValueError(f"{type(config).__name__}: {'.'.join(path)} {text}")


def require(hint: Any, **values: Any) -> None:
    """Raise ValueError where one of `values` is not as the type `hint` says."""
    for name, value in values.items():
        for _, text in faults(hint, value):
            raise ValueError(f"{name} {text}")
