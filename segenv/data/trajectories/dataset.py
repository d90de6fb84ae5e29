"""Recorded clicks in SegAgent's released JSON: read, written, and as a dataset.

    {"info": {…}, "data": [{"image_name": "a.jpg", "height": 480, "width": 640,
        "gt_ann": {"object_id": 7, "caption": "the left cat", "segmentation": RLE, "bbox": [x, y, w, h], "area": 911},
        "clicks_list": [{"idx": 0, "coor": [row, column], "is_positive": true, "mask": RLE, "box": [x, y, w, h],
                         "area": 902, "iou": 0.87}]}]}

A click's mask, box, area and IoU are those after it. So the state in which a click was made is the mask of the click
before it; before the first one the mask is empty.

Some keys are ours, and are left out where they say nothing: an entry's `start`, {"kind", "mask", "iou"}, is a first
mask that is not empty; its `task` and `sample` say which task of a dataset was played; `gt_ann.ignored` is the RLE of
pixels that count in no metric. Where the outcome of an entry's last click is not known, its mask is null.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from segenv.data.base import DataError, Dataset, folder, id_of, numbered, read_json, within
from segenv.data.images import MAX_PIXELS, check_size, check_target, read_image
from segenv.data.trajectories.record import Trajectory
from segenv.files import file_hash, file_size, json_hash, replacing
from segenv.texts import shown
from segenv.types import BadItem, Task

WHAT = 'trajectories, {"info": {…}, "data": [{"image_name": …, "gt_ann": …, "clicks_list": […]}]}'


def write(path: Path | str, entries: Iterable[dict[str, Any]], info: dict[str, Any]) -> int:
    """Write a file of `Trajectory.to_json` entries, one at a time, and return how many: the old file or the whole new
    one is there at any moment."""
    count = 0
    with replacing(Path(path), "ascii") as file:
        file.write(f'{{"info": {json.dumps(info)},\n"data": [')
        for entry in entries:
            file.write((",\n" if count else "\n") + json.dumps(entry, separators=(",", ":"), allow_nan=False))
            count += 1
        file.write("\n]}\n")
    return count


class Trajectories(Dataset):
    """The entries of a trajectories file, each of them a task: its caption is the instruction, its `start` the initial
    mask, and `meta["trajectory"]` the `Trajectory`.

    Images are named from the folder `images`, by default the folder of the file. Ids are the entry's `task`, or the
    image's stem and the object's id; further entries with the same one get "~2", "~3", … behind it.
    """

    def __init__(
        self, file: str, images: str | None = None, skip_bad: bool = False, max_pixels: int = MAX_PIXELS
    ) -> None:
        super().__init__(skip_bad)
        self.spec = f"trajectories:{file}" + (f"@{images}" if images is not None else "")
        self.max_pixels = max_pixels
        self.file = Path(file).expanduser()
        found = read_json(self.file, WHAT)
        listed = found.get("data") if isinstance(found, dict) else found  # a bare list of entries is read too
        if not isinstance(listed, list):
            raise DataError(f"{self.file} has no list of entries; expected {WHAT}")
        if not listed:
            raise DataError(f"{self.file} has no entries; expected {WHAT}")
        info = found.get("info") if isinstance(found, dict) else None
        self.info: dict[str, Any] = info if isinstance(info, dict) else {}
        self._root = folder(
            self.file.parent if images is None else images, "the folder of the images that the entries name"
        )
        self._entries: list[Any] = listed
        self._ids = tuple(numbered(_name(i, entry) for i, entry in enumerate(listed)))

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [
            str(entry.get("image_name")) if isinstance(entry, dict) else self._ids[i]
            for i, entry in enumerate(self._entries)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file's content, and of the names and sizes in bytes of the images."""
        names = sorted({entry["image_name"] for entry in self._entries if _names_image(entry)})
        return json_hash([type(self).__name__, file_hash(self.file), *[[n, file_size(self._root / n)] for n in names]])

    def trajectory(self, i: int) -> Trajectory:
        """Entry number `i` without its image. Raises `BadItem`."""
        try:
            return Trajectory.from_json(self._entries[i], self.max_pixels)
        except ValueError as error:
            raise BadItem(f"item {self._ids[i]!r}: {self.file}, data[{i}]: {error}; correct the entry") from error

    def load(self, i: int) -> Task:
        item, entry = self._ids[i], self._entries[i]
        if not _names_image(entry):
            self.trajectory(i)  # says what is wrong
        path = within(self._root, entry["image_name"], item, self.follow_links)
        image = read_image(path, item, self.max_pixels)
        told = entry.get("height"), entry.get("width")
        numbers = all(type(side) in (int, float) and 1 <= side <= self.max_pixels for side in told)
        if numbers and told[0] * told[1] <= self.max_pixels:  # before a mask of that size is decoded
            check_size(told, image.shape[:2], item, path, self.file)
        recorded = self.trajectory(i)
        target = recorded.target_labels()
        check_target(target, image.shape[:2], item, path, self.file)
        start = None if recorded.start is None else recorded.decode(recorded.start.mask)
        return Task(item, image, target, recorded.caption, start, {"trajectory": recorded})


def _name(i: int, entry: Any) -> str:
    """Name an entry, whatever JSON holds in its place."""
    if not isinstance(entry, dict):
        return f"entry-{i}"
    if isinstance(entry.get("task"), str) and len(entry["task"]) < 1000:
        return entry["task"]
    about = entry.get("gt_ann")
    number = about.get("object_id") if isinstance(about, dict) else None
    number = number if (known := id_of(number)) is None else known
    stem = PurePosixPath(entry["image_name"]).stem if _names_image(entry) else None
    if stem is None or len(stem) > 255:  # no file has a longer name
        return f"entry-{i}"
    return f"{stem}_{number if isinstance(number, str) and len(number) < 1000 else shown(number)}"


def _names_image(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("image_name"), str)
