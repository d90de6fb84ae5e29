"""Every search on one tree that was worked out by hand, node by node.

The image is one row of eight pixels, a to h, and a click paints its pixel alone. A node is named by the replies that
led to it: `bd` is pixel b and then d; `.` is a stop, `<` an undo, `?` no action.
"""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from agents.base import Agent
from search import spec
from search.tree import Tree
from search.values import ValueFunction
from segenv import codec, tools
from segenv.mdp import SegMDP
from segenv.types import Click, Stop, Task, Undo

PIXELS = codec.make("pixels")
ROW = Task("row", np.zeros((1, 8, 3), np.uint8), np.array([[1, 1, 1, 1, 1, 0, 0, 0]], bool))

# What the policy says at each node: its own reply first, and then its samples in the order they are drawn.
REPLIES = {
    "": "abac",
    **{"a": "cd", "b": "cd", "c": "aa"},
    **{"ac": "de", "ad": ".?", "bc": "de", "bd": "ec"},
}
VALUES = {
    "": 0.0,
    **{"a": 0.40, "b": 0.50, "c": 0.30},
    **{"ac": 0.52, "ad": 0.45, "bc": 0.60, "bd": 0.55, "ca": 0.20},
    **{"acd": 0.30, "ace": 0.72, "bcd": 0.58, "bce": 0.10, "bde": 0.66, "bdc": 0.50},
}


def name_of(clicks) -> str:
    return "".join("abcdefgh"[click.x] for click in clicks)


class Scripted(Agent):
    """Says what `REPLIES` holds; it sees states, as their clicks tell where it is."""

    spec = "scripted"
    privileged = True

    def __init__(self, replies=REPLIES) -> None:
        super().__init__(PIXELS)
        self.replies = replies
        self.sampled: Counter[tuple] = Counter()

    def _act(self, states, seeds):
        return [self.say(self.replies[name_of(state.clicks)][0], state.task) for state in states]

    def _sample(self, states, seeds):
        texts = []
        for state in states:
            self.sampled[state.task.id, name_of(state.clicks)] += 1
            place = self.sampled[state.task.id, name_of(state.clicks)]
            texts.append(self.say(self.replies[name_of(state.clicks)][place], state.task))
        return texts

    def say(self, reply: str, task: Task) -> str:
        actions = {".": Stop(), "<": Undo()}
        if reply == "?":
            return "I cannot tell"
        return PIXELS.format(actions[reply] if reply in actions else Click("abcdefgh".index(reply), 0), task)


class Table(ValueFunction):
    """Values of a table; counts what it was asked."""

    name = "table"

    def __init__(self, values=VALUES) -> None:
        self.table = values
        self.asked: list[str] = []

    def values(self, states):
        self.asked += [name_of(state.clicks) for state in states]
        return np.array([self.table[name_of(state.clicks)] for state in states])


def grow(search: str, replies=REPLIES, values=VALUES, max_steps: int = 3) -> Tree:
    parsed = spec.parse(search)
    assert parsed is not None
    mdp = SegMDP(tools.make("disc:radius=0"), max_steps)
    (tree,) = parsed.search(mdp, Scripted(replies), [ROW], Table(values))
    return tree


def names(tree: Tree) -> dict:
    """Each node's name; a step that is no click is told by its sign."""
    signs = {"Stop": ".", "Undo": "<", "Invalid": "?"}
    found = {tree.root: ""}
    for node in tree.nodes[1:]:
        sign = signs.get(type(node.action).__name__)
        found[node] = found[node.parent] + (sign or "abcdefgh"[node.action.x])
    return found


# search, its nodes in the order they are made, the mask returned, where it ended, policy, tool and value calls
GOLDENS = [
    # b is worth more than a; below it bc; both bcd and bce are worth less than bc itself, which is returned
    ("greedy:k=2", ["", "a", "b", "bc", "bd", "bcd", "bce"], "bc", "bcd", (6, 6, 7)),
    ("greedy:k=1", ["", "a", "ac", "acd"], "ac", "acd", (3, 3, 4)),
    # the width is filled with bc and bd, so ac, and with it the best mask ace, is never seen
    (
        "beam:width=2,k=2",
        ["", "a", "b", "bc", "bd", "ac", "ad", "bcd", "bce", "bdc", "bde"],
        "bde",
        "bde",
        (10, 10, 11),
    ),
    # four draws at the root give a, b and c; a's tree keeps ac, though it is worth less than bd
    (
        "dvts:width=2,k=2",
        ["", "a", "b", "c", "bc", "bd", "ac", "ad", "bcd", "bce", "acd", "ace"],
        "ace",
        "ace",
        (12, 11, 12),
    ),
    # b leads to bc = .60, a to ac = .52; then bc to bcd = .58 (.60 counts) and bd to bde = .66; own replies are paid
    # for once: a, then (b sampled), bc, ac, then (bd sampled), bcd, bde, then bdc sampled
    ("lookahead:k=2,ahead=1", ["", "a", "b", "bc", "ac", "bd", "bcd", "bde", "bdc"], "bde", "bde", (8, 8, 9)),
    # the children of bc are worth less than bd, so the search goes back to it; a is still to be expanded
    ("best-first:k=2,expansions=4", ["", "a", "b", "bc", "bd", "bcd", "bce", "bdc", "bde"], "bde", "a", (8, 8, 9)),
    # 1: a. 2: b, sampled. 3: a, sampled. Then 1: ac, 2: bd (sampled), 3: ad (sampled). Then acd, bdc and no action
    (
        "best-of-n:n=3",
        ["", "a", "b", "ac", "ad", "bd", "acd", "bdc", "ad?"],
        "bd",
        "bdc",
        (9, 7, 8),
    ),
    # worked out below
    ("mcts:simulations=4,k=2,c=1", ["", "a", "b", "bc", "bd", "ac", "ad", "bcd", "bce"], "bc", "bc", (8, 8, 9)),
]


