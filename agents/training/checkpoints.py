"""Parts that SFT and GSPO share: bases, adapters, states that a training resumes from, and its identity."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, Trainer

from agents.backends.transformers import load


class ResumesWhole(Trainer):
    """A trainer that goes on from a checkpoint of a whole model through `from_pretrained`: several families are written
    under other names than their parameters have, and the trainer's own loading warns of the missing names and goes on
    with the weights of the start."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if isinstance(self.model, PreTrainedModel):
            written = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(written.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def identity(base: str | Path | None) -> str | None:
    """What stands for a checkpoint in a plan: its name, or for a folder a hash of its files, so that it may be moved or
    reached by another path, but not change."""
    if base is None or not Path(base).is_dir():
        return None if base is None else str(base)
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in Path(base).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(base).as_posix()} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_base(base: str | Path | None, seed: int, bfloat16: bool) -> tuple[Any, Any]:
    """The model to train and its processor; without a base an untrained tiny one."""
    if base is None:
        from agents import tiny

        return tiny.build(seed)
    return load(base, "bfloat16" if bfloat16 else "float32")


def stored_in_bfloat16(base: str | Path | None) -> bool:
    """Whether a checkpoint's weights are kept in bfloat16."""
    return base is not None and AutoConfig.from_pretrained(base).dtype in (torch.bfloat16, "bfloat16")


def adapters(rank: int) -> Any:
    """Adapters of a rank on all linear layers; None for rank 0, where all weights are trained."""
    if not rank:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def last_state(state: Path) -> Path | None:
    """The newest complete checkpoint of the trainer; half-written ones are removed."""
    complete = {}
    for folder in state.glob("checkpoint-*"):
        try:  # the trainer writes this file last
            complete[json.loads((folder / "trainer_state.json").read_text())["global_step"]] = folder
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder)
    return complete[max(complete)] if complete else None


def check_training_id(file: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The summary of the finished training in `file`; FileExistsError where that had another plan."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    if found.get("plan") != plan:
        raise FileExistsError(
            f"{file.parent} does not come from this training ({plan}); remove it, or choose another folder"
        )
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)
