"""Training of tiny multimodal models: the loss on replies and image tokens, and checkpoints to start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

from agents import tiny
from agents.backends.transformers import TransformersBackend, load
from agents.mllm import EMBEDDED, parse
from agents.tiny.vision_tower import VisionTowerConfig, fold
from agents.training.auxiliary_heads import (
    LOOK_WEIGHT,
    Collator,
    Heads,
    encode_images,
    forward_text,
    look_loss,
    reply_loss,
)
from agents.training.checkpoints import identity
from agents.training.click_examples import ClickExample
from experiments.common.config import RunError
from experiments.common.trainer import Trainer, autocast
from experiments.sft.config import VISION_STAGE
from segenv.checkpoints import CheckpointError, read_weights
from segenv.types import Action, Task

HEADS = "heads.safetensors"  # beside the model's weights
VISION_RATE = 2.0  # the learning rate of the vision tower, in units of the rest's


class LazyExamples(Dataset):
    """Examples that `make` opens where the first is asked for: in the process beside the training."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.opened: Any = None

    def __getitem__(self, i: int) -> ClickExample:
        if self.opened is None:
            cv2.setNumThreads(1)
            self.opened = self.make()
        return self.opened[i]


@dataclass(frozen=True, eq=False)
class EvalState:
    """A held-out task with a mask, as a picture and a prompt, and the correct action where others may be, too."""

    task: Task
    picture: np.ndarray
    prompt: str
    mask: np.ndarray
    action: Action | None = None


