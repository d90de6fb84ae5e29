"""One training of Stable-Baselines3's PPO or MaskablePPO, that goes on from its last checkpoint."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from agents import sb3_policy
from agents.sb3 import Sb3Agent
from experiments.common import cli
from experiments.common.run_folder import RunFolder, write_atomic
from experiments.ppo.cloning import policy_config
from experiments.ppo.config import Args
from experiments.ppo.tasks import ENVIRONMENT, Ground
from segenv import codec
from segenv.checkpoints import read_weights
from segenv.seeds import seed_of

CHECKPOINT, CURVE = "checkpoint.safetensors", "curve.jsonl"
WEIGHT, MOMENT = "policy/", "optimizer/"
LOGGED = ("approx_kl", "clip_fraction", "entropy_loss", "value_loss", "explained_variance")


class Episodes(BaseCallback):
    """Final IoU, gain and length of the episodes that end while an update collects its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.ious: list[float] = []
        self.lengths: list[int] = []

    def _on_step(self) -> bool:
        for end, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if end:
                self.ious.append(info["iou"])
                self.lengths.append(info["step"])
        return True


class Training:
    """The model of one seed and algorithm, begun with the weights of a policy, or gone on with from its checkpoint."""

    def __init__(self, args: Args, ground: Ground, algorithm: str, seed: int, begin: Mapping[str, Any], folder: Path):
        self.args, self.ground, self.algorithm, self.seed, self.folder = args, ground, algorithm, seed, folder
        self.config = policy_config(ground, algorithm)
        self.model = sb3_policy.algorithm_class(algorithm)(
            "MultiInputPolicy",
            ground.envs(),
            learning_rate=args.rate,
            n_steps=args.n_steps,
            batch_size=args.batch_size,
            n_epochs=args.epochs,
            gamma=args.discount,
            ent_coef=args.entropy,
            clip_range=args.clip,
            policy_kwargs=self.config.policy_kwargs,
            device="cpu",
        )
        self.model.set_logger(Logger(None, []))
        sb3_policy.put_policy(self.model.policy, begin, Path(sb3_policy.WEIGHTS))
        self.updates = -(-args.steps // (args.n_steps * args.num_envs))
        self.done = 0
        if (folder / CHECKPOINT).is_file():
            self._restore()

    def run(self, folder: RunFolder, quiet: bool) -> None:
        """Train to the end; writes checkpoints and the curve, and TensorBoard's events."""
        from torch.utils.tensorboard import SummaryWriter

        name = f"{self.folder.relative_to(folder.path)}/{CURVE}"
        folder.keep_records(name, lambda record: 0 < self.done >= record["update"])
        place = folder / "tensorboard" / self.folder.parent.name / self.algorithm
        board = SummaryWriter(str(place), purge_step=self.model.num_timesteps + 1)
        label = f"{self.algorithm} {self.seed}"
        with (
            board,
            folder.appending(name) as file,
            cli.progress(self.updates, "update", self.done, label, quiet=quiet) as bar,
        ):
            if not self.done:
                file.add(self._measured(0, {}))
            while self.done < self.updates:
                record = self._measured(self.done + 1, self.update())
                file.add(record)
                for key in record.keys() - {"update", "steps"}:
                    board.add_scalar(key, record[key], record["steps"])
                if self.done % self.args.checkpoint_every == 0 or self.done == self.updates:
                    self._keep()
                bar.set_postfix(IoU=f"{record['iou']:.3f}", refresh=False)
                bar.update()

    def update(self) -> dict[str, float]:
        """Collect steps in new episodes and learn from them; all chance is seeded by the number of the update."""
        seed = seed_of("ppo", self.seed, self.algorithm, self.done) % 2**31
        torch.manual_seed(seed)
        np.random.seed(seed)  # SB3's buffer draws from it
        random.seed(seed)
        envs, episodes = self.model.get_env(), Episodes()
        envs.seed(seed)
        self.model.set_env(envs, force_reset=True)
        self.model.learn(self.args.n_steps * self.args.num_envs, callback=episodes, reset_num_timesteps=False)
        self.done += 1
        logged = self.model.logger.name_to_value
        found = {name: float(logged[f"train/{name}"]) for name in LOGGED if f"train/{name}" in logged}
        return {
            **found,
            "iou": float(np.mean(episodes.ious)) if episodes.ious else float("nan"),
            "length": float(np.mean(episodes.lengths)) if episodes.lengths else float("nan"),
        }

    def _measured(self, update: int, record: dict[str, float]) -> dict[str, Any]:
        """A point of the curve, with the greedy policy's IoU on validation tasks every so often."""
        about = {"update": update, "steps": update * self.args.n_steps * self.args.num_envs}
        if update % self.args.measure_every == 0 or update == self.updates:
            record = {**record, "val_iou": float(np.mean(self.ground.play(self.agent(), self.ground.val)["iou"]))}
        return {**about, **record}

    def agent(self) -> Sb3Agent:
        """An agent that plays the present policy."""
        return Sb3Agent.of(self.model.policy, self.config, codec.make("pixels"))

    def save(self, folder: Path) -> None:
        """Write the policy for `--agent sb3:FOLDER`."""
        config = self.config
        known = ("size", "observe", "grid", "max_steps", "extractor", "channels", "net_arch")
        sb3_policy.save(self.model, folder, environment=ENVIRONMENT, **{name: getattr(config, name) for name in known})

    def _keep(self) -> None:
        """Write weights, moments of the optimiser and counts, at once."""
        tensors = {WEIGHT + name: value for name, value in sb3_policy.weights_of(self.model.policy).items()}
        for place, moments in self.model.policy.optimizer.state_dict()["state"].items():
            tensors |= {f"{MOMENT}{place}/{name}": value.clone() for name, value in moments.items()}
        counts = json.dumps({"updates": self.done, "steps": self.model.num_timesteps})
        write_atomic(self.folder / CHECKPOINT, to_bytes(tensors, metadata={"counts": counts}))

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        tensors = read_weights(path)
        weights = {name.removeprefix(WEIGHT): one for name, one in tensors.items() if name.startswith(WEIGHT)}
        sb3_policy.put_policy(self.model.policy, weights, path)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(MOMENT):
                place, what = name.removeprefix(MOMENT).split("/")
                state.setdefault(int(place), {})[what] = value
        optimizer = self.model.policy.optimizer
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        with safe_open(path, "pt") as file:
            counts = json.loads(file.metadata()["counts"])
        self.done, self.model.num_timesteps = counts["updates"], counts["steps"]
        self.model._n_updates = self.done * self.args.epochs
