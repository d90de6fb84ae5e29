"""Annotate a folder of images."""

from typing import Any

from experiments.annotate.config import Args

__all__ = ["Args", "run"]


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Call `run` of `experiments.annotate.annotate`, which is imported only here: it needs much."""
    from experiments.annotate import annotate

    return annotate.run(args, quiet)
