"""Uniform clicks: a lower bound for agents."""

import numpy as np

from agents.base import Agent
from segenv.codec.base import Codec
from segenv.mdp import Observation
from segenv.ranges import Share, require
from segenv.types import Click


class RandomAgent(Agent):
    """Clicks a pixel sampled uniformly from the image, positive with probability `p`."""

    def __init__(self, codec: Codec, p: float = 0.5) -> None:
        super().__init__(codec)
        require(Share, p=p)
        self.p = p
        self.spec = "random" if p == 0.5 else f"random:p={p:g}"

    def _answer(self, observation: Observation, rng: np.random.Generator) -> str:
        x, y = int(rng.integers(observation.width)), int(rng.integers(observation.height))
        return self.codec.format(Click(x, y, bool(rng.random() < self.p)), observation)
