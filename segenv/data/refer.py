"""Referring expressions on COCO's train2014 images: RefCOCO, RefCOCO+, RefCOCOg, and gRefCOCO, whose sentences may name
several objects or none.

A file of references says which annotations of an instances.json each of its sentences means. Layouts and rules:
github.com/lichengunc/refer, and github.com/henghuiding/gRefCOCO.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from segenv.data.base import DataError, Dataset, content_words, folder, id_of, numbered, read_json
from segenv.data.coco_file import WHAT, CocoFile
from segenv.data.images import MAX_PIXELS, check_target
from segenv.data.unpickle import read_pickle
from segenv.files import file_hash, file_size, json_hash
from segenv.records import reader
from segenv.texts import shown
from segenv.types import BadItem, Task

DATASETS = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
IMAGES = ("images/mscoco/images/train2014", "images/train2014", "train2014")  # where published code looks, from ROOT


class _Known(TypedDict, total=False):
    raw: Any  # the sentence before it was put into small letters without punctuation


class Sentence(_Known):
    """One expression."""

    sent_id: int | str
    sent: str


class _Meant(TypedDict, total=False):
    no_target: bool


class Reference(_Meant):
    """Meaning of several sentences: one annotation, several, or none ([], -1 or [-1])."""

    ref_id: int | str
    image_id: int | str
    ann_id: int | str | list[int | str] | None
    split: str
    sentences: list[Sentence]


class Refer(Dataset):
    """The sentences of a file of references, each of them a task, in the order of the file.

    Several annotations are joined, crowds among them left out, and none give an empty target with `meta["absent"]`.
    Polygons of one annotation are joined too: published readers that add them up, and then look for 1, lose the pixels
    that two share. A sentence that stands twice is two tasks, as in the published tables. Ids are the reference's and
    the sentence's.
    """

    def __init__(
        self, spec: str, references: Path, instances: Path, split: str, images: Path, skip_bad: bool, max_pixels: int
    ) -> None:
        super().__init__(skip_bad)
        self.spec, self.max_pixels = spec, max_pixels
        self._path, self._split = references, split
        self._every = _read_references(references)
        self._file = CocoFile(instances, read_json(instances, WHAT), images)
        self._place = {id_of(entry.get("id")): i for i, entry in _records(self._file.annotations)}
        self._tasks = [
            (reference, sentence)
            for reference in self._every
            if in_split(reference["split"], split)
            for sentence in reference["sentences"]
        ]
        if not self._tasks:
            known = ", ".join(sorted({reference["split"] for reference in self._every}))
            raise DataError(f"{references} has no sentences of split {split!r}; its splits are {known or 'none'}")
        self._ids = tuple(numbered(f"{one['ref_id']}_{sentence['sent_id']}" for one, sentence in self._tasks))

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [str(reference["image_id"]) for reference, _ in self._tasks]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the split, the files' content, and the names and sizes in bytes of the split's images."""
        images = dict.fromkeys(reference["image_id"] for reference, _ in self._tasks)
        names = [self._file.names.get(image) for image in images]
        sizes = [[name, None if name is None else file_size(self._file.root / name)] for name in names]
        files = [file_hash(path) for path in (self._path, self._file.path)]
        return json_hash([type(self).__name__, self._split, *files, *sizes])

    def load(self, i: int) -> Task:
        (reference, sentence), item, file = self._tasks[i], self._ids[i], self._file
        number = reference["image_id"]
        record, name = file.images.get(number, {}), file.names.get(number)
        if name is None:
            raise self._apart(item, f"has no file for the image {shown(number)}")
        path, image = file.picture(record, name, item, self.max_pixels, self.follow_links)
        height, width = image.shape[:2]
        meant = self._annotations(reference, item)
        target = np.zeros((height, width), np.uint8)
        for annotation in meant:
            target[file.mask(annotation, item, height, width)] = 255
        if meant:
            check_target(target, (height, width), item, path, file.path)
        classes = dict.fromkeys(file.classes.get(id_of(one.get("category_id")) or "") for one in meant)
        meta = {
            "image_id": number,
            "file_name": name,
            "ref_id": reference["ref_id"],
            "sent_id": sentence["sent_id"],
            "annotation_ids": [id_of(one.get("id")) for one in meant],
            "category": ", ".join(filter(None, classes)) or None,
            "split": reference["split"],
            "raw": sentence.get("raw"),
            "text": "human",
            **({} if meant else {"absent": True}),
        }
        return Task(item, image, target, sentence["sent"], meta=meta)

    def lacks(self, i: int, instruction: str) -> bool:
        """Whether the instruction shares no word, but articles, with what is said about the image of task `i`, in any
        split, nor with the classes of its annotations."""
        return not self._words.get(self._tasks[i][0]["image_id"], set()) & content_words(instruction)

    @cached_property
    def _words(self) -> dict[int | str, set[str]]:
        """The words that are known to fit each image."""
        words: dict[int | str, set[str]] = {}
        for reference in self._every:
            if named_annotations(reference):
                found = words.setdefault(reference["image_id"], set())
                found.update(*(content_words(sentence["sent"]) for sentence in reference["sentences"]))
        for i, _ in _records(self._file.annotations):
            image, category = self._file.key(i)
            if image is not None and category is not None:
                words.setdefault(image, set()).update(content_words(self._file.classes.get(category) or ""))
        return words

    def _annotations(self, reference: Reference, item: str) -> list[dict[str, Any]]:
        """The records of the annotations that a reference means. Raises `BadItem`."""
        numbers = named_annotations(reference)
        if numbers and reference.get("no_target"):
            raise BadItem(
                f"item {item!r}: {self._path} says no_target, and names the annotations {shown(numbers)}; keep one"
            )
        if unknown := [number for number in numbers if number not in self._place]:
            raise self._apart(item, f"has no annotation {shown(unknown[0])}")
        found = [self._file.annotations[self._place[number]] for number in numbers]
        if elsewhere := [one for one in found if id_of(one.get("image_id")) != reference["image_id"]]:
            image = shown(elsewhere[0].get("image_id"))
            raise self._apart(item, f"has annotation {shown(elsewhere[0].get('id'))} in the image {image}")
        return [one for one in found if not one.get("iscrowd")] if len(found) > 1 else found

    def _apart(self, item: str, problem: str) -> BadItem:
        return BadItem(
            f"item {item!r}: {self._file.path} {problem}, unlike {self._path}; use files that were published together"
        )


