"""Train the process reward model: the agent's own model learns to state the IoU of the mask, and stays a policy.

    python -m experiments.prm --out runs/prm                                        # the embedded one, trained further
    python -m experiments.prm --agent mllm --out runs/prm                           # from a policy
    python -m experiments.prm --eval-data synthetic:val index:DIR --out runs/prm    # photos beside them
    python -m experiments.prm --agent mllm:tiny-prm --steps 0 --out runs/prm        # measured as it is, not trained
    python -m experiments.prm --resume runs/prm                                     # after a stop, of whatever kind

Annotator, policy, noisy annotator and random points lead to masks of training tasks through the tool. Balanced over
IoU, they become examples: the mask's true IoU, and then the annotator's action. The IoU that the model predicts before
and after is measured on masks of held-out tasks, beside the tool's own estimate; `--agent mllm:OUT/model` is the
result. SegAgent (arXiv 2503.08625, §4) publishes neither the mixture of masks nor its size.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.prm.config import Args


def show(args: Args) -> str:
    """Train and measure; returns the table of the measures."""
    from experiments.evaluate.answers import iou_report
    from experiments.prm.train import run

    return iou_report.text(run(args))


main = partial(cli.main, "prm", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
