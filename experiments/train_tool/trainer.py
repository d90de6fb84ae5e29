"""Training of the tiny SAM: prompts, corrections and losses of a step, and the change to larger images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import SamConfig

from experiments.common import trainer
from experiments.common.config import RunError, check
from experiments.train_tool.config import RESUMABLE, Args
from experiments.train_tool.data import Crops, error_click, first_prompt, half_plane
from segenv.tools import tiny_sam


class SamTrainer(trainer.Trainer):
    """Trains a tiny SAM on small images, then on images of the full size."""

    stages = ("small", "large")
    saved = ("step", "size", "several", "first_iou", "grown")

    def __init__(self, args: Args) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.several, self.first_iou = False, 0.0  # whether prompts have several clicks; moving mean of the first's IoU
        self.size, self.grown = args.small_size, False
        super().__init__(args, tiny_sam.build(self.config()), nn.Conv2d(args.prompt_width, 32, 1))

    def config(self) -> SamConfig:
        """The model's configuration at the current size."""
        return tiny_sam.tiny_config(self.size, self.args.width, self.args.depth, self.args.prompt_width)

    def indices(self, step: int) -> list[int]:
        """The scenes of a step."""
        scenes = self.args.scenes
        return list(range(step * scenes, step * scenes + (max(1, scenes * 3 // 4) if self.grown else scenes)))

    def open_stage(self, stage: str) -> Dataset:
        """Grow where the stage asks for it; returns views of scenes at the current size."""
        if stage == "large" and not self.grown:
            self.grow()
        return Crops(self.size, self.args.prompts, self.args.seed, self.args.unions, self.args.leaves)

    def grow(self) -> None:
        """Change to the full size, with half the learning rate and a warm-up of its own."""
        self.size, self.grown = self.args.image_size, True
        self.model = tiny_sam.at_size(self.model, self.config())
        self.start_average(tiny_sam.at_size(self.averaged.module, self.config()))
        self.start_optimiser(self.args.small_steps)

    def learning_rate(self, name: str) -> float:
        """The learning rate on the plateau."""
        return self.args.rate * (0.5 if self.grown else 1.0)

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` gave; RunError where the numbers of steps put the run into another stage."""
        super().restore(state)
        small = self.args.small_steps
        if state["grown"] != (self.step > small) and self.step != small:
            raise RunError(f"the run is at step {self.step}; --small-steps {small} would undo its stage")
        if state["grown"]:
            self.grow()

    def loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """Losses of masks, predicted IoUs and embedding: `batch` is images uint8 [B, S, S, 3], instances uint8 [B, S,
        S], and the instances of each prompt, bool [B, P, 16]."""
        images, instances, chosen = batch
        rng = np.random.default_rng([self.args.seed, 1, self.step])
        torch.manual_seed(self.args.seed * 1_000_003 + self.step)
        pixels = (images.permute(0, 3, 1, 2).float() - tiny_sam.PIXEL_MEAN) / tiny_sam.PIXEL_STD
        # targets of the prompts, [B·P, 1, S, S]
        truth = torch.cat([rows[:, ids.int()] for rows, ids in zip(chosen, instances, strict=True)])[:, None].float()
        for i in np.flatnonzero(rng.random(len(truth)) < self.args.parts):
            truth[i, 0] *= half_plane(truth[i, 0].numpy() > 0, rng)
        with trainer.autocast("cpu"):
            embedding = self.model.vision_encoder(pixels).last_hidden_state
            affinity = self.heads(embedding)
        loss, measures = self._passes(embedding.float().repeat_interleave(chosen.shape[1], 0), truth, rng)
        self.first_iou += 0.01 * (measures["iou_first"] - self.first_iou)
        self.several |= self.first_iou > self.args.curriculum_iou
        return loss + 0.2 * tiny_sam.same_instance_loss(affinity.float(), instances), measures

    def _passes(
        self, embedding: torch.Tensor, truth: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Prompt, correct, correct again: the summed loss, and the IoU after the first and the last pass."""
        balanced = max(0.0, 1 - self.step / 3000)
        soft = F.avg_pool2d(truth, 2)  # at the masks' resolution
        small = soft[:, 0].numpy() > 0.5
        boxed = self.several and rng.random() < 0.2
        points, boxes = first_prompt(truth[:, 0].numpy() > 0.5, boxed, rng)
        passes = [True] + ([False] * int(rng.integers(0, 6)) + [True, True] if self.several else [])
        if len(passes) > 1 and rng.random() < 0.5:
            passes[1] = True
        previous, loss, measures = None, embedding.new_zeros(()), {}
        for number, learn in enumerate(passes):
            many = number == 0 and not boxed and rng.random() < 0.8
            inputs: dict[str, Any] = {"input_masks": previous, "multimask_output": many}
            if points is not None:
                inputs["input_points"] = torch.from_numpy(points[:, None, :, :2]).float()
                inputs["input_labels"] = torch.from_numpy(points[:, None, :, 2]).long()
            if boxes is not None:
                inputs["input_boxes"] = torch.from_numpy(boxes[:, None]).float()
            with torch.set_grad_enabled(learn), trainer.autocast("cpu"):
                out = self.model(image_embeddings=embedding, **inputs)
            logits, scores = out.pred_masks[:, 0].float(), out.iou_scores[:, 0].float()
            found = tiny_sam.ious(logits, soft)
            if learn:
                losses = tiny_sam.mask_losses(logits, soft, balanced)
                loss = loss + losses.min(1).values.mean() + 0.05 * losses.mean() + F.mse_loss(scores, found)
            if number == 0:
                measures["iou_first"] = float(found.max(1).values.mean())
            best = scores.argmax(1) if many else torch.zeros(len(logits), dtype=torch.long)
            rows = torch.arange(len(logits))
            previous = logits[rows, best].detach()[:, None].clamp(-32, 32)
            measures["iou_last"] = float(found[rows, best].mean())
            if number + 1 < len(passes):
                guess = previous[:, 0].numpy() > 0
                clicks = np.array([error_click(t, p, rng) for t, p in zip(small, guess, strict=True)])
                clicks[:, :2] = 2 * clicks[:, :2] + rng.integers(0, 2, (len(clicks), 2))
                points = clicks[:, None] if points is None else np.concatenate([points, clicks[:, None]], axis=1)
        return loss, measures


def run(args: Args) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    check(args)
    if args.small_size > args.image_size:
        raise RunError(f"small_size {args.small_size} is larger than image_size {args.image_size}")
    if args.width % 4 or args.prompt_width % 8:
        raise RunError(f"--width is {args.width}, --prompt-width {args.prompt_width}; expected multiples of 4 and of 8")
    return trainer.run(SamTrainer, args, RESUMABLE, "train_tool")
