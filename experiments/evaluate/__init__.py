"""Measure an agent, a tool or a search on data."""

from experiments.evaluate.clicks import run
from experiments.evaluate.config import Args

__all__ = ["Args", "run"]
