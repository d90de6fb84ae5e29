"""Play one episode and draw it as a strip: image, target, and the mask with its clicks after each step.

    python -m experiments.filmstrip --data synthetic:val#hard --item 3 --out episode.png

Any data, tool and agent that experiments.evaluate takes can be drawn.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from search.episode import clicks_of
from search.executors import Player, Setup
from segenv import render
from segenv.types import SegenvError


@dataclass(frozen=True)
class Args:
    """Which episode, and where to write it."""

    out: Path
    """the PNG to write"""
    data: str = "synthetic:val"
    item: int = 0
    """which task of the data"""
    tool: str = "sam"
    agent: str = "annotator"
    codec: str | None = None
    max_steps: int = 5
    seed: int = 0
    columns: int = 4
    """panels in a row"""
    size: int = 256
    """longer side of a panel, in pixels"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    setup = Setup(args.data, args.tool, args.agent, args.codec, args.max_steps, seed=args.seed)
    try:
        player = Player(setup)
        episode = next(player.play([args.item]))
    except (SegenvError, ValueError, OSError, IndexError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    steps = range(1, len(episode.steps) + 1)
    strip = render.filmstrip(
        player.dataset[args.item],
        [episode.mask(k) for k in steps],
        [clicks_of(episode.steps[:k]) for k in steps],
        columns=args.columns,
        size=args.size,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).save(args.out, optimize=True)
    print(f"{args.out}: {episode.instruction or episode.task}, IoU {', '.join(f'{iou:.3f}' for iou in episode.ious)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
