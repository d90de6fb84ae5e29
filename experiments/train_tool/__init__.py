"""Train the tiny SAM."""

from pathlib import Path

from experiments.train_tool.config import Args

__all__ = ["Args", "run"]


def run(args: Args) -> Path:
    """Call `run` of `experiments.train_tool.trainer`, which is imported only here: it needs much."""
    from experiments.train_tool import trainer

    return trainer.run(args)
