"""Policies of Stable-Baselines3 as two files, `policy.safetensors` and `config.json`: no pickle, and nothing that runs.

save(model, "runs/policy", environment="segenv/HLMATGrid-v0", grid=8, size=64)   # of a trained MaskablePPO, PPO, …
policy, config = load("runs/policy")

`config.json` names the algorithm, SB3's alias of the policy, its network, and the environment with those options that
make its spaces. The policy is built from these names alone, and takes the weights only where all names and shapes fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import save as to_bytes
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from segenv import ranges, specs
from segenv.checkpoints import CheckpointError, put_weights, read_weights
from segenv.envs.numbers import ACTIONS, Actions, GridActions, View
from segenv.files import write_atomic
from segenv.ranges import Range
from segenv.records import read_json, reader
from segenv.types import RunError

CONFIG, WEIGHTS = "config.json", "policy.safetensors"
ALGORITHMS = {  # the class of each, by where it is
    **dict.fromkeys(("PPO", "A2C", "DQN", "SAC", "TD3", "DDPG"), "stable_baselines3"),
    **dict.fromkeys(("MaskablePPO", "QRDQN", "TRPO"), "sb3_contrib"),
}
SHARED = ("pi_features_extractor.", "vf_features_extractor.")  # SB3's second and third name of one extractor
Width = Annotated[int, Range(1, 4096)]


@dataclass(frozen=True)
class PolicyConfig:
    """The content of config.json."""

    algorithm: str
    environment: str = "segenv/HLMATGrid-v0"
    policy: str = "MultiInputPolicy"
    extractor: str | None = None  # "grid" for `GridExtractor`; None for the policy's own
    channels: Width = 32  # of `GridExtractor`
    net_arch: dict[str, list[int]] | list[int] | None = None
    size: Annotated[int, Range(8, 1024)] = 84
    observe: str | None = None
    action_mask: str | None = None  # "observation" where it is in the observation
    grid: Annotated[int, Range(1, 128)] = 16  # of HLMATGrid
    stop: bool | None = None  # as the environment has it, where it is not given
    actions: str | None = None
    max_steps: ranges.Count = 20  # of the training's episodes
    spaces: dict[str, str] = field(default_factory=dict)  # as Gymnasium prints them, to find out what does not fit

    def check(self) -> None:
        """Raise ValueError for a setting that no policy has."""
        ranges.check(self)
        specs.name_of("algorithm", self.algorithm, ALGORITHMS)
        specs.name_of("environment", self.environment, ACTIONS)
        widths = self.net_arch if isinstance(self.net_arch, list) else sum((self.net_arch or {}).values(), [])
        if len(widths) > 16 or any(width not in Range(1, 4096) for width in widths):
            raise ValueError(f"net_arch is {self.net_arch}; expected at most 16 layers of 1 to 4096")
        if self.extractor not in (None, "grid"):
            raise ValueError(f"extractor is {self.extractor!r}; expected 'grid' or null")
        if self.action_mask not in (None, "observation"):
            raise ValueError(f"action_mask is {self.action_mask!r}; expected 'observation' or null")

    @property
    def masked(self) -> bool:
        """Whether the policy is asked with the mask of actions."""
        return self.algorithm == "MaskablePPO"

    def numbering(self) -> Actions:
        """How the policy's actions are read."""
        own: dict[str, Any] = {"stop": self.stop, "actions": self.actions}
        if ACTIONS[self.environment] is GridActions:
            own["grid"] = self.grid
        return ACTIONS[self.environment](**{name: value for name, value in own.items() if value is not None})

    def view(self) -> View:
        """The arrays that the policy sees."""
        return View(self.size, self.observe)

    def both_spaces(self) -> tuple[gym.spaces.Dict, gym.Space]:
        """Observation and action space of the environment."""
        parts, numbering = self.view().spaces, self.numbering()
        if self.action_mask:
            if not isinstance(numbering, GridActions):
                raise ValueError("action_mask is 'observation'; points are not masked")
            parts = {**parts, "action_mask": gym.spaces.MultiBinary(numbering.mask_size)}
        return gym.spaces.Dict(parts), numbering.space

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of SB3's policy."""
        own: dict[str, Any] = {} if self.net_arch is None else {"net_arch": self.net_arch}
        if self.extractor == "grid":
            own |= {
                "features_extractor_class": GridExtractor,
                "features_extractor_kwargs": {
                    "grid": self.grid,
                    "stop": self.numbering().stop,
                    "channels": self.channels,
                },
            }
        return own


