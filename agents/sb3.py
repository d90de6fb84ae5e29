"""Agents that Stable-Baselines3 trained on the numeric environments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents import sb3_policy, sb3_zip
from agents.base import Agent
from agents.sb3_policy import PolicyConfig
from segenv.checkpoints import weights_hash
from segenv.codec.base import Codec
from segenv.envs.numbers import GridActions
from segenv.mdp import Observation, SegState


class Sb3Agent(Agent):
    """Plays the policy in a folder that `agents.sb3_policy.save` wrote, or in a `.zip` file of `model.save`, on the
    arrays of `segenv.envs.numbers`, as in its environment. It takes the likeliest action; proposals of a search are
    sampled. One item is asked about at a time, so that no bit depends on the others.

    A policy that sees a reference click or box is privileged: these are made of the target. The part of the steps that
    is left then counts from the `max_steps` of its training, else from those of the evaluation.
    """

    def __init__(self, source: str | Path, codec: Codec) -> None:
        super().__init__(codec)
        path = Path(source)
        self.policy, self.config = sb3_zip.read(path) if path.suffix == ".zip" else sb3_policy.load(path)
        self._start(str(source))

    def _start(self, source: str) -> None:
        self.spec = f"sb3:{source}"
        self.view, self.numbering = self.config.view(), self.config.numbering()
        self.privileged = self.view.reads_target
        self._space = self.numbering.space

    @classmethod
    def of(cls, policy: Any, config: PolicyConfig, codec: Codec, name: str = "policy") -> "Sb3Agent":
        """An agent of a policy in memory."""
        agent = cls.__new__(cls)
        Agent.__init__(agent, codec)
        agent.policy, agent.config = policy, config
        agent._start(name)
        return agent

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "algorithm": self.config.algorithm, "weights": weights_hash(self.policy)}

    def _act(self, items: Sequence, seeds: Sequence[int]) -> list[str]:
        return [self._text(item, None) for item in items]

    def _sample(self, items: Sequence, seeds: Sequence[int]) -> list[str]:
        return [self._text(item, seed) for item, seed in zip(items, seeds, strict=True)]

    def _text(self, item: Observation | SegState, seed: int | None) -> str:
        if isinstance(item, SegState):
            left = max(self.config.max_steps - item.step, 0)
            task, step = item.task, self.config.max_steps - left
            item = Observation(task.id, task.image, item.mask, task.instruction, step, left, item.error, item.clicks)
        else:
            task = None
        seen = self.view.of(item, task)
        allowed: np.ndarray | None = None
        if isinstance(self.numbering, GridActions) and (self.config.masked or self.config.action_mask):
            allowed = self.numbering.masks(item)
            if self.config.action_mask:
                seen["action_mask"] = allowed.astype(np.int8)
        action = sb3_policy.choose(self.policy, seen, allowed if self.config.masked else None, seed)
        return self.codec.format(self.numbering.read(action, item, self._space), item)
