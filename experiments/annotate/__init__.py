"""Annotate a folder of images."""

from experiments.annotate.annotate import run
from experiments.annotate.config import Args

__all__ = ["Args", "run"]
