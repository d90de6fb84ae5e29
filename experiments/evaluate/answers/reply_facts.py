"""Facts of replies with a mask, a box or a point, from which a report takes them apart: how they were written, where
they lie, and which object they fit best. They need the target and the recorded text, and ask no model."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from experiments.evaluate.answers.polygon_metrics import Record, rasterize, size_of
from experiments.evaluate.episodes.step_facts import StepFacts, expression_of, frames_beside, kind_of_fault, part_of
from segenv import metrics, queries
from segenv.codec.frames import Frame
from segenv.codec.polygons import PolygonCodec
from segenv.geometry.rle import decode_mask, encode_mask
from segenv.types import Box, Click, Invalid, Polygons, Task, object_of

NOTHING = np.full(1, np.nan)  # facts that only clicks have


@dataclass(frozen=True)
class ReplyFacts(StepFacts):
    """Facts of one reply. `first` is its middle, the point itself or the middle of its box, which counts as on the
    object where it is in the object's own box, or for a point on its mask."""

    iou: float = float("nan")  # with the object's mask or box; of a point, whether it is on the object
    filled: float = float("nan")  # IoU of the object's box, filled, with the object: of masks
    denied: bool = False  # it says that there is no object
    mask: str | None = None  # `encode_mask` of the reply, where other objects are known


def reply_facts(one: Record, task: Task, codec: PolygonCodec, asked: str, shared: bool = False) -> ReplyFacts:
    """Look up the facts of a greedy reply, `asked` for a mask, a box or a point. `shared` keeps masks, to find the
    neighbours in other tasks of the image."""
    found = object_of(task.target)
    answer = queries.read(one.text, task, codec, asked)
    box, middle = metrics.box_of(found), middle_of(answer, task)
    aim = found if asked == "point" or box is None else rasterize(box, task)
    others, drawn = others_of(task, found), rasterize(answer, task)
    facts = ReplyFacts(
        task=task.id,
        fault=(_fault(one, answer),),
        first=middle,
        on_object={"read": _on(aim, middle), **_read_again(one.text, task, aim, codec, asked)},
        random=float(aim.mean()),
        centre=float(aim[task.height // 2, task.width // 2]),
        **dict.fromkeys(("sign", "positive", "gain", "reference", "ended", "done", "missed"), NOTHING),
        groups={"size": size_of(task), "expression": expression_of(task.instruction), "part": part_of(found)},
        others=None if others is None else len(others),
        on_other=float("nan"),
        target=encode_mask(found) if shared or others else None,
        shape=(task.height, task.width),
        has_object=box is not None,
        iou=one.iou,
        filled=metrics.iou(task.target, aim) if asked == "mask" and box is not None else float("nan"),
        denied=one.error is None and not one.drawn,
        mask=encode_mask(drawn) if shared or others else None,
    )
    return facts if others is None else replace(facts, on_other=fits_other(facts, others, asked))


def fits_other(facts: ReplyFacts, others: Sequence[np.ndarray], asked: str) -> float:
    """Whether a reply fits one of the `others`, bool [H, W] each, better than its own object: a point by being on it, a
    box by the IoU of boxes, a mask by the IoU of masks."""
    if asked == "point":
        missed = facts.first is not None and not facts.on_object["read"]
        return float(missed and any(other[facts.first[::-1]] for other in others))  # type: ignore[index]
    if facts.mask is None or facts.target is None or not others:
        return 0.0
    score = metrics.box_iou if asked == "box" else metrics.iou
    reply, own = (decode_mask(mask, *facts.shape) for mask in (facts.mask, facts.target))
    return float(max(score(other, reply) for other in others) > score(own, reply))


def others_of(task: Task, found: np.ndarray) -> list[np.ndarray] | None:
    """The other objects that a task tells of, bool [H, W] each; None where it tells of none."""
    instances: Any = task.meta.get("instances")
    if not isinstance(instances, np.ndarray) or instances.shape != found.shape:
        return None
    rest = np.where(found, 0, instances)
    return [rest == number for number in np.unique(rest[rest > 0])]


def middle_of(answer: Any, task: Task) -> tuple[int, int] | None:
    """The pixel (x, y) of a point, or of the middle of the box of a reply; None where it draws nothing."""
    match answer:
        case Click(x, y):
            return x, y
        case Box(x0, y0, x1, y1):
            ends = np.array([(x0, y0), (x1, y1)])
        case Polygons(rings) if any(map(len, rings)):
            ends = np.concatenate(rings)
        case _:
            return None
    x, y = np.floor((ends.min(0) + ends.max(0)) / 2).astype(int).clip(0, (task.width - 1, task.height - 1)).tolist()
    return x, y


def _fault(one: Record, answer: Any) -> str | None:
    if one.error is not None:
        return kind_of_fault(answer.reason if isinstance(answer, Invalid) else one.error, one.finish_reason)
    return "cut" if one.truncated else None


def _on(aim: np.ndarray, middle: tuple[int, int] | None) -> float:
    return float(middle is not None and aim[middle[::-1]])


def _read_again(text: str, task: Task, aim: np.ndarray, codec: PolygonCodec, asked: str) -> dict[str, float]:
    """Whether the middle of a reply is on `aim`, bool [H, W], as each other frame reads it."""
    others = other_readers(codec, asked).items()
    return {name: _on(aim, middle_of(queries.read(text, task, other, asked), task)) for name, other in others}


@lru_cache(maxsize=8)
def other_readers(codec: PolygonCodec, asked: str) -> Mapping[str, PolygonCodec]:
    """The codec with its axes exchanged, and with numbers in other frames; none of a codec of masks without numbers."""
    if type(codec) is not PolygonCodec:
        return {}
    own = {"point": codec.points, "box": codec.boxes}.get(asked, codec.dialect.frame)
    return {name: _counting_in(codec, frame) for name, frame in frames_beside(own).items()}


def _counting_in(codec: PolygonCodec, frame: Frame) -> PolygonCodec:
    other = copy.copy(codec)
    other.points = other.boxes = frame
    other.dialect = replace(codec.dialect, frame=frame)
    if codec.family is not None:
        other.family = copy.copy(codec.family)
        other.family.points = other.family.boxes = frame
    return other
