"""Best-first search: always expand the best-valued state that has not been expanded, wherever in the tree it is.

Unlike greedy and beam search it backtracks to an earlier state as soon as the descendants of a later one are worth
less.
"""

from search.tree import ExpansionRequest, Node, Search, rank_key


def best_first(root: Node, k: int = 3, expansions: int = 32, width: int = 1) -> Search:
    """Make `expansions` expansions of `k` replies each, `width` at a time."""
    frontier = [root]
    while expansions > 0 and frontier:
        frontier.sort(key=rank_key)
        chosen = frontier[: min(width, expansions)]
        families = yield [ExpansionRequest(node, k) for node in chosen]
        if not any(families):
            break
        expansions -= len(chosen)
        reached = dict.fromkeys(child for family in families for child in family if not child.terminal)
        frontier = [*frontier[len(chosen) :], *reached]
    return min(frontier, key=rank_key, default=root)
