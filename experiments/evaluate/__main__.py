"""Play an agent with a tool on a dataset and measure it.

    python -m experiments.evaluate --data synthetic:val --limit 200 --tool sam --agent annotator --out runs/sam

writes into `--out`: config.yaml, manifest.json, episodes.jsonl (every step of every episode), metrics.json, plots/ and
report.html. A run that was ended, however, goes on with `--resume DIR`. Executor and workers change no number but the
timings; the batch size may change the last bits of what a learned model computes.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from experiments.common.config import parse_args
from experiments.evaluate import filter as filtering
from experiments.evaluate import polygon_report, report
from experiments.evaluate.clicks import run
from experiments.evaluate.config import Args
from segenv.types import SegenvError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/evaluate-%Y%m%d-%H%M%S"))
        numbers = run(args)
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.evaluate --resume {args.resume or args.out}",
            file=sys.stderr,
        )
        return 130
    text = {"segment": report.text, "filter": filtering.text, "polygon": polygon_report.text}[args.task]
    print(text(numbers))
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
