"""Run tree searches over tasks: the searches of a batch advance together, so that each round is one expansion."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agents.backends.base import Reply
from agents.base import Agent
from search.budget import Limits
from search.episode import Episode, read_reply, step_of, told_of
from search.expand import Expander
from search.rollout import RunningEpisode, Skip, in_batches
from search.tree import Algorithm, ExpansionRequest, Node, Search, Tree
from search.values import ValueFunction
from segenv import ranges
from segenv.mdp import SegMDP
from segenv.ranges import CountOrNone, Share
from segenv.types import AgentError, Stop, Task


@dataclass(frozen=True)
class SearchConfig:
    """Settings that every algorithm has: its budget; `near`, the distance within which two clicks are one, as a part of
    the image's longer side; and when a search has converged: after `patience` rounds of expansion in a row that raised
    the best value by no more than `tolerance` in all (0: never)."""

    limits: Limits = Limits()
    near: Share = 0.01
    patience: CountOrNone = 0
    tolerance: Share = 0.0

    def __post_init__(self) -> None:
        ranges.check(self)


def run_searches(
    mdp: SegMDP,
    agent: Agent,
    tasks: Iterable[Task],
    algorithm: Algorithm,
    value_fn: ValueFunction | None = None,
    config: SearchConfig = SearchConfig(),  # noqa: B008  # frozen
    *,
    seed: int = 0,
    round_index: int = 0,
    samples: int = 1,
    batch_size: int = 8,
    skip: Skip | None = None,
) -> Iterator[Tree]:
    """Search each task `samples` times and yield the finished trees, in the order of tasks and then samples.

    At most `batch_size` searches run at once. Seeds derive from `seed`, task id, `round_index` and sample as in
    `search.rollout.rollout`, so no result depends on `batch_size` or on the tasks around it. Where the model behind the
    agent gives no reply, `skip` is told, and the tree is left out; without it AgentError ends the searches.
    """
    if batch_size < 1 or samples < 1:
        raise ValueError(f"batch_size {batch_size} and samples {samples} must be 1 or more")
    expand = Expander(mdp, agent, value_fn, config.near)

    def start(items: Iterator[tuple[Task, int]]) -> list[_RunningSearch]:
        trees = expand.make_roots(list(items), config.limits, seed, round_index)
        return [_RunningSearch(tree, algorithm(tree.root), config) for tree in trees]

    lost: set[Tree] = set()

    def lose(search: _RunningSearch, error: AgentError) -> None:
        assert skip is not None
        skip(search.tree.task.id, error)
        lost.add(search.tree)

    def advance(searches: list[_RunningSearch]) -> None:
        unfinished = [search for search in searches if search.requests]
        if not unfinished:
            return
        try:
            expanded = expand([(search.tree, search.requests) for search in unfinished])
        except AgentError as error:
            if skip is None:
                raise
            failed = expand.lost
            for search in unfinished:
                if search.tree in failed or len(unfinished) == 1:
                    lose(search, failed.get(search.tree, error))
            rest = [search for search in unfinished if search.tree not in lost]
            for part in [rest] if failed else [[search] for search in rest]:  # which of them it is, alone
                advance(part)
            return
        for search, families in zip(unfinished, expanded, strict=True):
            search.resume(families)

    def result_of(search: _RunningSearch) -> Tree | bool | None:
        if search.tree in lost:
            return False
        return None if search.requests else search.tree

    items = ((task, sample) for task in tasks for sample in range(samples))
    found = in_batches(items, batch_size, start, advance, result_of)
    return (tree for tree in found if isinstance(tree, Tree))


@dataclass
class _RunningSearch:
    """A search under way, and its requests; it has ended where there are none."""

    tree: Tree
    search: Search
    config: SearchConfig
    requests: Sequence[ExpansionRequest] = ()

    def __post_init__(self) -> None:
        self._best_values: list[float] = []  # at the start, and after each round
        self.resume(None)

    def resume(self, families: list[list[Node]] | None) -> None:
        """Send the children to the algorithm and take its next requests; end it out of budget, or converged."""
        tree = self.tree
        tree.trace.append((tree.budget.spent, tree.best.index))
        self._best_values.append(tree.best.value)
        began = time.perf_counter()
        try:
            self.requests = next(self.search) if families is None else self.search.send(families)
        except StopIteration as stop:
            self.requests, tree.last = (), stop.value
        tree.seconds["other"] += time.perf_counter() - began
        patience, values = self.config.patience, self._best_values
        converged = 0 < patience < len(values) and values[-1] - values[-1 - patience] <= self.config.tolerance
        if self.requests and families is not None and (not any(families) or converged):
            tree.last, self.requests = self.requests[0].node, ()
            self.search.close()


def to_episode(mdp: SegMDP, agent: Agent, tree: Tree) -> Episode:
    """Convert the path to the mask that a search returns to an episode, which a step without text ends if need be."""
    episode = RunningEpisode(tree.sample, tree.root.state, tree.key)
    for node in tree.best.path()[1:]:
        assert node.action is not None
        reply = node.reply or Reply(node.text)
        reading = read_reply(agent.codec, reply, tree.task)
        step = step_of(mdp, episode.state, node.text, node.action, node.state, reading.stated_iou, episode.last)
        episode.steps.append(replace(step, **told_of(reply, reading)))
        episode.state = node.state
    if not mdp.terminal(episode.state):
        (stopped,) = mdp.transition([episode.state], [Stop()])
        episode.steps.append(step_of(mdp, episode.state, "", Stop(), stopped, None, episode.last))
        episode.state = stopped
    episode.seconds.update(tree.seconds)
    return episode.finish()
