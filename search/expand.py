"""Expansion: the requests of many searches, in one batch, become children in their trees.

    sample replies → parse actions → merge equal ones → call the tool → value the new masks → attach the children

Siblings, the nodes of a frontier and the trees of many tasks share each call. This is the only place that calls agent,
tool and value function, and the only one that charges for it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from agents.backends.base import Reply
from agents.base import Agent
from search.budget import Budget, Cost, Limits
from search.episode import read_reply
from search.tree import ExpansionRequest, Node, Tree, near, order_of
from search.values import ValueFunction
from segenv.codec.polygons import PolygonCodec
from segenv.mdp import SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Action, AgentError, Box, Click, Task, ToolError


@dataclass
class Sample:
    """One reply of the policy at `node`, and the child that it leads to."""

    tree: Tree
    node: Node
    number: int  # 0 is the policy's greedy reply, n > 0 its nth sample at this node
    text: str = ""
    reply: Reply | None = None  # with what the agent's backend tells of it
    log_probability: float | None = None  # of the reply, where the agent's backend tells it
    child: Node | None = None


class Costs(dict[Tree, Cost]):
    """Costs of each tree's part in a batch, which are charged together at its end."""

    def add(self, tree: Tree, part: str, seconds: float, **counts: int) -> None:
        """Add counts, and seconds that were spent in `part` (of `search.episode.PARTS`)."""
        self[tree] = self.get(tree, Cost()) + Cost(seconds=seconds, **counts)
        tree.seconds[part] += seconds

    def charge(self) -> None:
        """Charge every tree: the one place where anything is."""
        for tree, cost in self.items():
            tree.budget.charge(cost)


