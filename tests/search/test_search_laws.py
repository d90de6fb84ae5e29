"""Laws of every search: nothing depends on batches or on the order of siblings, no budget is exceeded, and each node is
the state that its actions lead to."""

from __future__ import annotations

from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
from conftest import disc_task
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from agents.base import Agent
from search import spec
from search.budget import AXES, Budget, Cost, Limits
from search.planner import run_searches, to_episode
from search.rollout import rollout
from search.tree import ExpansionRequest, Node, Tree
from search.values import ValueFunction
from segenv import codec, metrics, tools
from segenv.mdp import SegMDP
from segenv.types import Box, Click, Stop, Undo

PIXELS = codec.make("pixels")
TASKS = [disc_task(20 + 3 * i, 30 - 2 * i, 12 + i, 9 + i, 5 + i, f"disc {i}") for i in range(4)]
SPECS = [
    *("greedy:k=1", "greedy:k=3", "best-of-n:n=4", "beam:width=2,k=3", "dvts:width=2,k=2", "lookahead:k=2,ahead=2"),
    *("best-first:k=3,expansions=8", "best-first:k=2,expansions=8,width=3"),
    *("mcts:simulations=8,k=3", "mcts:simulations=9,k=2,c=1,batch=3"),
]
searches = st.sampled_from(SPECS)


class Wanderer(Agent):
    """Clicks, boxes, stops, undoes and says nonsense, as its seed tells. A token is a letter, and each text has a
    probability of its own."""

    spec = "wanderer"

    def __init__(self) -> None:
        super().__init__(PIXELS)
        self.backend = SimpleNamespace(max_new_tokens=40, replies=[])

    def _timed(self, answer, items, seeds):
        texts = super()._timed(answer, items, seeds)
        chances = [-crc32(text.encode()) / 2**30 for text in texts]
        told = zip(texts, chances, strict=True)
        self.backend.replies = [SimpleNamespace(tokens=len(text), log_probability=chance) for text, chance in told]
        return texts

    def _act(self, observations, seeds):
        return [self.say(seen, np.random.default_rng(seed)) for seen, seed in zip(observations, seeds, strict=True)]

    def say(self, seen, rng) -> str:
        x, y = (int(side) for side in rng.integers(0, 12, 2))
        kinds = [Click(x, y, bool(rng.random() < 0.7)), Box(x, y, x + 7, y + 5), Stop(), Undo()]
        kind = rng.choice(5, p=[0.7, 0.1, 0.05, 0.1, 0.05])
        return PIXELS.format(kinds[kind], seen) if kind < 4 else "no idea"


class Judge(ValueFunction):
    """The true IoU with an error that belongs to the mask, and 7 tokens a mask; it calls itself no oracle here."""

    name = "judge"
    max_tokens = 9

    def values(self, states):
        self.tokens = [7] * len(states)
        noise = [np.random.default_rng(list(np.packbits(state.mask))).random() for state in states]
        true = [metrics.iou(state.task.target, state.mask) for state in states]
        return 0.7 * np.array(true) + 0.3 * np.array(noise)


def mdp_of(max_steps: int = 4) -> SegMDP:
    return SegMDP(tools.make("disc:radius=3"), max_steps)


def grow(search: str, tasks=TASKS[:1], agent=None, value_fn=None, max_steps: int = 4, **options) -> list[Tree]:
    parsed = spec.parse(search)
    assert parsed is not None
    return list(parsed.search(mdp_of(max_steps), agent or Wanderer(), tasks, value_fn or Judge(), **options))


def contents(tree: Tree) -> dict:
    """What a tree holds, by the way to each node."""
    return {node.order: (node.value, node.prior, node.visits, node.state.mask.tobytes()) for node in tree.nodes}


