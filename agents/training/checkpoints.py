"""Parts that SFT and GSPO share: a training that a kill may cut, its arguments, base and adapters."""

import gc
import json
import os
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.training_args import TrainingArguments

from agents import tiny
from agents.backends.transformers import load, stored_dtype
from agents.training.options import field_value
from segenv.checkpoints import CheckpointError, check_tensors, load_pretrained, no_loading_bars, read_weights
from segenv.files import folder_hash, write_atomic
from segenv.ranges import check
from segenv.specs import nearest

ADAPTERS = "adapter_model.safetensors"
Arguments = TypeVar("Arguments", bound=TrainingArguments)


class ResumesWhole(Trainer):
    """A trainer that resumes from a checkpoint of a whole model through `from_pretrained`: several families are written
    under other names than their parameters have, and the trainer's own loading warns of the missing names and resumes
    with the weights of the start."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if isinstance(self.model, PreTrainedModel):
            written = load_pretrained(type(self.model), resume_from_checkpoint, "state", dtype=self.model.dtype)
            self.model.load_state_dict(written.state_dict())
        else:
            from peft import get_peft_model_state_dict

            file, own = Path(resume_from_checkpoint) / ADAPTERS, get_peft_model_state_dict(self.model)
            check_tensors(read_weights(file), own, file, "the adapters")  # peft passes over those that are missing
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class MetricBar(ProgressCallback):
    """The trainer's progress bar, which shows a metric in place of a line for each log entry."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar; without a terminal, it is drawn every ten seconds."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and not sys.stderr.isatty():
            self.training_bar.mininterval = 10.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the metric."""
        if self.training_bar is not None and logs and self.metric in logs:
            self.training_bar.set_postfix({self.metric: f"{float(logs[self.metric]):.4f}"}, refresh=False)


class Training:
    """One training of the checkpoint `base` (None: the untrained tiny model) into the new folder `out`, with its state
    in `OUT.training`; `summary` names the JSON file of its results.

    `options` have `seed`, `lora` and `bf16`. Its `training_id` holds all that changes its result, `about` included: a
    state, or a folder `out`, of another one is refused.
    """

    def __init__(
        self,
        base: str | Path | None,
        rows: Sequence[Any],
        out: Path | str,
        options: Any,
        declare: Mapping[str, Any] | None,
        summary: str,
        **about: Any,
    ) -> None:
        if not len(rows):
            raise ValueError("there are no rows to train on; give at least one")
        self.base, self.options, self.declare = base, options, dict(declare or {})
        self.out, self.state, self.summary = Path(out), Path(f"{out}.training"), summary
        named = {"base": identity(base), "rows": len(rows), "declare": self.declare, **about, **asdict(options)}
        self.training_id = json.loads(json.dumps(named))  # as it will be read

    def run(
        self,
        arguments: TrainingArguments,
        make_trainer: Callable[[Any, Any, Any], Trainer],
        metric: str,
        summarise: Callable[[Any, float], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Train with `make_trainer(model, processor, image_size)` from the last state on, and return the summary: what
        `summarise(state of the trainer, seconds)` gives with the training's id. A finished one returns at once. Under
        several processes every one calls it, and the first one writes."""
        processes = arguments.distributed_state
        if self.out.exists():
            found = self._check(self.out / self.summary)
            if processes.is_main_process:
                shutil.rmtree(self.state, ignore_errors=True)  # of a kill between the last two steps
            return found
        began = time.perf_counter()
        dtype = "bfloat16" if self.options.bf16 and self.options.lora else "float32"
        model, processor = tiny.build(self.options.seed) if self.base is None else load(self.base, dtype)
        if processes.is_main_process:
            self._begin()
        processes.wait_for_everyone()
        if self.options.bf16 and not torch.cuda.is_available():
            model.set_attn_implementation("eager")  # on a CPU, fused attention in bfloat16 is the slower one backwards
        declared = {**(getattr(model.config, "segenv", None) or {}), **self.declare}
        trainer = make_trainer(model, processor, declared.get("image_size"))
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(MetricBar(metric))
        last = last_state(self.state)
        if last is not None:
            check_state(last)
        with no_loading_bars():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if processes.is_main_process:
            trained = self._merged(trainer)
            trained.config.segenv = declared
            results = summarise(trainer.state, time.perf_counter() - began)
            save(trained, processor, self.out, self.state, self.summary, {"plan": self.training_id, **results})
            del trained
        processes.wait_for_everyone()
        del model, trainer
        gc.collect()  # the trainer refers to itself: until it is collected, a large model keeps its memory
        return json.loads((self.out / self.summary).read_text(encoding="utf-8"))

    def _check(self, file: Path) -> dict[str, Any]:
        """The summary in `file`; FileExistsError where it has another training's id."""
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found.get("plan") != self.training_id:
            raise FileExistsError(
                f"{file.parent} does not come from this training ({self.training_id}); remove it, or choose another "
                "folder"
            )
        return found

    def _begin(self) -> None:
        """Make the folder of the state, or check an existing one, before other processes look."""
        if (self.state / self.summary).exists():
            self._check(self.state / self.summary)
        self.state.mkdir(parents=True, exist_ok=True)
        write_atomic(self.state / self.summary, json.dumps({"plan": self.training_id}, indent=1))
        last_state(self.state)

    def _merged(self, trainer: Trainer) -> Any:
        """The trained model, its adapters merged, in the type of the base."""
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        trained = trained.merge_and_unload() if self.options.lora else trained
        if self.options.bf16 and self.base is not None:
            return trained.to(torch.bfloat16) if stored_dtype(self.base) == torch.bfloat16 else trained
        return trained


