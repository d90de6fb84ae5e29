"""The model, its average, the optimiser and their state in the training of the tiny SAM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import SamConfig, SamModel

from experiments.train_tool.config import Args
from experiments.train_tool.data import error_click, first_prompt, half_plane
from segenv.tools.tiny_sam import (
    PIXEL_MEAN,
    PIXEL_STD,
    at_size,
    build,
    ious,
    mask_losses,
    same_instance_loss,
    tiny_config,
)


class Trainer:
    """The model at the current stage's size, its moving average, its optimiser, and how far they are."""

    def __init__(self, args: Args) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.step, self.several, self.first_iou = 0, False, 0.0
        self.size, self.grown = args.small_size, False
        self.model = build(self.config())
        self.affinity = nn.Conv2d(args.prompt_width, 32, 1)
        self._start_optimiser()
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}

    def config(self) -> SamConfig:
        return tiny_config(self.size, self.args.width, self.args.depth, self.args.prompt_width)

    def _start_optimiser(self) -> None:
        self.parameters = dict(self.model.named_parameters()) | {
            f"affinity.{n}": p for n, p in self.affinity.named_parameters()
        }
        self.parameters = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=self.args.rate, weight_decay=0.01, betas=(0.9, 0.98)
        )

    def grow(self) -> None:
        """Go on at the full size."""
        self.size, self.grown = self.args.image_size, True
        small_average = SamModel(self.model.config)
        small_average.load_state_dict(self.average)
        self.model = at_size(self.model, self.config())
        self.average = {
            name: value.clone() for name, value in at_size(small_average, self.config()).state_dict().items()
        }
        self._start_optimiser()

    def rate(self) -> float:
        """Warm-up, plateau, linear cool-down; half the rate after growing, with a warm-up of its own."""
        args = self.args
        total = args.small_steps + args.large_steps
        since = self.step - (args.small_steps if self.grown else 0)
        rate = args.rate * (0.5 if self.grown else 1.0) * min(1.0, (since + 1) / 200)
        return rate * min(1.0, max(0.02, (total - self.step) / max(1, args.cooldown)))

    def train_step(self, images: torch.Tensor, instances: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
        """One update. `images` uint8 [B, S, S, 3], `instances` uint8 [B, S, S], `wanted` bool [B, P, 16]."""
        rng = np.random.default_rng([self.args.seed, 1, self.step])
        torch.manual_seed(self.args.seed * 1_000_003 + self.step)
        pixels = (images.permute(0, 3, 1, 2).float() - PIXEL_MEAN) / PIXEL_STD
        # what each prompt asks for, [B·P, 1, S, S]
        truth = torch.cat([rows[:, ids.int()] for rows, ids in zip(wanted, instances, strict=True)])[:, None].float()
        for i in np.flatnonzero(rng.random(len(truth)) < self.args.parts):
            truth[i, 0] *= half_plane(truth[i, 0].numpy() > 0, rng)
        soft = F.avg_pool2d(truth, 2)  # at the masks' resolution
        with torch.autocast("cpu", torch.bfloat16):
            embedding = self.model.vision_encoder(pixels).last_hidden_state
            related = self.affinity(embedding)
        spread = embedding.float().repeat_interleave(wanted.shape[1], 0)
        loss, measured = self._passes(spread, truth, soft, rng)
        loss = loss + 0.2 * same_instance_loss(related.float(), instances)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(0.998, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - keep)
        self.first_iou += 0.01 * (measured["iou_first"] - self.first_iou)
        self.several |= self.first_iou > self.args.curriculum_iou
        return measured | {"loss": float(loss.detach())}

    def _passes(
        self, embedding: torch.Tensor, truth: torch.Tensor, soft: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Prompt, correct, correct again: the summed loss, and the IoU after the first and the last pass."""
        balanced = max(0.0, 1 - self.step / 3000)
        small = soft[:, 0].numpy() > 0.5
        boxed = self.several and rng.random() < 0.2
        points, boxes = first_prompt(truth[:, 0].numpy() > 0.5, boxed, rng)
        passes = [True] + ([False] * int(rng.integers(0, 6)) + [True, True] if self.several else [])
        if len(passes) > 1 and rng.random() < 0.5:
            passes[1] = True
        previous, loss, measured = None, embedding.new_zeros(()), {}
        for number, learn in enumerate(passes):
            many = number == 0 and not boxed and rng.random() < 0.8
            with torch.set_grad_enabled(learn):
                logits, scores = self._decode(embedding, points, boxes, previous, many)
            found = ious(logits, soft)
            if learn:
                losses = mask_losses(logits, soft, balanced)
                loss = loss + losses.min(1).values.mean() + 0.05 * losses.mean() + F.mse_loss(scores, found)
            chosen = found.max(1) if number == 0 and many else None
            if number == 0:
                measured["iou_first"] = float(found.max(1).values.mean())
            best = scores.argmax(1) if chosen is not None else torch.zeros(len(logits), dtype=torch.long)
            rows = torch.arange(len(logits))
            previous = logits[rows, best].detach()[:, None].clamp(-32, 32)
            measured["iou_last"] = float(found[rows, best].mean())
            if number + 1 < len(passes):
                guess = previous[:, 0].numpy() > 0
                clicks = np.array([error_click(t, p, rng) for t, p in zip(small, guess, strict=True)])
                clicks[:, :2] = 2 * clicks[:, :2] + rng.integers(0, 2, (len(clicks), 2))
                points = clicks[:, None] if points is None else np.concatenate([points, clicks[:, None]], axis=1)
        return loss, measured

    def _decode(
        self,
        embedding: torch.Tensor,
        points: np.ndarray | None,
        boxes: np.ndarray | None,
        previous: torch.Tensor | None,
        many: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        prompt = (
            {}
            if points is None
            else {
                "input_points": torch.from_numpy(points[:, None, :, :2]).float(),
                "input_labels": torch.from_numpy(points[:, None, :, 2]).long(),
            }
        )
        if boxes is not None:
            prompt["input_boxes"] = torch.from_numpy(boxes[:, None]).float()
        with torch.autocast("cpu", torch.bfloat16):
            out = self.model(image_embeddings=embedding, input_masks=previous, multimask_output=many, **prompt)
        return out.pred_masks[:, 0].float(), out.iou_scores[:, 0].float()

    def save(self, folder: Path) -> None:
        """Everything needed to go on exactly here, written next to the last state and then put in its place."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"affinity.{name}": value for name, value in self.affinity.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = torch.as_tensor(value)
        tensors = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        told = {"step": self.step, "several": self.several, "first_iou": self.first_iou, "grown": self.grown}
        save_file(tensors, folder / "state.tmp", metadata={"state": json.dumps(told)})
        os.replace(folder / "state.tmp", folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        """Go on from `save`."""
        with safe_open(folder / "state.safetensors", "pt") as file:
            told = json.loads(file.metadata()["state"])
        if told["grown"]:
            self.grow()
        self.step, self.several, self.first_iou = told["step"], told["several"], told["first_iou"]
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "affinity": {}, "optimiser": {}}
        for name, value in load_file(folder / "state.safetensors").items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        self.average = parts["average"]
        self.affinity.load_state_dict(parts["affinity"])
        for name, value in parts["optimiser"].items():
            key, parameter = name.split(".", 1)
            self.optimiser.state[self.parameters[parameter]][key] = value

    def export(self, folder: Path) -> None:
        """The averaged weights in float16 with their configuration, as `SamModel.from_pretrained` reads them."""
        model = build(self.config())
        model.load_state_dict(self.average)
        model.half().save_pretrained(folder)
