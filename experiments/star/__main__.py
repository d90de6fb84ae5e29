"""Improve a click policy with its own corrected rollouts: StaR+ (SegAgent, arXiv 2503.08625, Alg. 1).

    python -m experiments.star                                          # procedural scenes, embedded models
    python -m experiments.star --data index:DIR --out runs/star_real    # your photos; a hash of their names splits them
    python -m experiments.star --resume runs/star_real                  # after a stop, of whatever kind
    python -m experiments.star --ablation                               # S_0, control, star, star+, continue; 3 seeds

Stages, each finished by a `DONE`: the annotator plays the training tasks (D_0), the MLLM learns from it (S_0), and in
each round it plays training tasks itself, its actions are kept or corrected (D_n), and S_0 learns from D_0 ∪ D_n (S_n).
Every policy plays the same held-out tasks.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.star.config import Args


def show(args: Args) -> str | None:
    """Run StaR or its ablation and return the results for a terminal; print a dry run's plan, and return None."""
    from experiments.star import ablation, report
    from experiments.star.train import Star, run

    if args.dry_run:
        print(ablation.plan(args) if args.ablation else Star.prepare(args).dry_run())
        return None
    return ablation.text(ablation.run(args)) if args.ablation else report.text(run(args))


main = partial(cli.main, "star", Args, show, __doc__, folder=lambda args: "ablation" if args.ablation else "star")

if __name__ == "__main__":
    sys.exit(main())
