"""Teach a tiny MLLM that clicks to write outlines: supervised fine-tuning on polygons of procedural scenes.

    python -m experiments.sft --mode polygon --out runs/polygon        # then --mode polygon --resume runs/polygon

starts from the embedded click policy, which knows where things are, gives its tokenizer one token for each frequent run
of brackets, and trains on fresh scenes of `synthetic:train`: outlines by name, by box or by point, boxes by name, and
empty lists for what is not there. Outlines are simplified by a ratio of their length, as SimpleSeg's. Departures: they
have at most `--vertices`, and beside the loss of the reply there are dense ones on the image's tokens.
"""

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
from agents.mllm import EMBEDDED, parse
from agents.training.checkpoints import identity
from agents.training.click_examples import ClickExample, Mixture
from agents.training.polygon_examples import RATIO, TOKENS, VERTICES, PolygonExamples
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, manifest
from experiments.evaluate.polygon_metrics import record
from experiments.sft import trainer as shared
from experiments.sft.trainer import Trainer, tiny_checkpoint, train
from segenv import queries
from segenv.codec import polygons
from segenv.data.synthetic.scenes import Synthetic
from segenv.types import Task

RESUMABLE = shared.RESUMABLE | {"draw_steps"}
VERTEX_TOKENS = 8  # of a vertex in `rings`


@dataclass
class Args:
    """Train a tiny MLLM to write polygons."""

    mode: Literal["polygon"] = "polygon"
    out: str | None = None
    """folder of a new run; by default runs/polygon"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold, but numbers of steps may be given anew"""
    base: str = str(EMBEDDED)
    """Folder of the checkpoint to start from, or the name of an embedded one; by default the embedded click policy."""
    codec: str = "rings"
    """How outlines are written: rings, simpleseg or simpleseg:contour=edges."""
    vertices: int = VERTICES
    """Vertices of an outline, at most."""
    ratio: float = RATIO
    """Douglas and Peucker's tolerance in parts of a ring's length: the more, the fewer vertices."""
    order: Literal["canonical", "reversed", "random-start", "random"] = "canonical"
    """How the vertices of a ring stand."""
    draw_steps: int = 9_000
    cooldown: int = 2_500
    """The last of these steps, in which the learning rate falls to zero."""
    lessons: int = 8
    """Scenes a step."""
    questions: int = 4
    """Questions about each scene."""
    rate: float = 8e-4
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


class PolygonSource(Dataset):
    """Lessons in drawing, made where they are asked for: in the process beside the training."""

    def __init__(self, args: Args, image_size: int, grid: int) -> None:
        self.args, self.image_size, self.grid = args, image_size, grid
        self.lessons: PolygonExamples | None = None

    def __getitem__(self, i: int) -> ClickExample:
        if self.lessons is None:
            cv2.setNumThreads(1)
            args = self.args
            self.lessons = PolygonExamples(
                Mixture(first=args.questions),
                args.codec,
                args.vertices,
                args.ratio,
                args.order,
                image_size=self.image_size,
                grid=self.grid,
                seed=args.seed + 2,
            )
        return self.lessons[i]


class PolygonTrainer(Trainer):
    """Trains the model of a checkpoint in one stage, `draw`."""

    stages = ("draw",)
    draws = True

    def fresh(self) -> tuple[Any, Any]:
        """The checkpoint's model, with tokens for polygons, and its processor."""
        model, processor, side = tiny_checkpoint(self.args.base)
        new = [token for token in TOKENS if token not in processor.tokenizer.get_vocab()]
        tiny.extend(model, processor, new)
        model.config.segenv = {
            "codec": self.args.codec,
            "prompt": "instruction",
            "image_size": [side, side],
            "max_new_tokens": VERTEX_TOKENS * (self.args.vertices + 8),  # some more than it was taught
        }
        return model, processor

    def source(self, stage: str) -> Dataset:
        """The lessons."""
        size = self.model.config.segenv["image_size"][0]
        return PolygonSource(self.args, size, size // self.processor.patch_size)

    def measure(self, tasks: Sequence[Task]) -> dict[str, float]:
        """How the averaged model outlines held-out tasks, greedily."""
        declared = self.model.config.segenv
        backend = TransformersBackend(
            (self.averaged, self.processor),
            self.device.type,
            max_new_tokens=declared["max_new_tokens"],
            image_size=declared["image_size"],
        )
        codec = polygons.get(self.args.codec)
        asked = [queries.query(task, codec, style="instruction") for task in tasks]
        pictures, prompts = [query.picture for query in asked], [query.prompt for query in asked]
        found: dict[str, list[float]] = {}
        for task, text in zip(tasks, backend.generate(pictures, prompts, [0] * len(tasks)), strict=True):
            said = record(task, codec, text, 0)
            for name in ("giou", f"giou_{task.meta['difficulty']}"):
                found.setdefault(name, []).append(said.iou)
            found.setdefault("valid", []).append(float(said.error is None))
        return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def run(args: Args) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    check(args)
    trainer = PolygonTrainer(args)
    out = args.resume or args.out or "runs/polygon"
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        if (folder / "state.safetensors").exists():
            trainer.load(folder.path)
        if trainer.step > trainer.total:
            raise RunError(f"the run is at step {trainer.step}, beyond the {trainer.total} that were asked for")
        hashes: dict[str, str | None] = {"data": Synthetic("train").fingerprint, "base": identity(parse(args.base)[0])}
        folder.keep_manifest(manifest(args.seed, {}, hashes))
        held_out = Synthetic("val")
        tasks = [held_out[len(held_out) - 1 - k] for k in range(args.probe)]
        train(args, folder, trainer, lambda: trainer.measure(tasks))
        trainer.export(folder / "model")
        folder.finish("sft")
    return folder / "model"


def check(args: Args) -> None:
    """Raise RunError where settings cannot be trained with."""
    least = {"vertices": 4, "cooldown": 0, "workers": 0, "seed": 0}
    for name in ("draw_steps", "lessons", "questions", "threads", "probe", "measure_every", "save_every"):
        least[name] = 1
    for name, bound in least.items():
        if getattr(args, name) < bound:
            raise RunError(f"{name} is {getattr(args, name)}; expected {bound} or more")
    if not 0 <= args.ratio < 1:
        raise RunError(f"ratio is {args.ratio}; expected a part of a ring's length, from 0 to below 1")
    if args.codec not in polygons.DIALECTS:
        raise RunError(f"codec {args.codec!r} writes no polygons; expected one of {', '.join(polygons.DIALECTS)}")
