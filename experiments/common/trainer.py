"""Training of the embedded models: stages of examples that other processes make beside it, averaged weights, and a
state from which the training resumes at any step."""

import copy
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import get_wsd_schedule

from experiments.common.cli import open_run
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, disk_errors, manifest
from search.executors import start_worker
from segenv.checkpoints import AGAIN, put_weights, read_weights
from segenv.data.synthetic.scenes import Synthetic

STATE = "state.safetensors"
WARMUP = 200  # steps
DECAY = 0.998  # of the moving average; less at the start


class Trainer:
    """A model, its moving average, auxiliary heads, their optimiser and its schedule, after `step` steps.

    A command's trainer names its `stages`, each with a field `STAGE_steps` in the settings, and defines `open_stage`,
    `indices` and `loss`; it may define `learning_rate`, `evaluate`, `hashes`, `restore` and `write_model`, too.
    """

    stages: tuple[str, ...]
    saved: tuple[str, ...] = ("step",)  # attributes of the state beside its tensors, also in the log's rows
    workers = 1  # processes that make examples; 0: the training makes them itself
    collate_fn: Callable[[list], Any] | None = None  # of torch's loader, in the workers

    def __init__(self, args: Any, model: nn.Module, heads: nn.Module, device: str = "cpu") -> None:
        self.args, self.step, self.device = args, 0, torch.device(device)
        self.means: dict[str, float] = {}  # moving means of the measures, for the log
        self.seconds = 0.0  # of the training so far
        self.model: Any = nn.Module.to(model, self.device)
        self.heads: Any = heads.to(self.device)
        self.start_average(self.model)
        self.model.train()
        self.start_optimiser()

    def open_stage(self, stage: str) -> Dataset:
        """Get ready for a stage, at its start or when resumed within it; returns its examples."""
        raise NotImplementedError

    def indices(self, step: int) -> list[int]:
        """The numbers of the examples of a step."""
        raise NotImplementedError

    def loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a batch, and measures for the log."""
        raise NotImplementedError

    def learning_rate(self, name: str) -> float:
        """The learning rate of the parameter `name` on the schedule's plateau."""
        return self.args.rate

    def evaluate(self, stage: str, last: bool, out: Path) -> dict[str, float]:
        """Measures of the averaged model for the log, where they are due; `last` is the stage's last step."""
        return {}

    def hashes(self) -> dict[str, str | None]:
        """Hashes of data and models that the training depends on."""
        return {"data": Synthetic("train").fingerprint}

    def write_model(self, model: Any, folder: Path) -> None:
        """Write a copy of the averaged model into a new folder, in float16."""
        model.half().save_pretrained(folder)

    def stage(self, step: int) -> tuple[str, int, int]:
        """The stage of a step, its first step, and the step after its last."""
        ends = [0, *accumulate(getattr(self.args, f"{name}_steps") for name in self.stages)]
        k = bisect_right(ends, step)
        return self.stages[k - 1], ends[k - 1], ends[k]

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(getattr(self.args, f"{name}_steps") for name in self.stages)

    def start_average(self, model: nn.Module) -> None:
        """Start the moving average from the weights of `model`, which count as those of every step before."""
        self.averaged: Any = AveragedModel(model, multi_avg_fn=_average, use_buffers=True)
        self.averaged.n_averaged.fill_(self.step + 1)

    def start_optimiser(self, first: int = 0) -> None:
        """Start the optimiser anew, with a schedule from step `first` on: warm-up, plateau, linear cool-down."""
        parts = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.parameters = {name: p for name, p in parts.named_parameters() if p.requires_grad}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(self.learning_rate(name), []).append(parameter)
        self.optimiser = torch.optim.AdamW(
            [{"params": group, "lr": rate, "initial_lr": rate} for rate, group in groups.items()],
            weight_decay=0.01,
            betas=(0.9, 0.98),
        )
        length = self.total - first + 1  # the schedule is at 0 before the first step, and falls to 0 after the last
        self.schedule = get_wsd_schedule(
            self.optimiser, WARMUP, self.args.cooldown, length, decay_type="linear", last_epoch=self.step - first
        )

    def train_step(self, batch: Any) -> dict[str, float]:
        """Update the weights once, and return the measures of `batch`."""
        loss, measures = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.averaged.update_parameters(self.model)
        self.step += 1
        return measures | {"loss": float(loss.detach())}

    def batches(self) -> Iterable[Any]:
        """Batches from the current step to the end of its stage, made by other processes beside the training."""
        stage, _, last = self.stage(self.step)
        return DataLoader(
            self.open_stage(stage),
            batch_sampler=[self.indices(step) for step in range(self.step, last)],
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            collate_fn=self.collate_fn,
            multiprocessing_context="spawn" if self.workers else None,
            worker_init_fn=start_worker if self.workers else None,
        )

    def train(self, folder: RunFolder) -> None:
        """Run the stages from the current step on, with a row of the log and a state every `save_every` steps. A kill
        between the two leaves a row that is written again."""
        began, smooth = time.time() - self.seconds, self.means
        folder.keep_records("log.jsonl", lambda row: row["step"] <= self.step)
        with (
            folder.appending("log.jsonl") as log,
            tqdm(total=self.total, initial=self.step, unit="step", smoothing=0.05, mininterval=5) as bar,
        ):
            while self.step < self.total:
                stage, _, last = self.stage(self.step)
                for batch in self.batches():
                    for key, value in self.train_step(batch).items():
                        smooth[key] = value if key not in smooth else 0.98 * smooth[key] + 0.02 * value
                    bar.update()
                    bar.set_postfix({"stage": stage} | {k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
                    if self.step % self.args.save_every == 0 or self.step == last:
                        self.seconds = time.time() - began
                        row = {**self.state(), "stage": stage, "seconds": self.seconds}
                        row |= {key: round(value, 4) for key, value in smooth.items()}
                        log.add(row | self.evaluate(stage, self.step == last, folder / "model"))
                        self.save(folder.path)

    def state(self) -> dict[str, Any]:
        """The attributes named in `saved`."""
        return {name: getattr(self, name) for name in self.saved}

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` gave, and start an optimiser; weights and moments are loaded afterwards."""
        for name in self.saved:
            setattr(self, name, state[name])
        self.averaged.n_averaged.fill_(self.step + 1)
        self.start_optimiser()

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"model": self.model, "heads": self.heads, "averaged": self.averaged.module})

    def save(self, folder: Path) -> None:
        """Write all that the training resumes from, whole or not at all."""
        tensors = dict(self._parts().state_dict())
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = torch.as_tensor(value)
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        log = {"means": self.means, "seconds": self.seconds}
        written = {"state": json.dumps(self.state()), "log": json.dumps(log)}
        with disk_errors(folder / STATE):
            save_file(tensors, folder / "state.tmp", metadata=written)
            os.replace(folder / "state.tmp", folder / STATE)

    def load(self, folder: Path) -> None:
        """Resume from `save`; RunError where another version wrote the state under other names, and CheckpointError
        where it is damaged."""
        tensors = read_weights(folder / STATE)
        with safe_open(folder / STATE, "pt") as file:
            about = file.metadata() or {}
        optimiser = {name: tensors.pop(name) for name in list(tensors) if name.startswith("optimiser.")}
        if missing := sorted(self._parts().state_dict().keys() - tensors.keys()):
            raise RunError(
                f"{folder / STATE} has no {missing[0]!r}, as another version of segenv wrote it; finish that run with "
                "the version that began it, or start another with --out"
            )
        try:
            state = json.loads(about["state"]) if "state" in about else {"step": int(about["step"])}
            at = {name: state[name] for name in self.saved}
            log = {"means": {}, "seconds": 0.0, **json.loads(about.get("log", "{}"))}
            self.means, self.seconds = dict(log["means"]), float(log["seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{folder / STATE} does not say where its training was ({error!r}); {AGAIN}") from error
        self.restore(at)
        put_weights(self._parts(), tensors, folder / STATE, "the training")
        for name, value in optimiser.items():
            _, key, parameter = name.split(".", 2)
            device = "cpu" if key == "step" else self.device
            self.optimiser.state[self.parameters[parameter]][key] = value.to(device)

    def export(self, folder: Path) -> None:
        """Write the averaged model, beside and then in place: a reader, or a kill, finds a whole model at any time."""
        beside = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        with disk_errors(folder):
            self.write_model(copy.deepcopy(self.averaged.module).cpu(), beside)
        if not folder.exists():
            beside.rename(folder)
            return
        for file in beside.iterdir():  # a folder cannot take another's place; of its files, the weights alone change
            os.replace(file, folder / file.name)
        beside.rmdir()


def run(kind: Callable[[Any], Trainer], args: Any, resumable: frozenset[str], name: str) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    trainer = kind(args)
    hashes = trainer.hashes()
    with open_run(args, resumable) as folder:
        if (folder / STATE).exists():
            trainer.load(folder.path)
        if trainer.step > trainer.total:
            raise RunError(f"the run is at step {trainer.step}, beyond the {trainer.total} that were asked for")
        folder.keep_manifest(manifest(args.seed, {}, hashes))
        trainer.train(folder)
        trainer.export(folder / "model")
        folder.finish(name)
    return folder / "model"


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether a device computes in bfloat16; CPUs without instructions for it are ten times slower than in float32."""
    return torch.device(device).type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device | str) -> torch.autocast:
    """A context that computes in bfloat16, where `device` does."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_bfloat16(device))


def _average(means: PARAM_LIST, values: PARAM_LIST, number: torch.Tensor | int) -> None:
    """Update the moving average of `number` models; the first of them are forgotten faster."""
    decay = min(DECAY, (1 + int(number)) / (10 + int(number)))
    get_ema_multi_avg_fn(decay)(means, values, number)
