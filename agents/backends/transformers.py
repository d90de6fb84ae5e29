"""Image-text-to-text models through transformers: batched generation whose randomness belongs to the item, not to the
batch."""

import time
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from agents.backends.base import Backend, Reply, Size
from agents.backends.processors import Sizes, processor_of
from agents.tiny import vision_tower  # noqa: F401  # its import makes the embedded model's tower known to the Auto classes
from segenv.checkpoints import check_words, is_local, load_pretrained, reading, weights_hash

WHAT = "image-text-to-text checkpoint"
Checkpoint = str | Path | tuple[Any, Any]  # a name or folder, or a model with its processor


class TransformersBackend(Sizes, Backend):
    """A checkpoint that answers prompts about images, in this process.

    `source` is a name or folder for transformers, or a (model, processor) pair. `device` is None for a GPU where
    there is one; `dtype` is a torch name, None for the checkpoint's own on a GPU and float32 on a CPU. `sampling` go to
    `Backend`.
    """

    def __init__(
        self,
        source: Checkpoint,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 64,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 32,
        trust_remote_code: bool = False,
        **sampling: Any,
    ) -> None:
        super().__init__(max_new_tokens, image_size, **sampling)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if self.device == "cpu" else "auto")
        self.model, self.processor = load(source, dtype, trust_remote_code)
        self.model.to(self.device).eval()
        self.dtype = str(self.model.dtype).removeprefix("torch.")
        self.batch_size = batch_size
        if not isinstance(source, tuple):
            self._try(source)

    @cached_property
    def fingerprint(self) -> str:
        """128-bit hash of the weights, in hex: two checkpoints with the same one write the same."""
        return weights_hash(self.model, label="{name} {dtype} {shape}")

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes replies."""
        return {**super().settings, "dtype": self.dtype, "weights": self.fingerprint}

    @torch.inference_mode()
    def _ask(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float
    ) -> list[Reply]:
        """A reply is the same in any batch, but where the device's rounding decides a near tie."""
        replies: list[Reply] = []
        for start in range(0, len(pictures), self.batch_size):
            part = slice(start, start + self.batch_size)
            replies += self._generate(pictures[part], prompts[part], seeds[part], temperature)
        return replies

    def _generate(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float
    ) -> list[Reply]:
        began = time.perf_counter()
        chats = [chat(self.processor, prompt)[0] for prompt in prompts]
        inputs = encode(self.processor, chats, images).to(self.device, self.model.dtype)
        recorder = LogProbabilities()  # comes first: the model's own distribution
        sample = self._sampler(seeds, temperature)
        processors = LogitsProcessorList([recorder, *sample])
        written = self.model.generate(**inputs, generation_config=self._plain_greedy(), logits_processor=processors)
        ends, rows = self._ends(), written[:, inputs["input_ids"].shape[1] :].tolist()
        replies = [list(takewhile(lambda token: token not in ends, row)) for row in rows]
        asked = inputs["attention_mask"].sum(1).tolist()
        self.tokens["prompt"] += sum(asked)
        self.tokens["reply"] += sum(map(len, replies))
        taken = recorder.taken(written)
        # special tokens stay: in several families they are the grammar of points and boxes
        texts = self.processor.batch_decode(replies, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        frames, seconds = self._frames(inputs, len(images)), (time.perf_counter() - began) / len(images)
        return [
            Reply(
                text,
                finish_reason="stop" if len(ids) < len(row) else "length",
                prompt_tokens=before,
                tokens=len(ids),
                seconds=seconds,
                sent=(image.shape[1], image.shape[0]),
                frame=frame,
                log_probability=sum(chances[: len(ids) + 1]),
            )
            for text, ids, row, before, image, frame, chances in zip(
                texts, replies, rows, asked, images, frames, taken, strict=True
            )
        ]

    def _frames(self, inputs: Any, count: int) -> Sequence[Size | None]:
        """The size at which the model sees each of `count` images, as far as its inputs tell."""
        if "image_grid_thw" in inputs:
            patch = self.processor.image_processor.patch_size
            return [(columns * patch, rows * patch) for _, rows, columns in inputs["image_grid_thw"].tolist()]
        shape = tuple(getattr(inputs.get("pixel_values"), "shape", ()))
        whole = len(shape) == 4 and shape[0] == count and not self.processor.image_processor.do_center_crop
        return [(shape[3], shape[2]) if whole else None] * count

    def _sampler(self, seeds: Sequence[int], temperature: float) -> list[LogitsProcessor]:
        """Settings that sample tokens; nothing where replies are greedy."""
        top_k, top_p, own = 0, self.top_p, self.model.generation_config
        if self.own_sampling:
            temperature = (1.0 if own.temperature is None else own.temperature) if own.do_sample else 0.0
            top_k, top_p = (50 if own.top_k is None else own.top_k), (1.0 if own.top_p is None else own.top_p)
        return [SeededSample(seeds, temperature, self.max_new_tokens, top_p, top_k)] if temperature else []

    def _try(self, source: str | Path) -> None:
        """Raise `CheckpointError` where the model cannot answer: settings that loading does not need may be wrong."""
        length, self.max_new_tokens = self.max_new_tokens, 1
        with reading(source, WHAT):
            self.generate([np.full((64, 64, 3), 127, np.uint8)], ["mask"], [0])
            if not np.isfinite(self.replies[0].log_probability or 0.0):
                raise ValueError("its answer has a probability that is no number")
        self.max_new_tokens, self.seconds, self.replies = length, 0.0, []
        self.tokens = {"prompt": 0, "reply": 0}

    def _plain_greedy(self) -> GenerationConfig:
        """A greedy configuration, whatever the checkpoint suggests; `SeededSample` makes it sample."""
        ends = self._ends()
        pad = self.processor.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=ends,
            pad_token_id=ends[0] if pad is None else pad,
        )

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        ends = self.processor.tokenizer.eos_token_id if ends is None else ends
        return [ends] if isinstance(ends, int) else list(ends)


