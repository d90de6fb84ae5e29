"""Lookahead search (Snell et al. 2024): greedy search that judges a child by where it leads.

Below each of K children the policy plays `ahead` more steps by its own replies, and the child counts as much as the
best mask on that way. The steps looked ahead stay in the tree: where the search goes there, they are paid for already.
"""

from __future__ import annotations

from search.tree import ExpansionRequest, Node, Search, rank_key, ranked


def lookahead(root: Node, k: int = 3, ahead: int = 2) -> Search:
    """Walk down, always to the child with the best prospect."""
    node = root
    while not node.terminal:
        families = yield [ExpansionRequest(node, k)]
        if not any(families):
            break
        ways = [[child] for child in ranked(families)]  # below each child, what its playout passes through
        for _ in range(ahead):
            open_ways = [way for way in ways if not way[-1].terminal]
            if not open_ways:
                break
            played = yield [ExpansionRequest(way[-1]) for way in open_ways]
            for way, family in zip(open_ways, played, strict=True):
                way += family
        prospects = {id(way[0]): max(step.value for step in way) for way in ways}
        node = min((way[0] for way in ways), key=lambda child: (-prospects[id(child)], rank_key(child)))
    return node
