"""Improve a click policy with its own corrected rollouts: StaR+ (SegAgent, arXiv 2503.08625, Alg. 1).

    python -m experiments.star                                          # procedural scenes, embedded models
    python -m experiments.star --data index:DIR --out runs/star_real    # your photos; a hash of their names splits them
    python -m experiments.star --resume runs/star_real                  # after a stop, of whatever kind
    python -m experiments.star --ablation                               # S_0, control, star, star+, continue; 3 seeds

Stages, each finished by a `DONE`: the annotator plays the training tasks (D_0), the MLLM learns from it (S_0), and in
each round it plays training tasks itself, its actions are kept or corrected (D_n), and S_0 learns from D_0 ∪ D_n (S_n).
Every policy plays the same held-out tasks.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from experiments.common.config import parse_args
from experiments.star import report
from experiments.star.config import Args
from experiments.star.train import Star, run
from segenv.types import SegenvError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            name = "ablation" if args.ablation else "star"
            args = replace(args, out=time.strftime(f"runs/{name}-%Y%m%d-%H%M%S"))
        if args.ablation:
            from experiments.star import ablation

            print(ablation.plan(args) if args.dry_run else ablation.text(ablation.run(args)))
        elif args.dry_run:
            print(Star.prepare(args).dry_run())
        else:
            print(report.text(run(args)))
    except (SegenvError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.star --resume {args.resume or args.out}", file=sys.stderr
        )
        return 130
    if not args.dry_run:
        print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
