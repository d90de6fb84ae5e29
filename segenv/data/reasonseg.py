"""ReasonSeg: questions that need reasoning, in labelme's JSON beside each image.

Layout and rules: github.com/dvlab-research/LISA, utils/data_processing.py and utils/dataset.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np

from segenv.data.base import DataError, Dataset, folder, read_json, unique
from segenv.data.folder import by_stem
from segenv.data.images import MAX_PIXELS, check_target, image_suffixes, read_image
from segenv.files import file_hash, file_size, json_hash
from segenv.records import reader
from segenv.types import IGNORE, BadItem, Task

WHAT = "text (a list), is_sentence, and shapes with label and points"
PUBLISHED = "a folder of ReasonSeg with a .json beside each .jpg, published at github.com/dvlab-research/LISA"


class Shape(TypedDict):
    """A polygon with its vertices [x, y] in pixels."""

    label: str
    points: list[tuple[float, float]]


class Annotation(TypedDict):
    """The JSON of one image."""

    text: list[str]
    is_sentence: bool
    shapes: list[Shape]


@dataclass(frozen=True)
class _Item:
    id: str
    image: Path | None
    json: Path | None
    number: int = 0  # of its text
    annotation: Annotation | None = None
    problem: str | None = None


class ReasonSeg(Dataset):
    """The images of a split, such as DIR/val, each a task with its first text, as the published evaluation has it; with
    `texts` "all" each text is a task (training images have several, which say the same).

    Polygons are drawn from the largest to the smallest, each over those before, with their edges, at whole pixels:
    "ignore" in a label makes them ignored, the label "flag" is left out, all others are the object. `is_sentence` is in
    `meta`, and says whether the text is a sentence, or a phrase that names the object.
    """

    def __init__(
        self, directory: str, texts: str | None = None, skip_bad: bool = False, max_pixels: int = MAX_PIXELS
    ) -> None:
        super().__init__(skip_bad)
        if texts not in (None, "all"):
            raise DataError(f"data 'reasonseg:{directory}#{texts}': expected reasonseg:DIR/SPLIT, or #all behind it")
        self.spec = f"reasonseg:{directory}" + ("#all" if texts else "")
        self.max_pixels = max_pixels
        root = folder(directory, PUBLISHED)
        self._items = [item for stem, files in sorted(by_stem(root).items()) for item in _items(stem, files, texts)]
        if not self._items:
            raise DataError(f"{root} is empty; expected {PUBLISHED}")
        unique(self.ids, "items as", f"data {self.spec!r}")

    @property
    def ids(self) -> Sequence[str]:
        return [item.id for item in self._items]

    @property
    def sources(self) -> Sequence[str]:
        return [item.id if item.image is None else item.image.name for item in self._items]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, the images' sizes in bytes and the annotations' contents."""
        files = ([one.id, one.image and file_size(one.image), one.json and file_hash(one.json)] for one in self._items)
        return json_hash([type(self).__name__, *files])

    def load(self, i: int) -> Task:
        found = self._items[i]
        if found.image is None or found.json is None or found.annotation is None:
            raise BadItem(f"item {found.id!r}: {found.problem}")
        image = read_image(found.image, found.id, self.max_pixels)
        height, width = image.shape[:2]
        try:
            target = polygon_labels(found.annotation["shapes"], height, width)
        except ValueError as error:
            raise BadItem(f"item {found.id!r}: {found.json} {error}; correct the annotation") from error
        check_target(target, (height, width), found.id, found.image, found.json)
        meta = {"is_sentence": found.annotation["is_sentence"], "text_number": found.number, "text": "human"}
        return Task(found.id, image, target, found.annotation["text"][found.number], meta=meta)


def polygon_labels(shapes: Sequence[Shape], height: int, width: int) -> np.ndarray:
    """The target that the shapes draw, uint8 [height, width] with 0, 128 and 255. Raises ValueError for shapes without
    vertices, or with some far from the image."""
    drawn = []
    for k, shape in enumerate(shapes):
        if shape["label"].lower() == "flag":
            continue
        points, reach = shape["points"], max(height, width)
        if not points or not all(-reach <= side <= 2 * reach for point in points for side in point):
            raise ValueError(f"has shapes[{k}] without points, or with some far from the image")
        vertices = np.array([[math.trunc(x), math.trunc(y)] for x, y in points], np.int32)
        mask = _fill(np.zeros((height, width), np.uint8), vertices, 255)
        drawn.append((cv2.countNonZero(mask), vertices, IGNORE if "ignore" in shape["label"].lower() else 255))
    target = np.zeros((height, width), np.uint8)
    for _, vertices, label in sorted(drawn, key=lambda one: one[0])[::-1]:
        _fill(target, vertices, label)
    return target


def _fill(mask: np.ndarray, vertices: np.ndarray, label: int) -> np.ndarray:
    """Draw a polygon with its edges into a mask, and return that."""
    cv2.polylines(mask, [vertices], True, label, 1)
    cv2.fillPoly(mask, [vertices], label)
    return mask


def _items(stem: str, files: list[Path], texts: str | None) -> list[_Item]:
    """The tasks of one image, or one with a `problem`."""
    annotations = [path for path in files if path.suffix.lower() == ".json"]
    images = [path for path in files if path.suffix.lower() in image_suffixes()]
    if len(annotations) != 1 or len(images) != 1:
        problem = f"it has the files {', '.join(path.name for path in files)} in {files[0].parent}; expected one image "
        return [_Item(stem, None, None, problem=f"{problem}and one .json")]
    image, file = images[0], annotations[0]
    try:
        # some files have quotation marks of Windows
        found = reader(Annotation)(read_json(file, WHAT, else_in="cp1252"))
    except DataError as error:
        return [_Item(stem, image, file, problem=str(error))]
    except ValueError as error:
        return [_Item(stem, image, file, problem=f"{file}: {error}; expected {WHAT}")]
    if not found["text"]:
        return [_Item(stem, image, file, problem=f"{file} has no text; expected {WHAT}")]
    count = len(found["text"]) if texts else 1
    return [_Item(f"{stem}_{k}" if texts else stem, image, file, k, found) for k in range(count)]
