"""Improve a click policy with its own corrected rollouts (StaR+)."""

from typing import Any

from experiments.star.config import Args

__all__ = ["Args", "run"]


def run(args: Args) -> dict[str, Any]:
    """Call `run` of `experiments.star.train`, which is imported only here: it needs much."""
    from experiments.star import train

    return train.run(args)
