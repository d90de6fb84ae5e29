"""Measure an agent, a tool or a search on data."""

from typing import Any

from experiments.evaluate.config import Args

__all__ = ["Args", "run"]


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Call `run` of `experiments.evaluate.evaluate`, which is imported only here: it needs much."""
    from experiments.evaluate import evaluate

    return evaluate.run(args, quiet)
