"""Measurements of a GSPO training while it runs: TensorBoard scalars, and held-out tasks answered by the live model."""

import math
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from agents.mllm import MllmAgent
from experiments.evaluate.answers.polygon_metrics import measures
from experiments.gspo.answers import MODES, Run, of_mode, read_replies

MEASURED = ("giou", "valid", "truncated", "tokens")


class EvalCallback(TrainerCallback):
    """Measures the first process's model every so many steps. Replies are sampled with other seeds, so that the
    training is the same without it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.agent: Any = None
        self.writer: SummaryWriter | None = None
        per_round = run.args.train.round
        self.every = math.ceil(run.args.probe_steps / per_round) * per_round

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Take the model as it is trained, adapters included."""
        policy, settings = self.run.agent, self.run.args
        self.agent = MllmAgent(
            (model, processing_class),
            policy.codec,
            prompt=policy.prompt_style,
            image_size=policy.backend.image_size,
            max_new_tokens=settings.train.max_tokens,
            batch_size=settings.eval_batch,
        )
        model.train()
        self.writer = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=state.global_step + 1)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Answer the first held-out tasks; the last policy answers all of them later."""
        step = state.global_step
        if step % self.every or step >= state.max_steps:
            return
        model.eval()
        self.run.measure(self.agent, step, self.run.args.probe)
        model.train()
        records = read_replies(self.run.folder)[step]
        for name, sampled in MODES:
            values = measures(of_mode(records, sampled))
            self._write({f"held out/{name}/{key}": values[key] for key in MEASURED}, step)

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **kwargs):
        """Write the trainer's own measures."""
        self._write(logs or {}, state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _write(self, values: Mapping[str, Any], step: int) -> None:
        for name, value in values.items():
            if self.writer is not None and isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, step)
