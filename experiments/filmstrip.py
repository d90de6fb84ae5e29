"""Play one episode and draw it as a strip: image, target, and the mask with its clicks after each step.

    python -m experiments.filmstrip --data synthetic:val#hard --item 3 --out episode.png

Any data, tool and agent that experiments.evaluate takes can be drawn.
"""

import sys
from dataclasses import dataclass
from functools import partial

from PIL import Image

from experiments.common import cli
from experiments.common.config import OutFile
from search.episode import clicks_of
from search.executors import Player, Setup
from segenv import render
from segenv.ranges import Count, CountOrNone, Seed
from segenv.types import SegenvError


@dataclass(frozen=True)
class Args:
    """Which episode, and where to write it."""

    out: OutFile
    """the PNG to write"""
    data: str = "synthetic:val"
    item: CountOrNone = 0
    """which task of the data"""
    tool: str = "sam"
    agent: str = "annotator"
    codec: str | None = None
    max_steps: Count = 5
    seed: Seed = 0
    columns: Count = 4
    """panels in a row"""
    size: Count = 256
    """longer side of a panel, in pixels"""


def show(args: Args) -> str:
    """Play the episode, write its picture, and describe it."""
    player = Player(Setup(args.data, args.tool, args.agent, args.codec, args.max_steps, seed=args.seed))
    episode = next(player.play([args.item]))
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
    return f"{args.out}: {episode.instruction or episode.task}, IoU {', '.join(f'{iou:.3f}' for iou in episode.ious)}"


main = partial(cli.main, "filmstrip", Args, show, __doc__, errors=(SegenvError, ValueError, OSError, IndexError))

if __name__ == "__main__":
    sys.exit(main())
