"""The contract of an agent: observations in, texts out."""

from __future__ import annotations

import time
from abc import ABC
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from segenv.codec.base import Codec
    from segenv.mdp import Observation, SegState


class Agent(ABC):  # noqa: B024  # an implementation gives `_act`, or `_act_on` where it is privileged
    """Answers each observation with a text, to be read by `codec`.

    Agents keep nothing between calls. An item's answer depends on its observation and its seed, never on the batch
    around it, and a repeated call repeats its texts. Implementations give `spec` (what `agents.make` takes) and
    `_act`; one that reads the target sets `privileged` and gives `_act_on` instead, and is asked through `act_on`.
    `seconds` counts the time spent answering.
    """

    spec: str
    privileged: bool = False

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.seconds = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes what the agent writes, to be recorded with its results."""
        return {"agent": self.spec, "codec": self.codec.name}

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        """One text for each observation; `seeds` are non-negative integers, one an item."""
        if self.privileged:
            raise TypeError(
                f"agent {self.spec!r} reads the target, which no observation holds; call act_on(states, seeds)"
            )
        return self._timed(self._act, observations, seeds)

    def act_on(self, states: Sequence[SegState], seeds: Sequence[int]) -> list[str]:
        """One text for each state, for privileged agents: they read the target."""
        if not self.privileged:
            raise TypeError(
                f"agent {self.spec!r} is not privileged and never sees a state; call act(observations, seeds)"
            )
        return self._timed(self._act_on, states, seeds)

    def propose(self, observations: Sequence, k: int, seeds: Sequence[int]) -> list[list[str]]:
        """`k` texts for each observation (state, where the agent is privileged), drawn with seeds derived from the
        item's seed."""
        self._check(observations, seeds)
        repeated = [observation for observation in observations for _ in range(k)]
        texts = self._timed(self._draw, repeated, [derived for seed in seeds for derived in derive(seed, k)])
        return [texts[i * k : (i + 1) * k] for i in range(len(observations))]

    def _timed(self, answer: Callable[..., list[str]], items: Sequence, seeds: Sequence[int]) -> list[str]:
        self._check(items, seeds)
        began = time.perf_counter()
        texts = answer(items, seeds) if len(items) else []
        self.seconds += time.perf_counter() - began
        return texts

    def _check(self, items: Sequence, seeds: Sequence[int]) -> None:
        if len(items) != len(seeds):
            raise ValueError(
                f"agent {self.spec!r} got {len(items)} items and {len(seeds)} seeds; give one seed for each item"
            )

    def _draw(self, observations: Sequence, seeds: Sequence[int]) -> list[str]:
        """One proposal for each item: what `act` gives, unless an agent draws proposals more widely."""
        return (self._act_on if self.privileged else self._act)(observations, seeds)

    def _act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} gives no _act")

    def _act_on(self, states: Sequence[SegState], seeds: Sequence[int]) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} gives no _act_on")


def derive(seed: int, k: int) -> list[int]:
    """`k` 64-bit seeds from one; a longer list starts with the shorter one."""
    return [int(value) for value in np.random.SeedSequence(seed).generate_state(k, np.uint64)]