@pytest.mark.parametrize(("search", "made", "returned", "ended", "calls"), GOLDENS, ids=[row[0] for row in GOLDENS])
def test_each_node_is_the_one_worked_out_by_hand(search, made, returned, ended, calls) -> None:
    tree = grow(search)
    name = names(tree)
    assert list(name.values()) == made and [node.index for node in tree.nodes] == list(range(len(made)))
    assert name[tree.best] == returned and name[tree.last] == ended
    for node in tree.nodes:
        assert node.value == VALUES[name[node].strip(".?")]
        assert node.state.mask.tolist() == [[letter in name[node] for letter in "abcdefgh"]]
        assert node.parent is None or name[node].startswith(name[node.parent])
    spent = tree.budget.spent
    assert (spent.policy_calls, spent.tool_calls, spent.value_calls) == calls


def test_mcts_visits_what_puct_says() -> None:
    """c = 1, every prior is one half.

    1: the root; a = .40, b = .50; backs up .50.
    2: a .40 + .5·√2 = 1.107, b .50 + .5·√2 = 1.207: b; bc = .60, bd = .55; backs up .60.
    3: a .40 + .5·√3 = 1.266, b .60 + .5·√3/2 = 1.033: a; ac = .52, ad = .45; backs up .52.
    4: a .52 + .5·√4/2 = 1.02, b .60 + .5·√4/2 = 1.10: b; bc .60 + .5·√2, bd .55 + .5·√2: bc; bcd = .58, bce = .10;
    backs up .58.
    """
    tree = grow("mcts:simulations=4,k=2,c=1")
    visited = {name: (node.visits, round(node.value_sum, 12)) for node, name in names(tree).items() if node.visits}
    assert visited == {"": (4, 2.20), "b": (2, 1.18), "a": (1, 0.52), "bc": (1, 0.58)}
    assert all(node.prior == 0.5 for node in tree.nodes[1:])


def test_a_larger_c_tries_more_and_a_smaller_one_goes_deeper() -> None:
    def visits(c: float) -> dict[str, int]:
        tree = grow(f"mcts:simulations=3,k=2,c={c}")
        return {name: node.visits for node, name in names(tree).items() if node.visits}

    assert visits(1.0) == {"": 3, "b": 1, "a": 1}
    assert visits(0.1) == {"": 3, "b": 2, "bc": 1}  # a .40 + .05·√3 = .487, b .60 + .05·√3/2 = .643


def test_paths_under_way_lead_others_away() -> None:
    """Two at a time: both begin at the root; then b, and with b's visit worth 0 so far, a."""
    tree = grow("mcts:simulations=4,k=2,c=1,batch=2")
    assert {name: node.visits for node, name in names(tree).items() if node.visits} == {"": 4, "b": 1, "a": 1}
    assert sorted(names(tree).values()) == sorted(["", "a", "b", "ac", "ad", "bc", "bd"])


def test_equal_replies_are_one_child_whose_prior_is_their_share() -> None:
    tree = grow("dvts:width=2,k=2")
    name = names(tree)
    assert {name[node]: node.prior for node in tree.root.children} == {"a": 0.5, "b": 0.25, "c": 0.25}


