"""Supervised fine-tuning of a checkpoint on questions about pictures, with TRL's `SFTTrainer`; the loss is on the
replies alone."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import yaml
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers.trainer_callback import ProgressCallback
from trl import SFTConfig, SFTTrainer

from agents.backends.transformers import chat, encode, resized
from agents.training.checkpoints import (
    ResumesWhole,
    adapters,
    check_training_id,
    identity,
    last_state,
    load_base,
    stored_in_bfloat16,
    write_json,
)
from segenv.tools.sam import no_loading_bars

SUMMARY = "sft.json"


class SFTExample(TypedDict):
    """One example: `image` uint8 [H, W, 3] (what `MllmAgent.picture` gives), the prompt, and the reply to learn."""

    image: np.ndarray
    prompt: str
    reply: str


@dataclass(frozen=True)
class SFTOptions:
    """How to train. `steps` (of the optimiser) wins over `epochs`; a step sees `batch_size` rows, `micro_batch_size`
    of them at a time (0: all).

    `lora` is the rank of adapters on every linear layer, which are merged into the weights at the end; 0 trains all
    weights. `bf16` computes in bfloat16; what is trained, adapters or all weights, is kept in float32, and written in
    bfloat16 where the base is stored so. `save_steps` is how often the state is written from which an interrupted
    training goes on.
    """

    steps: int = 0
    epochs: float = 1.0
    batch_size: int = 32
    micro_batch_size: int = 0
    learning_rate: float = 1e-3
    warmup: float = 0.05  # part of all steps over which the learning rate rises; afterwards it falls as a cosine
    weight_decay: float = 0.0
    seed: int = 0
    lora: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: int = 500
    log_steps: int = 10
    extra: tuple[tuple[str, str], ...] = ()  # more fields of TRL's SFTConfig and their values, as YAML


def finetune(
    base: str | Path | None,
    rows: Sequence[SFTExample],
    out: Path | str,
    options: SFTOptions = SFTOptions(),  # noqa: B008  # frozen
    declare: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the checkpoint `base` (None: the untrained tiny model of `options.seed`) on `rows`, and write it into the
    new folder `out`.

    `rows` may be lazy: a row is asked for when its batch is made. `declare` adds to the `segenv` entry of the
    configuration, which tells agents how the checkpoint is spoken to ("codec", "prompt", "image_size"). Called again
    after a kill, it goes on from the last state in `OUT.training` and ends with the weights of an uninterrupted run;
    called again after the end, it returns at once. Returns what it writes into `out/sft.json`: steps, rows, seconds,
    samples_per_second, `loss` (mean of the last logged steps) and `log` ([step, loss] pairs). Raises ValueError for
    no rows, and FileExistsError where `out` or its state comes from another base or other options.
    """
    out, state = Path(out), Path(f"{out}.training")
    plan = {"base": identity(base), "rows": len(rows), "declare": dict(declare or {}), **asdict(options)}
    plan = json.loads(json.dumps(plan))  # as it will be read
    if not len(rows):
        raise ValueError("there are no rows to train on; give at least one")
    if out.exists():
        summary = check_training_id(out / SUMMARY, plan)
        shutil.rmtree(state, ignore_errors=True)  # of a kill between the last two steps
        return summary
    if (state / SUMMARY).exists():
        check_training_id(state / SUMMARY, plan)
    state.mkdir(parents=True, exist_ok=True)
    write_json(state / SUMMARY, {"plan": plan})

    began = time.perf_counter()
    model, processor = load_base(base, options.seed, bool(options.bf16 and options.lora))
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")  # on a CPU, fused attention is the slower one backwards
    declared = {**(getattr(model.config, "segenv", None) or {}), **(declare or {})}
    collate = ReplyCollator(processor, rows, declared.get("image_size"))
    trainer = ReplyTrainer(
        model=model,
        args=_arguments(state, options),
        train_dataset=Dataset.from_dict({"row": list(range(len(rows)))}),  # places in `rows`; the collator fetches them
        data_collator=collate,
        processing_class=processor,
        peft_config=adapters(options.lora),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar)
    last = last_state(state)
    with no_loading_bars():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trained: Any = trainer.model
    trained = trained.merge_and_unload() if options.lora else trained
    trained = trained.to(torch.bfloat16) if options.bf16 and stored_in_bfloat16(base) else trained
    trained.config.segenv = declared
    summary = _finish(trained, processor, trainer.state, plan, time.perf_counter() - began, out, state)
    del model, trained, trainer
    gc.collect()  # the trainer refers to itself: until it is collected, a large model keeps its place on the device
    return summary


