"""Train the embedded tiny SAM from scratch on procedural scenes, in SAM's recipe (Kirillov et al. 2023, appendix A).

    python -m experiments.train_tool --out runs/train_tool          # then --resume runs/train_tool after a stop

Each prompt starts from a random point or a box; later clicks fall in the error region and the previous logits are fed
back; three masks compete for an ambiguous first click; a head learns to predict each mask's IoU. Departures from SAM,
for a small model without pretraining: fewer passes a prompt, a class-balanced start that fades into focal + dice, an
auxiliary same-instance loss on the image embedding (discarded), and a first stage on smaller images. Every step samples
fresh scenes, half of `synthetic:train` and half dead leaves (`segenv.data.synthetic.dead_leaves`);
there are no photographs.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.train_tool.config import Args


def show(args: Args) -> None:
    """Train, and say where the model is."""
    from experiments.train_tool.trainer import run

    model = run(args)
    print(f"wrote {model}; it is what `--tool sam:{model}` takes")


main = partial(cli.main, "train_tool", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