@given(search=searches, batch_size=st.integers(1, 9), order=st.permutations(TASKS), seed=st.integers(0, 3))
@settings(max_examples=25)
def test_a_tree_depends_on_its_task_alone(search, batch_size, order, seed) -> None:
    together = grow(search, order, batch_size=batch_size, seed=seed)
    assert [tree.task.id for tree in together] == [task.id for task in order]
    for tree in together:
        (alone,) = grow(search, [tree.task], seed=seed)
        assert list(contents(tree)) == list(contents(alone)) and contents(tree) == contents(alone)
        assert (tree.best.order, tree.last.order) == (alone.best.order, alone.last.order)
        assert tree.budget.spent.policy_calls == alone.budget.spent.policy_calls


class Shuffled(Wanderer):
    """Says the same things at a node in another order: sample n is what sample n + `shift` would have been, within the
    `block` of samples that one expansion takes."""

    privileged = True

    def __init__(self, shift: int, block: int, root_block: int) -> None:
        super().__init__()
        self.shift, self.block, self.root_block = shift, block, root_block
        self.sampled: dict[tuple, int] = {}

    def key(self, state) -> tuple:
        return state.step, tuple((click.x, click.y, click.positive) for click in state.clicks)

    def _act(self, states, seeds):
        return [self.slot(state, 0) for state in states]

    def _sample(self, states, seeds):
        texts = []
        for state in states:
            block = self.block if state.step else self.root_block
            number = self.sampled.get(self.key(state), 0)
            self.sampled[self.key(state)] = number + 1
            texts.append(self.slot(state, 1 + number // block * block + (number + self.shift) % block))
        return texts

    def slot(self, state, number: int) -> str:
        seed = [number, state.step, *(side for click in state.clicks for side in (click.x, click.y, click.positive))]
        return self.say(state.task, np.random.default_rng(seed))


@given(
    search=st.sampled_from(["greedy:k=4", "beam:width=2,k=4", "dvts:width=2,k=4", "lookahead:k=4,ahead=1"])
    | st.sampled_from(["best-first:k=4,expansions=6", "mcts:simulations=6,k=4"]),
    shift=st.integers(1, 6),
    near=st.sampled_from([0.0, 0.1, 0.3]),
)
@settings(max_examples=40)
def test_the_order_of_siblings_does_not_matter(search, shift, near) -> None:
    root_block = 7 if search.startswith("dvts") else 3
    plain, turned = (grow(f"{search},near={near}", agent=Shuffled(turn, 3, root_block))[0] for turn in (0, shift))
    assert contents(plain) == contents(turned) and plain.best.order == turned.best.order


@given(search=searches, seed=st.integers(0, 20))
@settings(max_examples=30)
def test_replaying_the_actions_of_any_node_gives_its_mask(search, seed) -> None:
    mdp = mdp_of()
    (tree,) = grow(search, seed=seed)
    for node in tree.nodes:
        state = mdp.initial(tree.task)
        for step in node.path()[1:]:
            (state,) = mdp.transition([state], [step.action])
        assert np.array_equal(state.mask, node.state.mask)
        assert (state.clicks, state.step, state.error) == (node.state.clicks, node.state.step, node.state.error)
        assert node.terminal == mdp.terminal(state)


@given(search=searches, seed=st.integers(0, 20))
@settings(max_examples=30)
def test_a_child_whose_mask_is_as_it_was_shares_it(search, seed) -> None:
    (tree,) = grow(search, seed=seed)
    for node in tree.nodes[1:]:
        assert node.state.packed is None or not node.state.packed.flags.writeable
        if not isinstance(node.action, (Click, Box)) or node.state.error:
            assert any(node.state.packed is above.state.packed for above in node.ancestors())
    priors = [sum(child.prior for child in node.children) for node in tree.nodes if node.children]
    assert priors == pytest.approx([1.0] * len(priors))


limits = st.fixed_dictionaries(
    {}, optional={axis: st.integers(0, 300 if axis == "tokens" else 20) for axis in AXES if axis != "seconds"}
)


@given(search=searches, limit=limits, seed=st.integers(0, 20), batch_size=st.integers(1, 3))
@settings(max_examples=100)
def test_no_search_exceeds_its_budget(search, limit, seed, batch_size) -> None:
    class Counting(Wanderer):
        replies: list[str] = []

        def _act(self, observations, seeds):
            texts = super()._act(observations, seeds)
            self.replies += texts
            return texts

    agent, source, mdp = Counting(), Judge(), mdp_of()
    agent.replies, valued = [], []
    source.values = lambda states, plain=source.values: valued.extend(states) or plain(states)  # type: ignore[method-assign]
    parsed = spec.parse(",".join([search, *(f"{axis}={number}" for axis, number in limit.items())]))
    trees = list(parsed.search(mdp, agent, TASKS[:3], source, seed=seed, batch_size=batch_size))
    spent = [tree.budget.spent for tree in trees]
    for one in spent:
        for axis, most in limit.items():
            assert getattr(one, axis) <= most
    # what was charged is what was done
    assert sum(one.policy_calls for one in spent) == len(agent.replies)
    assert sum(one.tool_calls for one in spent) == mdp.tool.calls["decode"]
    assert sum(one.value_calls for one in spent) == len(valued)
    assert sum(one.tokens for one in spent) == sum(map(len, agent.replies)) + 7 * len(valued)
    for tree in trees:
        assert tree.best in tree.nodes and tree.last in tree.nodes
        assert tree.trace[-1] == (tree.budget.spent, tree.best.index)


def test_a_charge_over_the_limit_is_refused() -> None:
    budget = Budget(Limits(tool_calls=3))
    budget.charge(Cost(tool_calls=2, tokens=100))
    assert budget.affordable(5, Cost(tool_calls=1)) == 1 and budget.affordable(5, Cost(policy_calls=1)) == 5
    with pytest.raises(RuntimeError, match="2 tool_calls was charged 2 more, over its limit of 3"):
        budget.charge(Cost(tool_calls=2))
    assert budget.spent == Cost(tool_calls=2, tokens=100)
    with pytest.raises(ValueError, match="tokens is -1"):
        Limits(tokens=-1)


@pytest.mark.parametrize("search", SPECS)
def test_no_round_begins_and_nothing_counts_once_the_seconds_are_over(search, monkeypatch) -> None:
    """The clock stands still but for the agent, which takes one second a call, and so up to two a round."""
    now = [0.0]
    monkeypatch.setattr("search.expand.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Wanderer):
        def _act(self, observations, seeds):
            now[0] += 1
            return super()._act(observations, seeds)

    (whole,) = grow(search)
    (tree,) = grow(f"{search},seconds=3", agent=Slow())
    assert {node.order for node in tree.nodes} <= {node.order for node in whole.nodes}
    seconds = [cost.seconds for cost, _ in tree.trace]
    assert seconds[-1] <= 4 and sorted(set(seconds))[:-1] == sorted({time for time in seconds if time < 3})
    in_time = max(index for (_, index), time in zip(tree.trace, seconds, strict=True) if time < 3)
    assert tree.best.index <= in_time and len(tree.nodes) < len(whole.nodes)
    (none,) = grow(f"{search},seconds=0", agent=Slow())
    assert none.nodes == [none.root] and none.best is none.root


@given(search=searches, calls=st.integers(0, 25), seed=st.integers(0, 20))
@settings(max_examples=40)
def test_a_search_that_is_cut_is_the_beginning_of_the_whole(search, calls, seed) -> None:
    """So what is returned only gets better (in the eyes of the value function) as the budget grows."""
    (whole,) = grow(f"{search},near=0", seed=seed)
    (cut,) = grow(f"{search},near=0,policy_calls={calls}", seed=seed)
    known = contents(whole)
    assert all(known[order][0] == held[0] for order, held in contents(cut).items())
    assert cut.best.value <= whole.best.value


@given(search=searches, seed=st.integers(0, 20))
@settings(max_examples=40)
def test_the_oracle_dominates(search, seed) -> None:
    """It returns the best mask of its tree; and where values do not steer the growth, no other source finds better."""
    (tree,) = grow(
        f"{search},value=oracle", value_fn=spec.parse(f"{search},value=oracle").value_function(mdp_of(), Wanderer())
    )
    true = {node.index: metrics.iou(tree.task.target, node.state.mask) for node in tree.nodes}
    assert true[tree.best.index] == max(true.values()) == tree.best.value
    if search in ("greedy:k=1", "best-of-n:n=4"):
        (judged,) = grow(search)
        assert contents(judged).keys() == contents(tree).keys()
        assert metrics.iou(tree.task.target, judged.best.state.mask) <= tree.best.value


def told(episode) -> dict:
    return {key: value for key, value in episode.to_json().items() if key != "seconds"}


@pytest.mark.parametrize("agent", ["random", "annotator:depth"])
def test_greedy_of_one_without_values_is_a_plain_rollout(agent) -> None:
    mdp, player = mdp_of(), agents.make(agent)
    trees = spec.parse("greedy:k=1,value=none").search(mdp, player, TASKS, None, seed=5, samples=2)
    episodes = [to_episode(mdp, player, tree) for tree in trees]
    assert [told(one) for one in episodes] == [told(one) for one in rollout(mdp, player, TASKS, seed=5, samples=2)]
    assert all(set(one.seconds) == {"encode", "decode", "agent", "annotator", "other"} for one in episodes)


@given(k=st.integers(1, 4), seed=st.integers(0, 20))
@settings(max_examples=25)
def test_of_width_one_beam_and_dvts_are_greedy(k, seed) -> None:
    greedy, beam, dvts = (grow(f"{name}k={k}", seed=seed)[0] for name in ("greedy:", "beam:width=1,", "dvts:width=1,"))
    assert contents(greedy) == contents(beam) == contents(dvts)
    assert greedy.last.order == beam.last.order == dvts.last.order


def test_an_episode_ends_with_the_mask_that_was_chosen() -> None:
    mdp, agent = mdp_of(), Wanderer()
    for tree in grow("greedy:k=3", TASKS, agent=agent):
        episode = to_episode(mdp, agent, tree)
        assert np.array_equal(episode.mask(len(episode.steps)), tree.best.state.mask)
        assert episode.steps and (episode.stopped or len(episode.steps) == 4)
        assert [step.text for step in episode.steps if step.text] == [node.text for node in tree.best.path()[1:]]
    (empty,) = grow("greedy:k=3,policy_calls=0", agent=agent)
    assert [step.action for step in to_episode(mdp, agent, empty).steps] == [{"type": "stop"}]


def test_draws_are_new_at_every_node_and_every_time() -> None:
    """A seed names run, task, sample, way and number; so no two draws of a search are the same but by chance."""
    seeds: list[int] = []

    class Listening(Wanderer):
        def _timed(self, answer, items, asked):
            seeds.extend(asked)
            return super()._timed(answer, items, asked)

    grow("beam:width=3,k=3", TASKS, agent=Listening(), samples=2)
    assert len(seeds) == len(set(seeds)) > 100


def test_values_that_are_no_fractions_are_refused() -> None:
    class Wrong(Judge):
        def values(self, states):
            return np.full(len(states), 74.0)

    with pytest.raises(ValueError, match="'judge' gave .74.0. for 1 states; expected one number in 0..1 each"):
        grow("greedy:k=2", value_fn=Wrong())


def test_a_node_is_asked_once_a_round() -> None:
    def twice(root: Node):
        yield [ExpansionRequest(root), ExpansionRequest(root)]
        return root

    with pytest.raises(ValueError, match="asked twice about one node"):
        list(run_searches(mdp_of(), Wanderer(), TASKS[:1], twice, Judge()))


def test_a_policy_that_writes_outlines_is_refused() -> None:
    with pytest.raises(ValueError, match="writes polygons, and a search is over clicks"):
        grow("greedy:k=2,value=tool", agent=agents.make("random", "rings"))
