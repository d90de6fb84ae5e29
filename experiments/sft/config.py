"""Settings of the training of tiny multimodal models: of the click policy, and of one that writes polygons."""

from dataclasses import dataclass
from typing import Literal

from agents.mllm import EMBEDDED
from agents.training.polygon_examples import RATIO, VERTICES
from experiments.common.cli import check_least

VISION_STAGE = "look"  # the stage that trains the vision tower alone, as flags and logs name it
STAGES = (VISION_STAGE, "easy", "click", "state")
POLYGON_STAGES = ("draw",)
RESUMABLE = frozenset(  # may change on the way
    {
        *(f"{stage}_steps" for stage in (*STAGES, *POLYGON_STAGES)),
        *("cooldown", "rate", "workers", "threads", "probe", "measure_every", "save_every", "device"),
    }
)


@dataclass
class CommonArgs:
    """Settings of both modes."""

    resume: str | None = None
    """folder of a run to resume; its settings hold, but numbers of steps may change"""
    cooldown: int = 2_400
    """The last of all these steps, in which the learning rate falls to zero."""
    rate: float = 1e-3
    seed: int = 0
    device: str | None = None
    """cuda where there is a GPU, otherwise cpu."""
    workers: int = 1
    """Processes that make examples; 0: the training makes them itself."""
    threads: int = 1
    probe: int = 90
    """Held-out tasks that measure the progress."""
    measure_every: int = 500
    save_every: int = 250


@dataclass
class ClickArgs(CommonArgs):
    """Train the embedded tiny MLLM."""

    mode: Literal["clicks", "polygon"] = "clicks"
    """What it learns to write; the flags of polygons stand in `--mode polygon --help`."""
    out: str | None = "runs/sft"
    """folder of a new run"""
    base: str | None = None
    """folder of a tiny checkpoint to start from, or the name of an embedded one, whose sizes hold; by default from
    scratch. Give another --seed than it was trained with, or the stages show the same scenes again"""
    tool: str = "sam"
    """What makes the masks of trajectories."""
    states: Literal["annotator", "any", "policy"] = "annotator"
    """whose masks the last stage shows: those of the annotator's trajectories; those, wrong ones and those of other
    objects (`any`), for a model that is to state the IoU of masks; or those that `policy` runs into, with the
    annotator's correction (`policy`: DAgger, Ross et al. 2011)"""
    policy: str = ""
    """The agent of `--states policy`; by default the base."""
    steps: int = 4
    """Clicks of a trajectory whose masks the last stage shows."""
    stop_gain: float = 0.0
    """The reply is to stop, too, where the annotator's next click would gain less IoU than this."""
    cheap: int = 0
    """Distorted masks a scene in the stage `click`."""
    look_steps: int = 2_500
    easy_steps: int = 800
    click_steps: int = 8_700
    state_steps: int = 4_600
    lessons: int = 10
    """Scenes a step; 1.6 times as many in the stage `look`, and half as many in the last, which asks more of each."""
    image_size: int = 128
    tokens: int = 0
    """Image tokens along a side; a base with fewer is refined. 0: those of the base."""
    width: int = 128
    vision_layers: int = 2
    text_layers: int = 4
    heads: int = 4
    stop_iou: float = 0.9
    """The IoU from which on the reply is to stop."""


@dataclass
class PolygonArgs(CommonArgs):
    """Train a tiny MLLM to write polygons."""

    mode: Literal["polygon"] = "polygon"
    out: str | None = "runs/polygon"
    """folder of a new run"""
    base: str = str(EMBEDDED)
    """Folder of the checkpoint to start from, or the name of an embedded one; by default the embedded click policy."""
    codec: str = "rings"
    """How polygons are written: rings, simpleseg or simpleseg:contour=edges."""
    vertices: int = VERTICES
    """Vertices of an object's polygons, at most."""
    ratio: float = RATIO
    """Douglas and Peucker's tolerance in parts of a ring's length: the more, the fewer vertices."""
    order: Literal["canonical", "reversed", "random-start", "random"] = "canonical"
    """How the vertices of a ring stand."""
    draw_steps: int = 9_000
    cooldown: int = 2_500
    """The last of these steps, in which the learning rate falls to zero."""
    lessons: int = 8
    """Scenes a step."""
    questions: int = 4
    """Questions about each scene."""
    rate: float = 8e-4


def check_counts(args: CommonArgs, **limits: int) -> None:
    """Raise RunError where a number is below its limit: those of both modes, and `limits`."""
    positive = dict.fromkeys(("lessons", "threads", "probe", "measure_every", "save_every"), 1)
    check_least(args, cooldown=0, seed=0, workers=0, **positive, **limits)
