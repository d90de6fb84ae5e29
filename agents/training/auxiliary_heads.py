"""Auxiliary heads of the tiny model, dropped after the training: dense supervision of its patches.

From the vision tower's features: the colour and shape of the object in a patch, the kinds of sentence that pick it out,
the place of its first click, the mask's share, which squares of the patch the object and the mask cover, and the
digits of a vertex in the patch, or of its middle. From the language model's image tokens, which follow the instruction:
whether the patch belongs to the named object, how much of it is missing or wrong, where to click, which squares of the
patch the object covers, and the digits of the place in it that the reply names, or of its middle. From its few reply
tokens alone, a model of this size learns to ground words only after a long plateau.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from agents import tiny
from agents.backends.transformers import chat
from agents.training.click_examples import COLOUR_NAMES, SHAPE_NAMES, ClickExample, Question
from agents.training.patch_labels import FINE
from segenv.data.synthetic.scenes import KINDS

IGNORED = -100
ROWS, CACHED = 8, 8 * 384**2  # rows and products of attention that a CPU takes at a time: more fall out of its caches
GROUNDING_LAYERS = 3  # before the heads on image tokens, at most; one layer at least comes after, and reads the tokens
PLACE = 1 + 4 * 10  # whether a patch holds a place that the reply names, and its four digits
LOOK_WEIGHT = 1.0
UNITS_WEIGHT = 0.1  # of a coordinate's last digit, which is noise to a model of this size


class Heads(nn.Module):
    """Linear heads on patches, [..., width] in and logits out. `seen` and `told` name weights in states on disk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = [len(COLOUR_NAMES) + 1, len(SHAPE_NAMES) + 1, len(KINDS)]
        self.sizes = [*names, 10, 10, 10, 10, 1, FINE**2, FINE**2, PLACE]
        self.seen = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))
        self.told = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 + FINE**2 + PLACE))

    def vision_loss(
        self, features: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss on the vision tower's `features` [P, N, width], and its parts by name."""
        parts = self.seen(features).float().split(self.sizes, -1)
        colour, shape, kinds, *digits, mask, layout, drawn, vertices = parts
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
        mask_loss = F.binary_cross_entropy_with_logits(mask[..., 0], batch["masks"].mean(-1))
        squares = _squares_loss(layout, batch["layout"][batch["scene"]]) + _squares_loss(drawn, batch["masks"])
        corner, corner_digits = _places_loss(vertices, batch["vertices"][batch["scene"]])
        pairs = ((colour, names[0]), (shape, names[1]))
        right = [(logits.argmax(-1) == name)[inside].float().mean() for logits, name in pairs]
        metrics = {"colour": right[0], "shape": right[1], "kinds": kinds_loss, "where": torch.stack(where).mean()}
        metrics |= {"squares": squares, "corner": corner, "corner_digits": corner_digits}
        total = 2 * loss + 2 * kinds_loss + torch.stack(where).mean() + mask_loss + 2 * squares
        total = total + 2 * corner + 2 * corner_digits
        return total, {name: float(value.detach()) for name, value in metrics.items()}

    def grounding_loss(
        self, features: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss on the language model's image tokens, `features` [Q, N, width], and its parts by name."""
        logits = self.told(features).float()
        shares, clicks = batch["shares"], batch["clicks"]
        part = F.binary_cross_entropy_with_logits(logits[..., :3].transpose(1, 2), shares, reduction="none")
        target = shares[:, 0] / shares[:, 0].sum(1, keepdim=True).clamp_min(1e-6)  # 0 where the object is not there
        named = _cross(logits[..., 0], target).mean()
        where = clicks >= 0
        number = where.sum().clamp_min(1)  # a batch may hold no click: of stops, or of polygons that start anywhere
        clicked = F.cross_entropy(logits[..., 3], clicks, ignore_index=-1, reduction="sum") / number
        hit = (logits[where, :, 3].argmax(1) == clicks[where]).sum() / number
        on = (shares[:, 0].gather(1, logits[..., 0].argmax(1)[:, None]) > 0.3).float().mean()
        squares, rest = logits[..., 4:].split([FINE**2, PLACE], -1)
        fine = F.binary_cross_entropy_with_logits(squares, batch["fine"], reduction="none").mean(-1)
        balance = torch.where(shares[:, 0] > 0, 1.0, 0.1)
        fine = (fine * balance).sum() / balance.sum()  # the object's mask within each patch
        held, digits = _places_loss(rest, batch["places"])
        metrics = {"named": named, "click_patch": hit, "named_patch": on, "fine": fine, "digits": digits}
        total = named + clicked + 2 * part.mean((0, 2)).sum() + 4 * fine + 2 * held + 2 * digits
        return total, {name: float(value.detach()) for name, value in metrics.items()}


def _squares_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Loss on which squares of a patch something covers, [..., FINE²]; patches that it covers wholly or not at all, as
    most, count a tenth."""
    part = shares.mean(-1)
    balance = torch.where((part > 0.02) & (part < 0.98), 1.0, 0.1)
    loss = F.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(-1)
    return (loss * balance).sum() / balance.sum()


def _places_loss(logits: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses on which patches hold a place that is to be told (the reply's, or an outline's vertex), and on the digits
    of that place, or of the patch's middle; `logits` are [Q, N, PLACE], `places` [Q, N, 5]. Unless it is asked, a patch
    forgets where it is."""
    there = places[..., 0].bool()
    holds = F.binary_cross_entropy_with_logits(logits[..., 0], there.float(), reduction="none")
    digits = _cross(logits[..., 1:].unflatten(-1, (4, 10)), places[..., 1:]).mean(-1)
    balance = torch.where(there, 1.0, 0.1)
    return (holds * balance).sum() / balance.sum(), (digits * balance).sum() / balance.sum()


def _cross(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the last axis, for each item; `labels` are classes, or shares that add up to one."""
    if labels.is_floating_point():
        return -(labels * logits.log_softmax(-1)).sum(-1)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


class Collator:
    """Batches of training examples: the model's inputs, labels and weights of replies, patch labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_tokens = (processor.image_processor.size["height"] // processor.patch_size) ** 2
        vocabulary = processor.tokenizer.get_vocab()
        self.digits = frozenset(vocabulary[character] for character in "0123456789.")
        self.line = processor.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
        self.prompt_ids = lru_cache(maxsize=4096)(self._prompt_ids)

    def _prompt_ids(self, instruction: str) -> list[int]:
        text = chat(self.processor, instruction)[0].replace(tiny.IMAGE, tiny.IMAGE * self.image_tokens)
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _reply_ids(self, reply: str) -> tuple[list[int], list[float]]:
        """Tokens of the reply with its end, and their weights in the loss."""
        words = self.processor.tokenizer
        ids = words(reply + words.eos_token, add_special_tokens=False)["input_ids"]
        pieces = words.convert_ids_to_tokens(ids)
        weights = [1.0] * len(ids)
        for k in range(1, len(ids)):
            if pieces[k][0] in ",)]" and pieces[k - 1].isdigit():
                weights[k - 1] = UNITS_WEIGHT
        return ids, weights

    def __call__(self, examples: Sequence[ClickExample]) -> dict[str, torch.Tensor]:
        batch = {
            "pictures": torch.from_numpy(np.concatenate([example.pictures for example in examples])),
            "masks": torch.from_numpy(np.concatenate([example.masks for example in examples])),
            "scene": torch.tensor([k for k, example in enumerate(examples) for _ in example.pictures]),
            "patches": torch.from_numpy(np.stack([example.patches for example in examples])),
            "layout": torch.from_numpy(np.stack([example.layout for example in examples])),
            "vertices": torch.from_numpy(np.stack([example.vertices for example in examples])),
            "objects": torch.from_numpy(np.stack([example.objects for example in examples])),
        }
        asked: list[tuple[Question, int]] = []  # with its picture, as an index into the batch's
        start = 0
        for example in examples:
            asked += [(question, start + question.picture) for question in example.questions]
            start += len(example.pictures)
        if not asked:
            return batch
        texts = [self._text(question) for question, _ in asked]
        order = sorted(range(len(asked)), key=lambda k: len(texts[k][0]))
        questions = [asked[k][0] for k in order]
        batch["which"] = torch.tensor([asked[k][1] for k in order])
        batch["shares"] = torch.from_numpy(np.stack([question.shares for question in questions]))
        batch["clicks"] = torch.tensor([question.click for question in questions])
        batch["fine"] = torch.from_numpy(np.stack([question.fine for question in questions]))
        batch["places"] = torch.from_numpy(np.stack([question.places for question in questions]))
        if any(question.looks for question in questions):
            batch["looks"] = self._looks(questions, [texts[k][0].tolist() for k in order])
        columns = zip(*(texts[k] for k in order), strict=True)
        padded = (nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in columns)
        ids, labels, weights, attention = padded
        labels = labels.masked_fill(weights == 0, IGNORED)
        return batch | {"ids": ids, "labels": labels, "weights": weights, "attention": attention}

    def _looks(self, questions: Sequence[Question], texts: Sequence[list[int]]) -> torch.Tensor:
        """The image token to look at from each token [Q, T], -1 where from none: while a place is written, that of the
        place. The first begins with its line, others with their first number; each ends with what follows its second.
        """
        looks = torch.full((len(texts), max(map(len, texts))), -1)
        for row, (question, tokens) in enumerate(zip(questions, texts, strict=True)):
            if question.looks:
                numbers = runs(tokens, self.digits)[-2 * len(question.looks) :]
                lines = [k for k in range(numbers[0][0]) if tokens[k] == self.line]
                starts = [lines[-1] if lines else numbers[0][0] - 1, *(first - 1 for first, _ in numbers[2::2])]
                for patch, start, (_, stop) in zip(question.looks, starts, numbers[1::2], strict=True):
                    looks[row, start:stop] = patch
        return looks

    def _text(self, question: Question) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens of the prompt and the reply, labels and weights (of the prompt 0), and ones."""
        prompt = self.prompt_ids(question.instruction)
        reply, weights = self._reply_ids(question.reply)
        ids, nothing = torch.tensor(prompt + reply), [0] * len(prompt)
        return ids, torch.tensor(nothing + reply), torch.tensor(nothing + weights), torch.ones_like(ids)


def runs(tokens: Sequence[int], digits: Collection[int]) -> list[tuple[int, int]]:
    """Where runs of digits start and stop."""
    changes = np.flatnonzero(np.diff([False, *(token in digits for token in tokens), False]))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def pixels(pictures: torch.Tensor) -> torch.Tensor:
    """Normalise uint8 [P, S, S, 3] as the processor does: float32 [P, 3, S, S] in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def encode_images(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """The vision tower's features [P, N, width] of uint8 pictures, as the projector takes them."""
    return model.model.vision_tower(pixels(pictures), output_hidden_states=True).hidden_states[-1]


def guided_layers(model: Any) -> range:
    """The layers of the language model whose first head is taught where to look: those that come after the heads on
    image tokens, but for the last, which writes what they read; the last where there is no other."""
    layers = model.config.text_config.num_hidden_layers
    first = min(GROUNDING_LAYERS, layers - 1)
    return range(first, max(first + 1, layers - 1))


def forward_text(
    model: Any, features: torch.Tensor, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [T, vocabulary] of all T tokens of the replies, row by row, the image tokens [Q, N, width] after
    `GROUNDING_LAYERS` layers, and the attention [L, K] that the guided heads pay to the image tokens that they should
    look at (`looks` of the batch, with eager attention; [0, 0] without). Rows are of rising length, and a CPU takes
    them a few at a time, with little padding."""
    projected = model.model.multi_modal_projector(features)
    lengths, logits, tokens, attended = batch["attention"].sum(1), [], [], []
    guided = guided_layers(model)
    size = len(lengths)
    if projected.device.type == "cpu":
        size = min(ROWS, max(2, CACHED // int(lengths.max()) ** 2))
    for rows in torch.arange(len(lengths), device=lengths.device).split(size):
        longest = int(lengths[rows].max())
        ids, labels = batch["ids"][rows, :longest], batch["labels"][rows, :longest]
        image = ids == model.config.image_token_index
        embedded = model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter(image[..., None], projected[batch["which"][rows]].to(embedded.dtype))
        # no attention mask: the padding comes last, where no token before it sees it
        out = model.model.language_model(
            inputs_embeds=embedded, output_hidden_states=True, use_cache=False, output_attentions="looks" in batch
        )
        logits.append(model.lm_head(out.last_hidden_state[:, :-1][labels[:, 1:] != IGNORED]))
        if "looks" in batch:
            row, place = (batch["looks"][rows, :longest] >= 0).nonzero(as_tuple=True)
            there = image.int().argmax(1)[row] + batch["looks"][rows, :longest][row, place]
            attended.append(torch.stack([out.attentions[k][row, 0, place, there] for k in guided]))
        tokens.append(out.hidden_states[guided[0]][image].view(len(ids), -1, embedded.shape[-1]))
    looks = torch.cat(attended, 1) if attended else logits[0].new_zeros(0, 0)
    return torch.cat(logits), torch.cat(tokens), looks


def look_loss(attention: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of attention to what it should look at; 0 where that is nothing."""
    return -(attention.float() + 1e-6).log().sum() / max(1, attention.numel())


def reply_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted mean cross-entropy over the tokens of the replies, whose `logits` are those of `forward_text`."""
    written = batch["labels"] != IGNORED
    weights = batch["weights"][written]
    losses = F.cross_entropy(logits.float(), batch["labels"][written], reduction="none")
    return (losses * weights).sum() / weights.sum()
