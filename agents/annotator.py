"""The simulated annotator as an agent: it demonstrates trajectories, and is the upper bound of every table."""

import numpy as np

from agents.base import Agent
from segenv import annotator
from segenv.codec.base import Codec
from segenv.mdp import SegState
from segenv.types import Stop


class AnnotatorAgent(Agent):
    """Clicks where `segenv.annotator.make(variant)` says, from the target and the current mask; stops where the mask
    is perfect."""

    privileged = True

    def __init__(self, variant: str, codec: Codec) -> None:
        super().__init__(codec)
        self.spec = "annotator" if variant == "ritm" else f"annotator:{variant}"
        self._next_click = annotator.make(variant)

    def _answer(self, state: SegState, rng: np.random.Generator) -> str:
        click = self._next_click(state.task.target, state.mask, state.clicks, rng)
        return self.codec.format(Stop() if click is None else click, state.task)
