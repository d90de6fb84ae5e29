"""Best of N: play N whole episodes, and keep the best-valued mask that any of them passed through.

The first episode takes greedy replies, the others are sampled. Episodes that begin alike share their nodes, and with
them the calls of tool and value function, but each samples a reply of its own at every step.
"""

from search.tree import ExpansionRequest, Node, Search, best


def best_of_n(root: Node, n: int = 8) -> Search:
    """Let `n` episodes advance together until all have ended."""
    nodes = [root] * n  # of each episode; the first is greedy
    while True:
        groups: dict[Node, list[int]] = {}
        for i, node in enumerate(nodes):
            if not node.terminal:
                groups.setdefault(node, []).append(i)
        if not groups:
            break
        families = yield [ExpansionRequest(node, len(group), greedy=group[0] == 0) for node, group in groups.items()]
        if not any(families):
            break
        for group, family in zip(groups.values(), families, strict=True):
            for i, child in zip(group, family, strict=False):  # episodes that could not be paid for stay where they are
                nodes[i] = child
    return best(nodes)
