"""Uniform clicks: a lower bound for agents."""

import numpy as np

from agents.base import Agent
from segenv.codec.base import Codec
from segenv.envs.numbers import GridActions
from segenv.mdp import Observation
from segenv.ranges import CountOrNone, Share, require
from segenv.types import Click


class RandomAgent(Agent):
    """Clicks a pixel sampled uniformly from the image, positive with probability `p`. With `grid` it takes one of the
    actions that `segenv/HLMATGrid-v0` allows on a grid of that side instead, to stop included."""

    def __init__(self, codec: Codec, p: float = 0.5, grid: int = 0) -> None:
        super().__init__(codec)
        require(Share, p=p)
        require(CountOrNone, grid=grid)
        self.p, self.grid = p, GridActions(grid) if grid else None
        self.spec = f"random:grid={grid}" if grid else "random" if p == 0.5 else f"random:p={p:g}"

    def _answer(self, observation: Observation, rng: np.random.Generator) -> str:
        if self.grid is not None:
            allowed = np.flatnonzero(self.grid.masks(observation))
            return self.codec.format(self.grid.read(rng.choice(allowed), observation, self.grid.space), observation)
        x, y = int(rng.integers(observation.width)), int(rng.integers(observation.height))
        return self.codec.format(Click(x, y, bool(rng.random() < self.p)), observation)
