"""Value functions: estimates of a state's IoU, by which a search ranks its nodes.

| name | value |
|---|---|
| `prm` | the IoU that a language model would state (`search.prm`): a process reward model, see `default_prm` |
| `prm-mean` | the expectation of that IoU over the probabilities of its digits |
| `prm:NAME_OR_PATH`, `prm-mean:…` | `prm` and `prm-mean` of the checkpoint that is named |
| `self` | the IoU that the policy itself would state, whatever reward model is embedded, as in SegAgent |
| `tool` | the IoU that the tool predicts for its own mask |
| `oracle` | the true IoU: it reads the target, so it is an upper bound and no result |

A new one is a subclass of `ValueFunction` and a line in `make`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

import agents
from agents.base import Agent
from segenv import metrics, specs
from segenv.mdp import SegMDP, SegState

NAMES = ("prm", "prm-mean", "self", "tool", "oracle")
EMBEDDED = "tiny-prm"  # the folder of the embedded process reward model, among the weights of the agents


class ValueFunction(ABC):
    """Values the masks of states. A state's value depends on its image, instruction and mask, and never on the batch
    around it; a search values each mask once.

    `privileged` marks a function that reads the target: it is shown as an upper bound, apart from the others. A
    function that runs a language model gives the most tokens that a state may take (`max_tokens`), and after each call
    the tokens of each state (`tokens`, [N]); both count against a search's budget.
    """

    name: str
    privileged: bool = False
    max_tokens: int = 0
    tokens: Sequence[int] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes the values, to be recorded with results."""
        return {"value": self.name, "privileged": self.privileged}

    @abstractmethod
    def values(self, states: Sequence[SegState]) -> np.ndarray:
        """float64 [N] in 0..1, one for each state."""


class OracleValue(ValueFunction):
    """The true IoU."""

    name = "oracle"
    privileged = True

    def values(self, states: Sequence[SegState]) -> np.ndarray:
        return np.array([metrics.prepared(state.task).iou(state.mask) for state in states], np.float64)


class ToolValue(ValueFunction):
    """The tool's own estimate. A mask that the tool did not make counts 0: the empty start, or a given first mask."""

    name = "tool"

    def values(self, states: Sequence[SegState]) -> np.ndarray:
        for state in states:
            if np.isnan(state.score) and (state.clicks or state.box):
                raise ValueError("value 'tool': this tool predicts no IoU of its masks; take value=prm, or oracle")
        return np.array([0.0 if np.isnan(state.score) else state.score for state in states], np.float64)


class PredictedIouValue(ValueFunction):
    """The IoU that a language model would state, `Current IOU: 74`, as a fraction: the greedy number, or with `mean`
    the expected one."""

    def __init__(self, mdp: SegMDP, agent: Agent, mean: bool = False, name: str = "prm") -> None:
        from agents.mllm import MllmAgent
        from search.prm import IouReader

        if not isinstance(agent, MllmAgent):
            raise ValueError(
                f"value {name!r} is what a language model states, and agent {agent.spec!r} is none; take agent "
                f"mllm[:…], or name the model: value={'prm' if name == 'self' else name}:NAME_OR_PATH"
            )
        self.name, self.mdp, self.agent, self.mean = name, mdp, agent, mean
        self.reader = IouReader(agent)
        branches = sum(map(len, self.reader.numbers.levels[1:]))  # tokens read to know the probability of every number
        self.max_tokens = branches if mean else self.reader.max_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, **self.agent.settings}

    def values(self, states: Sequence[SegState]) -> np.ndarray:
        from search.prm import expected_iou

        observed, reader = [self.mdp.observation(state) for state in states], self.reader
        values = expected_iou(reader.distribution(observed)) if self.mean else reader.greedy(observed)
        self.tokens = reader.tokens
        return values


def make(spec: str, mdp: SegMDP, agent: Agent) -> ValueFunction:
    """The value function that `spec` names, for searches of `mdp` by `agent`; ValueError for an unknown name."""
    name, path = specs.name_of("value", spec, NAMES, f"one of {', '.join(NAMES)}, or prm:NAME_OR_PATH")
    if name in ("prm", "prm-mean"):
        model = agents.make(f"mllm:{path}") if path else default_prm(agent)
        return PredictedIouValue(mdp, model, name == "prm-mean", spec)
    if path:
        raise ValueError(f"value {spec!r}: {name} takes nothing after a colon; expected {name}")
    if name == "self":
        return PredictedIouValue(mdp, agent, name=name)
    if name == "tool" and not mdp.tool.predicts_iou:
        raise ValueError(f"value 'tool': {mdp.tool.spec} predicts no IoU of its masks; take value=prm, or oracle")
    return ToolValue() if name == "tool" else OracleValue()


def default_prm(agent: Agent) -> Agent:
    """The agent whose predicted IoU `prm` takes in searches of `agent`: the policy itself, as in SegAgent; where a
    process reward model is embedded, that one for the embedded policy `mllm` and for agents that predict no IoU."""
    from agents import mllm

    if not (mllm.WEIGHTS / EMBEDDED / "config.json").is_file():
        return agent
    return agents.make(f"mllm:{EMBEDDED}") if agent.spec == "mllm" or not isinstance(agent, mllm.MllmAgent) else agent
