"""Options of trainings with TRL, which need neither torch nor TRL to be read and checked."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Literal

import yaml

from segenv.ranges import Constraint, Count, CountOrNone, NotNegative, Positive, Range, Seed, Share

OURS = frozenset(  # fields of TRL's configurations that have a flag here, or on which a run's folder and resuming rest
    {
        *("learning_rate", "warmup_steps", "warmup_ratio", "max_steps", "num_train_epochs", "seed", "bf16"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
        *("num_generations", "num_iterations", "steps_per_generation", "generation_batch_size", "temperature", "beta"),
        *("max_completion_length", "shuffle_dataset", "dataset_kwargs", "remove_unused_columns"),
        *("output_dir", "overwrite_output_dir", "logging_dir", "report_to", "resume_from_checkpoint"),
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("load_best_model_at_end", "enable_jit_checkpoint", "ignore_data_skip", "logging_steps", "logging_strategy"),
        *("push_to_hub", "log_completions_hub_repo", "do_train", "do_eval", "do_predict", "eval_strategy"),
    }
)
SIGNED = frozenset({"local_rank", "top_k"})  # fields that may be below 0


def field_value(text: str) -> Any:
    """A field's value from YAML; numbers such as 1e-5, which YAML reads as text, too."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class TrlFields(Constraint):
    """Names and values of fields that a run does not set itself; numbers are finite, and 0 or more."""

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with the first such field that is wrong."""
        for name, text in value.items() if isinstance(value, Mapping) else value:
            if name in OURS or name.startswith(("hub_", "push_to_hub_", "trackio_")):
                return f"sets {name}, which another flag or the run itself sets; leave it out"
            try:
                numbers = list(_numbers(field_value(text)))
            except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, brackets without end
                return f"has {text[:60]!r} for {name}; expected a value as YAML writes it"
            allowed = Range() if name in SIGNED else Range(0)
            if not all(number in allowed for number in numbers):
                return f"has {text[:60]} for {name}; expected {str(allowed) or 'a finite number'}"
        return None


def _numbers(value: Any) -> Iterator[Real]:
    """Numbers in a value, within lists and by name, too."""
    if isinstance(value, Real):
        yield value
    elif isinstance(value, (list, Mapping)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(one)


@dataclass(frozen=True)
class SFTOptions:
    """Options of a fine-tuning. `steps` (of the optimiser) wins over `epochs`; a step sees `batch_size` rows,
    `micro_batch_size` of them at a time (0: all; on a CPU four at most).

    `lora` is the rank of adapters on every linear layer, which are merged into the weights at the end; 0 trains all
    weights. `bf16` computes in bfloat16; trained weights, adapters or all, are kept in float32, and written in bfloat16
    where the base is stored so. Every `save_steps` the state is written from which an interrupted training resumes.
    """

    steps: CountOrNone = 0
    epochs: Positive = 1.0
    batch_size: Count = 32
    micro_batch_size: CountOrNone = 0
    learning_rate: Positive = 1e-3
    warmup: Share = 0.05  # part of all steps over which the learning rate rises; afterwards it falls as a cosine
    weight_decay: NotNegative = 0.0
    seed: Seed = 0
    lora: CountOrNone = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: Count = 500
    log_steps: Count = 10
    extra: Annotated[tuple[tuple[str, str], ...], TrlFields()] = ()
    """more fields of TRL's SFTConfig and their values, as YAML"""


@dataclass(frozen=True)
class GSPOOptions:
    """Options of a training: the policy answers some questions several times each, and optimiser steps are made from
    parts of those replies."""

    algorithm: Literal["gspo", "luspo", "grpo"] = "gspo"
    """see the table of `agents.training.gspo`"""
    steps: Count = 240
    """of the optimiser"""
    prompts: Count = 16
    """questions that are answered before an update"""
    group: Annotated[int, Range(2)] = 8
    """replies to each of them"""
    updates: Count = 4
    """optimiser steps made from those replies, each from a part of them"""
    passes: Count = 1
    """how often all of these are made"""
    micro_batch_size: CountOrNone = 0
    """replies at a time on one device; 0: all that it has of a step"""
    learning_rate: Positive = 1e-4
    """not published; this one is for the tiny model"""
    warmup: Share = 0.02
    """part of all steps over which the learning rate rises; afterwards it stays"""
    temperature: Positive = 1.0
    """of the replies that it learns from"""
    max_tokens: Count = 320
    """of a reply"""
    length_penalty: NotNegative = 0.0
    """taken off the reward of a reply of `max_tokens`, and in proportion of shorter ones"""
    beta: NotNegative = 0.0
    """weight of the divergence from the policy of the start"""
    seed: Seed = 0
    """of the order of questions, and of the replies"""
    lora: CountOrNone = 0
    """rank of adapters on all linear layers (peft); 0 trains all weights"""
    bf16: bool = False
    """compute in bfloat16"""
    gradient_checkpointing: bool = False
    """recompute activations, for large models"""
    save_steps: Count = 100
    """how often the state is written from which an interrupted training resumes; whole rounds"""
    extra: Annotated[tuple[tuple[str, str], ...], TrlFields()] = ()
    """more fields of TRL's GRPOConfig and their values, as YAML: --extra use_vllm true vllm_mode colocate"""

    @property
    def round(self) -> int:
        """Optimiser steps between two generations."""
        return self.updates * self.passes


def processes() -> int:
    """The number of processes that train together, as `accelerate launch` and `torchrun` set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
