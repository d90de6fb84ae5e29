"""Annotation files in COCO's layout, LVIS too, as they come: the one reader, for datasets and for boxes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from segenv.data.base import DataError, id_of, unique, within
from segenv.data.images import read_image
from segenv.geometry.rle import MaskError, segmentation_box, segmentation_mask
from segenv.texts import one_line, shown
from segenv.types import BadItem, Box

WHAT = "COCO instances (lists of images, annotations and categories)"
_LARGE = 1e9  # pixels, beyond every image


@dataclass(frozen=True)
class Annotation:
    """An annotation with what it refers to: its `image`'s record, the image's `file` (a path from the folder of the
    images), and the name of its class, None where the file does not tell it."""

    item: str
    image_id: int | str
    image: dict[str, Any]
    file: str
    category: str | None
    crowd: bool
    record: dict[str, Any]


class CocoFile:
    """The `content` of the annotation file `path`, with images in the folder `root`.

    Ids may be whole floats. An annotation needs no id of its own, no known class, and no box where it has a
    segmentation. An image without `file_name`, as in LVIS v1, is the file that its `coco_url` ends with, in `root` or
    in a folder there that the address names (train2017/…). Raises `DataError` where a list is missing, or an id is
    there twice; what is wrong with one annotation is that annotation's `BadItem`.
    """

    def __init__(self, path: Path, content: Any, root: Path) -> None:
        self.path, self.root = path, root
        lists = content if isinstance(content, dict) else {}
        for name in ("images", "annotations"):
            if not isinstance(lists.get(name), list):
                raise DataError(f"{path} has no list of {name}, and is not as COCO instances are; expected {WHAT}")
        self.annotations: list[Any] = lists["annotations"]
        self.images = self._by_id(lists["images"], "images")
        self.licences = self._by_id(lists.get("licenses"), "licenses")
        categories = self._by_id(lists.get("categories"), "categories")
        self.classes = {key: _text(record.get("name")) for key, record in categories.items()}
        numbers = (id_of(entry.get("id")) for entry in self.annotations if isinstance(entry, dict))
        unique((number for number in numbers if number is not None), "annotations with id", path)

    @cached_property
    def names(self) -> dict[int | str, str | None]:
        """The file of each image, by the image's id; None where nothing names it."""
        return {key: self._file_name(record) for key, record in self.images.items()}

    @cached_property
    def items(self) -> tuple[str, ...]:
        """A name for each annotation: the image's stem and the annotation's id, or its number where it has none."""
        return tuple(self._item(i, entry) for i, entry in enumerate(self.annotations))

    def key(self, i: int) -> tuple[int | str | None, int | str | None]:
        """The ids of image and class of annotation number `i`; None for what is no id."""
        entry = self.annotations[i]
        if not isinstance(entry, dict):
            return None, None
        return id_of(entry.get("image_id")), id_of(entry.get("category_id"))

    def read(self, i: int) -> Annotation:
        """Annotation number `i`. Raises `BadItem`."""
        entry, item = self.annotations[i], self.items[i]
        if not isinstance(entry, dict):
            raise self._bad(i, f"has {shown(entry)} for an annotation without an id; expected a record, or remove it")
        number, category = self.key(i)
        if number is None or number not in self.images:
            raise self._bad(
                i,
                f"lists no image with id {shown(entry.get('image_id'))}; add its record, or remove the annotation",
            )
        image = self.images[number]
        if (file := self.names[number]) is None:
            raise self._bad(
                i,
                f"has an image, id {shown(number)}, with the file name {shown(image.get('file_name'))}; give it a "
                "file_name, or a coco_url that ends with the file's name",
            )
        name = None if category is None else self.classes.get(category)
        return Annotation(item, number, image, file, name, bool(entry.get("iscrowd")), entry)

    def picture(
        self, image: dict[str, Any], name: str, item: str, max_pixels: int, follow_links: bool
    ) -> tuple[Path, np.ndarray]:
        """The file `name` of an `image`'s record, and its pixels, uint8 [H, W, 3]. Raises `BadItem`, also where the
        record tells another size."""
        path = within(self.root, name, item, follow_links)
        pixels = read_image(path, item, max_pixels)
        told = image.get("height"), image.get("width")
        if any(side not in (None, found) for side, found in zip(told, pixels.shape[:2], strict=True)):
            raise BadItem(
                f"item {item!r}: {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height, turned as its "
                f"EXIF says), but {self.path} says {shown(told[1])} x {shown(told[0])}; use the images that were "
                "annotated"
            )
        return path, pixels

    def mask(self, record: dict[str, Any], item: str, height: int, width: int) -> np.ndarray:
        """The mask of an annotation's `record`, bool [height, width], its polygons joined. Raises `BadItem`."""
        try:
            return segmentation_mask(record.get("segmentation"), height, width)
        except MaskError as error:
            raise BadItem(f"item {item!r}: segmentation in {self.path} {error}; correct the annotation") from error

    def box(self, i: int) -> Box:
        """The box of annotation number `i`: its own or, where that is missing or has no area, its segmentation's.
        Raises `BadItem`."""
        entry = self.annotations[i]
        if box := _own_box(entry.get("bbox")):
            return box
        told = f"has the box {shown(entry.get('bbox'))}"
        wish = "give it [x, y, width, height] with an area, or a segmentation"
        if (segmentation := entry.get("segmentation")) in (None, [], {}):
            raise self._bad(i, f"{told} and no segmentation; {wish}")
        try:
            box = segmentation_box(segmentation)
        except MaskError as error:
            raise self._bad(i, f"{told}, and a segmentation that {error}; {wish}") from error
        if box is None:
            raise self._bad(i, f"{told}, and a segmentation without an area; {wish}")
        return box

    def _bad(self, i: int, problem: str) -> BadItem:
        return BadItem(f"item {self.items[i]!r}: {self.path} {problem}")

    def _by_id(self, records: Any, what: str) -> dict[int | str, dict[str, Any]]:
        """Records by their id; what is no record is left out, and missed where something names it."""
        known = [
            (key, record)
            for record in (records if isinstance(records, list) else ())
            if isinstance(record, dict) and (key := id_of(record.get("id"))) is not None
        ]
        unique((key for key, _ in known), f"{what} with id", self.path)
        return dict(known)

    def _item(self, i: int, entry: Any) -> str:
        number = id_of(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            return f"annotation-{i}"
        image = id_of(entry.get("image_id"))
        name = None if image is None else self.names.get(image)
        stem = PurePosixPath(name.replace("\\", "/")).stem if name else ""
        return f"{stem if 0 < len(stem) < 256 else shown(entry.get('image_id'))}_{number}"

    def _file_name(self, record: dict[str, Any]) -> str | None:
        if (name := record.get("file_name")) is not None:
            return name if isinstance(name, str) and name else None
        url = record.get("coco_url")
        try:
            parts = PurePosixPath(urlsplit(url).path).parts if isinstance(url, str) else ()
        except ValueError:  # an address that is none
            parts = ()
        ends = ["/".join(parts[-count:]) for count in (1, 2) if len(parts) > count]
        try:
            return next((end for end in ends if (self.root / end).is_file()), ends[0] if ends else None)
        except (OSError, ValueError):  # a name that no file can have
            return ends[0]


def _own_box(value: Any) -> Box | None:
    """The box of COCO's [x, y, width, height]; None where that is no box, or has no area."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(side) in (int, float) and abs(side) <= _LARGE for side in value):
        return None
    x, y, width, height = map(float, value)
    return Box(x, y, x + width, y + height) if x < x + width and y < y + height else None


def _text(value: Any) -> str | None:
    return (one_line(value) or None) if isinstance(value, str) else None
