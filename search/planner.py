"""Run tree searches over tasks: those of a batch advance together, so that each round is one expansion for all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from agents.base import Agent
from search.budget import Limits
from search.episode import Episode, step_of
from search.expand import Expander
from search.rollout import Play
from search.tree import Algorithm, ExpansionRequest, Node, Search, Tree
from search.values import ValueSource
from segenv.mdp import SegMDP
from segenv.types import Stop, Task


@dataclass(frozen=True)
class SearchConfig:
    """What holds for a search whatever its algorithm: its budget; `near`, the distance within which two clicks are one,
    as a part of the image's longer side; and when it has converged: after `patience` rounds of expansion in a row that
    raised the best value by no more than `tolerance` in all (0: never)."""

    limits: Limits = Limits()
    near: float = 0.01
    patience: int = 0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 0 or not 0 <= self.tolerance <= 1:
            raise ValueError(
                f"patience is {self.patience} and tolerance {self.tolerance}; expected a number of rounds >= 0 and a "
                "difference of IoU in 0..1"
            )


def run_searches(
    mdp: SegMDP,
    agent: Agent,
    tasks: Iterable[Task],
    algorithm: Algorithm,
    source: ValueSource | None = None,
    terms: SearchConfig = SearchConfig(),  # noqa: B008  # frozen
    *,
    seed: int = 0,
    round_index: int = 0,
    samples: int = 1,
    batch_size: int = 8,
) -> Iterator[Tree]:
    """Search each task `samples` times and yield the finished trees, in the order of tasks and then samples.

    At most `batch_size` searches are under way; one that ends makes place for the next. Their random draws derive from
    `seed`, task id, `round_index` and sample as those of `search.rollout.rollout` do, so no result depends on
    `batch_size` or on the tasks around it.
    """
    if batch_size < 1 or samples < 1:
        raise ValueError(f"batch_size {batch_size} and samples {samples} must be 1 or more")
    expand = Expander(mdp, agent, source, terms.near)
    waiting = ((task, sample) for task in tasks for sample in range(samples))
    live: list[_RunningSearch] = []
    finished: dict[int, Tree] = {}
    started = ready = 0
    while True:
        new = list(islice(waiting, batch_size - len(live)))
        for tree in expand.plant(new, (seed, round_index), terms.limits):
            live.append(_RunningSearch(started, tree, algorithm(tree.root), terms))
            started += 1
        if not live:
            return
        asking = [search for search in live if search.asks]
        answers = expand([(search.tree, search.asks) for search in asking]) if asking else []
        for search, answer in zip(asking, answers, strict=True):
            search.resume(answer)
        finished.update((search.number, search.tree) for search in live if not search.asks)
        live = [search for search in live if search.asks]
        while ready in finished:
            yield finished.pop(ready)
            ready += 1


@dataclass
class _RunningSearch:
    """A search under way, and what it asks for; it has ended where that is nothing."""

    number: int  # its place in the order
    tree: Tree
    search: Search
    terms: SearchConfig
    asks: list[ExpansionRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._risen = [self._best_value()]  # the best value after each round
        self.tree.trace.append((self.tree.budget.spent, self.tree.best.index))
        self._go_on(None)

    def resume(self, answer: list[list[Node]]) -> None:
        """Hand the children to the algorithm and hear what it wants next; end it where it must not go on."""
        self.tree.trace.append((self.tree.budget.spent, self.tree.best.index))
        self._risen.append(self._best_value())
        self._go_on(answer)
        if self.asks and (not any(answer) or self._converged()):
            self.tree.last = self.asks[0].node
            self.search.close()
            self.asks = []

    def _go_on(self, answer: list[list[Node]] | None) -> None:
        began = time.perf_counter()
        try:
            self.asks = list(next(self.search) if answer is None else self.search.send(answer))
        except StopIteration as stop:
            self.asks, self.tree.last = [], stop.value
        self.tree.seconds["other"] += time.perf_counter() - began

    def _best_value(self) -> float:
        return self.tree.best.value

    def _converged(self) -> bool:
        patience = self.terms.patience
        return 0 < patience < len(self._risen) and (
            self._risen[-1] - self._risen[-1 - patience] <= self.terms.tolerance
        )


def to_episode(mdp: SegMDP, agent: Agent, tree: Tree) -> Episode:
    """The way to the mask that a search returns, as an episode. Where that is not the end of an episode, the search
    stops there: a last step with no text says so."""
    play = Play(0, tree.sample, tree.root.state, tree.key)
    for node in tree.best.path()[1:]:
        assert node.action is not None
        stated = agent.codec.stated_iou(node.text)
        play.steps.append(step_of(mdp, play.state, node.text, node.action, node.state, stated))
        play.state = node.state
    if not mdp.terminal(play.state):
        (stopped,) = mdp.transition([play.state], [Stop()])
        play.steps.append(step_of(mdp, play.state, "", Stop(), stopped, None))
        play.state = stopped
    play.seconds.update(tree.seconds)
    return play.finish()
