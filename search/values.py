"""Value sources: how good the mask of a state is thought to be, as what a search ranks its nodes by.

| name | value |
|---|---|
| `prm` | the IoU that a language model would state (`search.prm`): a process reward model; `judge` says which one |
| `prm-mean` | the expectation of that IoU over the probabilities of its digits |
| `prm:NAME_OR_PATH`, `prm-mean:…` | the same, of a checkpoint that is named |
| `tool` | the IoU that the tool predicts for its own mask |
| `oracle` | the true IoU: it reads the target, so it is a ceiling and no result |

A new source is a subclass of `ValueSource` and a line in `make`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

import agents
from agents.base import Agent
from segenv import metrics
from segenv.mdp import SegMDP, SegState

NAMES = ("prm", "prm-mean", "tool", "oracle")
EMBEDDED = "tiny-prm"  # the folder of the embedded process reward model, among the weights of the agents


class ValueSource(ABC):
    """Values the masks of states. A state's value depends on its image, instruction and mask, and never on the batch
    around it; a search values each mask once.

    `privileged` says that it reads the target: such a source is shown as a ceiling, apart from the others. One that
    writes text says how many tokens a state may take at most (`max_tokens`), and after each call how many each state
    took (`tokens`, [N]); both count against a search's budget.
    """

    name: str
    privileged: bool = False
    max_tokens: int = 0
    tokens: Sequence[int] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes its values, to be recorded with results."""
        return {"value": self.name, "privileged": self.privileged}

    @abstractmethod
    def values(self, states: Sequence[SegState]) -> np.ndarray:
        """float64 [N] in 0..1, one for each state."""


class OracleValue(ValueSource):
    """The true IoU."""

    name = "oracle"
    privileged = True

    def values(self, states: Sequence[SegState]) -> np.ndarray:
        return np.array([metrics.iou(state.task.target, state.mask) for state in states], np.float64)


class ToolValue(ValueSource):
    """The tool's own estimate. A mask that the tool did not make counts 0: the empty start, or one that was given."""

    name = "tool"

    def values(self, states: Sequence[SegState]) -> np.ndarray:
        for state in states:
            if np.isnan(state.score) and (state.clicks or state.box):
                raise ValueError("value 'tool': this tool predicts no IoU of its masks; take value=prm, or oracle")
        return np.array([0.0 if np.isnan(state.score) else state.score for state in states], np.float64)


class PredictedIouValue(ValueSource):
    """What a language model would state, `Current IOU: 74`, as a fraction: the likeliest number, or with `mean` the
    expected one."""

    def __init__(self, mdp: SegMDP, agent: Agent, mean: bool = False, name: str = "prm") -> None:
        from agents.mllm import MllmAgent
        from search.prm import IouReader

        if not isinstance(agent, MllmAgent):
            raise ValueError(
                f"value {name!r} is what a language model states, and agent {agent.spec!r} is none; take agent "
                f"mllm[:…], or name the model: value={name}:NAME_OR_PATH"
            )
        self.name = name
        self.mdp = mdp
        self.agent = agent
        self.mean = mean
        self.reader = IouReader(agent)
        branches = sum(map(len, self.reader.numbers.levels[1:]))  # tokens read to know the probability of every number
        self.max_tokens = branches if mean else self.reader.max_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, **self.agent.settings}

    def values(self, states: Sequence[SegState]) -> np.ndarray:
        from search.prm import expected_iou

        seen = [self.mdp.observation(state) for state in states]
        values = expected_iou(self.reader.distribution(seen)).clip(0, 1) if self.mean else self.reader.greedy(seen)
        self.tokens = self.reader.tokens
        return values


def make(spec: str, mdp: SegMDP, agent: Agent) -> ValueSource:
    """The value source that `spec` names, for searches of `mdp` by `agent`. Raises ValueError for an unknown name."""
    name, _, path = spec.partition(":")
    if name in ("prm", "prm-mean"):
        stating = agents.make(f"mllm:{path}") if path else default_prm(agent)
        return PredictedIouValue(mdp, stating, name == "prm-mean", spec)
    if spec == "tool":
        return ToolValue()
    if spec == "oracle":
        return OracleValue()
    raise ValueError(f"unknown value {spec!r}; expected one of {', '.join(NAMES)}, or prm:NAME_OR_PATH")


def default_prm(agent: Agent) -> Agent:
    """Whose statements `prm` takes in searches of `agent`: those of the policy's own model, as SegAgent does; and where
    a process reward model is embedded, its own for the embedded policy `mllm`, and for agents that state nothing."""
    from agents import mllm

    if not (mllm.WEIGHTS / EMBEDDED / "config.json").is_file():
        return agent
    return agents.make(f"mllm:{EMBEDDED}") if agent.spec == "mllm" or not isinstance(agent, mllm.MllmAgent) else agent
