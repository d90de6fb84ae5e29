"""Stable-Baselines3 on the batched environments.

envs = SegVecEnv("segenv/HLMATGrid-v0", num_envs=8, data="synthetic:train#easy", start="distort", grid=8)
MaskablePPO("MultiInputPolicy", envs).learn(20_000)
"""

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

import segenv  # noqa: F401  # registers the environments
from segenv.envs.vector import SegVectorEnv


class SegVecEnv(VecEnv):
    """A `SegVectorEnv` as Stable-Baselines3's `VecEnv`: one call of the tool a step, and one copy of the observations
    for the whole batch, since its buffers of rollouts read the last ones after the next step.

    `envs` is an id, made with `num_envs` and the options of `gymnasium.make_vec`, or a `SegVectorEnv` whose
    `autoreset_mode` is "SameStep". Numeric ids alone have observations that Stable-Baselines3 can read.
    """

    def __init__(self, envs: str | SegVectorEnv, num_envs: int = 1, **options: Any) -> None:
        if isinstance(envs, str):
            made = gym.make_vec(envs, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options).unwrapped
            if not isinstance(made, SegVectorEnv):
                raise ValueError(f"{envs!r} is no batched environment of segenv; expected an id such as HLMATGrid's")
            envs = made
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP or not envs.copy:
            raise ValueError(
                f"envs has autoreset_mode {envs.autoreset_mode.value!r} and copy={envs.copy}; Stable-Baselines3 needs "
                "'SameStep' and copies: make_vec(..., autoreset_mode='SameStep')"
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> dict[str, Any]:
        """Start an episode in every environment, with the seeds of `seed` and the options of `set_options`."""
        tasks = [(options or {}).get("task") for options in self._options]
        if unknown := {name for options in self._options for name in options or {}} - {"task"}:
            raise ValueError(f"reset has no option {', '.join(map(repr, sorted(unknown)))}; it has 'task'")
        infos = self.envs.begin(self._seeds, {"task": tasks})
        self.reset_infos = [info or {} for info in infos]
        self._reset_seeds()
        self._reset_options()
        return self.envs.observations()

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Carry out the actions: observations, float32 rewards, ends, and the information of each environment. At an
        end it is that of the last step, with `terminal_observation`; `reset_infos` has that of the new episode."""
        seen, rewards, terminations, truncations, infos = self.envs.advance(self._actions)
        told = []
        for i, info in enumerate(infos):
            if "final_info" in info:
                self.reset_infos[i] = {key: info[key] for key in info if key not in ("final_obs", "final_info")}
                info = info["final_info"] | {"terminal_observation": info["final_obs"]}
            told.append(info | {"TimeLimit.truncated": bool(truncations[i] and not terminations[i])})
        return seen, rewards.astype(np.float32), terminations | truncations, told

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The frame of each environment, where `render_mode` is `rgb_array`."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"render_mode is {self.render_mode!r}, so there are no frames; expected 'rgb_array'", stacklevel=2
            )
            return [None] * self.num_envs
        return self.envs.render()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.envs.envs[i], attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        for i in self._get_indices(indices):
            setattr(self.envs.envs[i], attr_name, value)

    def env_method(self, method_name: str, *arguments: Any, indices: VecEnvIndices = None, **options: Any) -> list[Any]:
        return [getattr(self.envs.envs[i], method_name)(*arguments, **options) for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
