"""Annotate a folder of images: phrases or boxes in, COCO polygons and conversations to train on out.

    python -m experiments.annotate --images DIR --phrases cat "red collar" --tool sam:facebook/sam-vit-huge --out OUT
    python -m experiments.annotate --images DIR --boxes instances.json --out OUT

An open-vocabulary detector finds boxes, a tool (`--tool`, prompted by each box) makes masks, outlines are simplified,
and with `--caption` a language model describes each object. SimpleSeg's own data are made in this way (arXiv
2601.19228); its detector, thresholds and filters are not published, so they are options here.

The run's folder holds annotations.json (COCO; with `--data coco:OUT/annotations.json@DIR` it is data for every
command), sft/ (conversations), sheets/ (contact sheets) and report.html to check by, metrics.json, and images.jsonl:
what was found in each image, with exact masks. A run that was ended, however, goes on with `--resume OUT`. Settings of
outlines and conversations may be given anew then: neither detector nor tool is asked again.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from experiments.annotate import report
from experiments.annotate.annotate import dry_run, run
from experiments.annotate.config import Args
from experiments.common.config import parse_args
from segenv.types import SegenvError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/annotate-%Y%m%d-%H%M%S"))
        if args.dry_run:
            print(dry_run(args))
            return 0
        numbers = run(args)
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.annotate --resume {args.resume or args.out}",
            file=sys.stderr,
        )
        return 130
    for name, text in report.facts(numbers).items():
        print(f"{name:<14} {text}")
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
