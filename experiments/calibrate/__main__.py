"""Find out how a model writes coordinates: what its numbers mean, and in which order.

    python -m experiments.calibrate --agent mllm:NAME_OR_PATH --out runs/calibrate
    python -m experiments.evaluate --agent mllm:NAME_OR_PATH --codec runs/calibrate/codec.yaml

The model is asked to click small discs away from the middle of pictures that are not square, of three sizes. The frame
in which its numbers fall on the discs becomes `codec.yaml`; where no frame does, or two do, it says "unsure" and writes
none. No task of an evaluation is looked at.
"""

import sys
from functools import partial

from experiments.calibrate.calibrate import Result, run
from experiments.calibrate.config import Args
from experiments.calibrate.fit import describe
from experiments.calibrate.report import write_report
from experiments.common import cli
from experiments.common.tables import Table

SHOWN = 6  # frames of the table


def show(args: Args) -> str:
    """Calibrate, write codec and report, and return what was found for a terminal."""
    result = run(args)
    out = args.resume or args.out
    write_report(out, result)
    return text(result, out)


def text(result: Result, out: str | None) -> str:
    """Format a result for a terminal."""
    rows = [[describe(frame), f"{frame.error:.1%}"] for frame in result.frames[:SHOWN]]
    table = Table(("the numbers are", "error"), rows).text() if rows else ""
    if result.frame is None:
        return f"{table}\nunsure: {result.why}"
    return f"{table}\n{result.why}: use --codec {out}/codec.yaml"


main = partial(cli.main, "calibrate", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
