"""GSPO: a policy that writes polygons learns from the IoU of its own samples (SimpleSeg, arXiv 2601.19228, §2).

    python -m experiments.gspo --agent mllm:tiny-polygon --out runs/gspo           # procedural scenes, from SFT
    python -m experiments.gspo --resume runs/gspo                                  # after a stop, of whatever kind
    accelerate launch --multi_gpu --num_processes 2 -m experiments.gspo …          # without GPUs too (gloo)
    python -m experiments.gspo --ablation sft                                      # SFT, + GSPO, + as much more SFT

Stages: held-out tasks before, training (with the first of these tasks every so often; it is finished when `policy` is
there), and all held-out tasks after; greedy replies and sampled ones. `--method sft` is the control: as many steps and
replies, learned from the right polygons. Departures from the paper: weights of the reward, group size and learning rate
are ours, as none is published.
"""

import sys
from functools import partial

from agents.training.options import processes
from experiments.common import cli
from experiments.common.config import RunError
from experiments.gspo.config import Args


def show(args: Args) -> str | None:
    """Run the command; returns the text to print, None in other processes than the first."""
    from experiments.gspo import ablation, report
    from experiments.gspo.train import run

    if args.ablation != "none":
        return ablation.text(ablation.run(args))
    numbers = run(args)
    return None if numbers is None else report.text(numbers)


def default_folder(_: Args) -> str:
    """The beginning of a new folder's name; RunError where each process would choose its own."""
    if processes() > 1:
        raise RunError("several processes write into one folder; name it with --out")
    return "gspo"


main = partial(cli.main, "gspo", Args, show, __doc__, folder=default_folder)

if __name__ == "__main__":
    sys.exit(main())
