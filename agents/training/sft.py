"""Supervised fine-tuning of a checkpoint on questions about pictures, with TRL's `SFTTrainer`; the loss is on the
replies alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from trl import SFTConfig, SFTTrainer

from agents.backends.transformers import chat, encode
from agents.training.checkpoints import ResumesWhole, Training, adapters, trl_arguments
from agents.training.options import SFTOptions
from segenv import render

SUMMARY = "sft.json"
CPU_ROWS = 4  # at a time on a CPU, at most: activations of more fall out of its caches


class SFTExample(TypedDict):
    """A training example: `image` uint8 [H, W, 3] as `MllmAgent.picture` gives it, the prompt, and the reply."""

    image: np.ndarray
    prompt: str
    reply: str


def finetune(
    base: str | Path | None,
    rows: Sequence[SFTExample],
    out: Path | str,
    options: SFTOptions = SFTOptions(),  # noqa: B008  # frozen
    declare: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the checkpoint `base` (None: the untrained tiny model of `options.seed`) on `rows`, and write it into the
    new folder `out`.

    `rows` may be lazy: a row is read when its batch is made. `declare` adds to the `segenv` entry of the configuration,
    which tells agents how to prompt the checkpoint ("codec", "prompt", "image_size"). Called again after a kill, it
    resumes from the last state in `OUT.training` and ends with the weights of an uninterrupted run; called again after
    the end, it returns at once. Returns the content of `out/sft.json`: steps, rows, seconds, samples_per_second, `loss`
    (mean of the last logged steps) and `log` ([step, loss] pairs). Raises ValueError for no rows, and FileExistsError
    where `out` or its state comes from another base or other options.
    """
    training = Training(base, rows, out, options, declare, SUMMARY)

    def make_trainer(model: Any, processor: Any, image_size: int | Sequence[int] | None) -> SFTTrainer:
        return ReplyTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"row": list(range(len(rows)))}),  # indices; the collator fetches the rows
            data_collator=ReplyCollator(processor, rows, image_size),
            processing_class=processor,
            peft_config=adapters(options.lora),
        )

    def summarise(progress: Any, seconds: float) -> dict[str, Any]:
        log = [[entry["step"], entry["loss"]] for entry in progress.log_history if "loss" in entry]
        runtime = next((entry["train_runtime"] for entry in progress.log_history if "train_runtime" in entry), seconds)
        return {
            "steps": progress.global_step,
            "rows": len(rows),
            "seconds": round(seconds, 3),
            "samples_per_second": round(progress.global_step * options.batch_size / runtime, 2),
            "loss": log[-1][1] if log else None,
            "log": log,
        }

    arguments = _arguments(training.state, options)
    return training.run(arguments, make_trainer, "loss", summarise)


class ReplyTrainer(ResumesWhole, SFTTrainer):
    """`SFTTrainer` that makes logits of the replies alone: most of a batch is prompt and image, which carry no loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean cross-entropy over the reply tokens of the whole step (`num_items_in_batch` of them)."""
        labels = inputs.pop("labels")[:, 1:]
        longest = int((labels != -100).sum(1).max())  # replies end the left-padded rows
        outputs = model(**inputs, use_cache=False, logits_to_keep=longest + 1)
        logits = outputs.logits[:, :-1].float()  # [rows, longest, vocabulary]
        labels = labels[:, -longest:]
        total = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        loss = total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class ReplyCollator:
    """Left-padded inputs for the rows that `examples` name, with labels on the replies' tokens."""

    def __init__(self, processor: Any, rows: Sequence[SFTExample], image_size: Any = None) -> None:
        self.processor, self.rows, self.image_size = processor, rows, image_size

    def __call__(self, examples: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        rows = [self.rows[example["row"]] for example in examples]
        prompts, replies = zip(*(chat(self.processor, row["prompt"], row["reply"]) for row in rows), strict=True)
        images = [render.resized(row["image"], self.image_size) for row in rows]
        texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        inputs = encode(self.processor, texts, images)
        ids = inputs["input_ids"]
        labels = torch.full_like(ids, -100)
        tails = self.processor.tokenizer(list(replies), add_special_tokens=False)["input_ids"]
        for i, tail in enumerate(tails):
            if ids[i, -len(tail) :].tolist() != tail:
                raise ValueError(
                    f"the tokens of the reply {replies[i]!r} are others after its prompt than alone, so the loss "
                    "cannot be put on the reply; use a chat template that ends the prompt with a special token"
                )
            labels[i, -len(tail) :] = ids[i, -len(tail) :]
        return {**inputs, "labels": labels}


def check_options(options: SFTOptions) -> None:
    """Raise ValueError for options, or fields of TRL's, that no training can have."""
    _arguments(Path("unwritten"), options)


def _arguments(state: Path, options: SFTOptions) -> SFTConfig:
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # of accelerate; the batch is shared out among them
    whole = max(1, options.batch_size // processes)
    usual = whole if torch.cuda.is_available() else max(k for k in range(1, CPU_ROWS + 1) if whole % k == 0)
    micro = options.micro_batch_size or usual
    if options.batch_size % (micro * processes):
        parts = f"micro_batch_size {micro}" + f" on {processes} devices" * (processes > 1)
        raise ValueError(f"batch_size {options.batch_size} is no multiple of {parts}")
    return trl_arguments(
        SFTConfig,
        state,
        options,
        max_steps=options.steps or -1,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=options.batch_size // (micro * processes),
        lr_scheduler_type="cosine",
        weight_decay=options.weight_decay,
        save_steps=options.save_steps,
        logging_steps=options.log_steps,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
