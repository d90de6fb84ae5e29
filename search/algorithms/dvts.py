"""Diverse verifier tree search (Beeching et al. 2024): several greedy searches that do not compete with each other.

Beam search may fill its whole width with the children of one parent. Here the best `width` first actions each head a
subtree, and each subtree keeps its best child whatever the others are worth. With width 1 this is greedy search.
"""

from search.tree import ExpansionRequest, Node, Search, best, ranked


def dvts(root: Node, width: int = 3, k: int = 3) -> Search:
    """Sample `width * k` first actions, and search greedily below each of the best `width`."""
    heads = [root]
    while unfinished := [node for node in heads if not node.terminal]:
        families = yield [ExpansionRequest(node, width * k if node is root else k) for node in unfinished]
        if not any(families):
            break
        first = unfinished[0] is root
        heads = ranked(families)[:width] if first else [best(family) for family in families if family]
    return best(heads)
