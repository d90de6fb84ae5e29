"""Group sequence policy optimisation (GSPO; Zheng et al. 2025, arXiv 2507.18071) of a checkpoint that answers questions
about pictures, with TRL's `GRPOTrainer`.

The policy draws a group of replies to each prompt, each is scored, and a reply counts by how far its reward lies from
its group's mean, in units of the group's deviation. `ALGORITHMS` says what the three have of their own:

| algorithm | ratio of new to old policy | clipped to | a reply's weight |
|---|---|---|---|
| `gspo` | of the sequence: exp of the mean token log-ratio | 1 - 3e-4 .. 1 + 4e-4 | the same for all |
| `luspo` | the same | the same | its length (length-unbiased; arXiv 2602.05261) |
| `grpo` | of each token | 0.8 .. 1.2 | the same for all (Shao et al. 2024, arXiv 2402.03300) |

The first reply batch after a generation has a ratio of one, and nothing is clipped: GSPO begins with the second update
from a batch, and a configuration that makes one only is refused.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import yaml
from datasets import Dataset
from PIL import Image
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from agents.backends.transformers import resized
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
from agents.training.sft import LossBar
from segenv import queries
from segenv.tools.sam import no_loading_bars
from segenv.types import Invalid

SUMMARY = "gspo.json"
Reward = Callable[..., list[float]]  # as TRL calls it: (completions, **columns of the rows)
PromptRow = Mapping[
    str, Any
]  # `image` uint8 [H, W, 3], `prompt`, and the columns that the reward reads, such as `target`

ALGORITHMS: dict[str, dict[str, Any]] = {
    "gspo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "luspo": {"importance_sampling_level": "sequence", "loss_type": "luspo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "grpo": {"importance_sampling_level": "token", "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2},
}


@dataclass(frozen=True)
class GSPOOptions:
    """How to train: the policy answers some questions several times each, and optimiser steps are made from parts of
    those replies."""

    algorithm: Literal["gspo", "luspo", "grpo"] = "gspo"
    """see the table of `agents.training.gspo`"""
    steps: int = 240
    """of the optimiser"""
    prompts: int = 16
    """questions that are answered before an update"""
    group: int = 8
    """replies to each of them"""
    updates: int = 4
    """optimiser steps made from those replies, each from a part of them"""
    passes: int = 1
    """how often all of these are made"""
    micro_batch_size: int = 0
    """replies at a time on one device; 0: all that it has of a step"""
    learning_rate: float = 1e-4
    """not published; this one is for the tiny model"""
    warmup: float = 0.02
    """part of all steps over which the learning rate rises; afterwards it stays"""
    temperature: float = 1.0
    """of the replies that it learns from"""
    max_tokens: int = 200
    """of a reply"""
    length_penalty: float = 0.0
    """taken off the reward of a reply of `max_tokens`, and in proportion of shorter ones"""
    beta: float = 0.0
    """weight of the divergence from the policy of the start"""
    seed: int = 0
    """of the order of questions, and of the replies"""
    lora: int = 0
    """rank of adapters on all linear layers (peft); 0 trains all weights"""
    bf16: bool = False
    """compute in bfloat16"""
    gradient_checkpointing: bool = False
    """recompute activations, for large models"""
    save_steps: int = 100
    """how often the state is written from which an interrupted training goes on; whole rounds"""
    extra: tuple[tuple[str, str], ...] = ()
    """more fields of TRL's GRPOConfig and their values, as YAML: --extra use_vllm true vllm_mode colocate"""

    @property
    def round(self) -> int:
        """Optimiser steps between two generations."""
        return self.updates * self.passes


