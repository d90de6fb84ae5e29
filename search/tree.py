"""The tree that every search grows: nodes over states, and requests to expand them.

An algorithm is a generator. It yields a list of `ExpansionRequest`, and is sent the child that each sample led to, one
list for each request; it returns the node where it ended. It never calls a model: `search.planner` answers the requests
of many trees together, pays for them, and values the children. So each algorithm is a page of plain code, and all of
them share one way to expand, one to value and one budget.

    def greedy(root, k):
        node = root
        while not node.terminal:
            (children,) = yield [ExpansionRequest(node, k)]
            if not children:  # the budget is spent
                break
            node = best(children)
        return node
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.backends.base import Reply
from search.budget import Budget, Cost, Limits
from search.episode import PARTS
from segenv.mdp import SegState
from segenv.seeds import Part
from segenv.types import Absent, Action, Box, Click, Invalid, Stop, Task, Undo

NAN = float("nan")
KINDS = (Click, Box, Stop, Absent, Undo, Invalid)  # the order in which equals are taken


@dataclass(slots=True, eq=False)
class Node:
    """A state in the tree. Its arrays are the state's own: a child whose mask did not change shares its parent's.

    `value` in 0..1 is the value function's, NaN where there is none. `prior` is the policy's probability of this child
    among its siblings: from the log-probabilities of the replies that led here, or from how many did where the agent
    tells none. `visits` and `value_sum` are MCTS's N(s) and W(s).
    """

    state: SegState
    parent: Node | None = None
    action: Action | None = None  # what led here, as the codec read it in `text`
    text: str = ""
    reply: Reply | None = None  # the one with this text, and what the agent's backend tells of it
    terminal: bool = False
    order: tuple = ()  # `order_of` the actions from the root, which breaks ties
    value: float = NAN
    prior: float = 1.0
    weight: float = 0.0  # `prior` before it is normalised
    visits: int = 0
    value_sum: float = 0.0
    children: list[Node] = field(default_factory=list)
    index: int = 0  # its place in `Tree.nodes`
    sample_count: int = 0  # replies sampled here so far, without the greedy one
    sampled_texts: frozenset[str] = frozenset()  # all replies here, the greedy one included
    greedy_child: Node | None = None  # the child that the greedy reply led to, once it was requested
    on_greedy_path: bool = False  # reached by greedy replies alone: a state that a plain rollout visits

    def path(self) -> list[Node]:
        """The nodes from the root to this one, both included."""
        return [self, *self.ancestors()][::-1]

    def ancestors(self) -> Iterator[Node]:
        """The nodes above this one, from its parent up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True)
class ExpansionRequest:
    """Requests `k` replies of the policy at `node`. With `greedy`, the first is what `Agent.act` gives, as in a
    rollout, and the others are samples of `Agent.propose`; without, all are. A node's greedy reply is made, and paid
    for, once."""

    node: Node
    k: int = 1
    greedy: bool = True


# An algorithm yields requests, is sent for each the nodes that its paid samples led to (equal samples lead to one node,
# and an empty list says that the budget is spent), and returns the node where it ended.
Search = Generator[Sequence[ExpansionRequest], Sequence[list[Node]], Node]
Algorithm = Callable[[Node], Search]


def rank_key(node: Node) -> tuple:
    """A key that sorts the best node first: the highest value, then fewer steps, then the higher prior."""
    return -node.value, node.state.step, -node.prior, node.order


def best(nodes: Iterable[Node]) -> Node:
    """The node that `rank_key` puts first."""
    return min(nodes, key=rank_key)


def ranked(families: Iterable[Iterable[Node]]) -> list[Node]:
    """The distinct nodes of some families, the best first."""
    return sorted(dict.fromkeys(node for family in families for node in family), key=rank_key)


@dataclass(eq=False)
class Tree:
    """One search: its nodes in the order they were made, its budget, and the node where it ended.

    It is number `sample` of its task's, and its seeds derive from `key`: run's seed, task id, round and sample.
    `seconds` say where its time went, by `search.episode.PARTS`. `trace` holds what had been spent after each round of
    expansion, and the index of the best node then.
    """

    task: Task
    root: Node
    sample: int
    key: tuple[Part, ...]
    budget: Budget = field(default_factory=lambda: Budget(Limits()))
    nodes: list[Node] = field(default_factory=list)
    last: Node | None = None
    trace: list[tuple[Cost, int]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __post_init__(self) -> None:
        self.nodes.append(self.root)

    def add(self, child: Node) -> None:
        """Attach `child` below its parent, which is in the tree."""
        assert child.parent is not None
        child.index = len(self.nodes)
        child.parent.children.append(child)
        self.nodes.append(child)

    @property
    def best(self) -> Node:
        """The node whose mask the search returns: the best-valued of all, or without values where it ended."""
        return best(self.nodes) if self.root.value == self.root.value else self.last or self.root


def order_of(action: Action) -> tuple[Any, ...]:
    """A key that sorts actions: clicks, boxes, stop, absent, undo, invalid ones."""
    kind = KINDS.index(type(action))
    match action:
        case Click(x, y, positive):
            return kind, not positive, y, x
        case Box(x0, y0, x1, y1):
            return kind, y0, x0, y1, x1
        case Invalid(text):
            return kind, text
    return (kind,)


def near(first: Action, second: Action, pixels: float) -> bool:
    """Whether two actions are one to a search: of one type, clicks of one sign and corners of boxes within `pixels`."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Click) and isinstance(second, Click):
        apart = (first.x - second.x) ** 2 + (first.y - second.y) ** 2
        return first.positive == second.positive and apart <= pixels**2
    if isinstance(first, Box) and isinstance(second, Box):
        sides = ((first.x0, second.x0), (first.y0, second.y0), (first.x1, second.x1), (first.y1, second.y1))
        return all(abs(a - b) <= pixels for a, b in sides)
    return True
