"""Expansion: from what many searches ask for, in one batch, to the children in their trees.

    draw replies of the policy → read actions → merge equal ones → tool → value the new masks → hang them in the trees

Siblings, the nodes of a frontier and the trees of many tasks share each call. This is the only place that asks agent,
tool and value source, and the only one that charges for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import numpy as np

from agents.base import Agent
from search.budget import Budget, Cost, Limits
from search.episode import PARTS
from search.tree import ExpansionRequest, Node, Tree, near, order_of
from search.values import ValueSource
from segenv.codec.polygons import PolygonCodec
from segenv.mdp import SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Action, Box, Click, Task, ToolError


@dataclass
class Sample:
    """One reply to be had at `node`, and what became of it."""

    tree: Tree
    node: Node
    number: int  # 0 is the policy's own reply, n > 0 its nth sample at this node
    text: str = ""
    log_probability: float | None = None  # of the reply, where the agent's backend tells it
    child: Node | None = None


@dataclass
class BatchCost:
    """What one tree's part of a batch comes to; seconds by `search.rollout.PARTS`."""

    policy_calls: int = 0
    tokens: int = 0
    tool_calls: int = 0
    value_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))


class Expander:
    """Expands the trees of one process and policy. `source` None leaves masks without a value. `near` is the distance,
    as a part of the image's longer side, within which two clicks are one."""

    def __init__(self, mdp: SegMDP, agent: Agent, source: ValueSource | None = None, near: float = 0.01) -> None:
        if near < 0:
            raise ValueError(f"near is {near}; expected a part of the image's longer side, such as 0.01")
        if isinstance(agent.codec, PolygonCodec):
            raise ValueError(f"agent {agent.spec!r} writes outlines, and a search is over clicks; give one that clicks")
        self.mdp = mdp
        self.agent = agent
        self.source = source
        self.near = near
        backend = getattr(agent, "backend", None)
        judged = 0 if source is None else source.max_tokens
        self.value_price = Cost(tokens=judged, value_calls=int(source is not None))
        replied = 0 if backend is None else backend.max_new_tokens
        self.price = Cost(policy_calls=1, tokens=replied, tool_calls=1) + self.value_price  # of a draw, at most

    # ------------------------------------------------------------------------------------------------------- the start

    def plant(self, items: Sequence[tuple[Task, int]], run: tuple[int, int], limits: Limits) -> list[Tree]:
        """One tree for each task and sample, its root valued where the budget allows it. `run` holds the run's seed and
        round."""
        trees = []
        for task, sample in items:
            state = self.mdp.initial(task)
            root = Node(state, terminal=self.mdp.terminal(state), trunk=True)
            trees.append(Tree(task, root, sample, (run[0], task.id, run[1], sample), Budget(limits)))
        bills = {id(tree): BatchCost() for tree in trees}
        payable = [tree for tree in trees if tree.budget.affordable(1, self.value_price)]
        self._value([(tree, tree.root) for tree in payable], bills)
        for tree in trees:
            self._settle(tree, bills[id(tree)])
        return trees

    # --------------------------------------------------------------------------------------------------------- a round

    def __call__(self, asked: Sequence[tuple[Tree, Sequence[ExpansionRequest]]]) -> list[list[list[Node]]]:
        """For each tree and each of its asks, the nodes that the paid draws led to, in the order of the draws."""
        began = time.perf_counter()
        granted = [self._grant(tree, asks) for tree, asks in asked]
        draws = [draw for families in granted for family in families for draw in family if draw.child is None]
        bills = {id(tree): BatchCost() for tree, _ in asked}
        self._reply(draws, bills)
        born = self._act(draws, bills)
        self._value([(draw.tree, draw.child) for draw in born if draw.child is not None], bills)
        spent = sum(sum(bill.seconds.values()) for bill in bills.values())
        for tree, _ in asked:
            bills[id(tree)].seconds["other"] += (time.perf_counter() - began - spent) / len(asked)
            self._settle(tree, bills[id(tree)])
        self._hang(draws)
        return [
            [[draw.child for draw in family if draw.child is not None and draw.child.index] for family in families]
            for families in granted
        ]

    def _grant(self, tree: Tree, asks: Sequence[ExpansionRequest]) -> list[list[Sample]]:
        """The draws of each ask, the first ones first, as far as the tree can pay for them; a reply that is known costs
        nothing."""
        if len({id(ask.node) for ask in asks}) < len(asks):
            raise ValueError("a search asked twice about one node in one round; ask once, for more draws")
        known = [ask.likeliest and ask.node.likeliest is not None for ask in asks]
        payable = tree.budget.affordable(sum(ask.k for ask in asks) - sum(known), self.price)
        granted = []
        for ask, replied in zip(asks, known, strict=True):
            draws = [Sample(tree, ask.node, 0, child=ask.node.likeliest)] if replied else []
            while len(draws) < ask.k and payable > 0:
                own = ask.likeliest and not draws
                ask.node.draws += not own
                draws.append(Sample(tree, ask.node, 0 if own else ask.node.draws))
                payable -= 1
            granted.append(draws)
        return granted

    def _reply(self, draws: Sequence[Sample], bills: dict[int, BatchCost]) -> None:
        """Ask the agent for the text of each draw."""
        agent = self.agent
        look: Callable[[SegState], Any] = (lambda state: state) if agent.privileged else self.mdp.observation
        seen = {id(node): look(node.state) for node in {id(draw.node): draw.node for draw in draws}.values()}
        for own in (True, False):
            part = [draw for draw in draws if (draw.number == 0) == own]
            if not part:
                continue
            began = time.perf_counter()
            items, seeds = [seen[id(draw.node)] for draw in part], [_seed(draw) for draw in part]
            if own:
                texts = agent.act_on(items, seeds) if agent.privileged else agent.act(items, seeds)
            else:
                texts = [text for (text,) in agent.propose(items, 1, seeds)]
            share = (time.perf_counter() - began) / len(part)
            for draw, text, (tokens, chance) in zip(part, texts, token_counts(agent, texts), strict=True):
                draw.text, draw.log_probability = text, chance
                bill = bills[id(draw.tree)]
                bill.policy_calls += 1
                bill.tokens += tokens
                bill.seconds["annotator" if agent.privileged else "agent"] += share

    def _act(self, draws: Sequence[Sample], bills: dict[int, BatchCost]) -> list[Sample]:
        """Read the actions, merge what is near, and take what is new: the first draw of each new child is returned.

        Of several new actions that are near each other, the first in `order_of` stands for all, so that it does not
        matter which was drawn first. A child that is in the tree already stands for what is near it.
        """
        families: dict[int, list[tuple[Action, Sample]]] = {}
        for draw in draws:
            action = self.agent.codec.parse(draw.text, draw.tree.task)
            families.setdefault(id(draw.node), []).append((action, draw))
        born: list[Sample] = []
        for family in families.values():
            new: list[Node] = []
            for action, draw in sorted(family, key=lambda pair: (order_of(pair[0]), pair[1].text)):
                pixels = self.near * max(draw.tree.task.height, draw.tree.task.width)
                known = [*draw.node.children, *new]
                draw.child = next((n for n in known if n.action is not None and near(n.action, action, pixels)), None)
                if draw.child is None:
                    order = (*draw.node.order, order_of(action))
                    draw.child = Node(draw.node.state, draw.node, action, draw.text, order=order)
                    new.append(draw.child)
                    born.append(draw)
        self._transition(born, bills)
        return born

    def _transition(self, born: Sequence[Sample], bills: dict[int, BatchCost]) -> None:
        """Give each new child its state."""
        if not born:
            return
        children = [draw.child for draw in born if draw.child is not None]
        before = dict(self.mdp.tool.seconds)
        try:
            states = self.mdp.transition([draw.node.state for draw in born], [n.action for n in children if n.action])
        except ToolError as error:
            names = ", ".join(dict.fromkeys(draw.tree.task.id for draw in born))
            raise ToolError(f"{error} (asked about tasks {names})") from error
        called = [state.packed is not draw.node.state.packed for draw, state in zip(born, states, strict=True)]
        called = [new and isinstance(n.action, (Click, Box)) for new, n in zip(called, children, strict=True)]
        for draw, child, state, tool in zip(born, children, states, called, strict=True):
            child.state, child.terminal = state, self.mdp.terminal(state)
            bill = bills[id(draw.tree)]
            bill.tool_calls += tool
            for part in ("encode", "decode"):
                bill.seconds[part] += tool * (self.mdp.tool.seconds[part] - before[part]) / max(1, sum(called))

    def _value(self, nodes: Sequence[tuple[Tree, Node]], bills: dict[int, BatchCost]) -> None:
        """Value the nodes whose mask is new to their branch; the others have the value that the mask has already."""
        if self.source is None:
            return
        fresh = []
        for tree, node in nodes:
            known = next((n for n in node.ancestors() if n.state.packed is node.state.packed), None)
            if known is None:
                fresh.append((tree, node))
            else:
                node.value = known.value
        if not fresh:
            return
        began = time.perf_counter()
        values = checked_values(self.source, [node.state for _, node in fresh])
        share = (time.perf_counter() - began) / len(fresh)
        tokens = self.source.tokens or [0] * len(fresh)
        for (tree, node), value, taken in zip(fresh, values, tokens, strict=True):
            node.value = float(value)
            bill = bills[id(tree)]
            bill.value_calls += 1
            bill.tokens += taken
            bill.seconds["agent" if self.source.max_tokens else "other"] += share

    # ------------------------------------------------------------------------------------------------------ the end

    def _settle(self, tree: Tree, bill: BatchCost) -> None:
        """Charge a tree for its part of a batch: the one place where anything is."""
        counts = (bill.policy_calls, bill.tokens, bill.tool_calls, bill.value_calls)
        tree.budget.charge(Cost(*counts, sum(bill.seconds.values())))
        for part, seconds in bill.seconds.items():
            tree.seconds[part] = tree.seconds.get(part, 0.0) + seconds

    def _hang(self, draws: Sequence[Sample]) -> None:
        """Hang the new children in their trees, and weigh siblings by the replies that led to them. What came after a
        tree's seconds were over is left out."""
        families: dict[int, list[Sample]] = {}
        for draw in draws:
            families.setdefault(id(draw.node), []).append(draw)
        for family in families.values():
            node, tree = family[0].node, family[0].tree
            if tree.budget.late:
                continue
            for child in sorted({id(d.child): d.child for d in family if d.child}.values(), key=lambda n: n.order):
                if not child.index:
                    tree.add(child)
            for draw in sorted(family, key=lambda draw: draw.text):  # sums of floats depend on the order
                assert draw.child is not None
                draw.child.weight += prior_weight(draw)
                node.said |= {draw.text}
                if draw.number == 0:
                    node.likeliest = draw.child
                    draw.child.trunk = draw.child.trunk or node.trunk
            total = sum(child.weight for child in node.children)
            for child in node.children:
                child.prior = child.weight / total if total else 1 / len(node.children)


