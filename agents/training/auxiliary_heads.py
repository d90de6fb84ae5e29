"""Dense supervision for the tiny model: small heads, dropped after the training, that make patches say what they show.

From the vision tower: the colour and shape of the object in a patch, which kinds of sentence would pick it out, where
its first click goes, and the mask's share. From the language model's image tokens, which have read the instruction:
whether the patch belongs to the named object, what is missing or wrong there, where to click, and for those who draw
which parts of the patch the object covers. A model of this size
finds the way from words to pixels through its few reply tokens alone only after a long plateau.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from agents import tiny
from agents.backends.transformers import chat
from agents.training.click_examples import COLOUR_NAMES, FINE, KINDS, SHAPE_NAMES, ClickExample, Question

IGNORED = -100
UNITS_WEIGHT = 0.1  # of a coordinate's last digit, which is noise to a model of this size


class Heads(nn.Module):
    """What is read from patches, [..., width] in and logits out."""

    def __init__(self, width: int, fine: bool = False) -> None:
        super().__init__()
        self.sizes = [len(COLOUR_NAMES) + 1, len(SHAPE_NAMES) + 1, len(KINDS), 10, 10, 10, 10, 1]
        self.seen = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))
        self.told = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 + fine * FINE**2))

    def seen_loss(
        self, features: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Of the vision tower's `features` [P, N, width]."""
        colour, shape, kinds, *digits, mask = self.seen(features).float().split(self.sizes, -1)
        patches = batch["patches"][batch["scene"]]  # [P, N]
        table = batch["objects"][batch["scene"]]  # [P, objects, columns]
        labels = table.gather(1, patches[..., None].expand(-1, -1, table.shape[-1]))  # [P, N, columns]
        inside = patches > 0
        balance = torch.where(inside, 1.0, 0.3)
        names = torch.stack([torch.where(inside, labels[..., k] + 1, 0) for k in (0, 1)])
        loss = torch.stack([_cross(colour, names[0]), _cross(shape, names[1])]).mean(0)
        loss = (loss * balance).sum() / balance.sum()
        kinds_loss = F.binary_cross_entropy_with_logits(kinds[inside], labels[inside][:, 2:-4].float())
        where = [_cross(d[inside], labels[inside][:, k - 4]).mean() for k, d in enumerate(digits)]
        mask_loss = F.binary_cross_entropy_with_logits(mask[..., 0], batch["masks"])
        right = [
            (logits.argmax(-1) == wanted)[inside].float().mean()
            for logits, wanted in ((colour, names[0]), (shape, names[1]))
        ]
        measured = {"colour": right[0], "shape": right[1], "kinds": kinds_loss, "where": torch.stack(where).mean()}
        total = 2 * loss + 2 * kinds_loss + torch.stack(where).mean() + mask_loss
        return total, {name: float(value.detach()) for name, value in measured.items()}

    def told_loss(
        self, features: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Of the language model's image tokens, `features` [Q, N, width]."""
        logits = self.told(features).float()
        shares, clicks = batch["shares"], batch["clicks"]
        part = F.binary_cross_entropy_with_logits(logits[..., :3].transpose(1, 2), shares, reduction="none").mean(
            (0, 2)
        )
        target = shares[:, 0] / shares[:, 0].sum(1, keepdim=True).clamp_min(1e-6)  # 0 where the object is not there
        named = _cross(logits[..., 0], target).mean()
        where = clicks >= 0
        number = where.sum().clamp_min(1)  # a batch may hold no click: of stops, or of outlines that begin anywhere
        clicked = F.cross_entropy(logits[..., 3], clicks, ignore_index=-1, reduction="sum") / number
        hit = (logits[where, :, 3].argmax(1) == clicks[where]).sum() / number
        on = (shares[:, 0].gather(1, logits[..., 0].argmax(1)[:, None]) > 0.3).float().mean()
        measured = {"named": named, "click_patch": hit, "named_patch": on}
        total = named + clicked + 2 * part.sum()
        if "fine" in batch:  # the object's outline, within each patch
            drawn = F.binary_cross_entropy_with_logits(logits[..., 4:], batch["fine"], reduction="none").mean(-1)
            balance = torch.where(shares[:, 0] > 0, 1.0, 0.1)
            measured["fine"] = (drawn * balance).sum() / balance.sum()
            total = total + 4 * measured["fine"]
        return total, {name: float(value.detach()) for name, value in measured.items()}


def _cross(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the last axis, for each item; `labels` are classes, or shares that add up to one."""
    if labels.is_floating_point():
        return -(labels * logits.log_softmax(-1)).sum(-1)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


class Collator:
    """Batches of lessons as tensors: the model's inputs, labels and weights on the replies alone, patch labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.places = (processor.image_processor.size["height"] // processor.patch_size) ** 2
        self.asked = lru_cache(maxsize=4096)(self._asked)

    def _asked(self, instruction: str) -> list[int]:
        text = chat(self.processor, instruction)[0].replace(tiny.IMAGE, tiny.IMAGE * self.places)
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _written(self, reply: str) -> tuple[list[int], list[float]]:
        """Tokens of the reply with its end, and their weights."""
        words = self.processor.tokenizer
        ids = words(reply + words.eos_token, add_special_tokens=False)["input_ids"]
        pieces = words.convert_ids_to_tokens(ids)
        weights = [1.0] * len(ids)
        for k in range(1, len(ids)):
            if pieces[k][0] in ",)]" and pieces[k - 1].isdigit():
                weights[k - 1] = UNITS_WEIGHT
        return ids, weights

    def __call__(self, lessons: Sequence[ClickExample]) -> dict[str, torch.Tensor]:
        questions: list[Question] = []
        which: list[int] = []
        start = 0
        for lesson in lessons:
            questions += lesson.questions
            which += [start + question.picture for question in lesson.questions]
            start += len(lesson.pictures)
        batch = {
            "pictures": torch.from_numpy(np.concatenate([lesson.pictures for lesson in lessons])),
            "masks": torch.from_numpy(np.concatenate([lesson.masks for lesson in lessons])),
            "scene": torch.tensor([k for k, lesson in enumerate(lessons) for _ in lesson.pictures]),
            "patches": torch.from_numpy(np.stack([lesson.patches for lesson in lessons])),
            "objects": torch.from_numpy(np.stack([lesson.objects for lesson in lessons])),
        }
        if not questions:
            return batch
        batch["which"] = torch.tensor(which)
        batch["shares"] = torch.from_numpy(np.stack([question.shares for question in questions]))
        batch["clicks"] = torch.tensor([question.click for question in questions])
        if fine := [question.fine for question in questions if question.fine is not None]:
            batch["fine"] = torch.from_numpy(np.stack(fine))
        return batch | self._texts([(question.instruction, question.reply) for question in questions])

    def _texts(self, pairs: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
        """Padded on the left, so that replies end the rows."""
        rows = [(self.asked(instruction), *self._written(reply)) for instruction, reply in pairs]
        longest = max(len(asked) + len(ids) for asked, ids, _ in rows)
        ids = torch.full((len(rows), longest), self.processor.tokenizer.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        weights = torch.zeros(ids.shape)
        attention = torch.zeros_like(ids)
        for k, (asked, written, weight) in enumerate(rows):
            ids[k, longest - len(asked) - len(written) :] = torch.tensor(asked + written)
            attention[k, longest - len(asked) - len(written) :] = 1
            labels[k, -len(written) :] = torch.tensor(written)
            weights[k, -len(written) :] = torch.tensor(weight)
        return {"ids": ids, "labels": labels, "weights": weights, "attention": attention}


def pixels(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [P, S, S, 3] as the processor gives them to the model, float32 [P, 3, S, S] in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def encode_images(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """The vision tower's features [P, N, width] of uint8 pictures, as the projector takes them."""
    return model.model.vision_tower(pixels(pictures), output_hidden_states=True).hidden_states[-1]


def forward_text(
    model: Any, features: torch.Tensor, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reply logits [Q, longest reply, vocabulary], and the image tokens [Q, N, width] before the last layer; a picture
    is looked at once, however many questions are asked about it."""
    ids = batch["ids"]
    image = ids == model.config.image_token_index
    seen = model.model.multi_modal_projector(features)[batch["which"]]
    embedded = model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter(image[..., None], seen.to(embedded.dtype))
    out = model.model.language_model(
        inputs_embeds=embedded, attention_mask=batch["attention"], output_hidden_states=True, use_cache=False
    )
    longest = int((batch["labels"] != IGNORED).sum(1).max())
    logits = model.lm_head(out.last_hidden_state[:, -longest - 1 : -1])
    tokens = out.hidden_states[-2][image].view(len(ids), -1, embedded.shape[-1])
    return logits, tokens


def reply_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted mean cross-entropy over the tokens of the replies."""
    longest = logits.shape[1]
    labels, weights = batch["labels"][:, -longest:], batch["weights"][:, -longest:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