def named_annotations(reference: Reference) -> list[int | str]:
    """The ids of the annotations that a reference means; none where it has no target."""
    given = reference["ann_id"]
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return [number for one in listed if (number := id_of(one)) is not None and number != -1]


def in_split(own: str, wanted: str) -> bool:
    """Whether a reference whose split is `own` counts to the split `wanted`: `test` means all of testA and testB, and a
    reference of testAB is in both."""
    if not (own.startswith("test") and wanted.startswith("test")):
        return own == wanted
    return set(wanted.removeprefix("test")) <= set(own.removeprefix("test"))


def refcoco(rest: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> Refer:
    """Make the data of `refcoco:ROOT/DATASET/SPLITBY/SPLIT[@IMAGES]`."""
    where, images = _images_named(rest, lambda where: Path(where).parent.parent.name in DATASETS)
    *root, name, by, split = ("", "", "", *Path(where).parts)
    if by not in DATASETS.get(name, ()):
        known = "; ".join(f"{name} by {' or '.join(by)}" for name, by in DATASETS.items())
        raise DataError(f"data 'refcoco:{rest}' is none of {known}; expected refcoco:ROOT/DATASET/SPLITBY/SPLIT")
    what = f"{name} with refs({by}).p and instances.json, published at github.com/lichengunc/refer"
    home = folder(folder(Path(*root), what) / name, what)
    references = _first_of(home, [f"refs({by}).p", f"refs({by}).json"])
    if references is None:
        raise DataError(f"{home} has no refs({by}).p; expected {what}")
    found = _images(images, [home.parent])
    return Refer(f"refcoco:{rest}", references, home / "instances.json", split, found, skip_bad, max_pixels)


def grefcoco(rest: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> Refer:
    """Make the data of `grefcoco:ROOT/SPLIT[@IMAGES]`, where ROOT holds grefcoco/, or the files themselves."""
    where, images = _images_named(rest, lambda where: _grefs(Path(where).parent) is not None)
    root, split = Path(where).parent, Path(where).name
    what = "gRefCOCO with grefs(unc).json and instances.json, published at github.com/henghuiding/gRefCOCO"
    references = _grefs(root)
    if references is None:
        raise DataError(
            f"{folder(root, what)} has no grefs(unc).json, nor has grefcoco/ in it; expected grefcoco:ROOT/SPLIT with "
            f"{what}"
        )
    home = references.parent
    found = _images(images, [home, home.parent])
    return Refer(f"grefcoco:{rest}", references, home / "instances.json", split, found, skip_bad, max_pixels)


def _grefs(root: Path) -> Path | None:
    """The file of gRefCOCO's references in a folder, or in its grefcoco/."""
    return _first_of(
        root.expanduser(), [f"{place}grefs(unc){ending}" for place in ("", "grefcoco/") for ending in (".json", ".p")]
    )


def _read_references(path: Path) -> list[Reference]:
    what = "a list of references as published, with ref_id, image_id, ann_id, split and sentences"
    found = read_pickle(path, what) if path.suffix == ".p" else read_json(path, what)
    try:
        return reader(list[Reference])(found)
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected {what}") from error


def _records(entries: Sequence[Any]) -> Iterable[tuple[int, dict[str, Any]]]:
    return ((i, entry) for i, entry in enumerate(entries) if isinstance(entry, dict))


def _images_named(rest: str, is_data: Callable[[str], bool]) -> tuple[str, str | None]:
    """The part of a spec that names the data, and IMAGES, split at the first @ before which `is_data`."""
    for at in (i for i, character in enumerate(rest) if character == "@"):
        if rest[at + 1 :] and is_data(rest[:at]):
            return rest[:at], rest[at + 1 :]
    return rest, None


def _first_of(home: Path, names: list[str]) -> Path | None:
    return next((home / name for name in names if (home / name).is_file()), None)


def _images(given: str | None, roots: list[Path]) -> Path:
    """The folder of the train2014 images."""
    what = "COCO's train2014 images, published at cocodataset.org"
    if given is not None:
        return folder(given, what)
    places = [root / name for root in roots for name in IMAGES]
    for place in places:
        if place.is_dir():
            return place
    listed = ", ".join(map(str, places))
    raise DataError(f"none of {listed} is a folder; expected {what}, there or where @IMAGES behind the spec says")
