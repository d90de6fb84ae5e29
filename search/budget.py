"""Budgets of searches: one `Budget` for each tree, and one place that charges it (`search.expand`).

The counts are hard limits. Before an agent, a tool or a value function is called, `affordable` says how many calls can
be paid for in the worst case (a reply may be as long as the model allows), and only those are made; `charge` then takes
what they cost. Time cannot be reserved: no round of expansion begins once the seconds are spent, and children that the
last round brings back too late are not used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from segenv import ranges
from segenv.ranges import CountOrNone, NotNegative

AXES = ("policy_calls", "tokens", "tool_calls", "value_calls", "seconds")


@dataclass(frozen=True)
class Cost:
    """An amount on every axis: replies of the policy, tokens that models wrote, prompts that the tool answered, masks
    that were valued, and wall-clock seconds (an equal share where a batch served several searches)."""

    policy_calls: int = 0
    tokens: int = 0
    tool_calls: int = 0
    value_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, axis) + getattr(other, axis) for axis in AXES))


@dataclass(frozen=True)
class Limits:
    """The most that one search may spend on each axis; None is no limit."""

    policy_calls: CountOrNone | None = None
    tokens: CountOrNone | None = None
    tool_calls: CountOrNone | None = None
    value_calls: CountOrNone | None = None
    seconds: NotNegative | None = None

    def __post_init__(self) -> None:
        ranges.check(self)

    def finite(self) -> dict[str, float]:
        """The axes that have a limit."""
        return {item.name: limit for item in fields(self) if (limit := getattr(self, item.name)) is not None}


class Budget:
    """Keeps the cost that one search has `spent` within its `limits`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.spent = Cost()

    @property
    def late(self) -> bool:
        """Whether the seconds are over."""
        return self.limits.seconds is not None and self.spent.seconds >= self.limits.seconds

    def affordable(self, count: int, each: Cost) -> int:
        """How many of `count` calls that cost at most `each` can be paid for; seconds are not reserved."""
        if self.late:
            return 0
        for name, limit in self.limits.finite().items():
            price = getattr(each, name)
            if name != "seconds" and price > 0:
                count = min(count, int((limit - getattr(self.spent, name)) // price))
        return count

    def charge(self, cost: Cost) -> None:
        """Take `cost`. Raises RuntimeError where a count would pass its limit: `affordable` was not asked first."""
        total = self.spent + cost
        for name, limit in self.limits.finite().items():
            if name != "seconds" and getattr(total, name) > limit:
                raise RuntimeError(
                    f"a search of {getattr(self.spent, name)} {name} was charged {getattr(cost, name)} more, over its "
                    f"limit of {limit}; ask Budget.affordable first, with the most that a thing can cost"
                )
        self.spent = total
