"""Beam search: keep the `width` best-valued states of each step, and sample `k` replies at each of them.

With width 1 this is greedy search. A terminal state stays in the beam until the next step, so the search ends when all
states of the beam are terminal.
"""

from search.tree import ExpansionRequest, Node, Search, best, ranked


def beam(root: Node, width: int = 3, k: int = 3) -> Search:
    """Advance the frontier step by step; it is ranked across all parents."""
    frontier = [root]
    while unfinished := [node for node in frontier if not node.terminal]:
        families = yield [ExpansionRequest(node, k) for node in unfinished]
        if not any(families):
            break
        frontier = ranked(families)[:width]
    return best(frontier)
