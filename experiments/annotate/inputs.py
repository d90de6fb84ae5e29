"""Inputs of `experiments.annotate`: a folder of images, phrases for all or for each, and boxes.

| file | phrases | boxes |
|---|---|---|
| `.txt` | one a line, for all images | – |
| `.csv` | columns `image`, `phrase` | columns `image`, `x0`, `y0`, `x1`, `y1`; where known `phrase`, `score` |
| `.json` | a list for all; or `{image: [phrase, …]}` | `{image: [{"box": [x0, y0, x1, y1], "phrase", "score"}, …]}` |
| COCO `.json` | – | those of its annotations, by file name and category |

Images are named by their path from the folder, with `/`. Boxes are in pixels of the image as viewers show it; COCO's
own are [x, y, width, height], of which crowds are left out. So is a box that is none; `LeftOut` counts them.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.annotate.detector import Detection
from experiments.common.config import RunError
from segenv.data.base import folder, read_json, same_name
from segenv.data.coco_file import CocoFile
from segenv.data.folder import NOT_DATA
from segenv.data.images import image_suffixes
from segenv.files import file_size, json_hash
from segenv.texts import one_line, shown
from segenv.types import BadItem, Box

CORNERS = ("x0", "y0", "x1", "y1")
UNNAMED = "object"  # the phrase of a box without one


@dataclass
class LeftOut:
    """Boxes of a file that are not segmented: how many there are in all (`listed`), how many are crowds, and why others
    are no boxes (`bad`), each named."""

    listed: int = 0
    crowds: int = 0
    bad: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        if self.crowds:
            parts.append(f"{self.crowds} of {self.listed} annotations were left out as crowds (iscrowd)")
        if self.bad:
            parts.append(f"{len(self.bad)} of {self.listed} boxes were left out as bad, the first: {self.bad[0]}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Inputs:
    """Names of the images to annotate, phrases for all of them and for each, and boxes from a file (None: detect).

    `unknown` are the names in files of phrases or boxes that the folder has no image for."""

    root: Path
    images: list[str]
    everywhere: list[str] = field(default_factory=list)
    phrases: dict[str, list[str]] = field(default_factory=dict)
    boxes: dict[str, list[Detection]] | None = None
    unknown: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def phrases_of(self, image: str) -> list[str]:
        """Phrases to look for in an image, each once."""
        if self.boxes is not None:
            return list(dict.fromkeys(one.phrase for one in self.boxes.get(image, ())))
        return list(dict.fromkeys([*self.everywhere, *self.phrases.get(image, ())]))

    @property
    def every_phrase(self) -> list[str]:
        """Phrases to look for in any image, in order."""
        return list(dict.fromkeys([*self.everywhere, *(one for name in self.images for one in self.phrases_of(name))]))

    @property
    def fingerprint(self) -> str:
        """Hash of the images' names, sizes in bytes, phrases and boxes."""
        boxes = self.boxes or {}
        return json_hash(
            [name, file_size(self.root / name), self.phrases_of(name), [str(one) for one in boxes.get(name, ())]]
            for name in self.images
        )


