"""Time trees of states: a branch, a thousand nodes, and expansion in batches. Part `tree` of the benchmark."""

import copy
import gc
import tracemalloc
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

import agents
from agents.base import Agent
from experiments.benchmark.timing import Timing, compare, where_installed
from search.algorithms.best_first import best_first
from search.budget import Limits
from search.expand import Expander
from search.planner import SearchConfig, run_searches
from search.tree import ExpansionRequest, Node, Tree, ranked
from search.values import OracleValue
from segenv import data, tools
from segenv.mdp import SegMDP
from segenv.tools.base import SegTool
from segenv.tools.cache import Encoding
from segenv.tools.disc import DiscTool
from segenv.types import Click, Prediction, Prompt, Task

BRANCH_LIMIT_MS = 0.010
NODES, MEGABYTES = 1000, 200
HEIGHT, WIDTH = 480, 640
SIBLINGS, TASKS, ROUNDS = 4, 8, 2
RATIO = 3.0  # of nodes a second, at least


def scene() -> Task:
    """Noise with a disc, 640 x 480."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Task("scene", image, (rows - 240) ** 2 + (columns - 320) ** 2 <= 90**2)


def node(seconds: float) -> Iterator[Timing]:
    """A child over the arrays of its parent."""
    mdp = SegMDP(tools.make("disc"))
    (state,) = mdp.transition([mdp.initial(scene())], [Click(320, 240)])
    parent = Node(state)

    def equal(first: Node, second: Node) -> bool:
        assert second.state.packed is state.packed, "the branch copied the mask"
        return np.array_equal(first.state.mask, second.state.mask)

    times = compare(
        lambda: Node(copy.deepcopy(state, {id(state.task): state.task}), parent),  # image and target shared, to be fair
        lambda: Node(replace(state, step=state.step + 1), parent, order=(*parent.order, (0, False, 240, 320))),
        equal,
        seconds,
    )
    note, goal = "deep copy of the state | a node over the same arrays", f"< {1000 * BRANCH_LIMIT_MS:g} µs"
    yield Timing("tree-node", f"{WIDTH} x {HEIGHT}", *times, note, times[1] < BRANCH_LIMIT_MS, goal)


def memory() -> Iterator[Timing]:
    """A tree of a thousand nodes, with the embedded tool and with logits as large as the original SAM's."""
    yield replace(
        measure_memory(FullLogits(), "256 x 256 logits"), passed=None, goal=""
    )  # of larger tools; not asked for
    yield measure_memory(tools.make("sam"), "sam")


class FullLogits(DiscTool):
    """The disc, with logits of the size that the original SAM gives."""

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        return [replace(one, logits=np.zeros((256, 256), np.float32)) for one in super()._predict(encodings, prompts)]


def measure_memory(tool: SegTool, case: str, nodes: int = NODES) -> Timing:
    """Measure the memory of a tree of `nodes` nodes, without the image and its encoding."""
    mdp, agent, task = SegMDP(tool), agents.make("random:p=0.9"), scene()
    tool.encode([task.image], [task.image_hash])
    config = SearchConfig(Limits(policy_calls=nodes - 1), near=0)
    gc.collect()
    tracemalloc.start()
    try:
        (tree,) = run_searches(mdp, agent, [task], partial(best_first, k=8, expansions=nodes), OracleValue(), config)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / 1e6
    finally:
        tracemalloc.stop()
    note, goal = f"{len(tree.nodes)} nodes hold {held:.1f} MB", f"< {MEGABYTES} MB"
    return Timing("tree-memory", f"{case}, {WIDTH} x {HEIGHT}", None, None, note, held < MEGABYTES, goal)


def expansion(seconds: float) -> Iterator[Timing]:
    """Nodes per second with the embedded models: siblings, frontier and tasks at once, and one by one."""
    with warnings.catch_warnings(record=True) as caught:  # of an agent without weights: its replies are no clicks
        agent = agents.make("mllm")
    case = "sam and mllm (untrained)" if caught else "sam and mllm"
    yield time_expansion(SegMDP(tools.make("sam"), ROUNDS), agent, case, seconds)


def time_expansion(mdp: SegMDP, agent: Agent, case: str, seconds: float) -> Timing:
    """A beam of 2, with `SIBLINGS` replies at each node, over `TASKS` tasks."""
    tasks = list(data.make("synthetic:val")[:TASKS])
    mdp.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])

    def grow(together: bool) -> list[Tree]:
        expand = Expander(mdp, agent, OracleValue(), near=0)
        trees = expand.make_roots([(task, 0) for task in tasks], Limits())
        frontiers = [[tree.root] for tree in trees]
        for _ in range(ROUNDS):
            requests = [
                (tree, [ExpansionRequest(node, SIBLINGS) for node in nodes])
                for tree, nodes in zip(trees, frontiers, strict=True)
            ]
            answers = expand(requests) if together else [one_by_one(expand, *request) for request in requests]
            frontiers = [[node for node in ranked(families)[:2] if not node.terminal] for families in answers]
        return trees

    def same(first: list[Tree], second: list[Tree]) -> bool:
        """Whether nearly all clicks are the same: rounding in a batch may tip over a sampled digit."""
        a, b = (
            {(tree.task.id, node.state.clicks) for tree in trees for node in tree.nodes} for trees in (first, second)
        )
        return len(a & b) >= 0.9 * max(len(a), len(b))

    times = compare(lambda: grow(False), lambda: grow(True), same, seconds)
    nodes = sum(len(tree.nodes) - 1 for tree in grow(True))
    each = [f"{1000 * nodes / time:.1f}" for time in times]
    note = f"{each[0]} nodes a second, one by one | {each[1]}, all at once"
    return Timing("tree-expand", case, *times, note).at_least(RATIO)


def one_by_one(expand: Expander, tree: Tree, requests: Sequence[ExpansionRequest]) -> list[list[Node]]:
    """Sample the requested replies one by one, each in an expansion of its own."""
    families = []
    for request in requests:
        singles = [replace(request, k=1, greedy=i == 0) for i in range(request.k)]
        families.append([child for one in singles for (family,) in [expand([(tree, [one])])[0]] for child in family])
    return families


def rows(seconds: float) -> Iterator[Timing]:
    """Time everything about trees."""
    yield from node(seconds)
    yield from where_installed("tree-memory", "sam", memory)
    yield from where_installed("tree-expand", "sam and mllm", partial(expansion, seconds))
