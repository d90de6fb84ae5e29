"""Play an agent with a tool on a dataset and measure it.

    python -m experiments.evaluate --data synthetic:val --limit 200 --tool sam --agent annotator --out runs/sam

writes into `--out`: config.yaml, manifest.json, episodes.jsonl (every step of every episode), metrics.json, plots/ and
report.html. `--resume DIR` resumes a run that was ended. Executor and workers change no number but the
timings; the batch size may change the last bits of what a learned model computes.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.evaluate.config import Args


def show(args: Args) -> str:
    """Run an evaluation and return its numbers for a terminal."""
    from experiments.evaluate.evaluate import run, text

    return text(args.task, run(args))


main = partial(cli.main, "evaluate", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
