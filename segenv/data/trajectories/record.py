"""One recorded trajectory: its clicks, what they led to, and the lessons in it; as an entry of SegAgent's released
JSON (see `segenv.data.trajectories.dataset`).

Masks are in COCO's compressed run lengths, in ASCII, until `Trajectory.decode` is asked for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as rle

from segenv import metrics
from segenv.data.base import id_of
from segenv.data.images import MAX_PIXELS
from segenv.geometry.rle import decode_mask, encode_mask, segmentation_mask
from segenv.texts import shown
from segenv.types import IGNORE, Click, Stop, Task, ignored_of, object_of

_LARGE = 1e15  # beyond every number of a file, and within the whole numbers that a float holds
STOP_IOU = 0.98  # what a mask must reach to be good enough; as in the released generator


@dataclass(frozen=True)
class RecordedClick:
    """A click and what it led to: `mask` in COCO's compressed run lengths, its IoU in 0..1, and its `box` and `area`
    (in pixels) as the file has them; ours are COCO's [x, y, width, height]. None: not known."""

    idx: int
    click: Click
    mask: str | None
    iou: float | None
    box: tuple[float, ...] | None = None
    area: float | None = None

    @classmethod
    def measured(
        cls, idx: int, click: Click, mask: str | None, iou: float | None, height: int, width: int
    ) -> RecordedClick:
        """The click with box and area of its mask."""
        return cls(idx, click, mask, iou, *((None, None) if mask is None else _box_and_area(mask, height, width)))


@dataclass(frozen=True)
class Start:
    """First mask, not empty, in COCO's compressed run lengths, its IoU, and its origin: "box", "points", …"""

    kind: str
    mask: str
    iou: float


@dataclass(frozen=True)
class StateAction:
    """Action to take on `mask`, whose IoU is `iou`, and the IoU that it led to; None where that is not known."""

    step: int
    mask: str
    iou: float
    action: Click | Stop
    iou_after: float | None


