"""Masks with soft edges: DIS5K, ThinObject5K, HRSOD and COIFT, as they and HQ-SAM's HQSeg-44K lay them out.

Layouts: xuebinqin.github.io/dis, github.com/liewjunhao/thin-object-selection, github.com/yi94code/HRSOD and
github.com/SysCV/sam-hq.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segenv import specs
from segenv.data.base import DataError, Dataset, folder
from segenv.data.folder import Pair, Pairs, pair_up
from segenv.data.images import MAX_PIXELS, gray_values
from segenv.files import json_hash
from segenv.types import BadItem, Task

LAYOUTS = (("im", "gt"), ("images", "masks"), ("images", "masks_max255"))  # folders of images and masks
WHAT = (
    "im/ and gt/ (DIS5K: xuebinqin.github.io/dis), images/ and masks/ (ThinObject5K: "
    "github.com/liewjunhao/thin-object-selection), or images/ and masks_max255/ (HRSOD in HQ-SAM's HQSeg-44K: "
    "github.com/SysCV/sam-hq)"
)

HQ44K = {  # the parts of HQSeg-44K's validation, by where they lie in a folder as published
    "DIS5K-VD": "DIS5K/DIS-VD",
    "COIFT": "thin_object_detection/COIFT",
    "HRSOD": "thin_object_detection/HRSOD",
    "ThinObject5K-TE": "thin_object_detection/ThinObject5K#test",
}


def soft_labels(mask: Image.Image, threshold: int) -> np.ndarray:
    """The target of a mask with gray values, uint8 [H, W]: 255 where they are above `threshold`, else 0."""
    return np.where(gray_values(mask) > threshold, 255, 0).astype(np.uint8)


class SoftMasks(Pairs):
    """A folder of images and masks with soft edges; the object is where a mask is above `threshold`, which is 128 where
    HQ-SAM and others evaluate.

    `dis:DIR#NAME` takes the part of DIR that list/NAME.txt lists (ThinObject5K as published), or the folders whose
    names end with _NAME (images_test and masks_test, in HQSeg-44K). The names of DIS5K's files tell the class of an
    object, `meta["category"]`: it is no instruction, since several objects of a class may be there.
    """

    def __init__(self, spec: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        given, self.threshold = _threshold_of(spec)
        self.labels = partial(soft_labels, threshold=self.threshold)
        directory, _, part = given.rpartition("#")
        if not directory or Path(given).expanduser().is_dir():
            directory, part = given, ""
        own = f"dis:{given}" + (f",threshold={self.threshold}" if self.threshold != 128 else "")
        super().__init__(own, _pairs(folder(directory, WHAT), part), skip_bad, max_pixels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, the images' sizes in bytes, the masks' contents and the threshold."""
        return json_hash([self.threshold, super().fingerprint])


class HqSeg44k(Dataset):
    """The four validation sets of HQ-SAM's HQSeg-44K, one after the other, in the folder that it publishes. Ids are
    the part's name and the image's. The object is where a mask is above `threshold`: 128, as HQ-SAM evaluates, or 0, as
    SegNext does."""

    def __init__(self, spec: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(skip_bad)
        root, threshold = _threshold_of(spec)
        ending = f",threshold={threshold}" if threshold != 128 else ""
        self.spec = f"hq44k:{root}{ending}"
        home = folder(root, "DIS5K/ and thin_object_detection/ (HQSeg-44K: github.com/SysCV/sam-hq)")
        self._parts = {name: SoftMasks(f"dis:{home / path}{ending}", False, max_pixels) for name, path in HQ44K.items()}
        self._places = [(name, i) for name, part in self._parts.items() for i in range(len(part))]

    @cached_property
    def ids(self) -> Sequence[str]:
        return [f"{name}/{item}" for name, part in self._parts.items() for item in part.ids]

    @property
    def sources(self) -> Sequence[str]:
        return [f"{name}/{image}" for name, part in self._parts.items() for image in part.sources]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the fingerprints of the parts."""
        return json_hash([[name, part.fingerprint] for name, part in self._parts.items()])

    def load(self, i: int) -> Task:
        name, k = self._places[i]
        try:
            task = self._parts[name].load(k)
        except BadItem as error:
            raise BadItem(f"in {name}: {error}") from error
        return replace(task, id=self.ids[i], meta={**task.meta, "part": name})


def _threshold_of(spec: str) -> tuple[str, int]:
    """The folder of a spec, and its threshold, which is 128 by default. Raises `DataError` for another option."""
    try:
        options = specs.options_of("data", spec, {"threshold": 128}, argument="directory")
    except ValueError as error:
        raise DataError(str(error)) from error
    threshold = int(options.get("threshold", 128))
    if not 0 <= threshold <= 254:
        raise DataError(f"data {spec!r}: threshold is {threshold}; expected a gray value from 0 to 254")
    return str(options.get("directory", "")), threshold


def _pairs(root: Path, part: str) -> list[Pair]:
    """The images and masks of a folder, or of a part of it."""
    listed = root / "list" / f"{part}.txt"
    ending = f"_{part}" if part and not listed.is_file() else ""
    for images, masks in ((root / f"{name}{ending}", root / f"{mask}{ending}") for name, mask in LAYOUTS):
        if images.is_dir() and masks.is_dir():
            break
    else:
        asked = f"{root} with part {part!r}" if part else root
        within = sorted(path.name for path in root.iterdir() if any((path / images).is_dir() for images, _ in LAYOUTS))
        hint = f"; take one of the folders in it, {', '.join(within)}" if within else ""
        raise DataError(f"{asked} is laid out otherwise; expected {WHAT}{hint}")
    pairs = [replace(pair, meta=_meta(pair.id)) for pair in pair_up(images, masks)]
    if not part or ending:
        return pairs
    return _listed(listed, pairs)


def _listed(file: Path, pairs: list[Pair]) -> list[Pair]:
    """Those pairs that a file names, a name of an image in each line, in its order."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); expected a name of an image in each line") from error
    known = {pair.id: pair for pair in pairs}
    names = [unicodedata.normalize("NFC", Path(line.strip()).stem) for line in lines if line.strip()]
    problem = f"{file} names it, and no image has that name; add it, or remove the line"
    return [known.get(name, Pair(name, problem=problem)) for name in names]


def _meta(name: str) -> dict[str, Any]:
    """The class in a name of DIS5K's: 3#Aircraft#5#Helicopter#4878379_o."""
    parts = name.split("#")
    return {"category": parts[3].lower()} if len(parts) == 5 and parts[0].isdigit() and parts[2].isdigit() else {}
