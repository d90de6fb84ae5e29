"""The training of one policy of a StaR run in several processes; `experiments.star --launch` starts it.

accelerate launch --num_processes 8 -m experiments.star.finetune runs/star 1
"""

import sys
from dataclasses import replace

from experiments.common.config import load_config
from experiments.star.config import Args
from experiments.star.train import Star


def main(folder: str, number: str) -> None:
    """Train S_n of the run in `folder`, which the process that started this one has locked."""
    from accelerate import PartialState

    PartialState()  # each process takes a GPU of its own
    args = replace(load_config(folder, Args), resume=folder, out=None)
    Star.prepare(args).train_policy(int(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