class GridExtractor(BaseFeaturesExtractor):
    """A small convolutional network whose first features are one logit for each action of HLMATGrid: cells of a grid
    look at what lies around them, with equal weights. Means and maxima over the image follow, and the other
    observations. With `net_arch={"pi": [], "vf": [64]}` and `start_at_logits`, the policy begins as these logits."""

    def __init__(self, observation_space: gym.spaces.Dict, grid: int, stop: bool = True, channels: int = 32) -> None:
        others = [key for key in observation_space if key != "image"]
        extra = sum(gym.spaces.utils.flatdim(observation_space[key]) for key in others)
        super().__init__(observation_space, 2 * grid * grid + stop + 2 * channels + extra)
        assert (shape := observation_space["image"].shape) is not None
        self.others, half = others, max(channels // 2, 1)
        stride = 2 if min(shape[1:]) >= 8 * grid else 1  # so that a cell has a place of its own
        self.stem = nn.Sequential(nn.Conv2d(shape[0], 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, half, 3, 2, 1), nn.ReLU())
        self.words = nn.Linear(extra, half)
        self.middle = nn.Sequential(nn.Conv2d(half, channels, 3, stride, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(grid))
        self.around = nn.Conv2d(channels, channels, 3, 1, 1)
        self.whole = nn.Linear(2 * channels, channels)
        self.cells = nn.Conv2d(channels, 2, 1)
        self.stopping = nn.Linear(2 * channels, 1) if stop else None

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [N, d] of a batch of observations that SB3 has made floats."""
        told = torch.cat([observations[key].flatten(1) for key in self.others], 1)
        seen = self.middle(torch.relu(self.stem(observations["image"]) + self.words(told)[..., None, None]))
        seen = seen + torch.relu(self.around(seen))
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)
        logits = self.cells(torch.relu(seen + self.whole(pooled)[..., None, None])).flatten(1)
        stop = [] if self.stopping is None else [self.stopping(pooled)]
        return torch.cat([logits, *stop, pooled, told], 1)


def start_at_logits(policy: BasePolicy) -> None:
    """Let the last layer of a policy over a `GridExtractor` pass on the logits of its actions."""
    layer = policy.action_net
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(layer.out_features, layer.in_features))
        layer.bias.zero_()


def algorithm_class(name: str) -> Any:
    """The class of an algorithm, from stable_baselines3 or sb3_contrib."""
    import importlib

    return getattr(importlib.import_module(ALGORITHMS[name]), name)


def channels_first(space: gym.Space) -> gym.Space:
    """The space of images as SB3's policies see it."""
    from stable_baselines3.common.vec_env import VecTransposeImage

    return VecTransposeImage.transpose_space(space, "image")  # type: ignore[arg-type]


def build(config: PolicyConfig) -> BasePolicy:
    """A new policy, untrained. Raises ValueError where the configuration makes none."""
    config.check()
    seen, action = config.both_spaces()
    fits = {"observation": repr(seen), "action": repr(action)}
    if config.spaces and config.spaces != fits:
        raise ValueError(f"its spaces are {config.spaces}; this version of segenv makes {fits} of its options")
    first = {**seen.spaces, "image": channels_first(seen["image"])}
    kinds = algorithm_class(config.algorithm).policy_aliases
    kind = kinds[specs.name_of("policy", config.policy, kinds)[0]]
    try:
        return kind(gym.spaces.Dict(first), action, lambda _: 0.0, **config.policy_kwargs)
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{config.algorithm} has no {config.policy} for {fits}: {error}") from error


def save(model: Any, folder: str | Path, **settings: Any) -> PolicyConfig:
    """Write a trained model of Stable-Baselines3, or its policy, into `folder`. `settings` are fields of
    `PolicyConfig`: the environment's options that were not its defaults, and `algorithm` for a policy alone. Raises
    ValueError where a policy built from them has other weights than the model."""
    policy = model if isinstance(model, BasePolicy) else model.policy
    if policy is not model:
        settings = {"algorithm": type(model).__name__, **settings}
    config = PolicyConfig(**settings)
    config.check()
    seen, action = config.both_spaces()
    config = PolicyConfig(**{**settings, "spaces": {"observation": repr(seen), "action": repr(action)}})
    tensors = weights_of(policy)
    put_policy(build(config), tensors, Path(WEIGHTS))
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / WEIGHTS, to_bytes(tensors))
    write_atomic(path / CONFIG, json.dumps(asdict(config), indent=1) + "\n")
    return config


def load(folder: str | Path) -> tuple[BasePolicy, PolicyConfig]:
    """The policy in `folder` and its configuration. Raises `CheckpointError` where it holds none, or a damaged one."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path} has no {CONFIG}; expected a folder that experiments.ppo or agents.sb3_policy.save wrote"
        )
    try:
        config = read_json(path / CONFIG, reader(PolicyConfig), "put it back from a copy")
        policy = build(config)
    except (ValueError, RunError) as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error
    put_policy(policy, read_weights(path / WEIGHTS), path / WEIGHTS)
    policy.set_training_mode(False)
    return policy, config


def weights_of(policy: BasePolicy) -> dict[str, torch.Tensor]:
    """A policy's weights by name, each once."""
    found = policy.state_dict()
    own = getattr(policy, "share_features_extractor", False)
    return {name: value.contiguous() for name, value in found.items() if not (own and name.startswith(SHARED))}


def put_policy(policy: BasePolicy, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Load weights that `weights_of` gave: all that the policy has, and no others. Raises `CheckpointError`."""
    told = dict(tensors)
    if getattr(policy, "share_features_extractor", False):
        for name, value in tensors.items():
            if name.startswith("features_extractor."):
                told |= {prefix + name.removeprefix("features_extractor."): value for prefix in SHARED}
    known = policy.state_dict()
    put_weights(policy, {name: told[name] for name in told if name in known or name in tensors}, file, "the policy")


def choose(policy: BasePolicy, seen: Mapping[str, np.ndarray], allowed: np.ndarray | None, seed: int | None) -> Any:
    """The policy's action for one observation: the likeliest, or one sampled with `seed`. `allowed` is the mask of
    actions, where the policy is asked with one."""
    more: dict[str, Any] = {} if allowed is None else {"action_masks": allowed}
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed % 2**63)
        action, _ = policy.predict(dict(seen), deterministic=seed is None, **more)
    return action