@dataclass(frozen=True)
class Trajectory:
    """One entry of the file. `target` and `ignored` are in COCO's compressed run lengths, as are all masks; `decode`
    gives them as bool [height, width]. `bbox` and `area` are the target's, as the file has them."""

    image_name: str
    height: int
    width: int
    object_id: int | str | None
    caption: str
    target: str
    clicks: tuple[RecordedClick, ...]
    start: Start | None = None
    bbox: tuple[float, ...] | None = None
    area: float | None = None
    ignored: str | None = None
    task: str | None = None
    sample: int = 0

    @classmethod
    def of_task(
        cls, task: Task, image_name: str, clicks: Sequence[RecordedClick], start: Start | None = None, sample: int = 0
    ) -> Trajectory:
        """Record the clicks on a task whose image is the file `image_name`."""
        target, ignored = encode_mask(object_of(task.target)), ignored_of(task.target)
        return cls(
            image_name,
            task.height,
            task.width,
            task.id,
            task.instruction,
            target,
            tuple(clicks),
            start,
            *_box_and_area(target, task.height, task.width),
            ignored=None if ignored is None else encode_mask(ignored),
            task=task.id,
            sample=sample,
        )

    def decode(self, counts: str) -> np.ndarray:
        """One of the masks, bool [height, width]."""
        return decode_mask(counts, self.height, self.width)

    def target_labels(self) -> np.ndarray:
        """The target as a `Task` has it: uint8 [height, width] with 0, 128 and 255."""
        labels = np.where(self.decode(self.target), 255, 0).astype(np.uint8)
        if self.ignored is not None:
            labels[self.decode(self.ignored)] = IGNORE
        return labels

    def lessons(self, stop_iou: float = STOP_IOU) -> Iterator[StateAction]:
        """Each state with the click that was made in it, and a stop where the mask reaches `stop_iou`; above 1, there
        is none."""
        mask, iou = (self.start.mask, self.start.iou) if self.start else (self._empty, 0.0)
        step = 0
        for recorded in self.clicks:
            step = recorded.idx
            if iou >= stop_iou:
                break
            yield StateAction(step, mask, iou, recorded.click, recorded.iou)
            if recorded.mask is None or recorded.iou is None:
                return
            mask, iou, step = recorded.mask, recorded.iou, step + 1
        if iou >= stop_iou:
            yield StateAction(step, mask, iou, Stop(), iou)

    def to_json(self) -> dict[str, Any]:
        """The entry as what JSON holds; `from_json` is the inverse."""
        about: dict[str, Any] = {
            "object_id": self.object_id,
            "caption": self.caption,
            "segmentation": self._rle(self.target),
            "bbox": _listed(self.bbox),
            "area": self.area,
        }
        entry: dict[str, Any] = {
            "image_name": self.image_name,
            "height": self.height,
            "width": self.width,
            "gt_ann": about,
            "clicks_list": [self._click_to_json(recorded) for recorded in self.clicks],
        }
        if self.ignored is not None:
            about["ignored"] = self._rle(self.ignored)
        if self.start is not None:
            entry["start"] = {"kind": self.start.kind, "mask": self._rle(self.start.mask), "iou": self.start.iou}
        if self.task is not None:
            entry |= {"task": self.task, "sample": self.sample}
        return entry

    @classmethod
    def from_json(cls, entry: Any, max_pixels: int = MAX_PIXELS) -> Trajectory:
        """The trajectory of an entry. Raises ValueError, which names the field, what arrived and what was expected."""
        return _read(entry, max_pixels)

    @cached_property
    def _empty(self) -> str:
        return encode_mask(np.zeros((self.height, self.width), bool))

    def _rle(self, counts: str) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": counts}

    def _click_to_json(self, recorded: RecordedClick) -> dict[str, Any]:
        return {
            "idx": recorded.idx,
            "coor": [recorded.click.y, recorded.click.x],
            "is_positive": recorded.click.positive,
            "mask": None if recorded.mask is None else self._rle(recorded.mask),
            "box": _listed(recorded.box),
            "area": recorded.area,
            "iou": recorded.iou,
        }


def _box_and_area(counts: str, height: int, width: int) -> tuple[tuple[float, ...], float]:
    """COCO's [x, y, width, height] and the number of pixels of a mask."""
    coded = {"size": [height, width], "counts": counts.encode("ascii")}
    return tuple(int(side) for side in rle.toBbox(coded)), int(rle.area(coded))


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def _read(entry: Any, max_pixels: int) -> Trajectory:
    """The trajectory of an entry; see `Trajectory.from_json`."""
    entry = _mapping(entry, "the entry")
    height, width = (_whole(entry.get(name), name, 1) for name in ("height", "width"))
    if height * width > max_pixels:
        raise ValueError(f"height x width is {height} x {width}, more than the {max_pixels:,} pixels allowed")
    about = _mapping(entry.get("gt_ann"), "gt_ann")
    number, caption, ignored = about.get("object_id"), about.get("caption"), None
    if number is not None and (number := id_of(number)) is None:
        raise ValueError(f"gt_ann.object_id is {shown(about['object_id'])}; expected a whole number or a text")
    target, labels = _mask(about.get("segmentation"), "gt_ann.segmentation", (height, width))
    if about.get("ignored") is not None:
        ignored, pixels = _mask(about["ignored"], "gt_ann.ignored", (height, width))
        labels = np.where(pixels, IGNORE, np.where(labels, 255, 0)).astype(np.uint8)
    clicks = entry.get("clicks_list")
    if not isinstance(clicks, list):
        raise ValueError(f"clicks_list is {shown(clicks)}; expected a list of clicks")
    for k, record in enumerate(clicks[:-1]):
        if isinstance(record, dict) and record.get("mask") is None:
            raise ValueError(f"clicks_list[{k}].mask is null, as only that of the last click may be; expected RLE")
    return Trajectory(
        image_name=_text(entry.get("image_name"), "image_name"),
        height=height,
        width=width,
        object_id=number,
        caption="" if caption is None else _text(caption, "gt_ann.caption"),
        target=target,
        clicks=tuple(_click(record, k, labels) for k, record in enumerate(clicks)),
        start=None if entry.get("start") is None else _start(entry["start"], labels),
        bbox=_numbers(about.get("bbox"), "gt_ann.bbox"),
        area=None if about.get("area") is None else _number(about["area"], "gt_ann.area"),
        ignored=ignored,
        task=None if entry.get("task") is None else _text(entry["task"], "task"),
        sample=_whole(entry.get("sample", 0), "sample"),
    )


