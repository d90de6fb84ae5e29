"""GSPO: learn from the IoU of sampled polygons."""

from experiments.gspo.config import Args
from experiments.gspo.train import run

__all__ = ["Args", "run"]
