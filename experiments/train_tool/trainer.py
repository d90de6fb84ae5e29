"""Training of the tiny SAM: prompts, corrections and losses of a step, and the change to larger images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import SamConfig, SamModel

from agents.training.checkpoints import identity
from experiments.common import trainer
from experiments.common.config import RunError, check
from experiments.train_tool.config import RESUMABLE, Args
from experiments.train_tool.data import Crops, correction, first_prompt, half_plane, points_in_boxes
from segenv.checkpoints import CheckpointError, load_pretrained
from segenv.envs.starts import distorted
from segenv.tools import tiny_sam
from segenv.tools.sam import EMBEDDED, LOGIT_LIMIT, Frame


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind for N targets, in pixels of the model's image."""

    points: np.ndarray | None = None  # [N, K, 3], (x, y, label)
    boxes: np.ndarray | None = None  # [N, 4]
    logits: torch.Tensor | None = None  # [N, 1, g, g]

    def inputs(self) -> dict[str, Any]:
        """The prompts that the model takes."""
        inputs: dict[str, Any] = {"input_masks": self.logits}
        if self.points is not None:
            inputs["input_points"] = torch.from_numpy(self.points[:, None, :, :2]).float()
            inputs["input_labels"] = torch.from_numpy(self.points[:, None, :, 2]).long()
        if self.boxes is not None:
            inputs["input_boxes"] = torch.from_numpy(self.boxes[:, None]).float()
        return inputs

    def corrected(self, targets: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> "Prompts":
        """The prompts with one more click each, which corrects the mask; both are bool [N, S / 2, S / 2]."""
        clicks = np.array([correction(t, p, rng) for t, p in zip(targets, masks, strict=True)])
        clicks[:, :2] = 2 * clicks[:, :2] + rng.integers(0, 2, (len(clicks), 2))
        points = clicks[:, None] if self.points is None else np.concatenate([self.points, clicks[:, None]], axis=1)
        return replace(self, points=points)

    def given(self, masks: np.ndarray) -> "Prompts":
        """The prompts with masks, bool [N, g, g], and their boxes, as the tool gives masks that it has no logits of."""
        grid = masks.shape[-1]
        frame = Frame(grid, grid, 2 * grid, padded=True)
        logits = torch.from_numpy(np.stack([frame.logits(mask, grid) for mask in masks]))[:, None]
        boxes = [cv2.boundingRect(mask.astype(np.uint8)) for mask in masks]
        corners = 2.0 * np.array([[x, y, x + w, y + h] for x, y, w, h in boxes])
        return replace(self, logits=logits, boxes=corners)


class SamTrainer(trainer.Trainer):
    """Trains a tiny SAM on small images, then on images of the full size."""

    stages = ("small", "large")
    saved = ("step", "size", "several", "first_iou", "grown")

    def __init__(self, args: Args) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.first_iou = 0.0  # moving mean
        self.size, self.grown = args.small_size, False
        self.several = args.base is not None  # whether prompts have several clicks
        self.widths = args.width, args.depth, args.prompt_width
        model = tiny_sam.build(self.config()) if args.base is None else self.load_base(args.base)
        super().__init__(args, model, nn.Conv2d(self.widths[-1], 32, 1))

    def load_base(self, base: str) -> SamModel:
        """The model of a tiny SAM at the current size, whose widths become those of the training."""
        try:
            model: Any = load_pretrained(SamModel, EMBEDDED if base == EMBEDDED.name else base, "tiny SAM")
            vision = model.config.vision_config
            self.widths = vision.hidden_size, vision.num_hidden_layers, vision.output_channels
            return tiny_sam.at_size(model.float(), self.config())
        except (CheckpointError, RuntimeError) as error:  # absent or damaged; another SAM
            raise RunError(f"cannot start from --base {base!r}: {str(error).splitlines()[0]}") from error

    def hashes(self) -> dict[str, str | None]:
        """Hashes of the scenes, and of the model to start from."""
        base = self.args.base
        return {**super().hashes(), **({} if base is None else {"base": identity(base)})}

    def config(self) -> SamConfig:
        """The model's configuration at the current size."""
        return tiny_sam.tiny_config(self.size, *self.widths)

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

    def start_optimiser(self, first: int = 0) -> None:
        """Start the optimiser anew, without what stays as it is."""
        self.model.vision_encoder.requires_grad_(not self.args.frozen_encoder)
        super().start_optimiser(first)

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
        self.first_iou += 0.01 * (measures.get("iou_first", self.first_iou) - self.first_iou)
        self.several |= self.first_iou > self.args.curriculum_iou
        return loss + 0.2 * tiny_sam.same_instance_loss(affinity.float(), instances), measures

    def _decode(
        self, embedding: torch.Tensor, prompts: Prompts, many: bool, learn: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, M, g, g] and predicted IoUs [N, M] of one mask or, of `many`, three."""
        with torch.set_grad_enabled(learn), trainer.autocast("cpu"):
            out = self.model(image_embeddings=embedding, **prompts.inputs(), multimask_output=many)
        return out.pred_masks[:, 0].float(), out.iou_scores[:, 0].float()

    def _given_masks(
        self, embedding: torch.Tensor, truth: np.ndarray, small: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Masks to correct, bool [N, g, g], made as `segenv.envs.starts` makes them: the model's answers to boxes or to
        points of `truth` bool [N, S, S], or distortions of `small` [N, g, g]."""
        kind = rng.integers(3)
        if kind == 2:
            masks = np.array([distorted(target, rng) for target in small])
        else:
            start = Prompts(points_in_boxes(truth, rng)) if kind else Prompts(boxes=first_prompt(truth, True, rng)[1])
            logits, _ = self._decode(embedding, start, many=False, learn=False)
            masks = logits[:, 0].numpy() > 0
        masks[~masks.any((1, 2))] = True  # there is something to correct
        return masks

    def _passes(
        self, embedding: torch.Tensor, truth: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Prompt, correct, correct again: the summed loss, and the IoU after the first and the last pass."""
        balanced = 0.0 if self.args.base else max(0.0, 1 - self.step / 3000)
        soft = F.avg_pool2d(truth, 2)  # at the masks' resolution
        large, small = truth[:, 0].numpy() > 0.5, soft[:, 0].numpy() > 0.5
        given = self.several and rng.random() < self.args.given
        boxed = given or (self.several and rng.random() < 0.2)
        if given:
            masks = self._given_masks(embedding, large, small, rng)
            prompts = Prompts().corrected(small, masks, rng).given(masks)
        else:
            prompts = Prompts(*first_prompt(large, boxed, rng))
        passes = [True] + ([False] * int(rng.integers(0, 6)) + [True, True] if self.several else [])
        if len(passes) > 1 and rng.random() < 0.5:
            passes[1] = True
        loss, measures = embedding.new_zeros(()), {}
        for number, learn in enumerate(passes):
            many = number == 0 and not boxed and rng.random() < 0.8
            logits, scores = self._decode(embedding, prompts, many, learn)
            found = tiny_sam.ious(logits, soft)
            if learn:
                losses = tiny_sam.mask_losses(logits, soft, balanced)
                loss = loss + losses.min(1).values.mean() + 0.05 * losses.mean() + F.mse_loss(scores, found)
            best = scores.argmax(1) if many else torch.zeros(len(logits), dtype=torch.long)
            rows = torch.arange(len(logits))
            if number == 0:
                measures["iou_given" if given else "iou_first"] = float(found.max(1).values.mean())
            measures["iou_last"] = float(found[rows, best].mean())
            if number + 1 < len(passes):
                previous = logits[rows, best].detach()[:, None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
                masks = previous[:, 0].numpy() > 0
                prompts = prompts.corrected(small, masks, rng)
                prompts = prompts.given(masks) if given else replace(prompts, logits=previous)
        return loss, measures


def run(args: Args) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    check(args)
    if args.small_size > args.image_size:
        raise RunError(f"small_size {args.small_size} is larger than image_size {args.image_size}")
    if args.width % 4 or args.prompt_width % 8:
        raise RunError(f"--width is {args.width}, --prompt-width {args.prompt_width}; expected multiples of 4 and of 8")
    return trainer.run(SamTrainer, args, RESUMABLE, "train_tool")