class Expander:
    """Expands the trees of one process and policy. `value_fn` None leaves masks without a value. `near` is the
    distance, as a part of the image's longer side, within which two clicks are one."""

    def __init__(self, mdp: SegMDP, agent: Agent, value_fn: ValueFunction | None = None, near: float = 0.01) -> None:
        if near < 0:
            raise ValueError(f"near is {near}; expected a part of the image's longer side, such as 0.01")
        if isinstance(agent.codec, PolygonCodec):
            raise ValueError(f"agent {agent.spec!r} writes polygons, and a search is over clicks; give one that clicks")
        self.mdp, self.agent, self.value_fn, self.near = mdp, agent, value_fn, near
        backend = getattr(agent, "backend", None)
        reply_tokens = 0 if backend is None else backend.max_new_tokens
        value_tokens = 0 if value_fn is None else value_fn.max_tokens
        self.lost: dict[Tree, AgentError] = {}  # of the last call: those that the agent gave no reply to, where known
        self.max_value_cost = Cost(tokens=value_tokens, value_calls=int(value_fn is not None))
        self.max_sample_cost = Cost(policy_calls=1, tokens=reply_tokens, tool_calls=1) + self.max_value_cost

    def make_roots(
        self, items: Sequence[tuple[Task, int]], limits: Limits, seed: int = 0, round_index: int = 0
    ) -> list[Tree]:
        """Make one tree for each task and sample, its root valued where the budget allows it."""
        trees = []
        for task, sample in items:
            state = self.mdp.initial(task)
            root = Node(state, terminal=self.mdp.terminal(state), on_greedy_path=True)
            trees.append(Tree(task, root, sample, (seed, task.id, round_index, sample), Budget(limits)))
        costs = Costs()
        self._value([(tree, tree.root) for tree in trees if tree.budget.affordable(1, self.max_value_cost)], costs)
        costs.charge()
        return trees

    def __call__(self, requests: Sequence[tuple[Tree, Sequence[ExpansionRequest]]]) -> list[list[list[Node]]]:
        """The nodes that the paid samples led to, in their order, for each tree and each of its requests. Raises
        AgentError where the agent gives no reply: the trees are as before, and `lost` names those whose questions
        failed."""
        began = time.perf_counter()
        granted = [self._grant(tree, of_tree) for tree, of_tree in requests]
        samples = [sample for families in granted for family in families for sample in family if sample.child is None]
        costs = Costs()
        try:
            self._sample_replies(samples, costs)
        except AgentError:
            for sample in samples:
                sample.node.sample_count -= sample.number > 0
            raise
        first = self._merge(samples)
        self._transition(first, costs)
        self._value([(sample.tree, sample.child) for sample in first if sample.child is not None], costs)
        spent = sum(cost.seconds for cost in costs.values())
        for tree, _ in requests:
            costs.add(tree, "other", (time.perf_counter() - began - spent) / len(requests))
        costs.charge()
        self._attach(samples)
        return [
            [[sample.child for sample in family if sample.child and sample.child.index] for family in families]
            for families in granted
        ]

    def _grant(self, tree: Tree, requests: Sequence[ExpansionRequest]) -> list[list[Sample]]:
        """The samples of each request, as far as the tree can pay for them; a reply that is known costs nothing."""
        if len({request.node for request in requests}) < len(requests):
            raise ValueError("a search asked twice about one node in one round; ask once, for more draws")
        known = [request.greedy and request.node.greedy_child is not None for request in requests]
        payable = tree.budget.affordable(sum(request.k for request in requests) - sum(known), self.max_sample_cost)
        granted = []
        for request, replied in zip(requests, known, strict=True):
            node = request.node
            samples = [Sample(tree, node, 0, child=node.greedy_child)] if replied else []
            while len(samples) < request.k and payable > 0:
                greedy = request.greedy and not samples
                node.sample_count += not greedy
                samples.append(Sample(tree, node, 0 if greedy else node.sample_count))
                payable -= 1
            granted.append(samples)
        return granted

    def _sample_replies(self, samples: Sequence[Sample], costs: Costs) -> None:
        """Ask the agent for the text of each sample: greedy replies in one call, the others in a second one."""
        agent = self.agent
        observe: Callable[[SegState], Any] = (lambda state: state) if agent.privileged else self.mdp.observation
        observed = {node: observe(node.state) for node in dict.fromkeys(sample.node for sample in samples)}
        for greedy in (True, False):
            batch = [sample for sample in samples if (sample.number == 0) == greedy]
            if not batch:
                continue
            began = time.perf_counter()
            items, seeds = [observed[sample.node] for sample in batch], [_seed(sample) for sample in batch]
            self.lost = {}
            try:
                if greedy:
                    texts = agent.act_on(items, seeds) if agent.privileged else agent.act(items, seeds)
                else:
                    texts = [text for (text,) in agent.propose(items, 1, seeds)]
            except AgentError as error:
                self.lost = {batch[k].tree: one for k, one in error.of.items()}
                raise
            share = (time.perf_counter() - began) / len(batch)
            backend = getattr(agent, "backend", None)  # of a language model
            for k, (sample, text) in enumerate(zip(batch, texts, strict=True)):
                sample.text, tokens, part = text, 0, "annotator" if agent.privileged else "agent"
                sample.reply = Reply(text)
                if backend is not None:
                    told = backend.replies[k]
                    tokens, sample.log_probability = told.tokens or 0, told.log_probability
                    sample.reply = told if isinstance(told, Reply) else sample.reply
                costs.add(sample.tree, part, share, policy_calls=1, tokens=tokens)

    def _merge(self, samples: Sequence[Sample]) -> list[Sample]:
        """Parse the actions, merge those that are near each other, and return the first sample of each new child: of
        several near ones the first in `order_of`, whichever was sampled first, or a child that is in the tree."""
        first: list[Sample] = []
        for node, family in _by_node(samples):
            actions = [(self._action(sample), sample) for sample in family]
            new: list[Node] = []
            for action, sample in sorted(actions, key=lambda pair: (order_of(pair[0]), pair[1].text)):
                pixels = self.near * max(sample.tree.task.height, sample.tree.task.width)
                known = [*node.children, *new]
                sample.child = next((n for n in known if n.action is not None and near(n.action, action, pixels)), None)
                if sample.child is None:
                    order = (*node.order, order_of(action))
                    sample.child = Node(node.state, node, action, sample.text, order=order, reply=sample.reply)
                    new.append(sample.child)
                    first.append(sample)
        return first

    def _action(self, sample: Sample) -> Action:
        return read_reply(self.agent.codec, sample.reply or Reply(sample.text), sample.tree.task).action

    def _transition(self, samples: Sequence[Sample], costs: Costs) -> None:
        """Give each new child its state."""
        if not samples:
            return
        children = [sample.child for sample in samples if sample.child is not None]
        actions: list[Action] = [child.action for child in children if child.action]
        before = dict(self.mdp.tool.seconds)
        try:
            states = self.mdp.transition([sample.node.state for sample in samples], actions)
        except ToolError as error:
            names = ", ".join(dict.fromkeys(sample.tree.task.id for sample in samples))
            raise ToolError(f"{error} (asked about tasks {names})") from error
        called = [
            isinstance(action, (Click, Box)) and state.packed is not sample.node.state.packed
            for action, sample, state in zip(actions, samples, states, strict=True)
        ]
        for sample, child, state, tool_call in zip(samples, children, states, called, strict=True):
            child.state, child.terminal = state, self.mdp.terminal(state)
            for part in ("encode", "decode"):
                share = (self.mdp.tool.seconds[part] - before[part]) / max(1, sum(called))
                costs.add(sample.tree, part, tool_call * share, tool_calls=tool_call and part == "decode")

    def _value(self, nodes: Sequence[tuple[Tree, Node]], costs: Costs) -> None:
        """Value the nodes whose mask is new to their branch; the others have the value that the mask has already."""
        if self.value_fn is None:
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
        values = np.asarray(self.value_fn.values([node.state for _, node in fresh]), np.float64)
        if values.shape != (len(fresh),) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"value {self.value_fn.name!r} gave {values.tolist()} for {len(fresh)} states; expected one number in "
                "0..1 each"
            )
        share = (time.perf_counter() - began) / len(fresh)
        part = "agent" if self.value_fn.max_tokens else "other"
        token_numbers = self.value_fn.tokens or [0] * len(fresh)
        for (tree, node), value, tokens in zip(fresh, values, token_numbers, strict=True):
            node.value = float(value)
            costs.add(tree, part, share, value_calls=1, tokens=tokens)

    def _attach(self, samples: Sequence[Sample]) -> None:
        """Attach the children that came before a tree's seconds were over, and weigh siblings by their replies."""
        for node, family in _by_node(samples):
            tree = family[0].tree
            if tree.budget.late:
                continue
            children = dict.fromkeys(sample.child for sample in family if sample.child)
            for child in sorted(children, key=lambda child: child.order):
                if not child.index:
                    tree.add(child)
            for sample in sorted(family, key=lambda sample: sample.text):  # sums of floats depend on the order
                assert sample.child is not None
                sample.child.weight += prior_weight(sample)
                node.sampled_texts |= {sample.text}
                if sample.number == 0:
                    node.greedy_child = sample.child
                    sample.child.on_greedy_path |= node.on_greedy_path
            total = sum(child.weight for child in node.children)
            for child in node.children:
                child.prior = child.weight / total if total else 1 / len(node.children)


def _by_node(samples: Iterable[Sample]) -> Iterable[tuple[Node, list[Sample]]]:
    """The samples at each node."""
    families: dict[Node, list[Sample]] = {}
    for sample in samples:
        families.setdefault(sample.node, []).append(sample)
    return families.items()


def prior_weight(sample: Sample) -> float:
    """The weight that a reply adds to its child: its probability, once for each text; 1 where the agent tells none."""
    if sample.log_probability is None:
        return 1.0
    return 0.0 if sample.text in sample.node.sampled_texts else exp(sample.log_probability)


def _seed(sample: Sample) -> int:
    """The seed of a sample, from what it is and never from its batch; of greedy replies that of a plain rollout."""
    if sample.number == 0 and sample.node.on_greedy_path:
        return seed_of(*sample.tree.key, sample.node.state.step)
    return seed_of(*sample.tree.key, sample.node.order, sample.number)
