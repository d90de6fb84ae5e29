"""COCO instance annotations, and LVIS's: one task for each annotation."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segenv.data.base import DataError, Dataset, folder, id_of, read_json, unique
from segenv.data.coco_file import WHAT, Annotation, CocoFile
from segenv.data.images import MAX_PIXELS, check_target
from segenv.files import file_hash, file_size, json_hash
from segenv.types import Task

NAMED_FROM = 0.01  # least part of the image that an object must cover for "the <class>" to name it


class Coco(Dataset):
    """The annotations of a COCO instances file, each of them a task, crowds too (`meta["iscrowd"]`); `kind` is "coco"
    or "lvis", which are read alike.

    COCO has no human text here. The instruction is "the <class>" where that picks out one object: no other annotation
    of the class in the image, all of which are annotated, not a crowd, and at least 1 % of the image's pixels; then
    `meta["text"]` is "derived". Elsewhere it is empty and `meta["text"]` is None. `meta["category"]` is the class in
    both cases.

    Polygons of one annotation are joined, by pycocotools' rule. Ids are the image's stem and the annotation's number.
    """

    def __init__(
        self, annotations: str, images: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS, kind: str = "coco"
    ) -> None:
        super().__init__(skip_bad)
        self.spec = f"{kind}:{annotations}@{images}"
        self.max_pixels = max_pixels
        self._root = folder(images, "the folder of the images that the annotations name")
        path = Path(annotations).expanduser()
        self._file = CocoFile(path, read_json(path, WHAT), self._root)
        self._keys = [self._file.key(i) for i in range(len(self._file.annotations))]
        self._count = Counter(self._keys)
        if not self.ids:
            raise DataError(f"{path} has no annotations; expected {WHAT}")
        unique(self.ids, "items as", f"data {self.spec!r}")

    @property
    def ids(self) -> Sequence[str]:
        return self._file.items

    @property
    def sources(self) -> Sequence[str]:
        first: dict[str, int | str] = {}  # two records may name one file
        same = {key: first.setdefault(name, key) for key, name in self._file.names.items() if name is not None}
        return [str(i if image is None else same.get(image, image)) for i, (image, _) in enumerate(self._keys)]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the annotation file's content, and of the names and sizes in bytes of the images."""
        names = self._file.names.values()
        sizes = [[name, None if name is None else file_size(self._root / name)] for name in names]
        return json_hash([type(self).__name__, file_hash(self._file.path), *sizes])

    def load(self, i: int) -> Task:
        found, file = self._file.read(i), self._file.path
        item, record = found.item, found.record
        path, image = self._file.picture(found.image, found.file, item, self.max_pixels, self.follow_links)
        height, width = image.shape[:2]
        mask = self._file.mask(record, item, height, width)
        target = np.where(mask, 255, 0).astype(np.uint8)
        check_target(target, (height, width), item, path, file)
        named = found.category is not None and self._alone(i, found) and mask.mean() >= NAMED_FROM
        licence = id_of(found.image.get("license"))
        meta = {
            "image_id": found.image_id,
            "file_name": found.file,
            "annotation_id": id_of(record.get("id")),
            "category": found.category,
            "iscrowd": found.crowd,
            "text": "derived" if named else None,
            "licence": None if licence is None else self._file.licences.get(licence, {}).get("name"),
        }
        return Task(item, image, target, f"the {found.category}" if named else "", meta=meta)

    def crowd(self, i: int) -> bool:
        """Whether annotation `i` is of a crowd. Raises `BadItem`."""
        return self._file.read(i).crowd

    def area(self, i: int) -> float:
        """Pixels of the object that annotation `i` states; 0 where it states none. Raises `BadItem`."""
        stated = self._file.read(i).record.get("area")
        return float(stated) if isinstance(stated, (int, float)) else 0.0

    def lacks(self, i: int, instruction: str) -> bool:
        """Whether the class of "the <class>" is annotated nowhere in the image of task `i`, and said to be absent where
        the image says which are (LVIS)."""
        image = self._keys[i][0]
        if image is None:
            return False
        name = instruction.removeprefix("the ")
        present = {category for other, category in self._count if other == image}
        if any(category is not None and self._file.classes.get(category) == name for category in present):
            return False
        absent = _listed(self._file.images.get(image, {}).get("neg_category_ids"))
        return absent is None or any(self._file.classes.get(category) == name for category in absent)

    def _alone(self, i: int, found: Annotation) -> bool:
        """Whether annotation `i` is known to be the one object of its class in the image."""
        partly = _listed(found.image.get("not_exhaustive_category_ids")) or ()
        return not found.crowd and self._count[self._keys[i]] == 1 and self._keys[i][1] not in partly


def _listed(value: Any) -> list[int | str] | None:
    """The ids in a list; None where there is no list."""
    if not isinstance(value, list):
        return None
    return [number for one in value if (number := id_of(one)) is not None]
