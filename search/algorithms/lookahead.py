"""Lookahead search (Snell et al. 2024): greedy search that values a child by a playout.

Below each of K children the policy plays `ahead` more steps greedily, and the child is worth the best mask on that
path. The steps of playouts stay in the tree: where the search goes there, they are paid for already.
"""

from search.tree import ExpansionRequest, Node, Search, rank_key, ranked


def lookahead(root: Node, k: int = 3, ahead: int = 2) -> Search:
    """Descend, always to the child with the best playout."""
    node = root
    while not node.terminal:
        families = yield [ExpansionRequest(node, k)]
        if not any(families):
            break
        paths = [[child] for child in ranked(families)]  # each child and its playout
        for _ in range(ahead):
            unfinished = [path for path in paths if not path[-1].terminal]
            if not unfinished:
                break
            replies = yield [ExpansionRequest(path[-1]) for path in unfinished]
            for path, family in zip(unfinished, replies, strict=True):
                path += family
        worth = {path[0]: max(step.value for step in path) for path in paths}
        node = min(worth, key=lambda child: (-worth[child], rank_key(child)))
    return node
