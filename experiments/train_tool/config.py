"""Settings of the training of the tiny SAM."""

from dataclasses import dataclass

from experiments.common.config import InFolder, OutFolder
from segenv.ranges import Count, CountOrNone, Positive, Processes, Seed, Share

RESUMABLE = frozenset({"small_steps", "large_steps", "cooldown", "threads", "save_every"})  # may change on the way


@dataclass
class Args:
    """Train the embedded tiny SAM."""

    out: OutFolder | None = "runs/train_tool"
    """Folder of a new run."""
    resume: InFolder | None = None
    """Folder of a run to resume. Its settings hold; the lengths that are still to come may change."""
    base: str | None = None
    """Folder of a tiny SAM to start from, or `tiny-sam` for the embedded one, whose widths hold; by default from
    scratch. Train one further with `--small-steps 0`."""
    frozen_encoder: bool = False
    """Train the prompt encoder and the mask decoder alone."""
    small_steps: CountOrNone = 3_250
    """Steps on small images."""
    large_steps: CountOrNone = 2_950
    """Steps on images of the full size, after those."""
    cooldown: CountOrNone = 1_000
    """The last of all these steps, in which the learning rate falls to zero."""
    small_size: Count = 128
    """Longest side of the images that the model sees first, in pixels."""
    image_size: Count = 192
    """Longest side of the images of the second stage, in pixels."""
    width: Count = 96
    depth: Count = 4
    prompt_width: Count = 64
    scenes: Count = 8
    """Scenes a step (a quarter fewer at the full size)."""
    prompts: Count = 6
    """Prompts a scene."""
    leaves: Share = 0.5
    """Chance that a scene is of dead leaves with things of many surfaces, and not of `synthetic:train`."""
    unions: Share = 0.35
    """Chance that a prompt asks for an object together with others that touch it: things of several surfaces."""
    parts: Share = 0.2
    """Chance that a prompt asks for a part of its target, cut off by an invisible line: clicks have to be obeyed."""
    given: Share = 0.3
    """Chance that the prompts of a step correct a given mask: the model's of a box or of points, or a distorted one."""
    rate: Positive = 1e-3
    curriculum_iou: Share = 0.45
    """One click a prompt until the best of three masks reaches this IoU (moving mean); then several."""
    seed: Seed = 0
    threads: Processes = 1
    save_every: Count = 250
