"""PPO with masked actions in one file: a batched environment, a network and a loop, in the manner of CleanRL.

    python docs/examples/ppo_single_file.py

The agent paints the one object of a synthetic scene with two clicks on a grid, from an empty mask. By default the tool
is one that paints discs and costs nothing; `--tool sam:refine=none` is the embedded SAM.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Categorical

import segenv  # noqa: F401  # registers the environments
from segenv.statistics import bootstrap_difference


@dataclass
class Args:
    """Settings of the training."""

    steps: int = 4096
    num_envs: int = 8
    rollout: int = 32
    epochs: int = 4
    batch_size: int = 128
    rate: float = 1e-3
    clip: float = 0.2
    entropy: float = 0.01
    discount: float = 1.0
    trace: float = 0.95
    grid: int = 8
    size: int = 32
    max_steps: int = 2
    pool: int = 128
    tool: str = "disc:radius=36"
    tasks: int = 100
    seed: int = 0


class Policy(nn.Module):
    """Logits of the actions, from equal weights at each cell of the grid, and the value."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(4, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(grid), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()),
        )
        self.cells, self.stop, self.value = nn.Conv2d(32, 2, 1), nn.Linear(32, 1), nn.Linear(33, 1)

    def forward(
        self, image: torch.Tensor, left: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[Categorical, torch.Tensor]:
        seen = self.body(image.permute(0, 3, 1, 2) / 255)
        pooled = seen.mean((2, 3))
        logits = torch.cat([self.cells(seen).flatten(1), self.stop(pooled)], 1)
        return Categorical(logits=logits.masked_fill(~allowed, -1e8)), self.value(torch.cat([pooled, left], 1))[:, 0]


def tensors(observation: dict[str, np.ndarray], envs: gym.vector.VectorEnv) -> tuple[torch.Tensor, ...]:
    """Image, steps left and mask of actions."""
    allowed = torch.as_tensor(np.stack(envs.unwrapped.action_masks()))
    return torch.as_tensor(observation["image"]), torch.as_tensor(observation["steps_left"]), allowed


def play(envs: gym.vector.VectorEnv, tasks: int, choose) -> np.ndarray:
    """Final IoU of an episode on each of the first `tasks` tasks."""
    ious = np.zeros(tasks)
    for start in range(0, tasks, envs.num_envs):
        places = [(start + i) % tasks for i in range(envs.num_envs)]
        observation, infos = envs.reset(seed=start, options={"task": places})
        last, ended = infos["iou"].copy(), np.zeros(envs.num_envs, bool)
        while not ended.all():
            observation, _, done, _, infos = envs.step(choose(tensors(observation, envs)))
            last = np.where(ended, last, infos["iou"])  # an environment that has ended begins another episode
            ended |= done
        ious[places] = last
    return ious


def learn(policy: Policy, envs: gym.vector.VectorEnv, args: Args) -> None:
    """Proximal policy optimisation."""
    optimizer = torch.optim.Adam(policy.parameters(), args.rate, eps=1e-5)
    observation, _ = envs.reset(seed=args.seed)
    for update in range(args.steps // (args.rollout * args.num_envs)):
        kept, rewards, ends, values = [], [], [], []
        for _ in range(args.rollout):
            seen = tensors(observation, envs)
            with torch.no_grad():
                distribution, value = policy(*seen)
                action = distribution.sample()
            observation, reward, done, _, _ = envs.step(action.numpy())
            kept.append((*seen, action, distribution.log_prob(action)))
            rewards.append(torch.as_tensor(reward, dtype=torch.float32))
            ends.append(torch.as_tensor(done))
            values.append(value)
        with torch.no_grad():
            following = policy(*tensors(observation, envs))[1]
        advantages, advantage = [], torch.zeros(args.num_envs)
        for reward, done, value in zip(rewards[::-1], ends[::-1], values[::-1], strict=True):
            error = reward + args.discount * following * ~done - value
            advantage = error + args.discount * args.trace * advantage * ~done
            advantages.insert(0, advantage)
            following = value
        *seen, actions, likelihoods = (torch.cat(parts) for parts in zip(*kept, strict=True))
        advantage = torch.cat(advantages)
        returns = advantage + torch.cat(values)
        for _ in range(args.epochs):
            for rows in torch.randperm(len(actions)).split(args.batch_size):
                distribution, value = policy(*(part[rows] for part in seen))
                ratio = (distribution.log_prob(actions[rows]) - likelihoods[rows]).exp()
                scaled = (advantage[rows] - advantage[rows].mean()) / (advantage[rows].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                loss = -torch.minimum(ratio * scaled, clipped * scaled).mean()
                loss = (
                    loss + 0.5 * (value - returns[rows]).square().mean() - args.entropy * distribution.entropy().mean()
                )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                optimizer.step()
        gain = torch.stack(rewards).sum() / max(int(torch.stack(ends).sum()), 1)
        print(f"update {update + 1}: reward of an episode {gain:.3f}")


def main(args: Args) -> dict[str, np.ndarray]:
    """Train, and print IoUs on held-out tasks."""
    torch.manual_seed(args.seed)
    task = {"tool": args.tool, "start": "empty", "max_steps": args.max_steps, "grid": args.grid, "size": args.size}
    make = "segenv:segenv/HLMATGrid-v0"
    data, held_out = "synthetic:train#single", "synthetic:val#single"
    envs = gym.make_vec(make, args.num_envs, data=data, pool=args.pool, autoreset_mode="SameStep", **task)
    policy = Policy(args.grid)
    learn(policy, envs, args)
    rng, tests = np.random.default_rng(args.seed), gym.make_vec(make, args.num_envs, data=held_out, **task)
    choices = {
        "random": lambda seen: np.array([rng.choice(np.flatnonzero(mask)) for mask in seen[2].numpy()]),
        "stop at once": lambda seen: np.full(args.num_envs, 2 * args.grid**2),
        "policy": lambda seen: policy(*seen)[0].probs.argmax(1).numpy(),
    }
    found = {name: play(tests, args.tasks, choose) for name, choose in choices.items()}
    for name, ious in found.items():
        mean, low, high = bootstrap_difference(found["policy"], ious)
        print(f"{name}: mIoU {ious.mean():.3f}; the policy is ahead by {mean:.3f} [{low:.3f}, {high:.3f}]")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