def read_inputs(
    images: str, phrases: Iterable[str], phrases_file: str | None, boxes: str | None, limit: int | None
) -> Inputs:
    """Read the images, phrases and boxes that the flags name. Raises `DataError` and `RunError`."""
    root = folder(images, "the folder of the images to annotate")
    names = image_names(root)
    if not names:
        raise RunError(f"no image in {root}; expected files that end in {', '.join(sorted(image_suffixes()))}")
    everywhere = [_phrase(text, "--phrases") for text in phrases]
    each: dict[str, list[str]] = {}
    if phrases_file is not None:
        more, each = read_phrases(Path(phrases_file).expanduser())
        everywhere += more
    left_out = LeftOut()
    listed = None if boxes is None else read_boxes(Path(boxes).expanduser(), root, left_out)
    if listed is not None and (everywhere or each):
        raise RunError("boxes come with their phrases: give --boxes, or phrases for a detector, and not both")
    each = _respelled(each, names)
    listed = None if listed is None else _respelled(listed, names)
    named: Mapping[str, Any] = each if listed is None else listed
    unknown = sorted(set(named) - set(names))
    if listed is None and not everywhere and not each:
        raise RunError("nothing to look for; give --phrases 'a cat' 'a dog', --phrases-file FILE or --boxes FILE")
    if named and len(unknown) == len(named) and not everywhere:
        raise RunError(
            f"none of the {len(named)} images that {boxes or phrases_file} names is in {root}, {shown(unknown[0])} for "
            f"one; expected paths from that folder, such as {names[0]!r}"
        )
    return Inputs(root, names[:limit], list(dict.fromkeys(everywhere)), each, listed, unknown, left_out)


def image_names(root: Path) -> list[str]:
    """The images in a folder and the folders in it, by their paths from it, sorted; nothing hidden. Files of formats
    that are not read are among them, to be told of."""
    names = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts) or path.name in NOT_DATA
        if path.suffix.lower() in image_suffixes() and not hidden and not path.is_dir():
            names.append(relative.as_posix())
    return sorted(names)


