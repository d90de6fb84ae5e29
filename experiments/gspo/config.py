"""Settings of a GSPO run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from agents.training.gspo import GSPOOptions
from agents.training.polygon_examples import RATIO, VERTICES

RESUMABLE = frozenset({"panel", "workers"})


COUNTS = ("limit", "eval_limit", "probe", "probe_steps", "samples", "eval_batch", "threads", "start_steps")


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's table."""

    agent: str = "mllm:tiny-polygon"
    """the policy to improve: a model that writes outlines, mllm:NAME_OR_PATH"""
    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; synthetic:val for synthetic data"""
    codec: str | None = None
    """how outlines are written; by default as the checkpoint declares"""
    reward: str = "iou+0.1*centroid+0.1*format"
    """weighted sum of iou, centroid, format, boundary_f and chamfer"""
    method: Literal["gspo", "sft"] = "gspo"
    """reinforcement, or the control: as many steps and replies of supervised fine-tuning"""
    train: Annotated[GSPOOptions, tyro.conf.arg(name="")] = field(default_factory=GSPOOptions)
    sft_learning_rate: float = 2e-4
    """of the control"""
    vertices: int = VERTICES
    """of the outlines that the control learns from, at most; as in experiments.sft"""
    ratio: float = RATIO
    """by which these outlines are simplified; as in experiments.sft"""
    limit: int = 100_000
    """training tasks"""
    eval_limit: int = 500
    """held-out tasks, before and after"""
    probe: int = 60
    """held-out tasks, the first of those, on the way"""
    probe_steps: int = 80
    """how often they are measured; whole rounds"""
    samples: int = 1
    """replies drawn for each held-out task, beside the greedy one"""
    eval_batch: int = 64
    """replies at a time; a model's last bits depend on it"""
    panel: int = 6
    """held-out tasks in the picture of start, middle and end"""
    threads: int = 1
    """of each process"""
    ablation: Literal["none", "sft", "rewards", "algorithms", "length"] = "none"
    """a table of arms, each a run of its own in each of --seeds: against more SFT; parts of the reward; GSPO, LUSPO and
    GRPO; or the length of replies, from several starts"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of an ablation"""
    checkpoints: tuple[str, ...] = ()
    """agents that --ablation length starts from; without any, from three that the embedded click policy becomes when it
    is taught sparse, middle and dense outlines in rings"""
    start_steps: int = 1_500
    """of each of those three"""
    workers: int = 0
    """arms of an ablation that are trained at once, by default one on a GPU and otherwise two; no number depends on
    it"""
    out: str | None = None
    """folder of a new run; by default runs/gspo-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