class LossBar(ProgressCallback):
    """The trainer's progress bar, with the loss in it in place of a line for each log entry."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar; where no person watches, it is drawn every ten seconds."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and not sys.stderr.isatty():
            self.training_bar.mininterval = 10.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the loss."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)


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
    """Left-padded batches of the model's inputs for the rows that `examples` name, with labels on what the model
    itself has to write."""

    def __init__(
        self, processor: Any, rows: Sequence[SFTExample], image_size: int | Sequence[int] | None = None
    ) -> None:
        self.processor, self.rows, self.image_size = processor, rows, image_size

    def __call__(self, examples: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        rows = [self.rows[example["row"]] for example in examples]
        asked, written = zip(*(chat(self.processor, row["prompt"], row["reply"]) for row in rows), strict=True)
        images = [resized(row["image"], self.image_size) for row in rows]
        inputs = encode(self.processor, [a + w for a, w in zip(asked, written, strict=True)], images)
        ids = inputs["input_ids"]
        labels = torch.full_like(ids, -100)
        tails = self.processor.tokenizer(list(written), add_special_tokens=False)["input_ids"]
        for i, tail in enumerate(tails):
            if ids[i, -len(tail) :].tolist() != tail:
                raise ValueError(
                    f"the tokens of the reply {written[i]!r} are others after its prompt than alone, so the loss "
                    "cannot be put on the reply; use a chat template that ends the prompt with a special token"
                )
            labels[i, -len(tail) :] = ids[i, -len(tail) :]
        return {**inputs, "labels": labels}


def _arguments(state: Path, options: SFTOptions) -> SFTConfig:
    micro = options.micro_batch_size or options.batch_size
    if options.batch_size % micro:
        raise ValueError(f"batch_size {options.batch_size} is no multiple of micro_batch_size {micro}")
    gpu = torch.cuda.is_available()
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)  # by TRL, peft
    chosen: dict[str, Any] = dict(
        output_dir=str(state),
        max_steps=options.steps or -1,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=options.batch_size // micro,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,  # below 1: a part of all steps
        weight_decay=options.weight_decay,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not gpu,
        gradient_checkpointing=options.gradient_checkpointing,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,  # while the newest is being written, the one before it is complete
        logging_steps=options.log_steps,
        report_to="none",
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=gpu,
    )
    given = {name: yaml.safe_load(value) for name, value in options.extra}
    if unknown := sorted(set(given) - {item.name for item in fields(SFTConfig)}):
        raise ValueError(f"TRL's SFTConfig has no field {', '.join(unknown)}; see its documentation for those it has")
    arguments = SFTConfig(**{**chosen, **given})
    arguments._n_gpu = min(arguments.n_gpu, 1)  # on several, the trainer would multiply the batch by their number
    return arguments


def _finish(
    model: Any, processor: Any, progress: Any, plan: dict[str, Any], seconds: float, out: Path, state: Path
) -> dict[str, Any]:
    """Write the checkpoint beside `out`, and move it there in one step: a folder `out` is always complete."""
    log = [[entry["step"], entry["loss"]] for entry in progress.log_history if "loss" in entry]
    runtime = next((entry["train_runtime"] for entry in progress.log_history if "train_runtime" in entry), seconds)
    summary = {
        "plan": plan,
        "steps": progress.global_step,
        "rows": plan["rows"],
        "seconds": round(seconds, 3),
        "samples_per_second": round(progress.global_step * plan["batch_size"] / runtime, 2),
        "loss": log[-1][1] if log else None,
        "log": log,
    }
    written = state / "model"
    with no_loading_bars():
        model.save_pretrained(written)
    processor.save_pretrained(written)
    write_json(written / SUMMARY, summary)
    os.replace(written, out)
    shutil.rmtree(state)
    return summary