def read_phrases(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Phrases for all images, and for each by its name."""
    what = "a list of phrases, or of each image by its path"
    match path.suffix.lower():
        case ".txt":
            return [_phrase(line, str(path)) for line in _text(path).splitlines() if line.strip()], {}
        case ".csv":
            each: dict[str, list[str]] = {}
            for where, row, problem in _rows(path, ("image", "phrase")):
                if problem is not None:
                    raise RunError(problem)
                each.setdefault(row["image"], []).append(_phrase(row["phrase"], where))
            return [], each
        case ".json":
            found = read_json(path, what)
            if isinstance(found, list):
                return [_phrase(item, str(path)) for item in found], {}
            if isinstance(found, dict):
                lists = {name: [item] if isinstance(item, str) else item for name, item in found.items()}
                if all(isinstance(items, list) for items in lists.values()):
                    return [], {
                        name: [_phrase(item, f"{path}, {shown(name)}") for item in items]
                        for name, items in lists.items()
                    }
            raise RunError(f"{path} is no list and names no lists; expected {what}")
    raise RunError(f"--phrases-file {path}: expected a file that ends in .txt, .csv or .json")


def _respelled(named: dict[str, list[Any]], names: list[str]) -> dict[str, list[Any]]:
    """Lists by the names of the folder's images, which a file may spell in another way: `./a.jpg`, `images\\a.jpg`."""
    known = {same_name(name): name for name in names} | {name: name for name in names}
    found: dict[str, list[Any]] = {}
    for name, items in named.items():
        found.setdefault(known.get(name) or known.get(same_name(name), name), []).extend(items)
    return found


def read_boxes(path: Path, root: Path = Path(), left_out: LeftOut | None = None) -> dict[str, list[Detection]]:
    """Read boxes, by the image's name; `left_out` counts those that are not read. LVIS names no files, but addresses:
    the images are looked for in `root`. Raises `RunError` where no box is left."""
    found: dict[str, list[Detection]] = {}
    left_out = LeftOut() if left_out is None else left_out
    for name, corners, phrase, score, where in _listed_boxes(path, root, left_out):
        left_out.listed += 1
        try:
            found.setdefault(name, []).append(_detection(corners, phrase, score, where))
        except RunError as error:
            left_out.bad.append(str(error))
    found = {name: boxes for name, boxes in found.items() if boxes}
    if not found:
        raise RunError(f"{path} holds no box to segment" + (f": {left_out}" if left_out.listed else ""))
    return found


def _listed_boxes(path: Path, root: Path, left_out: LeftOut) -> Iterator[tuple[str, Any, Any, Any, str]]:
    """Image, corners, phrase and score of each box in a file, and where the box stands there."""
    match path.suffix.lower():
        case ".csv":
            for where, row, problem in _rows(path, ("image", *CORNERS)):
                if problem is not None:
                    left_out.listed += 1
                    left_out.bad.append(problem)
                    continue
                corners = [row[name] for name in CORNERS]
                yield row["image"], corners, row.get("phrase"), row.get("score") or None, where
        case ".json":
            listed = read_json(path, "boxes of each image by its path, or COCO instances")
            if isinstance(listed, dict) and isinstance(listed.get("annotations"), list):
                yield from _coco_boxes(CocoFile(path, listed, root), left_out)
            elif not isinstance(listed, dict) or not all(isinstance(items, list) for items in listed.values()):
                raise RunError(
                    f"{path} names no lists; expected {{image: [{{box, phrase, score}}, …]}} or COCO instances"
                )
            else:
                for name, items in listed.items():
                    for i, item in enumerate(items):
                        item = item if isinstance(item, dict) else {"box": item}
                        where = f"{path}, {shown(name)}, box {i}"
                        yield name, item.get("box"), item.get("phrase"), item.get("score"), where
        case _:
            raise RunError(f"--boxes {path}: expected a file that ends in .csv or .json")


def _coco_boxes(file: CocoFile, left_out: LeftOut) -> Iterator[tuple[str, Any, Any, Any, str]]:
    """Boxes of COCO instances or detections with their images and categories, crowds left out."""
    for i in range(len(file.annotations)):
        try:
            one = file.read(i)
            box = None if one.crowd else file.box(i)
        except BadItem as error:
            left_out.listed += 1
            left_out.bad.append(str(error))
            continue
        if box is None:
            left_out.listed += 1
            left_out.crowds += 1
        else:
            corners, where = (box.x0, box.y0, box.x1, box.y1), f"{file.path}, annotation {one.item!r}"
            yield one.file, corners, one.category, one.record.get("score"), where


def _detection(corners: Any, phrase: Any, score: Any, where: str) -> Detection:
    """Check a box of a file."""
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)
        known = None if score is None else float(score)
    except (TypeError, ValueError, OverflowError):
        raise RunError(
            f"{where}: box is {shown(corners)} and score {shown(score)}; expected x0, y0, x1, y1 and a number"
        ) from None
    if not all(map(math.isfinite, (x0, y0, x1, y1, known or 0))) or x0 >= x1 or y0 >= y1:
        raise RunError(
            f"{where}: box is {[x0, y0, x1, y1]}, score {known}; expected finite numbers, the second corner right "
            "of the first and below"
        )
    return Detection(UNNAMED if phrase in (None, "") else _phrase(phrase, where), Box(x0, y0, x1, y1), known)


def _phrase(text: Any, where: str) -> str:
    """A phrase on one line."""
    words = " ".join(one_line(text).split()) if isinstance(text, str) else ""
    if not any(character.isalnum() for character in words):
        raise RunError(f"{where}: phrase is {shown(text)}; expected what to look for, such as 'a red cup'")
    return words


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str], str | None]]:
    """The rows of a CSV file, with where each stands, and what is wrong with one that lacks some of `columns`."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        yield from _checked_rows(reader, path, columns)
    except csv.Error as error:
        raise RunError(f"{path}, line {reader.line_num} is no CSV ({error}); correct the quotes there") from error


def _checked_rows(
    reader: csv.DictReader, path: Path, columns: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str], str | None]]:
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise RunError(f"{path} has no column {', '.join(missing)}; expected a first line {','.join(columns)}")
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        missing = [name for name in columns if not row[name]]
        problem = f"{where} is incomplete; expected {', '.join(columns)}" if missing else None
        yield where, {key: one_line(value) for key, value in row.items() if key and isinstance(value, str)}, problem


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as UTF-8 text ({error})") from error
