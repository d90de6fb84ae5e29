"""Improve a click policy with its own corrected rollouts (StaR+)."""

from experiments.star.config import Args
from experiments.star.train import run

__all__ = ["Args", "run"]
