"""Annotate a folder of images: phrases or boxes in, COCO polygons and conversations to train on out.

    python -m experiments.annotate --images DIR --phrases cat "red collar" --tool sam:facebook/sam-vit-huge --out OUT
    python -m experiments.annotate --images DIR --boxes instances.json --out OUT

An open-vocabulary detector finds boxes, a tool (`--tool`, prompted by each box) makes masks, polygons are simplified,
and with `--caption` a language model describes each object. SimpleSeg's own data are made in this way (arXiv
2601.19228); its detector, thresholds and filters are not published, so they are options here.

The run's folder holds annotations.json (COCO; with `--data coco:OUT/annotations.json@DIR` it is data for every
command), sft/ (conversations), sheets/ (contact sheets) and report.html to check by, metrics.json, and images.jsonl:
the objects of each image, with exact masks. `--resume OUT` resumes a run that was ended. Settings of
polygons and conversations may be given anew then: neither detector nor tool is called again.
"""

import sys
from functools import partial

from experiments.annotate.config import Args
from experiments.common import cli


def show(args: Args) -> str | None:
    """Annotate, or print the plan of a dry run; returns the facts for a terminal."""
    from experiments.annotate import report
    from experiments.annotate.annotate import dry_run, run

    if args.dry_run:
        print(dry_run(args))
        return None
    return "\n".join(f"{name:<14} {text}" for name, text in report.facts(run(args)).items())


main = partial(cli.main, "annotate", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
