"""Measure an agent, a tool or a search on data."""

from experiments.evaluate.config import Args
from experiments.evaluate.evaluate import run

__all__ = ["Args", "run"]
