"""Settings of a GSPO run."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import tyro

from agents.training.gspo import GSPOOptions, processes
from agents.training.polygon_examples import RATIO, VERTICES
from agents.training.sft import SFTOptions
from experiments.common.cli import check_least
from experiments.common.config import RunError

RESUMABLE = frozenset({"panel", "workers"})


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    agent: str = "mllm:tiny-polygon"
    """the policy to improve: a model that writes polygons, mllm:NAME_OR_PATH"""
    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; synthetic:val for synthetic data"""
    codec: str | None = None
    """how polygons are written; by default as the checkpoint declares"""
    reward: str = "iou+0.1*centroid+0.1*format"
    """weighted sum of iou, centroid, format, boundary_f and chamfer"""
    method: Literal["gspo", "sft"] = "gspo"
    """reinforcement, or the control: as many steps and replies of supervised fine-tuning"""
    train: Annotated[GSPOOptions, tyro.conf.arg(name="")] = field(default_factory=GSPOOptions)
    sft_learning_rate: float = 2e-4
    """of the control"""
    vertices: int = VERTICES
    """of the polygons that the control learns from, at most; as in experiments.sft"""
    ratio: float = RATIO
    """by which these polygons are simplified; as in experiments.sft"""
    limit: int = 100_000
    """training tasks"""
    eval_limit: int = 500
    """held-out tasks, before and after"""
    probe: int = 60
    """held-out tasks, the first of those, on the way"""
    probe_steps: int = 80
    """how often they are measured; whole rounds"""
    samples: int = 1
    """replies sampled for each held-out task, beside the greedy one"""
    eval_batch: int = 64
    """replies at a time; a model's last bits depend on it"""
    panel: int = 6
    """held-out tasks in the picture of start, middle and end"""
    threads: int = 1
    """of each process"""
    ablation: Literal["none", "sft", "rewards", "algorithms", "length"] = "none"
    """a table of arms, each a run in each of --seeds: against more SFT; parts of the reward; GSPO, LUSPO and
    GRPO; or the length of replies, from several starts"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of an ablation"""
    checkpoints: tuple[str, ...] = ()
    """agents that --ablation length starts from; without any, from three that the embedded click policy becomes when it
    is taught sparse, middle and dense polygons in rings"""
    start_steps: int = 1_500
    """of each of those three"""
    workers: int = 0
    """arms of an ablation that are trained at once, by default one on a GPU and otherwise two; no number depends on
    it"""
    out: str | None = None
    """folder of a new run; by default runs/gspo-DATE"""
    resume: str | None = None
    """folder of a run to resume; its settings hold"""

    @property
    def sft(self) -> SFTOptions:
        """Supervised training, the control, of as many steps, each of as many replies."""
        train = self.train
        names = ("steps", "micro_batch_size", "warmup", "seed", "lora", "bf16", "gradient_checkpointing", "save_steps")
        return SFTOptions(
            **{name: getattr(train, name) for name in names},
            batch_size=train.prompts * train.group // train.updates,
            learning_rate=self.sft_learning_rate,
            extra=(("lr_scheduler_type", "constant_with_warmup"),),  # as GSPO's
        )


def check(args: Args) -> None:
    """Raise RunError where the settings, or the processes that were launched, cannot be run with."""
    counts = ("limit", "eval_limit", "probe", "probe_steps", "samples", "eval_batch", "threads", "start_steps")
    check_least(args, **dict.fromkeys(counts, 1), workers=0)
    if args.vertices < 4 or not 0 <= args.ratio < 1:
        raise RunError(f"vertices is {args.vertices} and ratio {args.ratio}; expected 4 or more, and from 0 to below 1")
    if args.method == "sft" and processes() > 1:
        raise RunError("--method sft trains in one process; start it without accelerate launch")
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        gpus = torch.cuda.device_count()
        command = "accelerate launch --multi_gpu --num_processes 2 -m experiments.gspo …"
        advice = f"give --num_processes {gpus}" if gpus else f"without a GPU it needs --multi_gpu, not --cpu: {command}"
        raise RunError(f"accelerate started 1 process though more were asked for and there are {gpus} GPUs; {advice}")
