"""SFT of the click policy S_0 on the annotator's trajectories over procedural scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from agents import tiny
from agents.backends.transformers import TransformersBackend
from agents.mllm import parse
from agents.tiny.vision_tower import VisionTowerConfig
from agents.training.checkpoints import identity
from agents.training.click_examples import (
    ClickExample,
    ClickExamples,
    Mixture,
    annotator_states,
    correct_action,
    distorted_mask,
)
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, manifest
from experiments.sft.trainer import RESUMABLE, Trainer, tiny_checkpoint, train
from segenv import codec, metrics, render, tools
from segenv.data.synthetic.scenes import Synthetic
from segenv.tools.base import SegTool
from segenv.types import Click, Stop, Task

CODEC = "segagent"  # the codec of the replies
STAGES = ("look", "easy", "click", "state")
MIXTURES = {
    "look": Mixture(first=0, cheap=1),
    "easy": Mixture(first=4, easy=0.8),
    "click": Mixture(first=4),
    "state": Mixture(first=4, trajectory=5, easy=0.2),
}
ANY_MASKS = Mixture(first=2, trajectory=4, cheap=4, crossed=4)  # of the stage `state` where masks are of any kind
SIZES = ("image_size", "width", "vision_layers", "text_layers", "heads")
LEAST = {  # what numbers may be at least
    **dict.fromkeys((*(f"{stage}_steps" for stage in STAGES), "cooldown", "vision_layers", "seed", "workers"), 0),
    **dict.fromkeys(("lessons", "width", "text_layers", "heads", "threads"), 1),
    **dict.fromkeys(("probe", "measure_every", "save_every"), 1),
}


@dataclass
class Args:
    """Train the embedded tiny MLLM."""

    mode: Literal["clicks", "polygon"] = "clicks"
    """What it learns to write; the flags of polygons stand in `--mode polygon --help`."""
    out: str | None = None
    """folder of a new run; by default runs/sft"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold, but numbers of steps may be given anew"""
    base: str | None = None
    """folder of a tiny checkpoint to start from, or the name of an embedded one, whose sizes hold; by default from
    scratch. Give another --seed than it was trained with, or the stages show the same scenes again"""
    tool: str = "sam"
    """What makes the masks of trajectories."""
    states: Literal["annotator", "any"] = "annotator"
    """whose masks the last stage shows: those of the annotator's trajectories, or beside them wrong ones and those of
    other objects, for a model that is to judge masks"""
    look_steps: int = 2_500
    easy_steps: int = 800
    click_steps: int = 8_700
    state_steps: int = 4_600
    cooldown: int = 2_400
    """The last of all these steps, in which the learning rate falls to zero."""
    lessons: int = 10
    """Scenes a step; 1.6 times as many while looking, and half as many in the last stage, which asks more of each."""
    image_size: int = 128
    width: int = 128
    vision_layers: int = 2
    text_layers: int = 4
    heads: int = 4
    rate: float = 1e-3
    stop_iou: float = 0.9
    """The IoU from which on the reply is to stop."""
    seed: int = 0
    device: str | None = None
    """cuda where there is a GPU, otherwise cpu."""
    workers: int = 1
    """Processes that make lessons; 0: the training makes them itself."""
    threads: int = 1
    probe: int = 90
    """Held-out tasks that measure the progress."""
    measure_every: int = 500
    save_every: int = 250


class Source(Dataset):
    """The lessons of a stage, made where they are asked for: in the process beside the training."""

    def __init__(self, args: Args, stage: str) -> None:
        self.args, self.stage = args, stage
        self.lessons: ClickExamples | None = None

    def __getitem__(self, i: int) -> ClickExample:
        if self.lessons is None:
            cv2.setNumThreads(1)
            args = self.args
            plan = ANY_MASKS if self.stage == "state" and args.states == "any" else MIXTURES[self.stage]
            tool = tools.make(args.tool) if plan.trajectory else None
            grid = args.image_size // VisionTowerConfig().patch_size
            self.lessons = ClickExamples(plan, tool, args.image_size, grid, args.stop_iou, args.seed)
        return self.lessons[i]


class ClickTrainer(Trainer):
    """Trains a tiny model from scratch, or a tiny checkpoint further."""

    stages = STAGES

    def fresh(self) -> tuple[Any, Any]:
        """The model to start from, and its processor."""
        if self.args.base is not None:
            model, processor, side = tiny_checkpoint(self.args.base)
            if side != self.args.image_size:
                raise RunError(
                    f"base {self.args.base!r} sees images of {side} pixels, and image_size is {self.args.image_size}; "
                    "give the size of the base"
                )
            model.config.segenv = {"codec": CODEC, "prompt": "instruction", "image_size": [side, side]}
            return model, processor
        return tiny.build(self.args.seed, **{name: getattr(self.args, name) for name in SIZES})

    def source(self, stage: str) -> Dataset:
        """Where the lessons of a stage come from."""
        return Source(self.args, stage)


