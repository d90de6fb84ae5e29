"""Best of N: play N whole episodes, and keep the best-valued mask that any of them passed through.

The first episode takes the policy's own replies, the others are sampled. Episodes that begin alike share their nodes,
and with them the tool's and the value source's work, but each draws a reply of its own at every step.
"""

from __future__ import annotations

from search.tree import ExpansionRequest, Node, Search, best


def best_of_n(root: Node, n: int = 8) -> Search:
    """Let `n` episodes advance together until all have ended."""
    places = [root] * n  # where each episode is; the first is the policy's own
    while True:
        groups: dict[int, list[int]] = {}
        for i, node in enumerate(places):
            if not node.terminal:
                groups.setdefault(id(node), []).append(i)
        if not groups:
            break
        families = yield [ExpansionRequest(places[at[0]], len(at), likeliest=at[0] == 0) for at in groups.values()]
        if not any(families):
            break
        for at, family in zip(groups.values(), families, strict=True):
            for i, child in zip(at, family, strict=False):  # those that could not be paid for stay where they are
                places[i] = child
    return best(places)
