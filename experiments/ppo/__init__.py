"""PPO on the numeric environments, from clones of the annotator."""

from experiments.ppo.config import Args

__all__ = ["Args", "run"]


def run(args: Args, quiet: bool = False) -> dict:
    """Train and measure as `args` say, and return the content of metrics.json."""
    from experiments.ppo.train import run as train

    return train(args, quiet)