@dataclass(frozen=True, eq=False)
class EvalState:
    """A held-out state: how the averaged model answers in it is measured."""

    task: Task
    mask: np.ndarray
    clicks: tuple[Click, ...] = ()


def eval_states(args: Args, tool: SegTool) -> list[EvalState]:
    """`args.probe` empty masks, then states of trajectories and cheap masks, of `synthetic:val` from its end."""
    data = Synthetic("val")
    tasks = [data[len(data) - 1 - k] for k in range(args.probe)]
    found = [EvalState(task, np.zeros(task.target.shape, bool)) for task in tasks]
    for k, task in enumerate(tasks[: args.probe // 2]):
        rng = np.random.default_rng([args.seed, 2, k])
        states = annotator_states(tool, task, args.stop_iou)
        if states:
            found.append(EvalState(*states[rng.integers(len(states))]))
        found.append(EvalState(task, distorted_mask(task.target.view(bool), task.meta["instances"], rng)))
    return found


def measure(trainer: Trainer, held_out: Sequence[EvalState]) -> dict[str, float]:
    """Greedy replies of the averaged model: first clicks in the named object, and what it says and does about
    masks."""
    side = (trainer.args.image_size,) * 2
    backend = TransformersBackend((trainer.averaged, trainer.processor), trainer.device.type, image_size=side)
    pictures = [render.overlay(probe.task.image, probe.mask) for probe in held_out]
    replies = backend.generate(pictures, [probe.task.instruction for probe in held_out], [0] * len(held_out))
    speech = codec.get(CODEC)
    found: dict[str, list[float]] = {}
    for probe, text in zip(held_out, replies, strict=True):
        task, action = probe.task, speech.parse(text, probe.task)
        wanted, stated = correct_action(task, probe.mask, probe.clicks, trainer.args.stop_iou), speech.stated_iou(text)
        inside = isinstance(action, Click) and bool(task.target[action.y, action.x])
        if not probe.mask.any():
            hit = inside and isinstance(action, Click) and action.positive
            for name in ("first", f"first_{task.meta['difficulty']}"):
                found.setdefault(name, []).append(float(hit))
            continue
        iou = float(metrics.iou(task.target, probe.mask))
        found.setdefault("iou_error", []).append(abs((0.0 if stated is None else stated) - iou))
        found.setdefault("stop", []).append(float(isinstance(action, Stop) == isinstance(wanted, Stop)))
        if isinstance(action, Click) and isinstance(wanted, Click):
            covered = bool(probe.mask[action.y, action.x])
            found.setdefault("sign", []).append(float(action.positive == wanted.positive))
            found.setdefault("in_error", []).append(float(action.positive == inside != covered))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def check(args: Args) -> None:
    """Raise RunError where settings cannot be trained with."""
    for name, least in LEAST.items():
        if getattr(args, name) < least:
            raise RunError(f"{name} is {getattr(args, name)}; expected {least} or more")
    if not any(getattr(args, f"{stage}_steps") for stage in STAGES):
        raise RunError("all stages have 0 steps; give at least one of them some")
    patch = VisionTowerConfig().patch_size
    if args.image_size < patch or args.image_size % patch:
        raise RunError(f"image_size is {args.image_size}; expected a multiple of {patch}")
    if args.width % (2 * args.heads):
        raise RunError(f"width is {args.width}; expected an even number for each of the {args.heads} heads")
    if not args.rate > 0 or not 0 < args.stop_iou <= 1:
        raise RunError(f"rate is {args.rate} and stop_iou {args.stop_iou}; expected above 0, and above 0 up to 1")
    if args.probe > len(Synthetic("val")):
        raise RunError(f"probe is {args.probe}; synthetic:val has no more than {len(Synthetic('val'))} tasks")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {args.device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def run(args: Args) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    check(args)
    try:
        tool = tools.make(args.tool)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up tool {args.tool!r}: {error}") from error
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    out = args.resume or args.out or "runs/sft"
    trainer = ClickTrainer(args)
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        if (folder / "state.safetensors").exists():
            trainer.load(folder.path)
        if trainer.step > trainer.total:
            raise RunError(f"the run is at step {trainer.step}, beyond the {trainer.total} that were asked for")
        hashes: dict[str, str | None] = {"data": Synthetic("train").fingerprint, "tool": tool.fingerprint}
        if args.base is not None:
            hashes["base"] = identity(parse(args.base)[0])
        folder.keep_manifest(manifest(args.seed, {}, hashes))
        held_out = eval_states(args, tool)
        train(args, folder, trainer, lambda: measure(trainer, held_out))
        trainer.export(folder / "model")
        folder.finish("sft")
    return folder / "model"