def save(model: Any, processor: Any, out: Path, state: Path, name: str, summary: dict[str, Any]) -> None:
    """Write checkpoint and summary beside `out`, and move them there in one step: a folder `out` is always complete."""
    beside = state / "model"
    with no_loading_bars():
        model.save_pretrained(beside)
    processor.save_pretrained(beside)
    write_atomic(beside / name, json.dumps(summary, indent=1))
    os.replace(beside, out)
    shutil.rmtree(state)


def trl_arguments(kind: type[Arguments], state: Path, options: Any, **chosen: Any) -> Arguments:
    """The TRL configuration of class `kind` with its state in `state`: from `options`, `chosen` and `options.extra`."""
    gpu = torch.cuda.is_available()
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)  # by TRL, peft
    chosen |= dict(
        output_dir=str(state),
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,  # below 1: a part of all steps
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not gpu,
        gradient_checkpointing=options.gradient_checkpointing,
        save_strategy="steps",
        save_total_limit=2,  # while the newest is being written, the one before it is complete
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
    )
    check(options)
    arguments = kind(**{**chosen, **_fields(kind, options.extra)})
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several are used by launching as many processes
    return arguments


def _fields(kind: type, extra: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values of more fields of the TRL configuration `kind`; ValueError for one that it has not, or of another
    type."""
    known = {item.name: item.default for item in fields(kind)}
    values = {name: field_value(text) for name, text in extra}
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"TRL's {kind.__name__} has no field {name}{nearest(name, known)}; see its documentation for those it "
                "has"
            )
        usual = known[name]
        for expected, types in (("true or false", bool), ("a number", (int, float))):
            if isinstance(usual, types):
                if not isinstance(value, types):
                    raise ValueError(f"TRL's {kind.__name__}: {name} is {value!r}; expected {expected}")
                break
        if isinstance(usual, int) and isinstance(value, float) and value.is_integer():
            values[name] = int(value)
    return values


def identity(base: str | Path | None) -> str | None:
    """The part of a training's id that stands for a checkpoint: its name, or for a folder a hash of its files."""
    if base is None or not Path(base).is_dir():
        return None if base is None else str(base)
    return folder_hash(Path(base))


def adapters(rank: int) -> Any:
    """Adapters of a rank on all linear layers; None for rank 0, where all weights are trained."""
    if not rank:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def check_state(folder: Path) -> None:
    """Raise `CheckpointError` where what the trainer's checkpoint `folder` holds beside weights is damaged."""
    try:
        for file in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
            with zipfile.ZipFile(file) as archive:
                if (bad := archive.testzip()) is not None:
                    raise CheckpointError(f"{file} is damaged at {bad}")
    except (CheckpointError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"the state {folder} cannot be resumed from: {error}; remove the folder to go on from an earlier state, or "
            "from the start"
        ) from error


def last_state(state: Path) -> Path | None:
    """The newest complete checkpoint of the trainer; half-written ones are removed."""
    complete = {}
    for folder in state.glob("checkpoint-*"):
        try:  # the trainer writes this file last
            complete[json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]] = folder
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder)
    return complete[max(complete)] if complete else None
