"""Greedy search (SegAgent, arXiv 2503.08625, Alg. 2): of K replies, take the one whose mask is valued best.

    s ← s_0
    until the episode ends:  a_1 … a_K ~ π(· | s);  s ← the best-valued of F(s, a_1) … F(s, a_K)

Width 1, no backtracking. The best-valued mask of all is returned, the last one included (the published code never
values the last). With K = 1 and without values this is a plain rollout.
"""

from search.tree import ExpansionRequest, Node, Search, best


def greedy(root: Node, k: int = 3) -> Search:
    """Descend, always to the best of `k` children."""
    node = root
    while not node.terminal:
        (children,) = yield [ExpansionRequest(node, k)]
        if not children:
            break
        node = best(children)
    return node
