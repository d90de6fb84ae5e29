"""Train and measure a process reward model."""

from typing import Any

from experiments.prm.config import Args

__all__ = ["Args", "run"]


def run(args: Args) -> dict[str, Any]:
    """Call `run` of `experiments.prm.train`, which is imported only here: it needs much."""
    from experiments.prm import train

    return train.run(args)
