"""Settings of the training of the tiny SAM."""

from dataclasses import dataclass

RESUMABLE = frozenset({"small_steps", "large_steps", "cooldown", "threads", "save_every"})  # may change on the way


@dataclass
class Args:
    """Train the embedded tiny SAM."""

    out: str | None = "runs/train_tool"
    """Folder of a new run."""
    resume: str | None = None
    """Folder of a run to resume. Its settings hold; the lengths that are still to come may change."""
    small_steps: int = 3_250
    """Steps on small images."""
    large_steps: int = 2_950
    """Steps on images of the full size, after those."""
    cooldown: int = 1_000
    """The last of all these steps, in which the learning rate falls to zero."""
    small_size: int = 128
    """Longest side of the images that the model sees first, in pixels."""
    image_size: int = 192
    """Longest side of the images of the second stage, in pixels."""
    width: int = 96
    depth: int = 4
    prompt_width: int = 64
    scenes: int = 8
    """Scenes a step (a quarter fewer at the full size)."""
    prompts: int = 6
    """Prompts a scene."""
    leaves: float = 0.5
    """Chance that a scene is of dead leaves with things of many surfaces, and not of `synthetic:train`."""
    unions: float = 0.35
    """Chance that a prompt asks for an object together with others that touch it: things of several surfaces."""
    parts: float = 0.2
    """Chance that a prompt asks for a part of its target, cut off by an invisible line: clicks have to be obeyed."""
    rate: float = 1e-3
    curriculum_iou: float = 0.45
    """One click a prompt until the best of three masks reaches this IoU (moving mean); then several."""
    seed: int = 0
    threads: int = 1
    save_every: int = 250
