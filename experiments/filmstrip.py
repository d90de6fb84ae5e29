"""Draw one episode: as a strip of image, target and the mask with its clicks after each step, or as a moving picture.

    python -m experiments.filmstrip --data synthetic:val#hard --item 3 --out episode.png
    python -m experiments.filmstrip --run runs/sam --task val/7 --out episode.gif

The first plays an episode, of any data, tool and agent that experiments.evaluate takes. The second takes one of a run
as it was played. A name that ends in .gif gives a picture that moves, a step at a time.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.common import cli
from experiments.common.config import InFolder, OutFile, RunError, read_yaml
from experiments.common.run_folder import RunFolder
from experiments.evaluate.episodes.metrics import read_episode
from search.episode import Episode, clicks_of
from search.executors import Player, Setup
from segenv import data, render
from segenv.ranges import Count, CountOrNone, Seed
from segenv.types import SegenvError, Task

SHOWN_FOR = 700  # milliseconds of a step in a moving picture; its last one stays three times as long


@dataclass(frozen=True)
class Args:
    """Which episode, and where to write it."""

    out: OutFile
    """the PNG or GIF to write"""
    run: InFolder | None = None
    """take the episode from this run of experiments.evaluate, and play none"""
    task: str | None = None
    """id of the episode's task in the run; by default its first"""
    sample: CountOrNone = 0
    """which of the episodes of that task"""
    data: str = "synthetic:val"
    item: CountOrNone = 0
    """which task of the data"""
    tool: str = "sam"
    agent: str = "annotator"
    codec: str | None = None
    max_steps: Count = 5
    seed: Seed = 0
    columns: Count = 4
    """panels in a row of a strip"""
    size: Count = 256
    """longer side of a panel, in pixels"""


def show(args: Args) -> str:
    """Write the picture of the episode, and describe it."""
    if (kind := args.out.suffix.lower()) not in (".png", ".gif"):
        raise RunError(f"--out {args.out} ends in {kind!r}; expected .png for a strip, or .gif for a moving picture")
    if args.task is not None and args.run is None:
        raise RunError("--task names an episode of a --run; to play one, give --data and --item")
    task, episode = _play(args) if args.run is None else _find(Path(args.run), args.task, args.sample)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".gif":
        frames = [Image.fromarray(one) for one in moments(task, episode, args.size)]
        lasting = [SHOWN_FOR] * (len(frames) - 1) + [3 * SHOWN_FOR]
        frames[0].save(args.out, save_all=True, append_images=frames[1:], duration=lasting, loop=0, optimize=True)
    else:
        Image.fromarray(strip(task, episode, args.columns, args.size)).save(args.out, optimize=True)
    return f"{args.out}: {episode.instruction or episode.task}, IoU {', '.join(f'{iou:.3f}' for iou in episode.ious)}"


def _play(args: Args) -> tuple[Task, Episode]:
    player = Player(Setup(args.data, args.tool, args.agent, args.codec, args.max_steps, seed=args.seed))
    return player.dataset[args.item], next(player.play([args.item]))


def _find(run: Path, task: str | None, sample: int) -> tuple[Task, Episode]:
    """The episode of a task in a run, and the task; RunError where there is none."""
    config, folder = read_yaml(run / "config.yaml"), RunFolder(run)
    for episode in folder.records("episodes.jsonl", read_episode):
        if task in (None, episode.task) and episode.sample == sample:
            tasks = data.make(config["data"], follow_links=bool(config.get("follow_links")))
            return tasks.by_id(episode.task), episode
    named = "no episode" if task is None else f"no episode of task {task!r}"
    raise RunError(f"{run / 'episodes.jsonl'} holds {named} with sample {sample}")


def strip(task: Task, episode: Episode, columns: int, size: int) -> np.ndarray:
    """A whole episode on one panel, uint8 [h, w, 3]; see `render.filmstrip`."""
    steps = range(1, len(episode.steps) + 1)
    masks, clicks = [episode.mask(k) for k in steps], [clicks_of(episode.steps[:k]) for k in steps]
    return render.filmstrip(task, masks, clicks, columns, size)


def moments(task: Task, episode: Episode, size: int) -> Sequence[np.ndarray]:
    """The start of an episode and each of its steps, with what was replied, uint8 [h, w, 3] each, of one size."""
    words = ["start", *(f"{k}: {step.text} (IoU {step.iou:.2f})" for k, step in enumerate(episode.steps, 1))]
    return [
        render.frame(task.image, episode.mask(k), clicks_of(episode.steps[:k]), task.target, caption, size)
        for k, caption in enumerate(words)
    ]


main = partial(cli.main, "filmstrip", Args, show, __doc__, errors=(SegenvError, ValueError, OSError, IndexError))

if __name__ == "__main__":
    sys.exit(main())
