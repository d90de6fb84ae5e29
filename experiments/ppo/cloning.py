"""Behaviour cloning: the annotator on the grid labels states, and a policy learns its actions and returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from agents import sb3_policy
from agents.sb3_policy import PolicyConfig
from experiments.common import cli
from experiments.ppo.config import Args
from experiments.ppo.tasks import ENVIRONMENT, Ground
from segenv import annotator
from segenv.adapters.sb3 import SegVecEnv
from segenv.mdp import SegState
from segenv.seeds import seed_of

VALUE = 2.0  # weight of the loss of values
CLONE_BATCH = 64


def policy_config(ground: Ground, algorithm: str) -> PolicyConfig:
    """The configuration of every policy that a run trains."""
    task = ground.task
    return PolicyConfig(
        algorithm,
        ENVIRONMENT,
        extractor="grid",
        net_arch={"pi": [], "vf": [64]},
        size=task.size,
        observe=task.observe,
        grid=task.grid,
        max_steps=task.max_steps,
    )


def fresh(config: PolicyConfig, seed: int) -> Any:
    """A new policy with weights of `seed`."""
    torch.manual_seed(seed_of("weights", seed) % 2**63)
    policy = sb3_policy.build(config)
    sb3_policy.start_at_logits(policy)
    return policy


@dataclass(frozen=True)
class Demonstrations:
    """Observations with the annotator's action and the return that followed, [N] each."""

    seen: dict[str, np.ndarray]
    actions: np.ndarray
    returns: np.ndarray


def label(state: SegState, click: annotator.Annotator, grid: int) -> int:
    """The annotator's action on the grid as a number."""
    task, chance = state.task, np.random.default_rng(0)  # which this annotator leaves alone
    found = click(task.target, state.mask, state.clicks, chance)
    if found is None:
        return 2 * grid * grid
    return (not found.positive) * grid * grid + found.y * grid // task.height * grid + found.x * grid // task.width


def demonstrate(args: Args, ground: Ground, seed: int, quiet: bool) -> Demonstrations:
    """Play the training tasks; a share of the steps is at random, so that mistakes are among the states."""
    envs, grid = ground.envs(), ground.task.grid
    click = annotator.make(f"grid:cells={grid}")
    rng = np.random.default_rng(seed_of("demonstrations", seed))
    envs.seed(seed_of("demonstrations", seed) % 2**31)
    seen: Any = envs.reset()
    kept: list[dict[str, np.ndarray]] = []
    labels, rewards, ends = [], [], []
    count = -(-args.demonstrations // args.num_envs)
    with cli.progress(count * args.num_envs, "state", name=f"demonstrations {seed}", quiet=quiet) as bar:
        for _ in range(count):
            right = np.array([label(env.state, click, grid) for env in _inner(envs)])
            masks = envs.envs.action_masks()
            wrong = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
            taken = np.where(rng.random(len(right)) < args.noise, wrong, right)
            kept.append(seen)
            labels.append(right)
            seen, reward, done, _ = envs.step(taken)
            rewards.append(reward)
            ends.append(done)
            bar.update(args.num_envs)
    returns, following = np.zeros((count, args.num_envs)), np.zeros(args.num_envs)
    for k in reversed(range(count)):
        following = rewards[k] + args.discount * following * ~ends[k]
        returns[k] = following
    stacked = {key: np.concatenate([one[key] for one in kept]) for key in kept[0]}
    return Demonstrations(stacked, np.concatenate(labels), returns.ravel())


def _inner(envs: SegVecEnv) -> list[Any]:
    return envs.envs.envs


def clone(args: Args, ground: Ground, seed: int, shown: Demonstrations, quiet: bool) -> tuple[Any, list[float]]:
    """A policy that imitates `shown`, and the loss of each pass."""
    policy: ActorCriticPolicy = fresh(policy_config(ground, "PPO"), seed)
    rng, rows = np.random.default_rng(seed_of("cloning", seed)), len(shown.actions)
    rounds = -(-rows // CLONE_BATCH) * args.clone_epochs
    optimizer = torch.optim.Adam(policy.parameters(), args.clone_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.clone_rate, total_steps=rounds)
    policy.set_training_mode(True)
    losses = []
    for _ in cli.progress(
        args.clone_epochs, "pass", name=f"cloning {seed}", quiet=quiet, items=range(args.clone_epochs)
    ):
        order, total = rng.permutation(rows), 0.0
        for k in range(0, rows, CLONE_BATCH):
            some = order[k : k + CLONE_BATCH]
            seen, _ = policy.obs_to_tensor({key: values[some] for key, values in shown.seen.items()})
            values, likelihood, _ = policy.evaluate_actions(seen, torch.as_tensor(shown.actions[some]))
            wanted = torch.as_tensor(shown.returns[some], dtype=torch.float32)
            loss = VALUE * torch.nn.functional.mse_loss(values.flatten(), wanted) - likelihood.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(some)
        losses.append(total / rows)
    policy.set_training_mode(False)
    return policy, losses