class TinyTrainer(Trainer):
    """Trains a tiny multimodal model on replies, and auxiliary heads that are dropped at the end."""

    collate_fn = list

    def __init__(self, args: Any) -> None:
        self.args, self.workers = args, args.workers
        torch.manual_seed(args.seed)
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, self.processor = self.fresh()
        model.set_attn_implementation("eager")  # its weights are supervised
        self.collate = Collator(self.processor)
        heads = Heads(model.config.text_config.hidden_size)
        if args.base is not None:
            keep_heads(heads, Path(parse(args.base)[0] or EMBEDDED) / HEADS)
        super().__init__(args, model, heads, device)

    def fresh(self) -> tuple[Any, Any]:
        """The model to start from, and its processor."""
        raise NotImplementedError

    @property
    def held_out(self) -> Sequence[EvalState]:
        """The held-out states that measure the progress."""
        raise NotImplementedError

    def reply_metrics(self, state: EvalState, text: str) -> dict[str, float]:
        """Metrics of the reply to a held-out state; those that say nothing about this state are left out."""
        raise NotImplementedError

    def measure(self) -> dict[str, float]:
        """Mean metrics of the averaged model's greedy replies."""
        declared = self.model.config.segenv
        options = {name: declared[name] for name in ("image_size", "max_new_tokens") if name in declared}
        backend = TransformersBackend((self.averaged.module, self.processor), self.device.type, **options)
        pictures, prompts = [state.picture for state in self.held_out], [state.prompt for state in self.held_out]
        scores: dict[str, list[float]] = {}
        for state, text in zip(self.held_out, backend.generate(pictures, prompts, [0] * len(prompts)), strict=True):
            for name, value in self.reply_metrics(state, text).items():
                scores.setdefault(name, []).append(value)
        return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}

    def hashes(self) -> dict[str, str | None]:
        """Hashes of the scenes, and of the checkpoint to start from."""
        base = {} if self.args.base is None else {"base": identity(parse(self.args.base)[0])}
        return {**super().hashes(), **base}

    def learning_rate(self, name: str) -> float:
        """The learning rate of a parameter on the plateau: a higher one in the vision tower."""
        return self.args.rate * (VISION_RATE if name.startswith("model.model.vision_tower.") else 1.0)

    def loss(self, batch: Sequence[ClickExample]) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of the heads on what patches show, and after the vision stage of the replies too."""
        tensors = {name: values.to(self.device) for name, values in self.collate(batch).items()}
        with autocast(self.device):
            features = encode_images(self.model, tensors["pictures"])
            loss, measures = self.heads.vision_loss(features, tensors)
            if self.stage(self.step)[0] != VISION_STAGE:
                logits, tokens, attention = forward_text(self.model, features, tensors)
                grounding, more = self.heads.grounding_loss(tokens, tensors)
                reply = reply_loss(logits, tensors)
                loss = loss + 0.5 * grounding + reply
                if attention.numel():
                    looked = look_loss(attention)
                    loss = loss + LOOK_WEIGHT * looked
                    more |= {"look": float(looked.detach())}
                measures |= more | {"reply": float(reply.detach())}
        return loss, measures

    def evaluate(self, stage: str, last: bool, out: Path) -> dict[str, float]:
        """Held-out metrics every `measure_every` steps and at the end of a stage; the model is written with them."""
        if stage == VISION_STAGE or (self.step % self.args.measure_every and not last):
            return {}
        measures = {f"val_{key}": value for key, value in self.measure().items()}
        self.export(out)
        return measures

    def write_model(self, model: Any, folder: Path) -> None:
        """Write the model in float16 with the processor, as `--agent mllm:FOLDER` reads them, and the heads, with which
        a training from this model as its base begins."""
        fold(model.model.vision_tower)
        super().write_model(model, folder)
        self.processor.save_pretrained(folder)
        heads = {name: value.detach().cpu().contiguous().clone() for name, value in self.heads.state_dict().items()}
        save_file(heads, folder / HEADS)


def keep_heads(heads: Heads, path: Path) -> None:
    """Load the heads of a base, which may have none, or fewer outputs: those are then the first."""
    if not path.is_file():
        return
    own, known = heads.state_dict(), read_weights(path)
    for name, value in known.items():
        if name in own and value.shape[1:] == own[name].shape[1:] and len(value) <= len(own[name]):
            own[name][: len(value)] = value
    heads.load_state_dict(own)


def tiny_checkpoint(
    base: str, tokens: int = 0, image_size: int = 0, text_layers: int = 0, rope_theta: float = 0.0
) -> tuple[Any, Any, int]:
    """The model in float32 and the processor of a tiny checkpoint by folder or name: refined until images have at least
    `tokens` along a side, enlarged while `image_size` is twice their pixels or more, resized to it, deepened to
    `text_layers`, and stretched to `rope_theta`; and that side in pixels."""
    try:
        model, processor = load(parse(base)[0] or EMBEDDED, "float32")
    except (ValueError, CheckpointError) as error:
        raise RunError(f"cannot start from --base {base!r}: {error}") from error
    kind = getattr(getattr(model.config, "vision_config", None), "model_type", None)
    if kind != VisionTowerConfig.model_type:
        raise RunError(f"base {base!r} is no tiny model; for other checkpoints train with agents.training.sft")
    sides = (getattr(model.config, "segenv", None) or {}).get("image_size")
    if not isinstance(sides, list) or len(set(sides)) != 1:
        raise RunError(
            f"base {base!r} declares images of {sides!r}; expected segenv.image_size [SIDE, SIDE] in config.json"
        )
    side = sides[0]
    while side // processor.patch_size < tokens:
        try:
            model, processor = tiny.refine(model, processor)
        except ValueError as error:
            raise RunError(f"base {base!r} cannot be refined to {tokens} tokens a side: {error}; give fewer") from error
    while 2 * side <= image_size:
        model, processor = tiny.enlarge(model, processor)
        side *= 2
    if image_size and side != image_size:
        try:
            model, processor = tiny.resize(model, processor, side := image_size)
        except ValueError as error:
            raise RunError(f"base {base!r} cannot be resized to images of {image_size} pixels: {error}") from error
    if text_layers:
        try:
            model = tiny.deepen(model, text_layers)
        except ValueError as error:
            raise RunError(f"base {base!r} cannot be deepened: {error}") from error
    return stretched(model, rope_theta), processor, side


def stretched(model: Any, rope_theta: float) -> Any:
    """The model with rotary positions of another base, or as it is for 0."""
    try:
        return tiny.stretch(model, rope_theta) if rope_theta else model
    except ValueError as error:
        raise RunError(f"--rope-theta cannot be {rope_theta:g}: {error}") from error