class LogProbabilities(LogitsProcessor):
    """Records the log-probability of each token that is taken, and changes no score."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []  # of each token but the last: [rows, 1]
        self.scores: torch.Tensor | None = None  # of the next one: [rows, vocabulary]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` are float [rows, vocabulary]."""
        self._take(input_ids)
        self.scores = scores.float().log_softmax(-1)
        return scores

    def taken(self, written: torch.Tensor) -> list[list[float]]:
        """Log-probabilities of each row's new tokens, padding included; `written` is `generate`'s, [rows, tokens]."""
        self._take(written)
        return torch.cat(self.steps, 1).tolist()

    def _take(self, ids: torch.Tensor) -> None:
        if self.scores is not None:
            self.steps.append(self.scores.gather(1, ids[:, -1:]))


class SeededSample(LogitsProcessor):
    """Gives the highest score to a sample of softmax(scores / temperature) that the row's seed alone decides.

    A row takes the token at which its cumulative distribution passes a uniform number; its seed gives one number a
    token, for `length` tokens. One number a token costs less than Gumbel noise for all of the vocabulary. Of the
    likeliest tokens alone, those count that are among the first `top_k` (0: all), and without which the others have
    less than `top_p` together.
    """

    def __init__(
        self, seeds: Sequence[int], temperature: float, length: int, top_p: float = 1.0, top_k: int = 0
    ) -> None:
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        rows = [torch.rand(length, generator=generator) for generator in generators]
        self.numbers = iter(1 - torch.stack(rows, dim=1)[..., None])  # of a token: [rows, 1], above 0 and at most 1
        self.temperature = temperature
        self.warpers: list[LogitsProcessor] = [TopKLogitsWarper(top_k)] if top_k else []
        self.warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` are float [rows, vocabulary]."""
        scores = scores / self.temperature
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        shares = scores.softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(shares, next(self.numbers).to(scores.device) * shares[:, -1:])
        return torch.zeros_like(scores).scatter_(1, chosen, 1.0)


def load(source: Checkpoint, dtype: str = "auto", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The model and processor of a name or folder, or the pair itself; CheckpointError where there is none that is
    whole."""
    if isinstance(source, tuple):
        return source
    model = load_pretrained(AutoModelForImageTextToText, source, WHAT, dtype=dtype, trust_remote_code=trust_remote_code)
    with reading(source, WHAT):
        processor = processor_of(source, model.config, trust_remote_code)
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        _check(model, processor)
    return model, processor


def stored_dtype(source: str | Path) -> torch.dtype | None:
    """The type in which a checkpoint's weights are stored, as its configuration says."""
    with reading(source, WHAT):
        stored = AutoConfig.from_pretrained(source, local_files_only=is_local(source)).dtype
    return getattr(torch, stored) if isinstance(stored, str) else stored


def _check(model: Any, processor: Any) -> None:
    """Raise ValueError where the processor cannot ask about a picture, makes what is no input of the model, or the
    `segenv` entry of the configuration declares what no agent can do."""
    check_words(processor.tokenizer)
    inputs = encode(processor, [chat(processor, "mask")[0]], [np.full((64, 64, 3), 127, np.uint8)])
    if bad := [name for name, one in inputs.items() if torch.is_floating_point(one) and not one.isfinite().all()]:
        raise ValueError(f"the processor makes {bad[0]} of a picture that is not finite; see image_mean and image_std")
    ids, config = inputs["input_ids"].unique().tolist(), model.config
    image = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if image is not None and image not in ids:
        raise ValueError(
            f"the image is token {image} in config.json, and the processor writes none in a prompt with one"
        )
    rows = model.get_input_embeddings().num_embeddings
    if (top := max(one for one in ids if one != image)) >= rows:
        raise ValueError(f"the tokenizer writes token {top}, and the model has {rows}: it is of another model")
    declared = getattr(config, "segenv", None) or {}
    if not isinstance(declared, dict):
        raise ValueError(f"segenv in config.json is {declared!r}; expected an object with names")
    sides = declared.get("image_size")
    for name, value, limit in (
        *(
            ("image_size", side, 1 << 14)
            for side in (sides if isinstance(sides, list) and len(sides) == 2 else [sides])
        ),
        ("max_new_tokens", declared.get("max_new_tokens"), 1 << 20),
    ):
        if value is not None and (type(value) is not int or not 0 < value <= limit):
            raise ValueError(f"segenv.{name} in config.json is {value!r}; expected a number in 1..{limit}")
    for name in ("codec", "prompt"):
        if not isinstance(declared.get(name, ""), str):
            raise ValueError(f"segenv.{name} in config.json is {declared[name]!r}; expected a name")


def chat(processor: Any, prompt: str, reply: str | None = None) -> tuple[str, str]:
    """The text up to the assistant's turn in the checkpoint's own chat template, and a model's text of `reply`."""
    for name in ("image_token", "video_token"):  # one placeholder, for the one image
        prompt = prompt.replace(getattr(processor, name, None) or "<image>", " ")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    before = processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    if reply is None:
        return before, ""
    answer = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
    whole = processor.apply_chat_template([question, answer], tokenize=False)
    end = processor.tokenizer.eos_token
    after = whole[len(before) :] if whole.startswith(before) else reply + end
    if end not in after:  # LLaVA-1.5's template ends no turn
        after = after.rstrip() + end
    return before, after[: after.index(end) + len(end)]


def encode(processor: Any, texts: Sequence[str], images: Sequence[np.ndarray]) -> Any:
    """The model's inputs for chat texts with one image (uint8 [H, W, 3]) each, padded on the left to the longest."""
    start = processor.tokenizer.bos_token  # many templates write it themselves
    return processor(
        text=list(texts),
        images=[[Image.fromarray(image)] for image in images],
        padding=True,
        padding_side="left",
        add_special_tokens=start is None or not texts[0].startswith(start),
        return_tensors="pt",
    )