def checked_values(source: ValueSource, states: Sequence[SegState]) -> np.ndarray:
    """The source's values, float64 [N]; ValueError where they are not one number in 0..1 for each state."""
    values = np.asarray(source.values(states), np.float64)
    if values.shape != (len(states),) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"value {source.name!r} gave {values.tolist()} for {len(states)} states; expected one number in 0..1 each"
        )
    return values


def prior_weight(draw: Sample) -> float:
    """What a reply adds to the weight of the child that it led to: its probability, once for each text; or 1 for each
    time that it was drawn, where the agent tells no probabilities."""
    if draw.log_probability is None:
        return 1.0
    return 0.0 if draw.text in draw.node.said else exp(draw.log_probability)


def token_counts(agent: Agent, texts: Sequence[str]) -> list[tuple[int, float | None]]:
    """Tokens and log-probability of each reply that the agent has just given, as its `backend.replies` tells them; none
    and None for an agent without a backend, which is no language model."""
    backend = getattr(agent, "backend", None)
    if backend is None:
        return [(0, None)] * len(texts)
    return [(reply.tokens, reply.log_probability) for reply in backend.replies]


def _seed(draw: Sample) -> int:
    """The seed of a draw: from what it is, and never from the batch or from its siblings. A plain rollout has the same
    for the policy's own replies."""
    if draw.number == 0 and draw.node.trunk:
        return seed_of(*draw.tree.key, draw.node.state.step)
    return seed_of(*draw.tree.key, draw.node.order, draw.number)
