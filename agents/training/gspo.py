"""Group sequence policy optimisation (GSPO; Zheng et al. 2025, arXiv 2507.18071) of a checkpoint that answers questions
about pictures, with TRL's `GRPOTrainer`.

The policy samples a group of replies to each prompt, each is scored, and the advantage of a reply is its reward less
the group's mean, in units of the group's deviation. `ALGORITHMS` holds the settings in which three algorithms differ:

| algorithm | ratio of new to old policy | clipped to | a reply's weight |
|---|---|---|---|
| `gspo` | of the sequence: exp of the mean token log-ratio | 1 - 3e-4 .. 1 + 4e-4 | equal |
| `luspo` | as `gspo` | as `gspo` | its length (length-unbiased; arXiv 2602.05261) |
| `grpo` | of each token | 0.8 .. 1.2 | equal (Shao et al. 2024, arXiv 2402.03300) |

The first reply batch after a generation has a ratio of one, and nothing is clipped: GSPO begins with the second update
from a batch, and a configuration that makes one only is refused.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from agents.tiny.vision_tower import fold
from agents.training.checkpoints import ResumesWhole, Training, adapters, trl_arguments
from agents.training.options import GSPOOptions, processes
from segenv import queries, render
from segenv.types import Invalid

SUMMARY = "gspo.json"
Reward = Callable[..., list[float]]  # as TRL calls it: (completions, **columns of the rows)
# `image` uint8 [H, W, 3], `prompt`, and the columns that the reward reads, such as `target`
PromptRow = Mapping[str, Any]

ALGORITHMS: dict[str, dict[str, Any]] = {
    "gspo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "luspo": {"importance_sampling_level": "sequence", "loss_type": "luspo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "grpo": {"importance_sampling_level": "token", "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2},
}


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

    Rows are read when they are answered, one after the other in an order that the seed decides, and again once all
    were. `declare`, and resuming after a kill, are as in `agents.training.sft.finetune`. Under `accelerate launch` or
    `torchrun` every process calls it, and the first one writes. Returns the content of `out/gspo.json`: steps,
    processes, seconds and `log`, the trainer's metrics of each round. Raises ValueError for no rows and for options
    that do not fit together, and FileExistsError where `out` or its state comes from another base or other options.
    """
    reward_name = getattr(reward, "__name__", type(reward).__name__)
    training = Training(base, rows, out, options, declare, SUMMARY, reward=reward_name)
    arguments = _arguments(training.state, options)
    check(arguments, options.algorithm)

    def make_trainer(model: Any, processor: Any, image_size: int | Sequence[int] | None) -> GRPOTrainer:
        if base is None:  # as in published models: the policy that is trained must be the one that writes
            fold(model.model.vision_tower)
        return PolicyTrainer(
            model=model,
            reward_funcs=LengthPenalisedReward(reward, options),
            args=arguments,
            train_dataset=_schedule(rows, processor, image_size, options),
            processing_class=processor,
            peft_config=adapters(options.lora),
            callbacks=list(callbacks),
        )

    def summarise(progress: Any, seconds: float) -> dict[str, Any]:
        log = [entry for entry in progress.log_history if "reward" in entry]
        steps, processes = progress.global_step, arguments.distributed_state.num_processes
        return {"processes": processes, "seconds": round(seconds, 3), "steps": steps, "log": log}

    return training.run(arguments, make_trainer, "reward", summarise)


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


class PolicyTrainer(ResumesWhole, GRPOTrainer):
    """`GRPOTrainer` that resumes exactly where a kill cut it."""

    def _prepare_inputs(self, generation_batch):
        """The part of the replies for the next update; checkpoints end rounds, so resuming begins with a generation."""
        if self._buffered_inputs is None:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)


class LengthPenalisedReward:
    """A reward less the penalty for length; it logs the share of valid replies and the deviation of their lengths."""

    __name__ = "total"

    def __init__(self, reward: Reward, options: GSPOOptions) -> None:
        self.reward, self.options = reward, options

    def __call__(self, completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any) -> list[float | None]:
        log = columns["log_metric"]
        lengths = [len(ids) for ids in completion_ids]
        log("completions/std_length", float(np.std(lengths)))
        if (codec := getattr(self.reward, "codec", None)) is not None:
            frames = [SimpleNamespace(height=rle["size"][0], width=rle["size"][1]) for rle in columns["target"]]
            texts = [completion[-1]["content"] for completion in completions]
            answers = [queries.read(text, frame, codec) for text, frame in zip(texts, frames, strict=True)]
            log("completions/valid", sum(not isinstance(answer, Invalid) for answer in answers) / len(answers))
        scores = self.reward(completions=completions, completion_ids=completion_ids, **columns)
        penalty = self.options.length_penalty / self.options.max_tokens
        return [score - penalty * length for score, length in zip(scores, lengths, strict=True)]


def _schedule(rows: Sequence[PromptRow], processor: Any, size: Any, options: GSPOOptions) -> Dataset:
    """All questions of a training in the order of their rounds; each is made when it is read."""
    rng = np.random.default_rng(options.seed)
    count = math.ceil(options.steps / options.round) * options.prompts
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(math.ceil(count / len(rows)))])[:count]
    placeholders = [getattr(processor, name, None) or "<image>" for name in ("image_token", "video_token")]

    @lru_cache(maxsize=4 * options.prompts)  # a batch reads a row once for each of its replies
    def question(k: int) -> dict[str, Any]:
        row = rows[k]
        words = row["prompt"]
        for placeholder in placeholders:
            words = words.replace(placeholder, " ")
        columns = {name: value for name, value in row.items() if name not in ("image", "prompt")}
        picture = Image.fromarray(render.resized(row["image"], size))
        return {"prompt": [{"role": "user", "content": words}], "image": picture, **columns}

    def transform(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        questions = [question(k) for k in batch["row"]]
        return {name: [columns[name] for columns in questions] for name in questions[0]}

    return Dataset.from_dict({"row": order.tolist()}).with_transform(transform)


def check_options(options: GSPOOptions) -> None:
    """Raise ValueError for options, or fields of TRL's, that no training can have."""
    check(_arguments(Path("unwritten"), options), options.algorithm)


def _arguments(state: Path, options: GSPOOptions) -> GRPOConfig:
    replies = options.prompts * options.group
    share, odd = divmod(replies, options.updates * processes())
    micro = options.micro_batch_size or share
    if odd or share % micro:
        raise ValueError(
            f"{options.prompts} prompts x {options.group} replies cannot be divided among {options.updates} updates on "
            f"{processes()} processes, {micro} replies at a time; expected a multiple of their product"
        )
    return trl_arguments(
        GRPOConfig,
        state,
        options,
        **ALGORITHMS[options.algorithm],
        max_steps=options.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        steps_per_generation=options.updates * (share // micro),
        num_iterations=options.passes,
        num_generations=options.group,
        max_completion_length=options.max_tokens,
        temperature=options.temperature,
        beta=options.beta,
        shuffle_dataset=False,
        lr_scheduler_type="constant_with_warmup",
        weight_decay=0.0,
        save_steps=math.ceil(options.save_steps / options.round) * options.round,
        logging_steps=options.round,
    )
