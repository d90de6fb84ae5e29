"""COCO instance annotations: one task for each annotation."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segenv.data.base import DataError, Dataset, folder, read_json, unique, within
from segenv.data.images import MAX_PIXELS, check_target, read_image
from segenv.files import file_hash, file_size, json_hash
from segenv.geometry.rle import segmentation_mask
from segenv.types import BadItem, Task

NAMED_FROM = 0.01  # least part of the image that an object must cover for "the <class>" to name it


class Coco(Dataset):
    """The annotations of a COCO instances file, each of them a task, crowds too (`meta["iscrowd"]`).

    COCO has no human text here. The instruction is "the <class>" where that picks out one object: no other annotation
    of the class in the image, not a crowd, and at least 1 % of the image's pixels; then `meta["text"]` is "derived".
    Elsewhere it is empty and `meta["text"]` is None. `meta["category"]` is the class either way.

    Polygons of one annotation are joined, by pycocotools' rule. Ids are the image's stem and the annotation's number.
    """

    def __init__(self, annotations: str, images: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(skip_bad)
        self.spec = f"coco:{annotations}@{images}"
        self.max_pixels = max_pixels
        self._root = folder(images, "the folder of the images that the annotations name")
        self._file = Path(annotations).expanduser()
        what = "COCO instances (lists of images, annotations and categories)"
        found = read_json(self._file, what)
        lists = found if isinstance(found, dict) else {}
        for name in ("images", "annotations"):
            if not isinstance(lists.get(name), list):
                raise DataError(f"{self._file} has no list of {name}; expected {what}")
        self._annotations: list[Any] = lists["annotations"]
        self._images = _by_id(lists["images"])
        self._categories = _by_id(lists.get("categories"))
        self._licences = _by_id(lists.get("licenses"))
        self._count = Counter(_class_in_image(entry) for entry in self._annotations)
        self._ids = tuple(self._id(i, entry) for i, entry in enumerate(self._annotations))
        if not self._ids:
            raise DataError(f"{self._file} has no annotations; expected {what}")
        unique(self._ids, "items as", f"data {self.spec!r}")

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [
            str(entry.get("image_id") if isinstance(entry, dict) else i) for i, entry in enumerate(self._annotations)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the annotation file's content, and of the names and sizes in bytes of the images."""
        names = [image.get("file_name") for image in self._images.values()]
        sizes = [[name, file_size(self._root / name) if isinstance(name, str) else None] for name in names]
        return json_hash([type(self).__name__, file_hash(self._file), *sizes])

    def load(self, i: int) -> Task:
        item, entry = self._ids[i], self._annotations[i]
        record = self._record(item, entry)
        path = within(self._root, record.get("file_name"), item, self.follow_links)
        image = read_image(path, item, self.max_pixels)
        height, width = image.shape[:2]
        if (record.get("height", height), record.get("width", width)) != (height, width):
            raise BadItem(
                f"item {item!r}: {path} is {width} x {height} pixels (width x height, turned as its EXIF says), but "
                f"{self._file} says {record.get('width')} x {record.get('height')}; use the images that were annotated"
            )
        try:
            mask = segmentation_mask(entry.get("segmentation"), height, width)
        except ValueError as error:
            raise BadItem(f"item {item!r}: segmentation in {self._file} {error}; correct the annotation") from error
        target = np.where(mask, 255, 0).astype(np.uint8)
        check_target(target, (height, width), item, path, self._file)
        category = self._categories.get(_key(entry.get("category_id")), {}).get("name")
        crowd = bool(entry.get("iscrowd"))
        named = (
            category is not None
            and not crowd
            and self._count[_class_in_image(entry)] == 1
            and mask.mean() >= NAMED_FROM
        )
        meta = {
            "image_id": entry["image_id"],
            "file_name": record["file_name"],
            "annotation_id": entry["id"],
            "category": category,
            "iscrowd": crowd,
            "text": "derived" if named else None,
            "licence": self._licences.get(_key(record.get("license")), {}).get("name"),
        }
        return Task(item, image, target, f"the {category}" if named else "", meta=meta)

    def lacks(self, i: int, instruction: str) -> bool:
        """Whether the class of "the <class>" is annotated nowhere in the image of task `i`."""
        image = _class_in_image(self._annotations[i])[0]
        present = {category for other, category in self._count if other == image}
        names = {_key(number): record.get("name") for number, record in self._categories.items()}
        return all(names.get(number) != instruction.removeprefix("the ") for number in present)

    def _id(self, i: int, entry: Any) -> str:
        if not isinstance(entry, dict) or "id" not in entry:
            return f"annotation-{i}"
        name = self._images.get(_key(entry.get("image_id")), {}).get("file_name")
        return f"{PurePosixPath(name).stem if isinstance(name, str) else entry.get('image_id')}_{entry['id']}"

    def _record(self, item: str, entry: Any) -> dict[str, Any]:
        """The image record of an annotation."""
        if not isinstance(entry, dict) or "id" not in entry:
            raise BadItem(f"item {item!r}: {self._file} has an annotation without an id; give it one, or remove it")
        record = self._images.get(_key(entry.get("image_id")))
        if record is None:
            raise BadItem(
                f"item {item!r}: {self._file} lists no image with id {entry.get('image_id')!r}; "
                "add its record, or remove the annotation"
            )
        return record


def _by_id(records: Any) -> dict[Any, dict[str, Any]]:
    """COCO records by their id; what is no record is left out, and missed where something names it."""
    listed: Iterable[Any] = records if isinstance(records, list) else ()
    return {
        record["id"]: record for record in listed if isinstance(record, dict) and _key(record.get("id")) is not None
    }


def _class_in_image(entry: Any) -> tuple[Any, Any]:
    return (_key(entry.get("image_id")), _key(entry.get("category_id"))) if isinstance(entry, dict) else (None, None)


def _key(value: Any) -> Any:
    """An id that can be looked up, whatever JSON holds in its place."""
    return value if isinstance(value, (int, str)) else None
