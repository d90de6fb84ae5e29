"""The training of the tiny SAM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, manifest
from experiments.train_tool.config import RESUMABLE, Args
from experiments.train_tool.data import Crops
from experiments.train_tool.trainer import Trainer
from segenv.data.synthetic.scenes import Synthetic


def batches(args: Args, trainer: Trainer, last: int) -> Iterator[list[torch.Tensor]]:
    """The batches up to step `last`, made by one process beside the training."""
    scenes = max(1, args.scenes * 3 // 4) if trainer.grown else args.scenes
    groups = [list(range(k * args.scenes, k * args.scenes + scenes)) for k in range(trainer.step, last)]
    data = Crops(trainer.size, args.prompts, args.seed, args.unions, args.leaves)
    yield from DataLoader(data, batch_sampler=groups, num_workers=1, prefetch_factor=4, multiprocessing_context="spawn")


def train(args: Args, folder: RunFolder, trainer: Trainer) -> None:
    """Run the stages from where `trainer` is, saving every so often."""
    total = args.small_steps + args.large_steps
    smooth: dict[str, float] = {}
    began = time.time()
    with (
        folder.appending("log.jsonl") as log,
        tqdm(total=total, initial=trainer.step, unit="step", smoothing=0.05, mininterval=5) as bar,
    ):
        for last in (args.small_steps, total):
            if trainer.step >= last:
                continue
            if last == total and not trainer.grown:
                trainer.grow()
            for batch in batches(args, trainer, last):
                for key, value in trainer.train_step(*batch).items():
                    smooth[key] = value if key not in smooth else 0.98 * smooth[key] + 0.02 * value
                bar.update()
                bar.set_postfix({key: f"{value:.3f}" for key, value in smooth.items()}, refresh=False)
                if trainer.step % args.save_every == 0 or trainer.step == total:
                    where = {"step": trainer.step, "size": trainer.size, "several": trainer.several}
                    log.add({**where, "seconds": time.time() - began, **smooth})
                    trainer.save(folder.path)


def run(args: Args) -> Path:
    """Train as `args` say, in their folder; returns the folder of the model."""
    if args.small_size > args.image_size:
        raise RunError(f"small_size {args.small_size} is larger than image_size {args.image_size}")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    out = args.resume or args.out or "runs/train_tool"
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        trainer = Trainer(args)
        if (folder / "state.safetensors").exists():
            trainer.load(folder.path)
        if trainer.grown != (trainer.step > args.small_steps) and trainer.step != args.small_steps:
            raise RunError(f"the run is at step {trainer.step}; --small-steps {args.small_steps} would undo its stage")
        folder.keep_manifest(manifest(args.seed, {}, {"data": Synthetic("train").fingerprint}))
        train(args, folder, trainer)
        trainer.export(folder / "model")
        folder.finish("train_tool")
    return folder / "model"
