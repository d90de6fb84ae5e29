"""Tree search over clicks, ablated: algorithms × K × depth × value source × budget, each on the same tasks.

    python -m experiments.tree_search --limit 300 --out runs/tree                    # the embedded models
    python -m experiments.tree_search --search greedy mcts:c=0.3 --k 1 3 5 --values prm tool oracle \
        --budgets policy_calls=21 policy_calls=63 --depths 7 --out runs/more
    python -m experiments.tree_search --resume runs/tree                             # after a stop, of whatever kind

Every algorithm spends the same budget for each task, and every row is compared, on the same tasks, with greedy search
at K = 1 and with the policy's last mask. `oracle` reads the target: it is the ceiling, and has no place among the
others. Prints a table, and writes it as text, CSV and Markdown beside metrics.json, plots and report.html, which shows
trees. SegAgent (arXiv 2503.08625) has greedy search alone, by steps (its Table 2) and without budgets.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from experiments.common.config import parse_args
from experiments.tree_search import tables
from experiments.tree_search.config import Args
from experiments.tree_search.play import run
from segenv.types import SegenvError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/tree-%Y%m%d-%H%M%S"))
        numbers = run(args)
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.tree_search --resume {args.resume or args.out}",
            file=sys.stderr,
        )
        return 130
    print(tables.text(numbers))
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
