"""Train the embedded tiny MLLM S_0 from scratch on the annotator's trajectories over procedural scenes.

    python -m experiments.sft --tool sam --out runs/sft          # then --resume runs/sft after a stop
    python -m experiments.sft --base tiny-mllm --states any --look-steps 0 --easy-steps 0 --click-steps 0 --seed 1

Four stages, each on fresh scenes of `synthetic:train`: `look` (the vision tower alone learns what patches show), `easy`
(first clicks, mostly in scenes of two or three objects), `click` (first clicks everywhere) and `state` (masks of whole
trajectories through the tool; correct, or stop). The loss is on the reply, plus dense losses on patches: what they
show, and the digits of where they are. Their heads are dropped at the end. The second line trains the embedded model
further, on masks of any kind: what the process reward model starts from. `--text-layers` deepens a base. Departures
from SegAgent: no pretrained model, the instruction alone as prompt, and text before image.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments.common import cli
from experiments.common.config import RunError, read_yaml
from experiments.sft.config import ClickArgs, PolygonArgs


def mode(argv: Sequence[str]) -> str:
    """Read the `--mode` of a command line, or of the run that it resumes; each mode has flags of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", nargs="?")
    parser.add_argument("--resume", nargs="?")
    flags, _ = parser.parse_known_args(argv)
    config = Path(flags.resume or "") / "config.yaml"
    if flags.mode is None and flags.resume and config.is_file():
        with suppress(RunError):  # told when the settings are read
            return str(read_yaml(config).get("mode", "clicks"))
    return str(flags.mode or "clicks")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if mode(argv) == "polygon":
        return cli.main("sft", PolygonArgs, show, PolygonArgs.__doc__, argv)
    return cli.main("sft", ClickArgs, show, __doc__, argv)


def show(args: ClickArgs | PolygonArgs) -> None:
    """Train, and say where the model is."""
    from experiments.sft import clicks, polygons

    model = polygons.run(args) if isinstance(args, PolygonArgs) else clicks.run(args)
    print(f"wrote {model}; it is what `--agent mllm:{model}` takes")


if __name__ == "__main__":
    sys.exit(main())
