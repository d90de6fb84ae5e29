"""MaskablePPO of Stable-Baselines3 on the batched environment, and the trained agent beside its controls.

    python docs/examples/ppo_sb3.py

The agent paints the one object of a synthetic scene with two clicks on a grid, from an empty mask. By default the tool
is one that paints discs and costs nothing; `--tool sam:refine=none` is the embedded SAM.
"""

from dataclasses import dataclass

import numpy as np
import tyro
from sb3_contrib import MaskablePPO

import agents
from agents import sb3_policy
from search.rollout import rollout
from segenv import data, tools
from segenv.adapters.sb3 import SegVecEnv
from segenv.mdp import SegMDP
from segenv.statistics import bootstrap_difference


@dataclass
class Args:
    """Settings of the training."""

    steps: int = 4096
    num_envs: int = 8
    n_steps: int = 32
    grid: int = 8
    size: int = 32
    max_steps: int = 2
    pool: int = 128
    tool: str = "disc:radius=36"
    tasks: int = 100
    seed: int = 0
    out: str = "policy"


def main(args: Args) -> dict[str, np.ndarray]:
    """Train, save, and print IoUs on held-out tasks."""
    tool = tools.make(args.tool)
    task = {"data": "synthetic:train#single", "start": "empty", "max_steps": args.max_steps, "grid": args.grid}
    envs = SegVecEnv("segenv/HLMATGrid-v0", args.num_envs, tool=tool, pool=args.pool, size=args.size, **task)
    network = {
        "net_arch": {"pi": [], "vf": [64]},
        "features_extractor_class": sb3_policy.GridExtractor,
        "features_extractor_kwargs": {"grid": args.grid},
    }
    model = MaskablePPO(
        "MultiInputPolicy",
        envs,
        learning_rate=1e-3,
        n_steps=args.n_steps,
        batch_size=128,
        n_epochs=4,
        gamma=1.0,
        ent_coef=0.01,
        policy_kwargs=network,
        seed=args.seed,
        device="cpu",
    )
    sb3_policy.start_at_logits(model.policy)
    model.learn(args.steps)
    known = {"size": args.size, "grid": args.grid, "max_steps": args.max_steps}
    sb3_policy.save(model, args.out, extractor="grid", net_arch=network["net_arch"], **known)

    mdp, tasks = SegMDP(tool, args.max_steps), list(data.make("synthetic:val#single")[: args.tasks])
    found = {
        name: np.array([episode.final_iou for episode in rollout(mdp, agents.make(spec), tasks)])
        for name, spec in (("random", f"random:grid={args.grid}"), ("policy", f"sb3:{args.out}"))
    }
    found["stop at once"] = np.zeros(len(tasks))  # of an empty mask
    for name, ious in found.items():
        mean, low, high = bootstrap_difference(found["policy"], ious)
        print(f"{name}: mIoU {ious.mean():.3f}; the policy is ahead by {mean:.3f} [{low:.3f}, {high:.3f}]")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
