"""Reinforce a click policy with PPO or MaskablePPO of Stable-Baselines3, from a clone of the annotator.

    python -m experiments.ppo --seeds 0 1 2 3 4 --out runs/ppo      # repair distorted masks
    python -m experiments.ppo --task name --out runs/ppo-name       # segment what the instruction names
    python -m experiments.ppo --resume runs/ppo                     # after a stop, of whatever kind
    python -m experiments.evaluate --agent sb3:runs/ppo/seed0/MaskablePPO/policy --data from:6000:synthetic:test#easy \\
        --tool sam:refine=none --start distort --max-steps 5 --limit 200 --out runs/evaluated

Stages: the controls play the test tasks; in each seed the annotator on the grid demonstrates, a policy learns from it,
and each algorithm goes on from there; every policy plays the test tasks. `--demonstrations 0` starts from fresh
weights.

Each update begins new episodes and seeds its chance by its number, so that a run that was killed goes on from its last
checkpoint (weights, moments of the optimiser, counts) to the very weights that it would have had.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.ppo.config import Args


def show(args: Args) -> str:
    """Run the command and return its table for a terminal."""
    with cli.setting_up("Stable-Baselines3 (pip install 'segenv[rl]')"):
        from experiments.ppo import report
        from experiments.ppo.train import run

    return report.text(run(args))


main = partial(cli.main, "ppo", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
