"""The settings of a StaR run. Defaults are for the embedded pair on two cores; the paper publishes no thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from experiments.common.config import TrainerOptions
from search.star import Rules

RESUMABLE = frozenset({"executor", "workers", "report_episodes", "dry_run"})
S_0_STEPS = 600  # for an agent that has not learned from the annotator before


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's table."""

    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; for synthetic data synthetic:val, and in an ablation synthetic:test, as the rules of a round were
    chosen on the former"""
    tool: str = "sam"
    """what makes masks of clicks"""
    agent: str = "mllm"
    """the policy to improve: mllm, mllm:NAME_OR_PATH"""
    codec: str | None = None
    """how the policy writes actions; by default its own"""
    variant: Literal["star+", "star", "control"] = "star+"
    """judge each action and correct it; whole trajectories; or D_0 alone, the control for what more training does"""
    rounds: int = 1
    """rounds of rollout, filter and training"""
    stop_on_plateau: bool = False
    """end before --rounds, after a round whose policy is not better on the held-out tasks than the one before"""
    start_from: Literal["base", "previous"] = "base"
    """what S_n is trained from: always S_0 as in the paper, so that errors of a round are not built upon, or S_{n-1}"""
    max_steps: int = 7
    """actions an episode may take"""
    limit: int = 400
    """training tasks that the annotator plays"""
    expert: Literal["trajectory", "judged"] = "trajectory"
    """D_0 has the annotator's clicks that gain, and stops from --stop-iou on; judged: also stops where none of its
    later clicks gains, as --no-gain says for rollouts"""
    rollout_tasks: int = 400
    """training tasks that the policy plays in each round"""
    samples: int = 3
    """rollouts of each of those tasks: more show more of its mistakes in the same scenes"""
    temperature: float = 1.0
    """of those rollouts; evaluation is greedy"""
    go_on_from: Literal["policy", "correction"] = "policy"
    """after a bad action, a rollout goes on from what the policy did, so that it learns to recover, or from the
    correction"""
    eval_limit: int | None = None
    """held-out tasks; 400, and in an ablation, whose differences are small, 800"""
    sft_steps: int | None = None
    """optimiser steps from the agent to S_0; by default 0 (S_0 is the agent) for the embedded model on synthetic data,
    which it has learned from, and 600 otherwise"""
    round_steps: int = 300
    """optimiser steps to each S_n"""
    batch_rows: int = 32
    """rows an optimiser step"""
    learning_rate: float = 1e-3
    """from the agent to S_0"""
    round_learning_rate: float = 1.5e-4
    """from S_0 to S_n: low, as S_0 has seen far more scenes than a round shows and forgets them at higher rates"""
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    min_gain: float = 0.02
    """an action is good if it raises the IoU by more than this: less is within what the next click may lose again"""
    zero_gain: Literal["correct", "keep", "drop"] = "correct"
    """what becomes of an action that leaves the IoU exactly as it was"""
    no_gain: Literal["stop", "click"] = "stop"
    """what is right where the annotator's own click does not raise the IoU: a tool is at its end before a mask is
    perfect"""
    stop_iou: float = 0.9
    """from this IoU on the lesson is to stop"""
    keep_iou: float = 0.7
    """what a whole trajectory must reach (variant star)"""
    spent_iou: float = 0.3
    """what a mask must reach that the annotator's click does not help, for the lesson to be a stop (--no-gain stop)"""
    dedup: Literal["rows", "sequences", "none"] = "rows"
    """drop lessons that repeat state and action, or rollouts that repeat all clicks: easy tasks shall not crowd out
    others"""
    per_task_cap: int = 0
    """at most so many lessons of a task in D_n; 0: all"""
    seed: int = 0
    out: str | None = None
    """folder of a new run; by default runs/star-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
    dry_run: bool = False
    """load everything, print what would be done, and write nothing"""
    ablation: bool = False
    """one table of S_0, control, judged control, star, star+ and continue, for --ablation-seeds seeds from --seed on"""
    ablation_seeds: int = 3
    executor: Literal["serial", "process", "ray"] | None = None
    """what runs episodes, serial by default, or the runs of an ablation, process by default where there is no GPU; no
    number depends on it"""
    workers: int = 2
    """of the executor; an ablation trains so many policies at once"""
    batch_size: int = 32
    """episodes that advance together; a learned model's last bits may depend on it"""
    threads: int = 1
    """threads of each process; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    report_episodes: int = 12
    """held-out episodes that report.html shows before and after"""

    @property
    def rules(self) -> Rules:
        """What counts as a good action."""
        return Rules(self.min_gain, self.zero_gain, self.no_gain, self.stop_iou, self.keep_iou, self.spent_iou)

    @property
    def start_steps(self) -> int:
        """Optimiser steps from the agent to S_0."""
        if self.sft_steps is not None:
            return self.sft_steps
        from agents.mllm import checkpoint

        learned = self.agent == "mllm" and self.data.startswith("synthetic") and checkpoint(self.agent) is not None
        return 0 if learned else S_0_STEPS


def with_defaults(args: Args) -> Args:
    """`args` with what was left open, and depends on whether it is an ablation, filled in; a run that goes on has its
    own settings."""
    if args.resume is not None:
        return args
    import torch

    alone = not args.ablation or torch.cuda.is_available()  # a GPU is filled by one training
    defaults: dict[str, Any] = {"executor": "serial" if alone else "process"}
    defaults["eval_limit"] = 800 if args.ablation else 400
    if args.data.startswith("synthetic"):
        defaults["eval_data"] = "synthetic:test" if args.ablation else "synthetic:val"
    return replace(args, **{name: value for name, value in defaults.items() if getattr(args, name) is None})
