"""Settings of the training of tiny multimodal models: of the click policy, and of one that writes polygons."""

from dataclasses import dataclass
from typing import Annotated, Literal

from agents.base import EMBEDDED
from agents.training.polygon_examples import RATIO, VERTICES
from experiments.common.config import InFolder, OutFolder, ProcessesOrNone
from segenv.ranges import Count, CountOrNone, Positive, Processes, Range, Seed, Share

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

    resume: InFolder | None = None
    """folder of a run to resume; its settings hold, but numbers of steps may change"""
    cooldown: CountOrNone = 2_400
    """The last of all these steps, in which the learning rate falls to zero."""
    rate: Positive = 1e-3
    tokens: CountOrNone = 0
    """Image tokens along a side; a base with fewer is refined. 0: those of the base."""
    image_size: CountOrNone = 0
    """The side of pictures in pixels: twice the base's, with as many image tokens, or another multiple of its patches,
    with tokens in proportion. 0: the base's, or 128."""
    text_layers: CountOrNone = 0
    """Layers of the language model; a base with fewer gets more, which change nothing at first. 0: those of the base,
    or 4."""
    rope_theta: Annotated[float, Range(0)] = 0.0
    """The base of the language model's rotary positions: the larger, the better its replies find image tokens by what
    these hold. 0: that of the base, or 10000."""
    seed: Seed = 0
    device: str | None = None
    """cuda where there is a GPU, otherwise cpu."""
    workers: ProcessesOrNone = 1
    """Processes that make examples; 0: the training makes them itself."""
    threads: Processes = 1
    probe: Count = 90
    """Held-out tasks that measure the progress."""
    measure_every: Count = 500
    save_every: Count = 250


@dataclass
class ClickArgs(CommonArgs):
    """Train the embedded tiny MLLM."""

    mode: Literal["clicks", "polygon"] = "clicks"
    """What it learns to write; the flags of polygons stand in `--mode polygon --help`."""
    out: OutFolder | None = "runs/sft"
    """folder of a new run"""
    base: str | None = None
    """folder of a tiny checkpoint to start from, or the name of an embedded one, whose sizes hold but for those that
    --tokens, --image-size and --text-layers raise; by default from scratch. Give another --seed than it was trained
    with, or the stages show the same scenes again"""
    tool: str = "sam"
    """What makes the masks of trajectories."""
    states: Literal["annotator", "any", "policy"] = "annotator"
    """whose masks the last stage shows: those of the annotator's trajectories; those, wrong ones and those of other
    objects (`any`), for a model that is to state the IoU of masks; or those that `policy` runs into, with the
    annotator's correction (`policy`: DAgger, Ross et al. 2011)"""
    policy: str = ""
    """The agent of `--states policy`; by default the base."""
    steps: Count = 4
    """Clicks of a trajectory whose masks the last stage shows."""
    stop_gain: Share = 0.0
    """The reply is to stop, too, where the annotator's next click would gain less IoU than this."""
    cheap: CountOrNone = 0
    """Distorted masks a scene in the stage `click`."""
    hard: Annotated[float, Range(0, most=1)] = 0.0
    """Part of the scenes that is of the hardest class from the stage `click` on. 0: those of the stages, a third or
    two fifths."""
    look_steps: CountOrNone = 2_500
    easy_steps: CountOrNone = 800
    click_steps: CountOrNone = 8_700
    state_steps: CountOrNone = 4_600
    lessons: Count = 10
    """Scenes a step; 1.6 times as many in the stage `look`, and half as many in the last, which asks more of each."""
    width: Count = 128
    vision_layers: CountOrNone = 2
    heads: Count = 4
    stop_iou: Annotated[float, Range(above=0, most=1)] = 0.9
    """The IoU from which on the reply is to stop."""


@dataclass
class PolygonArgs(CommonArgs):
    """Train a tiny MLLM to write polygons, from one that clicks; then `--mode polygon --resume DIR` after a stop."""

    mode: Literal["polygon"] = "polygon"
    out: OutFolder | None = "runs/polygon"
    """folder of a new run"""
    base: str = EMBEDDED.name
    """Folder of the checkpoint to start from, or the name of an embedded one; by default the embedded click policy."""
    codec: str = "rings"
    """How polygons are written: rings, simpleseg or simpleseg:contour=edges."""
    vertices: Annotated[int, Range(4)] = VERTICES
    """Vertices of an object's polygons, at most."""
    ratio: Annotated[float, Range(0, below=1)] = RATIO
    """Douglas and Peucker's tolerance in parts of a ring's length: the more, the fewer vertices."""
    order: Literal["canonical", "reversed", "random-start", "random"] = "canonical"
    """How the vertices of a ring stand."""
    rows: bool = False
    """Vertices are where the outline crosses rows of the image, up to 20, and not its corners."""
    draw_steps: Count = 9_000
    cooldown: CountOrNone = 2_500
    """The last of these steps, in which the learning rate falls to zero."""
    lessons: Count = 8
    """Scenes a step."""
    questions: Count = 4
    """Questions about each scene."""
    rate: Positive = 8e-4
