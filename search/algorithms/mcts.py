"""Monte Carlo tree search with PUCT over sampled replies (Silver et al. 2017; Hubert et al. 2021 for sampled actions).

    descend to the child of highest   Q(s, a) + c · P(a | s) · √N(s) / (1 + N(s, a))   until a leaf
    expand the leaf by K replies, whose masks are valued
    back up the best of those values (the leaf's own, where it is terminal) along the path

P is the policy's probability among the replies sampled at s. Q is the mean of the values backed up through a child,
and before its first visit the value of its own mask. A simulation is worth its best new mask and not their mean,
because the process is deterministic and the best mask anywhere may be returned.
"""

from collections.abc import Sequence
from math import sqrt

from search.tree import ExpansionRequest, Node, Search, ranked


def mcts(root: Node, simulations: int = 32, k: int = 3, c: float = 0.1, batch: int = 1) -> Search:
    """Run `simulations`, `batch` at a time: a path under way counts as a visit worth 0, which leads the others away.
    `c` is small because siblings differ by hundredths of IoU."""
    while simulations > 0:
        leaves = [descend(root, c) for _ in range(min(batch, simulations))]
        simulations -= len(leaves)
        unexpanded = list(dict.fromkeys(leaf for leaf in leaves if not leaf.terminal))
        families: Sequence[list[Node]] = []
        if unexpanded:
            families = yield [ExpansionRequest(leaf, k) for leaf in unexpanded]
            if not any(families):
                break
        worth = [max((child.value for child in family), default=0.0) for family in families]
        values = dict(zip(unexpanded, worth, strict=True))
        for leaf in leaves:
            backward(leaf, values.get(leaf, leaf.value))
    node = root
    while visited := [child for child in node.children if child.visits]:
        most = max(child.visits for child in visited)
        (node, *_) = ranked([[child for child in visited if child.visits == most]])
    return node


def descend(root: Node, c: float) -> Node:
    """The leaf that PUCT leads to; every node on the path counts a visit."""
    node = root
    node.visits += 1
    while node.children:
        parent = node
        node = max(ranked([parent.children]), key=lambda child: puct(parent, child, c))
        node.visits += 1
    return node


def puct(parent: Node, child: Node, c: float) -> float:
    """Q(s, a) + c · P(a | s) · √N(s) / (1 + N(s, a)) of the child that action a leads to."""
    mean = child.value_sum / child.visits if child.visits else child.value
    return mean + c * child.prior * sqrt(parent.visits) / (1 + child.visits)


def backward(leaf: Node, value: float) -> None:
    """Add `value` to every node from the leaf to the root."""
    for node in (leaf, *leaf.ancestors()):
        node.value_sum += value
