"""Batched environments for `gymnasium.make_vec`: one call of the tool a step, whatever the number of environments.

    envs = gymnasium.make_vec("segenv:segenv/HLMATGrid-v0", num_envs=8, pool=256)

Environment `i` plays the episodes of a single environment that is reset with seed `i` of the batch, step by step.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from segenv.data.pool import Pool
from segenv.envs.base import SegEnv
from segenv.envs.filter import FilterEnv
from segenv.envs.hlmat import HLMATEnv
from segenv.envs.numeric import HLMATGridEnv, HLMATPointEnv
from segenv.envs.polygon import PolygonEnv
from segenv.envs.refine import RefineEnv
from segenv.ranges import Count, require
from segenv.tools.base import SegTool

Step = tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]


class SegVectorEnv(gym.vector.VectorEnv[dict[str, Any], Any, np.ndarray]):
    """Several environments of one id that share a tool, its cache of encodings, and the data.

    ## Action Space, Observation Space
    Those of the single environment, batched as Gymnasium does: arrays with a first axis of `num_envs`, and tuples for
    texts and for images of any size. `step` reads every action before anything moves: a wrong one leaves all episodes
    as they were, and so does a tool that fails.

    ## Rewards, Episode End
    Arrays [num_envs]: float64 rewards, bool terminations and truncations. `max_episode_steps` truncates as Gymnasium's
    `TimeLimit` does; by default nothing is truncated. When an episode has ended, `autoreset_mode` says what follows, as
    in `gymnasium.vector.SyncVectorEnv`: a reset in place of the next step ("NextStep"), a reset in the same step with
    the end in `infos["final_obs"]` and `infos["final_info"]` ("SameStep"), or none ("Disabled"): then reset with
    `options={"reset_mask": bool [num_envs]}`.

    ## Starting State
    `reset(seed=...)` takes an int, for seeds `seed + i`, or a list of them. `options["task"]` is that of the single
    environment, or a list of `num_envs` of them.

    ## Information
    That of the single environment as arrays [num_envs], with a mask `_key` beside each `key`.

    ## Arguments
    Those of the single environment, and: `num_envs`; `autoreset_mode`; `copy`, whether observations are copies of the
    buffers that the next step writes into; `max_episode_steps`; and `pool`, which plays on that many tasks of the data
    alone (see `segenv.data.pool`) and keeps them with their encodings.
    """

    env_class: ClassVar[type[SegEnv]]
    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        pool: int | None = None,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        require(Count, num_envs=num_envs)
        self.num_envs, self.copy = num_envs, copy
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if max_episode_steps not in (None, -1):
            require(Count, max_episode_steps=max_episode_steps)
        self.max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        self.envs = self._make(options, pool)
        for env in self.envs:
            env.borrowed = True  # `observations` copies what was seen
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_action_space, self.single_observation_space = first.action_space, first.observation_space
        self.action_space = batch_space(first.action_space, num_envs)
        self.observation_space = batch_space(first.observation_space, num_envs)
        assert isinstance(first.observation_space, gym.spaces.Dict)
        self._buffers: dict[str, np.ndarray | None] = {  # None for tuples
            key: buffer if isinstance(buffer := create_empty_array(space, num_envs), np.ndarray) else None
            for key, space in first.observation_space.items()
        }
        self._seen: list[dict[str, Any]] = [  # the last observation of each environment
            {key: None if buffer is None else buffer[i] for key, buffer in self._buffers.items()}
            for i in range(num_envs)
        ]
        self._ended = np.zeros(num_envs, np.bool_)  # episodes that the next step or reset has to begin anew

    def _make(self, options: dict[str, Any], pool: int | None) -> list[SegEnv]:
        """The environments, over the tool and the data of the first."""
        first = self.env_class(**options)
        if pool is not None:
            first.data = Pool(first.data, pool)
            first.data.check_room(first.mdp.tool)
        shared: dict[str, Any] = {"data": first.data}
        if self.env_class is not PolygonEnv:  # no tool answers there
            shared["tool"] = first.mdp.tool
        return [first, *(self.env_class(**{**options, **shared}) for _ in range(self.num_envs - 1))]

    @property
    def tool(self) -> SegTool:
        """The one tool of all environments."""
        return self.envs[0].mdp.tool

    @property  # type: ignore[misc]  # of each environment, as in SyncVectorEnv: there is none to set
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of the environments."""
        return tuple(env.np_random for env in self.envs)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seeds of the environments."""
        return tuple(env.np_random_seed for env in self.envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`."""
        infos = self.begin(seed, options)
        return self.observations(), self._gather(infos)

    def step(self, actions: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out one action in each environment, with one call of the tool."""
        *step, infos = self.advance(actions)
        return *step, self._gather(infos)  # type: ignore[return-value]

    def begin(
        self, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> list[dict[str, Any] | None]:
        """`reset` without its arrays: the information of each environment that was reset, and None of the others."""
        options = dict(options or {})
        chosen = self._chosen(options.pop("reset_mask", None))
        seeds: Sequence[int | None] = (
            [None] * self.num_envs
            if seed is None
            else [seed + i for i in range(self.num_envs)]
            if isinstance(seed, (int, np.integer))
            else seed
        )
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} items; expected one for each of the {self.num_envs} environments")
        tasks = options.get("task")
        if isinstance(tasks, (list, tuple)):
            if len(tasks) != self.num_envs:
                raise ValueError(
                    f"options['task'] has {len(tasks)} items; expected one for each of the {self.num_envs} environments"
                )
            each = [{**options, "task": task} for task in tasks]
        else:
            each = [options] * self.num_envs
        for i in chosen:
            gym.Env.reset(self.envs[i], seed=seeds[i])
        infos: list[dict[str, Any] | None] = [None] * self.num_envs
        for i, info in zip(chosen, self._restart(chosen, each), strict=True):
            infos[i] = info
        self._ended[chosen] = False
        return infos

    def advance(self, actions: Any) -> Step:
        """`step` with the information of each environment as a dict of its own, as RL libraries ask for it."""
        each = list(iterate(self.action_space, actions))
        if len(each) != self.num_envs:
            raise InvalidAction(f"step got {len(each)} actions; expected one for each of {self.num_envs} environments")
        again = np.flatnonzero(self._ended).tolist()
        if again and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(f"episodes {again} have ended; call reset(options={{'reset_mask': mask}}) for them")
        acting = np.flatnonzero(~self._ended).tolist()
        parsed = [self.envs[i].read_action(each[i]) for i in acting]
        states = [self.envs[i].state for i in acting]
        followings = self.envs[0].mdp.transition(states, parsed, [self.envs[i].mask for i in acting])
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros((2, self.num_envs), np.bool_)
        infos: list[dict[str, Any]] = [{} for _ in self.envs]
        ends: dict[int, dict[str, Any]] = {}
        most = self.max_episode_steps
        for i, action, following in zip(acting, parsed, followings, strict=True):
            seen, rewards[i], terminated, truncated, infos[i] = self.envs[i].arrive(action, following)
            truncated = truncated or (most is not None and following.step >= most)
            if terminated or truncated:
                terminations[i], truncations[i] = terminated, truncated
            if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated or truncated):
                ends[i] = {"final_obs": deepcopy(seen), "final_info": infos[i]}
            else:
                self._seen[i] = seen
        self._ended = terminations | truncations
        again += ends
        for i, info in zip(again, self._restart(again, [{}] * self.num_envs), strict=True):
            infos[i] = ends.get(i, {}) | info
        if ends:
            self._ended[:] = False
        return self.observations(), rewards, terminations, truncations, infos

    def observations(self) -> dict[str, Any]:
        """The present observations: new arrays, or with `copy=False` the buffers that the next ones overwrite."""
        together: dict[str, Any] = {}
        for key, buffer in self._buffers.items():
            each = [seen[key] for seen in self._seen]
            if buffer is None:
                together[key] = tuple(one.copy() if self.copy and isinstance(one, np.ndarray) else one for one in each)
            else:
                together[key] = room = np.empty_like(buffer) if self.copy else buffer
                if room.ndim > 1:  # as below, without an axis more for each
                    np.concatenate(each, out=room.reshape(-1, *room.shape[2:]))
                else:
                    np.stack(each, out=room)
        return together

    def action_masks(self) -> np.ndarray:
        """Which actions make sense now, bool [num_envs, n]; see `HLMATGridEnv.action_masks`."""
        return np.stack(self.call("action_masks"))

    def render(self) -> tuple[Any, ...]:
        """The frame of each environment."""
        return tuple(env.render() for env in self.envs)

    def call(self, name: str, *arguments: Any, **options: Any) -> tuple[Any, ...]:
        """The attribute of each environment, called where it can be."""
        found = [getattr(env, name) for env in self.envs]
        return tuple(one(*arguments, **options) if callable(one) else one for one in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of each environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of the environments: to one value each from a list or tuple, or to one value for all."""
        each = list(values) if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"set_attr got {len(each)} values; expected one for each of {self.num_envs} environments")
        for env, value in zip(self.envs, each, strict=True):
            setattr(env, name, value)

    def close_extras(self, **options: Any) -> None:
        for env in self.envs:
            env.close()

    def _chosen(self, mask: np.ndarray | None) -> list[int]:
        """The environments to reset."""
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            shown = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"options['reset_mask'] is {shown}; expected a bool array [{self.num_envs}]")
        if not mask.any():
            raise ValueError("options['reset_mask'] is False everywhere; expected at least one environment to reset")
        return np.flatnonzero(mask).tolist()

    def _restart(self, chosen: Sequence[int], options: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Begin an episode in each chosen environment, and give its information. What starts ask of the tool is encoded
        together."""
        tasks = [self.envs[i].draw(options[i]) for i in chosen]
        if tasks and self.envs[0].has_start:
            self.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
        for i, task in zip(chosen, tasks, strict=True):
            self._seen[i], info = self.envs[i].begin(task)
            yield info

    def _gather(self, infos: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """Arrays of what the environments tell, by Gymnasium's rules."""
        told = [info for info in infos if info]
        return self._joined(np.flatnonzero([bool(info) for info in infos]), told)

    def _joined(self, places: np.ndarray, infos: list[dict[str, Any]]) -> dict[str, Any]:
        """`_add_info` of all at once, key by key, since it looks at every value anew. `places` are the environments."""
        keys = [tuple(info) for info in infos]
        joined: dict[str, Any] = {}
        if infos and keys.count(keys[0]) == len(keys):  # as at most steps
            there = self._mask(places)
            for key in keys[0]:
                joined[key], joined[f"_{key}"] = self._array(key, places, [info[key] for info in infos]), there.copy()
            return joined
        for key in dict.fromkeys(key for info in infos for key in info):
            held = places[[key in info for info in infos]]
            column = [info[key] for info in infos if key in info]
            joined[key], joined[f"_{key}"] = self._array(key, held, column), self._mask(held)
        return joined

    def _mask(self, places: np.ndarray) -> np.ndarray:
        there = np.zeros(self.num_envs, np.bool_)
        there[places] = True
        return there

    def _array(self, key: str, places: np.ndarray, values: list[Any]) -> Any:
        """The values of a key at their places: numbers, arrays or objects, or the dict of what dicts hold."""
        first = values[0]
        if isinstance(first, dict) and key != "final_obs":
            return self._joined(places, values)
        if key != "final_obs" and (type(first) in (int, float, bool) or isinstance(first, (np.number, np.ndarray))):
            found = np.array(values, first.dtype if isinstance(first, np.ndarray) else type(first))
        else:
            found = np.fromiter(values, object, len(values))
        if len(values) == self.num_envs:
            return found
        array = np.full((self.num_envs, *found.shape[1:]), None if found.dtype == object else 0, found.dtype)
        array[places] = found
        return array


class HLMATVectorEnv(SegVectorEnv):
    """`segenv/HLMAT-v0`, batched."""

    env_class = HLMATEnv


class HLMATGridVectorEnv(SegVectorEnv):
    """`segenv/HLMATGrid-v0`, batched."""

    env_class = HLMATGridEnv


class HLMATPointVectorEnv(SegVectorEnv):
    """`segenv/HLMATPoint-v0`, batched."""

    env_class = HLMATPointEnv


class RefineVectorEnv(SegVectorEnv):
    """`segenv/Refine-v0`, batched."""

    env_class = RefineEnv


class FilterVectorEnv(SegVectorEnv):
    """`segenv/Filter-v0`, batched."""

    env_class = FilterEnv


class PolygonVectorEnv(SegVectorEnv):
    """`segenv/Polygon-v0`, batched."""

    env_class = PolygonEnv
