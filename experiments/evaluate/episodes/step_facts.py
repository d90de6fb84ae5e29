"""Facts of one episode from which a report takes an answer apart: how its replies were written, where its clicks fell,
what they gained beside the annotator's, and when it stopped. They need the target and no agent, after the play."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from experiments.evaluate.answers.polygon_metrics import NONE, size_of
from search.episode import Episode, Step, action_from_json
from segenv import metrics
from segenv.codec.base import Codec
from segenv.codec.frames import Frame, image_size, padded_square
from segenv.codec.reading import CUT
from segenv.geometry.rle import encode_mask
from segenv.types import Action, Box, Click, Task, object_of

GOOD = 0.9  # a mask of this IoU is done
EXCHANGED = "axes exchanged"
FRAMES = {  # as which other numbers a first click is read again, in the codec's order of axes
    "pixels": Frame(image_size),
    "thousandths": Frame(1000),
    "fractions": Frame(1, decimals=4),
    "percent": Frame(100, decimals=2),
    "fractions of the padded square": Frame(padded_square, decimals=4),
}
PLACES = {"left", "right", "top", "bottom", "upper", "lower", "middle", "centre", "center", "corner", "edge"}
RELATIONS = {
    *("than", "between", "next", "behind", "above", "below", "under", "near", "front", "beside", "against", "with"),
    *("most", "least", "only", "first", "second", "third", "last", "holding", "wearing"),
}
PARTS = ("middle", "side", "corner")  # of the image, in thirds, where the middle of the object's box lies
EXPRESSIONS = ("none", "name", "attributes", "place", "relation", "reasoning")
NEIGHBOURS = ("alone", "1 to 3 others", "4 or more others")


@dataclass(frozen=True)
class StepFacts:
    """Facts of one episode; arrays are float64 [steps], NaN where a fact has no meaning."""

    task: str
    fault: tuple[str | None, ...]  # of each reply: None, "cut", "outside" or "invalid"
    first: tuple[int, int] | None  # x, y of the first click, or the middle of a first box
    on_object: dict[str, float]  # whether the first click is on the object, or on an error of a mask that is there at
    # the start: as "read", and as other frames have it
    random: float  # chance of a random pixel to be on it: the part of the image that it covers
    centre: float  # whether the pixel in the middle of the image is on it
    sign: np.ndarray  # of clicks on an error: whether the sign is right
    positive: np.ndarray  # of those: whether it is to be positive
    gain: np.ndarray  # IoU after a click less that before
    reference: np.ndarray  # that of the annotator's click in the same state
    ended: np.ndarray  # whether the action ended the episode
    done: np.ndarray  # whether there was nothing left to gain before it
    missed: np.ndarray  # what the annotator's click would have gained
    groups: dict[str, str]  # the object's size, its expression, its part of the image
    others: int | None  # other objects of the image that the task tells of
    on_other: float  # whether the first click is on one of those
    target: str | None  # `encode_mask` of the object, where other tasks share its image
    shape: tuple[int, int]  # height and width of the image
    has_object: bool = True


def step_facts(episode: Episode, task: Task, codec: Codec | None = None, shared: bool = False) -> StepFacts:
    """Look up the facts of an episode on a task. `codec` is the agent's, in which first replies are read again as other
    frames; `shared` keeps the target, to find the neighbours in other tasks of the image."""
    found = object_of(task.target)
    first = _point(_action(episode.steps[0]))
    aim = _aim(task, episode.mask(0))
    names = ("sign", "positive", "gain", "reference", "ended", "done", "missed")
    table: dict[str, np.ndarray] = {name: np.full(len(episode.steps), np.nan) for name in names}
    iou = episode.start_iou
    for k, step in enumerate(episode.steps):
        later = max(one.iou for one in episode.steps[k:])
        for name, value in _facts(task, episode.mask(k), step, iou, later).items():
            table[name][k] = value
        iou = step.iou
    others, on_other = _others(task, first)
    return StepFacts(
        task=task.id,
        fault=tuple(map(fault_of, episode.steps)),
        first=(first.x, first.y) if first is not None else None,
        on_object={"read": _is_on(aim, first), **_read_again(episode.steps[0], task, aim, codec)},
        random=float(aim.mean()),
        centre=float(aim[task.height // 2, task.width // 2]),
        **table,
        groups={"size": size_of(task), "expression": expression_of(task.instruction), "part": part_of(found)},
        others=others,
        on_other=on_other,
        target=encode_mask(found) if shared else None,
        shape=(task.height, task.width),
        has_object=bool(found.any()),
    )


def fault_of(step: Step) -> str | None:
    """Say why a reply is no action, see `kind_of_fault`; None where it is one."""
    if step.action["type"] != "invalid":
        return None
    return kind_of_fault(step.action["reason"], step.finish_reason)


def kind_of_fault(reason: str, finish_reason: str | None) -> str:
    """The kind of fault of an invalid reply: "cut" (at its longest, or inside its thought), "outside" (numbers outside
    the frame), or "invalid"."""
    if (finish_reason or "").lower() in CUT or "inside its thought" in reason or reason.startswith("cut "):
        return "cut"
    return "outside" if " lies outside " in reason else "invalid"


def _facts(task: Task, mask: np.ndarray, step: Step, iou: float, later: float) -> dict[str, float]:
    """Facts of one step from a mask, bool [H, W], of an IoU; `later` is the best IoU from this step on."""
    facts: dict[str, float] = {"ended": float(step.action["type"] in ("stop", "absent"))}
    reference = None if step.other is None else step.other["iou"] - iou
    facts["done"] = float(iou >= GOOD or (reference is not None and reference <= 0 and later <= iou))
    if reference is not None:
        facts["missed"] = reference
    if not isinstance(click := _action(step), Click):
        return facts
    pixel = np.s_[click.y : click.y + 1, click.x : click.x + 1]
    missing, extra = (bool(error.item()) for error in metrics.errors(task.target[pixel], mask[pixel]))
    if missing or extra:
        facts |= {"sign": float(click.positive == missing), "positive": float(missing)}
    if step.error is None:
        facts["gain"] = step.iou - iou
        facts["reference"] = float("nan") if reference is None else reference
    return facts


def _action(step: Step) -> Action | None:
    """The action of a step; None for an invalid reply."""
    return None if step.action["type"] == "invalid" else action_from_json(step.action)


def _point(action: Action | None) -> Click | None:
    """A click, or the middle of a box as one; None of another action."""
    if isinstance(action, Box):
        return Click(int((action.x0 + action.x1) / 2), int((action.y0 + action.y1) / 2))
    return action if isinstance(action, Click) else None


def _is_on(mask: np.ndarray, click: Click | None) -> float:
    """1 where a click is on a mask, bool [H, W], whatever its sign; else 0."""
    return float(click is not None and mask[click.y, click.x])


def _aim(task: Task, start: np.ndarray) -> np.ndarray:
    """Where a first click belongs, bool [H, W]: on the object, or on an error of the mask at the start."""
    if not start.any():
        return object_of(task.target)
    missing, extra = metrics.errors(task.target, start)
    return missing | extra


def _read_again(step: Step, task: Task, aim: np.ndarray, codec: Codec | None) -> dict[str, float]:
    """Whether a reply's click is on `aim`, bool [H, W], as each other frame reads it."""
    readings = {name: other.parse(step.text, task) for name, other in other_frames(codec).items()}
    return {name: _is_on(aim, _point(one)) for name, one in readings.items()}


