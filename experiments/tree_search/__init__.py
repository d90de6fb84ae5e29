"""Compare tree searches at equal cost."""

from experiments.tree_search.config import Args
from experiments.tree_search.play import run

__all__ = ["Args", "run"]
