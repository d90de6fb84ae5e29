"""SA-1B (Kirillov et al. 2023): photos with masks that SAM made and nobody named, sa_1.jpg beside sa_1.json."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from segenv.data.base import DataError, Dataset, changed, folder, numbered, read_json, within
from segenv.data.images import MAX_PIXELS, check_size, check_target, read_image
from segenv.files import file_hash, file_size, json_hash
from segenv.geometry.rle import MaskError, segmentation_mask
from segenv.records import reader
from segenv.types import BadItem, Task

WHAT = "an image (file_name, width, height) and annotations with id and segmentation"
PUBLISHED = "SA-1B with a .json beside each sa_*.jpg, published at ai.meta.com/datasets/segment-anything"
META = ("predicted_iou", "stability_score", "area", "point_coords", "crop_box")


class Picture(TypedDict):
    """The image of a file."""

    file_name: str
    width: int
    height: int


class Annotation(TypedDict):
    """One mask. It has further values, those of `META` among them."""

    id: int | str
    segmentation: dict[str, Any]


class File(TypedDict):
    """The JSON of one image."""

    image: Picture
    annotations: list[Annotation]


class Sa1b(Dataset):
    """Every annotation of SA-1B's files, each of them a task without an instruction.

    Masks overlap: parts have masks of their own beside the wholes. What SAM thought of a mask is in `meta`:
    `predicted_iou`, `stability_score`, and the point that it was made from. Ids are the file's stem and the
    annotation's id. The files are read once for these, and again where a task is loaded, so that they fill no memory.
    """

    def __init__(self, directory: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(skip_bad)
        self.spec, self.max_pixels = f"sa1b:{directory}", max_pixels
        self._root = folder(directory, PUBLISHED)
        self._files = sorted(self._root.glob("sa_*.json"), key=lambda path: (len(path.stem), path.stem))
        if not self._files:
            raise DataError(f"{self._root} has no sa_*.json; expected {PUBLISHED}")
        self._problems: dict[Path, str] = {}
        self._places: list[tuple[Path, int]] = []
        names = []
        for path in self._files:
            try:
                own = [f"{path.stem}_{annotation['id']}" for annotation in _read(path, changed(path))["annotations"]]
            except DataError as error:
                self._problems[path], own = str(error), [path.stem]
            self._places += [(path, k) for k in range(len(own))]
            names += own
        self._ids = tuple(numbered(names))

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [path.stem for path, _ in self._places]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the files' names and contents, and the images' sizes in bytes."""
        files = ([path.name, file_hash(path), file_size(path.with_suffix(".jpg"))] for path in self._files)
        return json_hash([type(self).__name__, *files])

    def load(self, i: int) -> Task:
        (file, number), item = self._places[i], self._ids[i]
        if file in self._problems:
            raise BadItem(f"item {item!r}: {self._problems[file]}")
        found = _read(file, changed(file))
        annotation, told = found["annotations"][number], found["image"]
        path = within(self._root, told["file_name"], item, self.follow_links)
        image = read_image(path, item, self.max_pixels)
        height, width = image.shape[:2]
        check_size((told["height"], told["width"]), (height, width), item, path, file)
        try:
            mask = segmentation_mask(annotation["segmentation"], height, width)
        except MaskError as error:
            raise BadItem(f"item {item!r}: segmentation in {file} {error}; correct the annotation") from error
        target = np.where(mask, 255, 0).astype(np.uint8)
        check_target(target, (height, width), item, path, file)
        meta: dict[str, Any] = {"file_name": told["file_name"], "annotation_id": annotation["id"], "text": None}
        return Task(item, image, target, meta=meta | {name: annotation.get(name) for name in META})


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> File:
    """The content of a file. `changed` is when the file was, as a part of the cache's key. Raises `DataError`."""
    found = read_json(path, WHAT)
    try:
        return reader(File)(found)
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected {WHAT}") from error
