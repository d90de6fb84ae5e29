"""Compare evaluations on the episodes that all of them played, paired.

    python -m experiments.compare runs/sam runs/grabcut --out runs/tools

prints, for each number of clicks, the mean IoU of the runs, the mean of the differences from the first with its 95 %
bootstrap interval over images, and the seconds per click. Of runs with `--task polygon` it prints the measures of their
replies so, also by size and topology of the object, and of runs with `--task filter` the errors of their predictions.
Runs under unlike protocols, of other data or with other prompts are refused, unless `--any-protocol`, `--any-data` or
`--any-prompt` is given. The page in `--out` shows the tasks on which the runs disagree most.
"""

import sys
from functools import partial

from experiments.common import cli
from experiments.common.run_folder import write_json
from experiments.compare import report
from experiments.compare.compare import compare_runs, load, text
from experiments.compare.config import Args


def show(args: Args) -> str:
    """Compare the runs, write the files, and return the comparison for a terminal."""
    runs, values, told = load(args.runs, args.allowed)
    result = compare_runs(runs, values, told)
    if args.json is not None:
        write_json(args.json, result)
    if args.out is None:
        return text(result)
    report.write(args.out, runs, values, result, args.gallery)
    return f"{text(result)}\nreport: {args.out}/report.html"


main = partial(cli.main, "compare", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
