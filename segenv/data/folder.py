"""Images and masks as pairs of files: a folder with an index.json, or a folder with images/ and masks/."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segenv.data.base import DataError, Dataset, folder, read_json, unique, within
from segenv.data.images import MAX_PIXELS, read_pair, strict_labels
from segenv.files import file_hash, file_size, json_hash
from segenv.texts import one_line, shown
from segenv.types import BadItem, Task

NOT_DATA = ("Thumbs.db", "desktop.ini")  # what file managers leave behind, beside names that begin with a dot


@dataclass(frozen=True)
class Pair:
    """An item's files, or the `problem` that keeps it from being one."""

    id: str
    image: Path | None = None
    mask: Path | None = None
    problem: str | None = None
    instruction: Any = ""  # as the file has it; `Task` reads it
    meta: dict[str, Any] = field(default_factory=dict)


class Pairs(Dataset):
    """A dataset of image files with mask files. Subclasses say how the folder is laid out and what its labels mean."""

    labels: Callable[[Image.Image], np.ndarray] = staticmethod(strict_labels)

    def __init__(self, spec: str, pairs: Sequence[Pair], skip_bad: bool, max_pixels: int) -> None:
        super().__init__(skip_bad)
        self.spec = spec
        self.max_pixels = max_pixels
        self._pairs = pairs
        self._ids = tuple(pair.id for pair in pairs)
        if not pairs:
            raise DataError(f"data {spec!r} has no items; put images and their masks there")
        unique(self._ids, "items as", f"data {spec!r}")

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [pair.id if pair.image is None else pair.image.name for pair in self._pairs]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the kind of dataset, ids, texts, the images' sizes in bytes and the masks' contents."""
        files = (
            [pair.id, pair.instruction or "", pair.image and file_size(pair.image), pair.mask and file_hash(pair.mask)]
            for pair in self._pairs
        )
        return json_hash([type(self).__name__, *files])

    def load(self, i: int) -> Task:
        pair = self._pairs[i]
        if pair.problem is not None or pair.image is None or pair.mask is None:
            raise BadItem(f"item {pair.id!r}: {pair.problem}")
        image, target = read_pair(pair.image, pair.mask, pair.id, self.labels, self.max_pixels)
        return Task(pair.id, image, target, pair.instruction, meta=dict(pair.meta))


class Index(Pairs):
    """A folder with index.json: a list of items, each with `name`, `image` and `mask` (paths from the folder, which
    must not leave it), and where known `subset`, `instruction`, `width` and `height`. What else an item has goes into
    the task's `meta`.

    Masks are 0 for background, 128 for ignored, 255 for the object; or 0 and 1.
    """

    def __init__(
        self,
        directory: str,
        subset: str | None = None,
        skip_bad: bool = False,
        max_pixels: int = MAX_PIXELS,
        follow_links: bool = False,
    ) -> None:
        what = "a list of items with name, image and mask"
        root = folder(directory, "a folder with index.json")
        listed = read_json(root / "index.json", what)
        if not isinstance(listed, list):
            raise DataError(f"{root / 'index.json'} holds a {type(listed).__name__}; expected {what}")
        if subset is not None:
            known = {str(item["subset"]) for item in listed if isinstance(item, dict) and "subset" in item}
            if subset not in known:
                raise DataError(f"{root} has no subset {subset!r}; it has {', '.join(sorted(known)) or 'none'}")
            listed = [item for item in listed if not isinstance(item, dict) or str(item.get("subset")) == subset]
        spec = f"index:{directory}" + (f"#{subset}" if subset is not None else "")
        pairs = [_listed(root, i, item, follow_links) for i, item in enumerate(listed)]
        super().__init__(spec, pairs, skip_bad, max_pixels)

    def load(self, i: int) -> Task:
        task = super().load(i)
        for name, size in (("width", task.width), ("height", task.height)):
            if task.meta.get(name, size) != size:
                raise BadItem(
                    f"item {task.id!r}: {self._pairs[i].image} is {task.width} x {task.height} (width x height), "
                    f"but index.json says {name} {shown(task.meta[name])}; correct whichever is wrong"
                )
        return task


def _listed(root: Path, i: int, item: object, follow_links: bool) -> Pair:
    """Item number `i` of an index.json."""
    if not isinstance(item, dict):
        return Pair(f"item-{i}", problem=f"index.json lists a {type(item).__name__}; expected name, image and mask")
    given = item.get("name")
    if given is not None and type(given) not in (str, int):
        return Pair(f"item-{i}", problem=f"its name is {shown(given)}; expected a text")
    name = one_line(str(given or "")) or f"item-{i}"
    try:
        image, mask = (within(root, item.get(key), name, follow_links) for key in ("image", "mask"))
    except BadItem as error:
        return Pair(name, problem=str(error).removeprefix(f"item {name!r}: "))
    meta = {key: value for key, value in item.items() if key not in ("name", "image", "mask", "instruction")}
    return Pair(name, image, mask, None, item.get("instruction"), meta)


class Folder(Pairs):
    """A folder with images/ and masks/, paired by equal stems (images/a.jpg with masks/a.png).

    Masks are 0 for background, 128 for ignored, 255 for the object; or 0 and 1.
    """

    def __init__(self, directory: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        layout = "a folder with images/ and masks/"
        images, masks = (folder(folder(directory, layout) / name, layout) for name in ("images", "masks"))
        super().__init__(f"folder:{directory}", pair_up(images, masks), skip_bad, max_pixels)


def pair_up(images: Path, masks: Path, image_of: Callable[[str], str] = str, **meta: Any) -> list[Pair]:
    """The files of two folders, paired by stem, in the order of the stems. `image_of` gives an image's stem for a
    mask's stem, where no image has the mask's own. Files without a partner, and stems that several files share, become
    pairs with a `problem`."""
    image_files, mask_files = by_stem(images), by_stem(masks)
    wanted = {stem: stem if stem in image_files else image_of(stem) for stem in mask_files}
    pairs = []
    for stem in sorted(wanted.keys() | (image_files.keys() - set(wanted.values()))):
        found_images, found_masks = image_files.get(wanted.get(stem, stem), []), mask_files.get(stem, [])
        problem = None
        for found, place, partner in ((found_images, images, found_masks), (found_masks, masks, found_images)):
            if not found:
                problem = f"{partner[0]} has no partner with an equal stem in {place}; add one, or remove the file"
            elif len(found) > 1:
                problem = f"{' and '.join(map(str, found))} share a stem; keep one"
        if problem is None:
            pairs.append(Pair(stem, found_images[0], found_masks[0], meta=dict(meta)))
        else:
            pairs.append(Pair(stem, problem=problem, meta=dict(meta)))
    return pairs


def by_stem(directory: Path) -> dict[str, list[Path]]:
    """A folder's files by stem, in Unicode's composed form, whatever their suffix: one that is no image is a bad item,
    not an absent one."""
    files: dict[str, list[Path]] = {}
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name in NOT_DATA:
            continue
        if path.is_dir():
            raise DataError(f"{path} is a folder; expected files only in {directory}")
        files.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    return files
