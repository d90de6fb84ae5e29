"""GSPO: learn from the IoU of sampled polygons."""

from typing import Any

from experiments.gspo.config import Args

__all__ = ["Args", "run"]


def run(args: Args) -> dict[str, Any] | None:
    """Call `run` of `experiments.gspo.train`, which is imported only here: it needs much."""
    from experiments.gspo import train

    return train.run(args)
