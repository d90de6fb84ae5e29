"""Train the tiny SAM."""

from experiments.train_tool.config import Args
from experiments.train_tool.trainer import run

__all__ = ["Args", "run"]