def optimise(
    base: str | Path | None,
    rows: Sequence[PromptRow],
    reward: Reward,
    out: Path | str,
    options: GSPOOptions = GSPOOptions(),  # noqa: B008  # frozen
    declare: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train the checkpoint `base` (None: the untrained tiny model of `options.seed`) to earn `reward` on `rows`, and
    write it into the new folder `out`.

    Rows are asked for when they are answered, one after the other in an order that the seed decides; they are seen
    again once all were. `declare` and what happens after a kill are as in `agents.training.sft.finetune`. Under
    `accelerate launch` or `torchrun` every process calls it, and the first one writes. Returns what it writes into
    `out/gspo.json`: steps, processes, seconds and `log`, the trainer's measures of each round. Raises ValueError for no
    rows and for options that do not fit together, and FileExistsError where `out` or its state comes from another base
    or other options.
    """
    out, state = Path(out), Path(f"{out}.training")
    plan = {"base": identity(base), "rows": len(rows), "reward": _name(reward), "declare": dict(declare or {})}
    plan = json.loads(json.dumps({**plan, **asdict(options)}))  # as it will be read
    if not len(rows):
        raise ValueError("there are no rows to train on; give at least one")
    arguments = _arguments(state, options)
    check(arguments, options.algorithm)
    everyone = arguments.distributed_state
    if out.exists():
        if everyone.is_main_process:
            shutil.rmtree(state, ignore_errors=True)  # of a kill between the last two steps
        return check_training_id(out / SUMMARY, plan)
    if everyone.is_main_process:
        _begin(state, plan)
    everyone.wait_for_everyone()

    began = time.perf_counter()
    model, processor = start(base, options)
    declared = {**(getattr(model.config, "segenv", None) or {}), **(declare or {})}
    trainer = PolicyTrainer(
        model=model,
        reward_funcs=LengthPenalisedReward(reward, options),
        args=arguments,
        train_dataset=_schedule(rows, processor, declared.get("image_size"), options),
        processing_class=processor,
        peft_config=adapters(options.lora),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RewardProgress)
    last = last_state(state)
    with no_loading_bars():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if everyone.is_main_process:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        trained = trained.merge_and_unload() if options.lora else trained
        trained = trained.to(torch.bfloat16) if options.bf16 and stored_in_bfloat16(base) else trained
        trained.config.segenv = declared
        spent = {"processes": everyone.num_processes, "seconds": round(time.perf_counter() - began, 3)}
        _write(trained, processor, trainer.state, {"plan": plan, **spent}, out, state)
        del trained
    everyone.wait_for_everyone()
    del model, trainer
    gc.collect()  # the trainer refers to itself
    return json.loads((out / SUMMARY).read_text())


def _begin(state: Path, plan: dict[str, Any]) -> None:
    """Make the folder of a training's state, or see that the one that is there is of the same training; before the
    other processes look, what is half written is removed."""
    if (state / SUMMARY).exists():
        check_training_id(state / SUMMARY, plan)
    state.mkdir(parents=True, exist_ok=True)
    write_json(state / SUMMARY, {"plan": plan})
    last_state(state)


def check(arguments: GRPOConfig, algorithm: str) -> None:
    """Refuse a configuration in which the ratio of new to old policy is always one, and clipping it does nothing."""
    between = arguments.steps_per_generation or 1  # GRPOConfig has set it
    several = between > arguments.gradient_accumulation_steps or arguments.num_iterations > 1
    if algorithm != "grpo" and not several:
        raise ValueError(
            f"{algorithm} would do nothing of its own: with steps_per_generation {between}, "
            f"gradient_accumulation_steps {arguments.gradient_accumulation_steps} and num_iterations "
            f"{arguments.num_iterations}, each batch of replies serves one update, for which the policy is still the "
            "one that wrote them; give 2 or more updates or passes"
        )


def start(base: str | Path | None, options: GSPOOptions) -> tuple[Any, Any]:
    """The model to train and its processor. Batch norms of an untrained tiny model are folded, as in all that are
    published: the policy that is trained must be the one that writes."""
    model, processor = load_base(base, options.seed, bool(options.bf16 and options.lora))
    if base is None:
        from agents.tiny.vision_tower import fold

        fold(model.model.vision_tower)
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")
    return model, processor


class PolicyTrainer(ResumesWhole, GRPOTrainer):
    """`GRPOTrainer` that goes on exactly where a kill cut it."""

    def _prepare_inputs(self, generation_batch):
        """The part of the replies that the next update is made from. Checkpoints are of the ends of rounds, so that
        counting on from one begins with a generation."""
        if self._buffered_inputs is None:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)


class LengthPenalisedReward:
    """A reward, less the penalty for length, that tells the trainer's log how many replies are valid, and how much
    their lengths differ."""

    __name__ = "total"

    def __init__(self, reward: Reward, options: GSPOOptions) -> None:
        self.reward, self.options = reward, options

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        log = columns["log_metric"]
        lengths = [len(ids) for ids in completion_ids]
        log("completions/std_length", float(np.std(lengths)))
        if (codec := getattr(self.reward, "codec", None)) is not None:
            frames = [SimpleNamespace(height=rle["size"][0], width=rle["size"][1]) for rle in columns["target"]]
            read = [
                queries.read(completion[-1]["content"], frame, codec)
                for completion, frame in zip(completions, frames, strict=True)
            ]
            log("completions/valid", sum(not isinstance(answer, Invalid) for answer in read) / len(read))
        scores = self.reward(completions=completions, completion_ids=completion_ids, **columns)
        taken = self.options.length_penalty / self.options.max_tokens
        return [score - taken * length for score, length in zip(scores, lengths, strict=True)]


class RewardProgress(LossBar):
    """The trainer's progress bar, with the reward in it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the reward."""
        if self.training_bar is not None and logs and "reward" in logs:
            self.training_bar.set_postfix(reward=f"{float(logs['reward']):.4f}", refresh=False)


def _schedule(
    rows: Sequence[PromptRow], processor: Any, size: int | Sequence[int] | None, options: GSPOOptions
) -> Dataset:
    """All questions of a training in the order in which they are asked; each is made when it is."""
    rng = np.random.default_rng(options.seed)
    asked = math.ceil(options.steps / options.round) * options.prompts
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(math.ceil(asked / len(rows)))])[:asked]
    placeholders = [getattr(processor, name, None) or "<image>" for name in ("image_token", "video_token")]

    @lru_cache(maxsize=4 * options.prompts)  # a batch asks for a row once for each of its replies
    def question(k: int) -> dict[str, Any]:
        row = rows[k]
        words = row["prompt"]
        for placeholder in placeholders:
            words = words.replace(placeholder, " ")
        columns = {name: value for name, value in row.items() if name not in ("image", "prompt")}
        picture = Image.fromarray(resized(row["image"], size))
        return {"prompt": [{"role": "user", "content": words}], "image": picture, **columns}

    def questions(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        found = [question(k) for k in batch["row"]]
        return {name: [one[name] for one in found] for name in found[0]}

    return Dataset.from_dict({"row": order.tolist()}).with_transform(questions)


def processes() -> int:
    """How many processes train together, as `accelerate launch` and `torchrun` tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _arguments(state: Path, options: GSPOOptions) -> GRPOConfig:
    gpu = torch.cuda.is_available()
    replies = options.prompts * options.group
    own, odd = divmod(replies, options.updates * processes())
    micro = options.micro_batch_size or own
    if odd or own % micro:
        raise ValueError(
            f"{options.prompts} prompts x {options.group} replies cannot be divided among {options.updates} updates on "
            f"{processes()} processes, {micro} replies at a time; expected a multiple of their product"
        )
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)  # by TRL, peft
    chosen: dict[str, Any] = dict(
        ALGORITHMS[options.algorithm],
        output_dir=str(state),
        max_steps=options.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=own // micro,
        steps_per_generation=options.updates * (own // micro),
        num_iterations=options.passes,
        num_generations=options.group,
        max_completion_length=options.max_tokens,
        temperature=options.temperature,
        beta=options.beta,
        shuffle_dataset=False,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=options.warmup,  # below 1: a part of all steps
        weight_decay=0.0,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not gpu,
        gradient_checkpointing=options.gradient_checkpointing,
        save_strategy="steps",
        save_steps=math.ceil(options.save_steps / options.round) * options.round,
        save_total_limit=2,  # while the newest is being written, the one before it is complete
        logging_steps=options.round,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
    )
    given = {name: yaml.safe_load(value) for name, value in options.extra}
    if unknown := sorted(set(given) - {item.name for item in fields(GRPOConfig)}):
        raise ValueError(f"TRL's GRPOConfig has no field {', '.join(unknown)}; see its documentation for those it has")
    arguments = GRPOConfig(**{**chosen, **given})
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several are used by launching as many processes
    return arguments


def _name(reward: Reward) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _write(model: Any, processor: Any, progress: Any, about: dict[str, Any], out: Path, state: Path) -> None:
    """Write the checkpoint beside `out`, and move it there in one step: a folder `out` is always complete."""
    log = [entry for entry in progress.log_history if "reward" in entry]
    summary = {**about, "steps": progress.global_step, "log": log}
    written = state / "model"
    with no_loading_bars():
        model.save_pretrained(written)
    processor.save_pretrained(written)
    write_json(written / SUMMARY, summary)
    os.replace(written, out)
    shutil.rmtree(state)