@lru_cache(maxsize=4)
def other_frames(codec: Codec | None) -> Mapping[str, Codec]:
    """The codec with the axes of its points exchanged, and with points in other frames; none of a codec of masks."""
    if type(codec) is not Codec:
        return {}
    found = {}
    for name, frame in frames_beside(codec.points).items():
        found[name] = copy.copy(codec)
        found[name].points = frame
        if codec.points == codec.boxes:
            found[name].boxes = frame
    return found


def frames_beside(own: Frame) -> dict[str, Frame]:
    """A frame with its axes exchanged, and others in its order of axes."""
    turned = "yx" if own.order == "xy" else "xy"
    others = {name: frame for name, frame in FRAMES.items() if frame.extent != own.extent}
    return {
        EXCHANGED: Frame(own.extent, turned, own.decimals, own.start),
        **{name: Frame(frame.extent, own.order, frame.decimals) for name, frame in others.items()},
    }


def expression_of(instruction: str) -> str:
    """The kind of an instruction, of `EXPRESSIONS`, by its words: a question or more than 12 words is reasoning, then
    words of relation and superlatives, then words of place; of the others, one word is a name."""
    words = re.findall(r"\w+", instruction.casefold())
    if not words:
        return "none"
    if "?" in instruction or len(words) > 12:
        return "reasoning"
    if RELATIONS & set(words) or any(len(word) > 5 and word.endswith("est") for word in words):
        return "relation"
    if PLACES & set(words):
        return "place"
    return "name" if len(set(words) - {"the", "a", "an"}) == 1 else "attributes"


def part_of(mask: np.ndarray) -> str:
    """The part of the image, of `PARTS`, in whose third the middle of the mask's box lies; `NONE` without a mask."""
    if (box := metrics.box_of(mask)) is None:
        return NONE
    height, width = mask.shape
    across, down = (box.x0 + box.x1) / 2 / width, (box.y0 + box.y1) / 2 / height
    return PARTS[sum(abs(place - 0.5) >= 1 / 6 for place in (across, down))]


def _others(task: Task, first: Click | None) -> tuple[int | None, float]:
    """How many other objects a task tells of (None where it tells of none), and whether a click is on one."""
    instances: Any = task.meta.get("instances")
    if not isinstance(instances, np.ndarray) or instances.shape != task.target.shape:
        return None, float("nan")
    other = np.where(object_of(task.target), 0, instances)
    return len(np.unique(other[other > 0])), _is_on(other > 0, first)
