"""The training of the embedded models: stages of lessons that other processes make beside it; it can be cut at any
moment and gone on with."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from agents.backends.transformers import load
from agents.mllm import EMBEDDED, parse
from agents.tiny.vision_tower import VisionTowerConfig, fold
from agents.training.auxiliary_heads import Collator, Heads, encode_images, forward_text, reply_loss
from agents.training.click_examples import ClickExample
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, disk_errors
from search.executors import start_worker

RESUMABLE = frozenset(  # may change on the way
    {
        *(f"{stage}_steps" for stage in ("look", "easy", "click", "state")),
        "cooldown",
        "rate",
        "workers",
        "threads",
        "probe",
        "measure_every",
        "save_every",
        "device",
    }
)
VISION_RATE = 2.0  # the learning rate of the vision tower, in units of the rest's


class Trainer:
    """The model, its moving average, the heads, the optimiser, and how far they are."""

    stages: tuple[str, ...]  # whose numbers of steps are fields of the settings: `look_steps` and so on
    draws = False  # whether image tokens learn the outline

    def __init__(self, args: Any) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.step = 0
        self.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.processor = self.fresh()
        self.averaged = copy.deepcopy(self.model)
        self.model.train()
        for model in (self.model, self.averaged):
            nn.Module.to(model, self.device)
            if self.device.type == "cpu":
                model.set_attn_implementation("eager")  # backwards, several times faster than fused attention
        self.heads = Heads(self.model.config.text_config.hidden_size, self.draws).to(self.device)
        self.collate = Collator(self.processor)
        self.modules = {"model": self.model, "heads": self.heads, "averaged": self.averaged}
        trained = {name: self.modules[name] for name in ("model", "heads")}
        self.parameters = {f"{part}.{n}": p for part, module in trained.items() for n, p in module.named_parameters()}
        eyes = {id(parameter) for parameter in self.model.model.vision_tower.parameters()}
        groups = [
            {"params": [p for p in self.parameters.values() if (id(p) in eyes) == looks], "scale": scale}
            for looks, scale in ((True, VISION_RATE), (False, 1.0))
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=args.rate, weight_decay=0.01, betas=(0.9, 0.98))

    def fresh(self) -> tuple[Any, Any]:
        """The model to start from, and its processor."""
        raise NotImplementedError(f"{type(self).__name__} gives no fresh")

    def source(self, stage: str) -> Dataset:
        """Where the lessons of a stage come from."""
        raise NotImplementedError(f"{type(self).__name__} gives no source")

    def stage(self, step: int) -> tuple[str, int, int]:
        """The stage of a step, its first step, and the step after its last."""
        first = 0
        for name in self.stages:
            last = first + getattr(self.args, f"{name}_steps")
            if step < last:
                return name, first, last
            first = last
        raise IndexError(f"step {step} is beyond the training's {first}")

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(getattr(self.args, f"{name}_steps") for name in self.stages)

    def rate(self) -> float:
        """Warm-up, plateau, linear cool-down."""
        falling = (self.total - self.step) / max(1, self.args.cooldown)
        return self.args.rate * min(1.0, (self.step + 1) / 200, max(0.02, falling))

    def train_step(self, lessons: Sequence[ClickExample]) -> dict[str, float]:
        """One update."""
        batch = {name: values.to(self.device) for name, values in self.collate(lessons).items()}
        with torch.autocast(self.device.type, torch.bfloat16):
            features = encode_images(self.model, batch["pictures"])
            loss, measured = self.heads.vision_loss(features, batch)
            if self.stage(self.step)[0] != "look":
                logits, tokens = forward_text(self.model, features, batch)
                told, more = self.heads.grounding_loss(tokens, batch)
                reply = reply_loss(logits, batch)
                loss = 0.25 * loss + 0.5 * told + reply
                measured |= more | {"reply": float(reply.detach())}
        for group in self.optimiser.param_groups:
            group["lr"] = group["scale"] * self.rate()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            values = self.model.state_dict()
            for name, mean in self.averaged.state_dict().items():
                mean.lerp_(values[name], 1 - keep) if mean.is_floating_point() else mean.copy_(values[name])
        return measured | {"loss": float(loss.detach())}

    def save(self, folder: Path) -> None:
        """Everything needed to go on exactly here, written next to the last state and then put in its place."""
        tensors: dict[str, torch.Tensor] = {
            f"{part}.{name}": value
            for part, module in self.modules.items()
            for name, value in module.state_dict().items()
        }
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = torch.as_tensor(value)
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with disk_errors(folder / "state.safetensors"):
            save_file(tensors, folder / "state.tmp", metadata={"step": str(self.step)})
            os.replace(folder / "state.tmp", folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        """Go on from `save`."""
        with safe_open(folder / "state.safetensors", "pt") as file:
            self.step = int(file.metadata()["step"])
        tensors = load_file(folder / "state.safetensors")
        for part, module in self.modules.items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, key, parameter = name.split(".", 2)
                place = "cpu" if key == "step" else self.device
                self.optimiser.state[self.parameters[parameter]][key] = value.to(place)

    def export(self, folder: Path) -> None:
        """The averaged weights in float16 with the processor, as `--agent mllm:FOLDER` reads them; written beside and
        then put in place, so that a reader, or a kill, finds a whole model at any time."""
        model = copy.deepcopy(self.averaged).cpu()
        fold(model.model.vision_tower)
        beside = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        with disk_errors(folder):
            model.half().save_pretrained(beside)
            self.processor.save_pretrained(beside)
        if not folder.exists():
            beside.rename(folder)
            return
        for file in beside.iterdir():  # a folder cannot take another's place; of its files, the weights alone change
            os.replace(file, folder / file.name)
        beside.rmdir()


def tiny_checkpoint(base: str) -> tuple[Any, Any, int]:
    """The model in float32 and the processor of a tiny checkpoint, given by its folder or embedded name, and the side
    of the images that it sees."""
    try:
        model, processor = load(parse(base)[0] or EMBEDDED, "float32")
        kind, side = model.config.vision_config.model_type, int(model.config.segenv["image_size"][0])
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise RunError(f"cannot start from --base {base!r}: {error}") from error
    if kind != VisionTowerConfig.model_type:
        raise RunError(f"base {base!r} is no tiny model; for other checkpoints train with agents.training.sft")
    return model, processor, side


def batches(args: Any, trainer: Trainer) -> Iterator[list[ClickExample]]:
    """The lessons of each step from `trainer.step` to the end of its stage, made by other processes beside
    the training."""
    stage, first, last = trainer.stage(trainer.step)
    number = {"look": round(1.6 * args.lessons), "state": max(1, args.lessons // 2)}.get(stage, args.lessons)
    start = 1_000_000 * trainer.stages.index(stage)  # no stage sees another's scenes
    groups = [
        list(range(start + k * number, start + (k + 1) * number)) for k in range(trainer.step - first, last - first)
    ]
    yield from DataLoader(
        trainer.source(stage),
        batch_sampler=groups,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
        collate_fn=list,
        multiprocessing_context="spawn" if args.workers else None,
        worker_init_fn=_start_worker if args.workers else None,
    )


def _start_worker(_: int) -> None:
    """No process outlives the training, however that ends."""
    start_worker()


def train(args: Any, folder: RunFolder, trainer: Trainer, measured: Callable[[], dict[str, float]]) -> None:
    """Run the stages from where `trainer` is, saving every so often; `measured` says how good the averaged model is."""
    began = time.time()
    smooth: dict[str, float] = {}
    with (
        folder.appending("log.jsonl") as log,
        tqdm(total=trainer.total, initial=trainer.step, unit="step", smoothing=0.05, mininterval=5) as bar,
    ):
        while trainer.step < trainer.total:
            stage, _, last = trainer.stage(trainer.step)
            for lessons in batches(args, trainer):
                for key, value in trainer.train_step(lessons).items():
                    smooth[key] = value if key not in smooth else 0.98 * smooth[key] + 0.02 * value
                bar.update()
                bar.set_postfix({"stage": stage} | {k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
                if trainer.step % args.save_every == 0 or trainer.step == last:
                    trainer.save(folder.path)
                    row: dict[str, Any] = {"step": trainer.step, "stage": stage, "seconds": time.time() - began}
                    row |= {key: round(value, 4) for key, value in smooth.items()}
                    if stage != "look" and (trainer.step % args.measure_every == 0 or trainer.step == last):
                        row |= {f"val_{key}": value for key, value in measured().items()}
                        trainer.export(folder / "model")
                    log.add(row)
