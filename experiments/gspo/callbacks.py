"""What is seen of a GSPO training while it runs: TensorBoard scalars, and held-out tasks answered by the live model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from agents.mllm import MllmAgent
from experiments.evaluate.polygon_metrics import measures

if TYPE_CHECKING:
    from experiments.gspo.answers import Run

MEASURED = ("giou", "valid", "truncated", "tokens")


class EvalCallback(TrainerCallback):
    """Measures the first process's model every so many steps. Replies are drawn with seeds of their own, so that the
    training is the same without it."""

    def __init__(self, this: Run) -> None:
        self.this = this
        self.agent: Any = None
        self.writer: SummaryWriter | None = None
        per_round = this.args.train.round
        self.every = math.ceil(this.args.probe_steps / per_round) * per_round

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Take the model as it is trained, adapters included."""
        if not state.is_world_process_zero:
            return
        before, limits = self.this.agent, self.this.args
        self.agent = MllmAgent(
            (model, processing_class),
            before.codec,
            prompt=before.prompt_style,
            image_size=before.backend.image_size,
            max_new_tokens=limits.train.max_tokens,
            batch_size=limits.eval_batch,
        )
        model.train()
        folder = self.this.folder / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=state.global_step + 1)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Answer the held-out tasks, greedily and drawn; the last policy answers all of them later."""
        from experiments.gspo.answers import measure, replies

        if self.agent is None or state.global_step % self.every or state.global_step >= state.max_steps:
            return
        model.eval()
        measure(self.this, self.agent, state.global_step, self.this.eval_places[: self.this.args.probe])
        model.train()
        records = replies(self.this.folder)[state.global_step]
        for name, drawn in (("greedy", False), ("sampled", True)):
            found = measures([one for one in records if bool(one.sample) is drawn])
            self._write({f"held out/{name}/{key}": found[key] for key in MEASURED}, state.global_step)

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **kwargs):
        """The trainer's own measures."""
        self._write(logs or {}, state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _write(self, values: Mapping[str, Any], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(name, value, step)
