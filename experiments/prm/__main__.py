"""Train the process reward model: the agent's own model learns to state the IoU of the mask, and stays a policy.

    python -m experiments.prm --out runs/prm                                        # the embedded one, trained further
    python -m experiments.prm --agent mllm --out runs/prm                           # from a policy
    python -m experiments.prm --eval-data synthetic:val index:DIR --out runs/prm    # photos beside them
    python -m experiments.prm --agent mllm:tiny-prm --steps 0 --out runs/prm        # measured as it is, not trained
    python -m experiments.prm --resume runs/prm                                     # after a stop, of whatever kind

Annotator, policy, noisy annotator and random points lead to masks of training tasks through the tool. Balanced over
IoU, they become lessons: the mask's true IoU, and then the annotator's action. What the model states before and after
is measured on masks of held-out tasks, beside the tool's own estimate; `--agent mllm:OUT/model` is the result. SegAgent
(arXiv 2503.08625, §4) publishes neither the mixture of masks nor its size.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from experiments.common.config import parse_args
from experiments.evaluate import iou_report
from experiments.prm.config import Args
from experiments.prm.train import run
from segenv.types import SegenvError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/prm-%Y%m%d-%H%M%S"))
        print(iou_report.text(run(args)))
    except (SegenvError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.prm --resume {args.resume or args.out}", file=sys.stderr
        )
        return 130
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