def _click(record: Any, k: int, labels: np.ndarray) -> RecordedClick:
    """Click number `k` of an entry with the target `labels` [H, W]."""
    name = f"clicks_list[{k}]"
    record = _mapping(record, name)
    spot, (height, width) = record.get("coor"), labels.shape
    if not isinstance(spot, list) or len(spot) != 2:
        raise ValueError(f"{name}.coor is {shown(spot)}; expected [row, column]")
    y, x = (_whole(value, f"{name}.coor") for value in spot)
    if y >= height or x >= width:
        raise ValueError(
            f"{name}.coor is {shown([y, x])}, outside the image of {width} x {height} pixels (width x height); "
            "expected [row, column]"
        )
    sign = record.get("is_positive")
    if sign not in (True, False):  # 1 and 0 too
        raise ValueError(f"{name}.is_positive is {shown(sign)}; expected true or false")
    counts, iou = None, None if record.get("iou") is None else _iou(record["iou"], f"{name}.iou")
    if record.get("mask") is not None:
        counts, mask = _mask(record["mask"], f"{name}.mask", labels.shape)
        iou = metrics.iou(labels, mask) if iou is None else iou
    area = None if record.get("area") is None else _number(record["area"], f"{name}.area")
    idx = _whole(record.get("idx", k), f"{name}.idx")
    return RecordedClick(idx, Click(x, y, bool(sign)), counts, iou, _numbers(record.get("box"), f"{name}.box"), area)


def _start(record: Any, labels: np.ndarray) -> Start:
    record = _mapping(record, "start")
    counts, mask = _mask(record.get("mask"), "start.mask", labels.shape)
    iou = metrics.iou(labels, mask) if record.get("iou") is None else _iou(record["iou"], "start.iou")
    return Start(_text(record.get("kind"), "start.kind"), counts, iou)


def _mask(value: Any, name: str, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """A mask in compressed run lengths, and as bool [H, W]: from RLE with counts as text, bytes or a list, with its
    size or without, or from polygons."""
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size")
        counts = counts.decode("latin-1") if isinstance(counts, bytes) else counts
        if isinstance(counts, str) and counts[:2] in ("b'", 'b"') and len(counts) > 2:
            counts = counts[2:-1].replace("\\\\", "\\")  # the text that Python prints for bytes
        value = {"counts": counts, "size": list(shape) if size is None else size}
    try:
        mask = segmentation_mask(value, *shape)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    given = value["counts"] if isinstance(value, dict) else None
    return given if isinstance(given, str) else encode_mask(mask), mask


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}; expected a record with named fields")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}; expected a text")
    return value


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGE:
        raise ValueError(f"{name} is {shown(value)}; expected a number")
    return value


def _whole(value: Any, name: str, low: int = 0) -> int:
    """A whole number from `low` on; 7.0 is one too."""
    if type(value) not in (int, float) or not low <= value <= _LARGE or value % 1:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number, {low} or more")
    return int(value)


def _iou(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {shown(value)}; expected a fraction in 0..1")
    return value


def _numbers(value: Any, name: str) -> tuple[float, ...] | None:
    """The four numbers of a box, or None."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{name} is {shown(value)}; expected four numbers")
    return tuple(_number(side, name) for side in value)
