"""Specs of searches, the same in Python and on the command line: `greedy:k=3,value=prm`, `mcts:c=2,tokens=2000`.

| name | options beside those of all |
|---|---|
| `none` | a plain rollout |
| `greedy` | `k` |
| `best-of-n` | `n` |
| `beam`, `dvts` | `width`, `k` |
| `lookahead` | `k`, `ahead` |
| `best-first` | `k`, `expansions`, `width` |
| `mcts` | `simulations`, `k`, `c`, `batch` |

All take `value` (`prm`, `self`, `tool`, `oracle`, or `none` where there is nothing to choose from), a budget for each
task (`policy_calls`, `tokens`, `tool_calls`, `value_calls`, `seconds`), `near`, `patience` and `tolerance` (see
`search.planner.SearchConfig`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agents.base import Agent
from search import values
from search.algorithms.beam import beam
from search.algorithms.best_first import best_first
from search.algorithms.best_of_n import best_of_n
from search.algorithms.dvts import dvts
from search.algorithms.greedy import greedy
from search.algorithms.lookahead import lookahead
from search.algorithms.mcts import mcts
from search.budget import AXES, Limits
from search.planner import SearchConfig, run_searches
from search.tree import Search, Tree
from segenv import specs
from segenv.mdp import SegMDP
from segenv.types import Task

ALGORITHMS: dict[str, Callable[..., Search]] = {
    "greedy": greedy,
    "best-of-n": best_of_n,
    "beam": beam,
    "dvts": dvts,
    "lookahead": lookahead,
    "best-first": best_first,
    "mcts": mcts,
}
CONFIG_DEFAULTS = {"near": 0.01, "patience": 0, "tolerance": 0.0}
NO_VALUE = "none"


@dataclass(frozen=True)
class SearchSpec:
    """One search, ready to run; `str` gives the spec that `parse` reads, with all that is not a default."""

    algorithm: str
    options: dict[str, int | float] = field(default_factory=dict)  # the algorithm's, as given
    value: str = "prm"
    config: SearchConfig = SearchConfig()

    def __str__(self) -> str:
        set_here = {
            name: value for name, usual in CONFIG_DEFAULTS.items() if (value := getattr(self.config, name)) != usual
        }
        parts = {**self.options, "value": self.value, **set_here, **self.config.limits.finite()}
        return f"{self.algorithm}:" + ",".join(f"{key}={value}" for key, value in parts.items())

    def value_function(self, mdp: SegMDP, agent: Agent) -> values.ValueFunction | None:
        """The value function of the search; ValueError where agent or tool has no such value."""
        return None if self.value == NO_VALUE else values.make(self.value, mdp, agent)

    def search(
        self, mdp: SegMDP, agent: Agent, tasks: Iterable[Task], value_fn: values.ValueFunction | None, **options: Any
    ) -> Iterator[Tree]:
        """The finished trees of `tasks`; `options` are those of `search.planner.run_searches`."""
        algorithm = partial(ALGORITHMS[self.algorithm], **self.options)
        return run_searches(mdp, agent, tasks, algorithm, value_fn, self.config, **options)


def parse(spec: str) -> SearchSpec | None:
    """The search that `spec` names, or None for `none`. Raises ValueError, which says what was expected."""
    if spec == "none":
        return None
    name, _ = specs.name_of("search", spec, ALGORITHMS, f"none, or one of {', '.join(ALGORITHMS)} with options")
    own = specs.defaults_of(ALGORITHMS[name], skip=1)
    axes = {axis: 0.0 if axis == "seconds" else 0 for axis in AXES}
    given = specs.options_of("search", spec, {**own, **CONFIG_DEFAULTS, **axes, "value": "prm"})
    options = {key: given[key] for key in own if key in given}
    for key, number in options.items():
        if number < (least := 0 if isinstance(number, float) else 1):
            raise ValueError(f"search {spec!r}: {key} is {number}; expected {least} or more")
    value = given.get("value", "prm")
    _check_value(spec, name, {**own, **options}, value)
    limits = Limits(**{axis: given[axis] for axis in AXES if axis in given})
    config = SearchConfig(limits, **{key: given[key] for key in CONFIG_DEFAULTS if key in given})
    return SearchSpec(name, options, value, config)


def _check_value(spec: str, name: str, options: dict[str, Any], value: str) -> None:
    """Refuse an unknown value function, and a search without one that has several children to choose from."""
    if value == NO_VALUE:
        if name != "greedy" or options["k"] > 1:
            raise ValueError(f"search {spec!r}: it chooses by value; take value=prm, tool or oracle, or greedy:k=1")
    elif value.partition(":")[0] not in values.NAMES:
        raise ValueError(f"search {spec!r}: value is {value!r}; expected one of {', '.join(values.NAMES)} or none")
