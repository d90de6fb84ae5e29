"""StaR+: improve a click policy with its own corrected rollouts."""

from experiments.star.config import Args
from experiments.star.train import run

__all__ = ["Args", "run"]
