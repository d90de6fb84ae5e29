"""Compare tree searches at equal cost."""

from typing import Any

from experiments.tree_search.config import Args

__all__ = ["Args", "run"]


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Call `run` of `experiments.tree_search.play`, which is imported only here: it needs much."""
    from experiments.tree_search import play

    return play.run(args, quiet)