def test_the_prior_is_the_probability_of_the_replies_where_it_is_told() -> None:
    """a is said twice and counts once; b is near a, so both lead to one child, and their probabilities add up."""
    chances = {"a": 0.2, "b": 0.1, "e": 0.3}

    class Told(Scripted):
        backend = SimpleNamespace(max_new_tokens=9, replies=[])

        def say(self, reply, task):
            self.backend.replies.append(SimpleNamespace(tokens=4, log_probability=math.log(chances[reply])))
            return super().say(reply, task)

        def _timed(self, answer, items, seeds):
            self.backend.replies.clear()
            return super()._timed(answer, items, seeds)

    parsed, table = spec.parse("greedy:k=4,near=0.125,tokens=45"), Table({"": 0, "a": 0.1, "e": 0.2})
    (tree,) = parsed.search(SegMDP(tools.make("disc:radius=0"), 1), Told({"": "abae"}), [ROW], table)
    assert {name: node.prior for node, name in names(tree).items()} == pytest.approx({"": 1, "a": 0.5, "e": 0.5})
    assert tree.budget.spent.tokens == 16


def test_of_equal_masks_the_policy_prefers_one() -> None:
    """a comes first in every other order; b was said twice."""
    tree = grow("greedy:k=3", {"": "bba"}, {"": 0.0, "a": 0.5, "b": 0.5}, max_steps=1)
    name = names(tree)
    assert (name[tree.best], name[tree.last]) == ("b", "b") and len(tree.nodes) == 3


def test_the_last_mask_can_be_the_best_and_is_valued() -> None:
    """The published scorer never values the last mask."""
    tree = grow("greedy:k=1", {"": "a", "a": "b", "ab": "c"}, {"": 0.1, "a": 0.2, "ab": 0.3, "abc": 0.9})
    assert names(tree)[tree.best] == "abc" and tree.best.value == 0.9


def test_the_first_mask_can_be_the_best() -> None:
    tree = grow("greedy:k=1", {"": "a", "a": "b", "ab": "c"}, {"": 0.5, "a": 0.2, "ab": 0.3, "abc": 0.4})
    assert tree.best is tree.root and names(tree)[tree.last] == "abc"


def test_the_policy_stops_where_no_click_is_worth_more() -> None:
    """At b, its own reply is to stop, and the sampled c is worth less than b."""
    tree = grow("greedy:k=2", {"": "ab", "b": ".c", "bc": "de"}, {"": 0.0, "a": 0.1, "b": 0.5, "bc": 0.4})
    name = names(tree)
    assert list(name.values()) == ["", "a", "b", "bc", "b."] and name[tree.last] == "b."
    assert tree.last.terminal and tree.last.state.stopped and name[tree.best] == "b", "fewer steps, the same mask"
    assert tree.best.state.packed is tree.last.state.packed


def test_the_policy_does_not_stop_where_a_click_is_worth_more() -> None:
    replies = {"": "ab", "b": ".c", "bc": ".d"}
    tree = grow("greedy:k=2", replies, {"": 0.0, "a": 0.1, "b": 0.5, "bc": 0.6, "bcd": 0.7})
    assert names(tree)[tree.last] == "bcd"


def test_a_mask_that_is_there_already_is_valued_once() -> None:
    """An undo, a stop and a reply that is no action show a mask that has its value."""
    parsed = spec.parse("greedy:k=3")
    mdp, source = SegMDP(tools.make("disc:radius=0"), 2), Table({"": 0.3, "a": 0.5})
    (tree,) = parsed.search(mdp, Scripted({"": "aaa", "a": "<.?"}), [ROW], source)
    assert source.asked == ["", "a"] and tree.budget.spent.tool_calls == 1
    assert {name: node.value for node, name in names(tree).items()} == {
        **{"": 0.3, "a": 0.5},
        **{"a.": 0.5, "a<": 0.3, "a?": 0.5},
    }


def test_a_search_ends_when_it_has_converged() -> None:
    """.40, .52, .53: the second step raises the best value by .12, the third by .01."""
    replies, table = {"": "a", "a": "b", "ab": "c", "abc": "d"}, {"": 0, "a": 0.4, "ab": 0.52, "abc": 0.53, "abcd": 0.9}
    for terms, end in [
        *[("patience=1,tolerance=0.02", "abc"), ("patience=1,tolerance=0.2", "ab")],
        *[("patience=2,tolerance=0.14", "abc"), ("patience=1", "abcd"), ("patience=0,tolerance=1", "abcd")],
    ]:
        tree = grow(f"greedy:k=1,{terms}", replies, table, max_steps=4)
        assert names(tree)[tree.last] == end, terms


def test_near_clicks_are_one() -> None:
    """A quarter of eight pixels is two: a and c are near; what is a negative click is another thing."""
    tree = grow("greedy:k=4,near=0.25", {"": "caed"}, {"": 0, "a": 0.1, "d": 0.2}, max_steps=1)
    assert [names(tree)[node] for node in tree.root.children] == ["a", "d"], "a stands for c, d for e"
    assert [node.prior for node in tree.root.children] == [0.5, 0.5]
    tree = grow("greedy:k=4", {"": "caed"}, {"": 0, **dict.fromkeys("acde", 0.1)}, max_steps=1)
    assert len(tree.root.children) == 4
