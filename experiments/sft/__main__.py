"""Train the embedded tiny MLLM S_0 from scratch on the annotator's trajectories over procedural scenes.

    python -m experiments.sft --tool sam --out runs/sft          # then --resume runs/sft after a stop
    python -m experiments.sft --base tiny-mllm --states any --look-steps 0 --easy-steps 0 --click-steps 0 --seed 1

Four stages, each on fresh scenes of `synthetic:train`: `look` (the vision tower alone learns what patches show), `easy`
(first clicks, mostly in scenes of two or three objects), `click` (first clicks everywhere) and `state` (masks of whole
trajectories through the tool; correct, or stop). The loss is on the reply alone, plus dense losses on patches whose
heads are dropped at the end. The second line trains the embedded model further, on masks of any kind: what the process
reward model is made from. Departures from SegAgent: no pretrained model, the instruction alone as prompt, and text
before image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments.common.config import parse_args
from experiments.sft.clicks import Args, run
from segenv.types import SegenvError


def mode(argv: Sequence[str]) -> str:
    """The `--mode` of a command line, or of the run that it goes on with; each has flags of its own."""
    given = {}
    for k, word in enumerate(argv):
        name, _, value = word.partition("=")
        given[name] = value or "".join(argv[k + 1 : k + 2])
    config = Path(given.get("--resume", "")) / "config.yaml"
    if "--mode" in given or not given.get("--resume") or not config.is_file():
        return given.get("--mode", "clicks")
    return str((yaml.safe_load(config.read_text()) or {}).get("mode", "clicks"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    try:
        if mode(given) == "polygon":
            from experiments.sft import polygons

            model = polygons.run(parse_args(polygons.Args, given, polygons.__doc__))
        else:
            model = run(parse_args(Args, given, __doc__))
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; go on with --resume DIR", file=sys.stderr)
        return 130
    print(f"wrote {model}; it is what `--agent mllm:{model}` takes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
