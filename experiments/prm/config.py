"""Settings of the training of a process reward model."""

from dataclasses import dataclass, field

from experiments.common.config import InFolder, Names, OutFolder, TrainerOptions
from segenv.ranges import Count, CountOrNone, NotNegative, Positive, Processes, Seed, Share

RESUMABLE = frozenset({"report_masks", "follow_links"})  # settings that change no result


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    data: str = "synthetic:train"
    """tasks whose masks are learned from"""
    eval_data: Names = ("synthetic:val",)
    """held-out tasks, of one dataset or more; where it is the same as --data, a hash of the images' names sets 30 % of
    them apart"""
    tool: str = "sam"
    """what makes masks of clicks"""
    agent: str = "mllm:tiny-prm"
    """the model to train: mllm:NAME_OR_PATH, mllm for the embedded policy, by default the embedded reward model"""
    codec: str | None = None
    """how the model writes; by default as its checkpoint declares"""
    max_steps: Count = 5
    """actions an episode may take"""
    limit: Count = 600
    """training tasks"""
    eval_limit: Count = 120
    """held-out tasks of each dataset"""
    rows: Count = 6400
    """masks to learn from, at most"""
    steps: CountOrNone = 400
    """optimiser steps; 0 measures the model as it is"""
    batch_rows: Count = 32
    """rows an optimiser step"""
    learning_rate: Positive = 3e-4
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    stop_iou: Share = 0.9
    """from this IoU on the action to learn is to stop"""
    temperature: NotNegative = 1.0
    """of the policy's episodes"""
    replies: CountOrNone = 240
    """held-out masks of each dataset on which whole replies are compared"""
    seed: Seed = 0
    out: OutFolder | None = None
    """folder of a new run; by default runs/prm-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
    batch_size: Count = 16
    """tasks that advance together; a learned model's last bits may depend on it"""
    threads: Processes = 1
    """sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    report_masks: CountOrNone = 24
    """masks of each dataset that report.html shows"""
