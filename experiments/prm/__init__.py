"""Train and measure a process reward model."""

from experiments.prm.config import Args
from experiments.prm.train import run

__all__ = ["Args", "run"]
