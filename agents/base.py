"""The contract of agents: observations in, texts out."""

import time
from abc import ABC
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from agents.backends.base import Reply
from agents.replies import ReplyLog
from segenv.codec.base import Codec
from segenv.mdp import Observation, SegState
from segenv.types import Task

WEIGHTS = Path(__file__).parent / "weights"  # the embedded checkpoints
EMBEDDED = WEIGHTS / "tiny-mllm"


class Agent(ABC):  # noqa: B024  # an implementation gives `_answer`, or `_act`
    """Answers each observation with a text, to be read by `codec`.

    Agents keep nothing between calls. An item's answer depends on its observation and its seed, never on the batch
    around it, and a repeated call repeats its texts. Implementations give `spec`, from which `agents.make` makes them,
    and `_answer` for one item or `_act` for a batch. An agent that reads the target sets `privileged`; its items are
    states, and it is called through `act_on`. `seconds` counts the time spent answering.

    An agent that asks a model sets `asks`: it keeps each reply in `log`, where one is set, and asks for none that is in
    it. `in_flight` above 1 says that it takes so many questions at a time through `submit`.
    """

    spec: str
    privileged: bool = False
    asks: bool = False
    in_flight: int = 1
    log: ReplyLog | None = None

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.seconds = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes the agent's texts, to be recorded with its results."""
        found = getattr(self.codec, "content_hash", None)
        return {"agent": self.spec, "codec": self.codec.name, **({"codec_hash": found} if found else {})}

    def check(self, task: Task) -> None:  # noqa: B027  # most agents take any
        """Raise `BadItem` where the agent cannot be asked about an image of the task's size."""

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
        return self._timed(self._act, states, seeds)

    def answer(self, items: Sequence, seeds: Sequence[int], samples: Sequence[int] | None = None) -> list[Reply]:
        """As `act`, or `act_on` for privileged agents, with what is known of each reply. `samples` number the episodes
        of one task, for the records of replies."""
        texts = self.act_on(items, seeds) if self.privileged else self.act(items, seeds)
        return [Reply(text) for text in texts]

    def submit(self, observation: Observation, seed: int, sample: int = 0) -> Future[Reply]:
        """Ask about one observation without waiting for the reply, of an agent with `in_flight` above 1."""
        raise NotImplementedError(f"agent {self.spec!r} answers in batches; call act")

    def propose(self, observations: Sequence, k: int, seeds: Sequence[int]) -> list[list[str]]:
        """`k` texts for each observation (state, for privileged agents), with seeds derived from the item's seed."""
        self._check(observations, seeds)
        repeated = [observation for observation in observations for _ in range(k)]
        texts = self._timed(self._sample, repeated, [derived for seed in seeds for derived in derive(seed, k)])
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

    def _sample(self, items: Sequence, seeds: Sequence[int]) -> list[str]:
        """One proposal for each item: as `act` gives it, unless an agent samples proposals more widely."""
        return self._act(items, seeds)

    def _act(self, items: Sequence, seeds: Sequence[int]) -> list[str]:
        """Answer each item by itself, with a generator of its seed."""
        return [self._answer(item, np.random.default_rng(seed)) for item, seed in zip(items, seeds, strict=True)]

    def _answer(self, item: Any, rng: np.random.Generator) -> str:
        raise NotImplementedError(f"{type(self).__name__} gives no _act")


def derive(seed: int, k: int) -> list[int]:
    """`k` 64-bit seeds from one; a longer list starts with the shorter one."""
    return [int(value) for value in np.random.SeedSequence(seed).generate_state(k, np.uint64)]
