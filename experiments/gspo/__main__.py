"""GSPO: a policy that outlines objects learns from the IoU of what it draws (SimpleSeg, arXiv 2601.19228, §2).

    python -m experiments.gspo --agent mllm:tiny-polygon --out runs/gspo           # procedural scenes, from SFT
    python -m experiments.gspo --resume runs/gspo                                  # after a stop, of whatever kind
    accelerate launch --num_processes 2 -m experiments.gspo …                      # on CPUs too (gloo)
    python -m experiments.gspo --ablation sft                                      # SFT, + GSPO, + as much more SFT

Stages: held-out tasks before, training (with a probe of the same tasks every so often; it is finished when `policy` is
there), and all held-out tasks after; greedy replies and drawn ones. `--method sft` is the control: as many steps and
replies, learned from the right outlines. Departures from the paper: weights of the reward, group size and learning rate
are ours, as none is published.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from agents.training.gspo import processes
from experiments.common.config import RunError, parse_args
from experiments.gspo.config import Args
from experiments.gspo.launch import as_launched
from experiments.gspo.train import run
from segenv.types import SegenvError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        as_launched()
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            if processes() > 1:
                raise RunError("several processes write into one folder; name it with --out")
            args = replace(args, out=time.strftime("runs/gspo-%Y%m%d-%H%M%S"))
        if args.ablation != "none":
            from experiments.gspo import ablation as gspo_ablation

            print(gspo_ablation.text(gspo_ablation.run(args)))
        else:
            numbers = run(args)
            if numbers is None:  # another process than the first
                return 0
            from experiments.gspo import report

            print(report.text(numbers))
    except (SegenvError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        where = args.resume or args.out
        print(f"\ninterrupted; go on with: python -m experiments.gspo --resume {where}", file=sys.stderr)
        return 130
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
