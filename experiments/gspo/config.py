"""Settings of a GSPO run."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from agents.training.options import GSPOOptions, SFTOptions, processes
from agents.training.polygon_examples import RATIO
from experiments.common import config
from experiments.common.config import InFolder, OutFolder, ProcessesOrNone, RunError, Seeds
from segenv.ranges import Count, CountOrNone, Positive, Processes, Range

RESUMABLE = frozenset({"panel", "workers", "follow_links"})


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    agent: str = "mllm:tiny-polygon"
    """the policy to improve: a model that writes polygons, mllm:NAME_OR_PATH"""
    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; for synthetic data synthetic:val, and in an ablation from:6000:synthetic:test, as rates and sizes
    of rounds were chosen on synthetic:val"""
    codec: str | None = None
    """how polygons are written; by default as the checkpoint declares"""
    reward: str = "iou+0.1*centroid+0.1*format"
    """weighted sum of iou, centroid, format, boundary_f and chamfer"""
    method: Literal["gspo", "sft"] = "gspo"
    """reinforcement, or the control: as many steps and replies of supervised fine-tuning"""
    train: Annotated[GSPOOptions, tyro.conf.arg(name="")] = field(default_factory=GSPOOptions)
    sft_learning_rate: Positive = 2e-4
    """of the control"""
    vertices: Annotated[int, Range(4)] = 32
    """of the polygons that the control learns from, at most; this and the next two as in experiments.sft, and by
    default as tiny-polygon was taught"""
    rows: bool = True
    """whether these vertices are where outlines cross rows, or their corners"""
    ratio: Annotated[float, Range(0, below=1)] = RATIO
    """by which corners are simplified"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    limit: Count = 100_000
    """training tasks"""
    eval_limit: Count = 500
    """held-out tasks, before and after"""
    probe: Count = 60
    """held-out tasks, the first of those, on the way"""
    probe_steps: Count = 80
    """how often they are measured; whole rounds"""
    samples: Count = 1
    """replies sampled for each held-out task, beside the greedy one"""
    eval_batch: Count = 64
    """replies at a time; a model's last bits depend on it"""
    panel: CountOrNone = 6
    """held-out tasks in the picture of start, middle and end"""
    threads: Processes = 1
    """of each process"""
    ablation: Literal["none", "sft", "rewards", "algorithms", "length"] = "none"
    """a table of arms, each a run in each of --seeds: against more SFT; parts of the reward; GSPO, LUSPO and
    GRPO; or the length of replies, from several starts"""
    seeds: Seeds = (0, 1, 2)
    """of an ablation"""
    control_tasks: Count = 200
    """training tasks on which --ablation sft chooses the constants of its controls"""
    checkpoints: tuple[str, ...] = ()
    """agents that --ablation length starts from; without any, from three that the embedded click policy becomes when it
    is taught sparse, middle and dense polygons in rings"""
    start_steps: Count = 1_500
    """of each of those three"""
    workers: ProcessesOrNone = 0
    """arms of an ablation that are trained at once, by default one on a GPU and otherwise two; no number depends on
    it"""
    out: OutFolder | None = None
    """folder of a new run; by default runs/gspo-DATE"""
    resume: InFolder | None = None
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
    config.check(args)
    if args.method == "sft" and processes() > 1:
        raise RunError("--method sft trains in one process; start it without accelerate launch")
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        import torch

        gpus = torch.cuda.device_count()
        command = "accelerate launch --multi_gpu --num_processes 2 -m experiments.gspo …"
        advice = f"give --num_processes {gpus}" if gpus else f"without a GPU it needs --multi_gpu, not --cpu: {command}"
        raise RunError(f"accelerate started 1 process though more were asked for and there are {gpus} GPUs; {advice}")
