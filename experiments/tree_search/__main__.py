"""Tree search over clicks, ablated: algorithms × K × depth × value source × budget, each on the same tasks.

    python -m experiments.tree_search --limit 300 --out runs/tree                    # the embedded models
    python -m experiments.tree_search --search greedy mcts:c=0.3 --k 1 3 5 --values prm tool oracle \
        --budgets policy_calls=21 policy_calls=63 --depths 7 --out runs/more
    python -m experiments.tree_search --resume runs/tree                             # after a stop, of whatever kind

Every algorithm spends the same budget for each task, and every row is compared, on the same tasks, with greedy search
at K = 1 and with the policy's last mask. `oracle` reads the target: it is the upper bound, and is not ranked among the
others. Prints a table, and writes it as text, CSV and Markdown beside metrics.json, plots and report.html, which shows
trees. SegAgent (arXiv 2503.08625) has greedy search alone, by steps (its Table 2) and without budgets.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.tree_search.config import Args


def show(args: Args) -> str:
    """Run the searches and return their tables for a terminal."""
    from experiments.tree_search import report
    from experiments.tree_search.play import run

    return report.text(run(args))


main = partial(cli.main, "tree_search", Args, show, __doc__, folder="tree")

if __name__ == "__main__":
    sys.exit(main())
