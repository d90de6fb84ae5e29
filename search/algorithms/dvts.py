"""Diverse verifier tree search (Beeching et al. 2024): several greedy searches side by side that never crowd each other
out.

Beam search may fill its whole width with the children of one parent. Here the best `width` first actions each head a
tree of their own, and each tree keeps its best child whatever the others' are worth. With width 1 this is greedy
search.
"""

from __future__ import annotations

from search.tree import ExpansionRequest, Node, Search, best, ranked


def dvts(root: Node, width: int = 3, k: int = 3) -> Search:
    """Draw `width * k` first actions, and go on greedily below each of the best `width`."""
    heads = [root]
    while asked := [node for node in heads if not node.terminal]:
        families = yield [ExpansionRequest(node, width * k if node is root else k) for node in asked]
        if not any(families):
            break
        first = asked[0] is root
        heads = ranked(families)[:width] if first else [best(family) for family in families if family]
    return best(heads)
