"""Policies in `.zip` files that Stable-Baselines3's `model.save` wrote, read without running what they hold.

`MaskablePPO.load(FILE)` unpickles parts of the file (cloudpickle), which can run any code. This reads the numbers and
words of its JSON alone, from which it makes the policy as `agents.sb3_policy` does, and tensors with PyTorch's
`weights_only`. What needs a pickle is refused: layers of one's own, and observations that a function made.
"""

from __future__ import annotations

import math
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.policies import BasePolicy

from agents import sb3_policy
from agents.sb3_policy import PolicyConfig
from segenv.checkpoints import CheckpointError, read_weights
from segenv.records import parse_json

MODULES = {  # of a policy's class: algorithm
    "stable_baselines3.common.policies": "PPO",
    "sb3_contrib.common.maskable.policies": "MaskablePPO",
    "stable_baselines3.dqn.policies": "DQN",
    "stable_baselines3.sac.policies": "SAC",
    "stable_baselines3.td3.policies": "TD3",
}
LARGEST = {"data": 1 << 26, "policy.pth": 1 << 31}  # bytes, unpacked
IMAGE = re.compile(r"'image': Box\(0, 255, \((\d+), (\d+), (\d+)\), uint8\)")
ADVICE = (
    "in Python, load a file that you trust and write the folder that sb3: takes: "
    "agents.sb3_policy.save(MaskablePPO.load(FILE), FOLDER, grid=…, size=…)"
)


def read(file: Path) -> tuple[BasePolicy, PolicyConfig]:
    """The policy in a zip file, and a configuration that makes it. Raises `CheckpointError` where it needs more than
    tensors and plain values."""
    try:
        with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as place:
            for name, most in LARGEST.items():
                if (size := archive.getinfo(name).file_size) > most:
                    raise ValueError(f"{name} has {size} bytes unpacked; expected {most} at most")
            config = config_of(parse_json(archive.read("data")))
            copy = Path(place, "policy.pth")
            copy.write_bytes(archive.read("policy.pth"))
            tensors = read_weights(copy)
        policy = sb3_policy.build(config)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file} is no file of Stable-Baselines3's model.save ({error})") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; {ADVICE}") from error
    sb3_policy.put_policy(policy, tensors, file)
    policy.set_training_mode(False)
    return policy, config


def config_of(data: Any) -> PolicyConfig:
    """The configuration that the plain values of a model's `data` tell. Raises ValueError where they do not."""
    told = {
        name: part if isinstance(data, dict) and isinstance(part := data.get(name), dict) else {}
        for name in ("policy_class", "observation_space", "action_space", "policy_kwargs")
    }
    module, layers = told["policy_class"].get("__module__"), told["policy_kwargs"]
    if module not in MODULES:
        raise ValueError(f"its policy is of {module!r}; expected one of {', '.join(MODULES)}")
    if unknown := sorted(layers.keys() - {"net_arch", "use_sde"}):
        raise ValueError(f"its policy has {', '.join(unknown)}, which only a pickle tells")
    seen = str(told["observation_space"].get("spaces"))
    if (image := IMAGE.search(seen)) is None:
        raise ValueError("its observation has no image of a numeric environment")
    sides = sorted(map(int, image.groups()))  # channels, size, size
    if sides[0] != 4:
        raise ValueError(f"its image has {sides[0]} channels, of which the file does not say what they show")
    found = PolicyConfig(
        MODULES[module],
        net_arch=layers.get("net_arch"),
        size=sides[1],
        observe="instruction" if "'instruction': MultiDiscrete" in seen else None,
        action_mask="observation" if "'action_mask': " in seen else None,
        **_numbering(told["action_space"]),
    )
    found.check()
    space = found.both_spaces()[0]
    turned = gym.spaces.Dict({**space.spaces, "image": sb3_policy.channels_first(space["image"])})
    if seen not in (str(space.spaces), str(turned.spaces)):
        raise ValueError(f"its observations are {seen[:300]}; expected {space.spaces}")
    return found


def _numbering(space: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the environment that its space of actions tells."""
    kind = str(space.get(":type:")).rpartition(".")[2].rstrip("'>")
    if kind == "Discrete" and str(space.get("n")).isdecimal():
        number = int(space["n"])
        return {"grid": math.isqrt(number // 2), "stop": number % 2 == 1}
    counts = [int(one) for one in re.findall(r"\d+", str(space.get("nvec")))]
    if kind == "MultiDiscrete" and len(counts) == 3:
        return {"grid": counts[1], "stop": counts[0] == 3, "actions": "multidiscrete"}
    if kind == "Box" and space.get("_shape") in ([3], [4]):
        return {"environment": "segenv/HLMATPoint-v0", "stop": space["_shape"] == [4]}
    raise ValueError(f"its actions are a {kind}; expected those of HLMATGrid or HLMATPoint")
