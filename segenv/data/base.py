"""Contract of every dataset, and reading of images and masks from files.

A dataset is a lazy sequence of `Task`: nothing is decoded before it is asked for, and a second reading of an item
equals the first.
"""

from __future__ import annotations

import errno
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps

from segenv.files import json_hash
from segenv.seeds import seed_of
from segenv.types import IGNORE, BadItem, SegenvError, Task

MAX_PIXELS = 50_000_000  # of one image; checked against the file's header, before anything is decoded

# Formats that are worth the risk of decoding: Pillow would also hand EPS to Ghostscript, for one.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

SKIP_HINT = "; or leave bad items out, and have them counted, with --skip-bad (skip_bad=True in Python)"


class DataError(SegenvError, ValueError):
    """A dataset as a whole cannot be read: unknown spec, missing folder, unreadable index. Never skipped."""


class Dataset(Sequence[Task], ABC):
    """A lazy sequence of tasks.

    Implementations give `spec` (what `segenv.data.make` takes to make this dataset again, in another process for
    example), `ids`, `load` and `fingerprint`.

    `len` is the number of items that the data lists, the bad ones included: reading them all is the only way to know
    which are bad. A bad item raises `BadItem`, by index always, and in iteration unless `skip_bad`; then iteration goes
    on without it and `skipped` names it. So `len(dataset) == number of tasks iterated + len(dataset.skipped)` after a
    whole pass. Nothing is left out silently.

    Slices and `select` are datasets too, as lazy as this one, and report into the same `skipped`.
    """

    spec: str

    def __init__(self, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self._skipped: dict[str, str] = {}

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Every task's id in order, unique, without decoding an image."""

    @property
    def sources(self) -> Sequence[str]:
        """The image behind each task, by name: tasks that share one must not be divided between training and test."""
        return self.ids

    def hold_out(self, share: float) -> tuple[list[int], list[int]]:
        """The places of the tasks for training, and of those for test: about `share` of the images, chosen by a hash of
        their names. Tasks of one image stay together, and new tasks move no other."""
        apart = [seed_of("held out", name) % 1000 < 1000 * share for name in self.sources]
        return [i for i, out in enumerate(apart) if not out], [i for i, out in enumerate(apart) if out]

    @abstractmethod
    def load(self, i: int) -> Task:
        """Task number `i`, 0 <= i < len. Raises `BadItem`, naming the item, the file and what to do."""

    def lacks(self, i: int, instruction: str) -> bool:
        """Whether nothing in the image of task `i` is known to fit an instruction: here, where the instructions of all
        the image's tasks are known, and share no word with it but articles. Datasets that know more say more."""
        sources = self.sources
        own = [self.load(k).instruction for k, source in enumerate(sources) if source == sources[i]]
        return all(own) and not any(_content(words) & _content(instruction) for words in own)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash, in hex, of what identifies the data (not of where it lies)."""

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(id, reason) of each bad item that was met so far under `skip_bad`."""
        return list(self._skipped.items())

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, i: int) -> Task: ...
    @overload
    def __getitem__(self, i: slice) -> Dataset: ...
    def __getitem__(self, i: int | slice) -> Task | Dataset:
        if isinstance(i, slice):
            return self.select(range(len(self))[i])
        i = range(len(self))[i]  # negative indices, and IndexError
        try:
            return self.load(i)
        except BadItem as error:
            if self.skip_bad:
                self._skipped[self.ids[i]] = str(error)
                raise
            raise BadItem(f"{error}{SKIP_HINT}") from error

    def __iter__(self) -> Iterator[Task]:
        for i in range(len(self)):
            try:
                task = self[i]
            except BadItem:
                if not self.skip_bad:
                    raise
                continue
            yield task

    def by_id(self, name: str) -> Task:
        """Load the task whose id is `name`."""
        return self[self._index[name]]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def select(self, positions: Sequence[int]) -> Dataset:
        """The items at `positions`, in that order."""
        return _Selection(self, positions)


class _Selection(Dataset):
    """Some items of another dataset; `spec` is the whole one's."""

    def __init__(self, whole: Dataset, positions: Sequence[int]) -> None:
        super().__init__(whole.skip_bad)
        self.spec = whole.spec
        self._skipped = whole._skipped
        self._whole = whole
        every = range(len(whole))
        self._positions = positions if isinstance(positions, range) else [every[i] for i in positions]

    @property
    def ids(self) -> Sequence[str]:
        ids = self._whole.ids
        return [ids[i] for i in self._positions]

    @property
    def sources(self) -> Sequence[str]:
        sources = self._whole.sources
        return [sources[i] for i in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def load(self, i: int) -> Task:
        return self._whole.load(self._positions[i])

    def lacks(self, i: int, instruction: str) -> bool:
        return self._whole.lacks(self._positions[i], instruction)

    @property
    def fingerprint(self) -> str:
        return json_hash([self._whole.fingerprint, *self.ids])


def _content(words: str) -> set[str]:
    return set(words.casefold().split()) - {"the", "a", "an"}


def folder(path: str | Path, what: str) -> Path:
    """`path` as an existing folder. Raises `DataError`; `what` says what was expected in it."""
    found = Path(path).expanduser()
    if not found.is_dir():
        state = "is not a folder" if found.exists() else "does not exist"
        raise DataError(f"{found} {state}; expected {what}")
    return found


def within(root: Path, relative: object, item: str) -> Path:
    """The file `root/relative`, which must lie in `root`, links followed. Raises `BadItem` where it is no text or
    leaves `root`."""
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise BadItem(f"item {item!r}: file name is {relative!r}; expected a path relative to {root}")
    path = root / relative
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:  # a loop of links, for one
        raise BadItem(f"item {item!r}: {path} cannot be followed ({error}); repair the link") from error
    if not inside:
        raise BadItem(
            f"item {item!r}: {relative!r} leaves {root}; copy the file into that folder and name it from there"
        )
    return path


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file. Raises `DataError`; `what` says what was expected of it."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); expected {what}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); expected {what}") from error


def read_pair(
    image: Path, mask: Path, item: str, labels: Callable[[Image.Image], np.ndarray], max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 [H, W, 3] in RGB, and its target, uint8 [H, W] with 0, 128 and 255.

    `labels` makes the target of the decoded mask (`strict_labels`, or a published dataset's own rule), and raises
    `ValueError` where it cannot. Raises `BadItem` for files that are missing, corrupt, huge, of unequal size or without
    an object.
    """
    pixels = read_image(image, item, max_pixels)
    target = _decode(mask, item, max_pixels, labels)
    check_target(target, pixels.shape[:2], item, image, mask)
    return pixels, target


def read_image(path: Path, item: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 [H, W, 3], RGB, turned as its EXIF orientation says (as viewers and OpenCV show it).

    Gray, palette and CMYK become RGB; 16-bit colour keeps its high byte. 16-bit gray, float and transparent images are
    refused, because every way to bring them to RGB is a choice that is not ours. Raises `BadItem`.
    """
    return _decode(path, item, max_pixels, to_rgb)


def check_target(target: np.ndarray, size: tuple[int, ...], item: str, image: Path, mask: Path) -> None:
    """Raise `BadItem` where `target` [H, W] is not of the image's `size` (height, width), or has no object pixel."""
    if target.shape != tuple(size):
        turned = target.shape == tuple(size)[::-1] and _orientation(image) > 4
        raise BadItem(
            f"item {item!r}: {mask} is {_wh(target.shape)} but {image} is {_wh(size)}"
            + (" once turned by its EXIF orientation: the mask was drawn on the unturned pixels" if turned else "")
            + "; "
            + ("remove the image's orientation tag" if turned else "make a mask of the image's size")
        )
    if not (target == 255).any():
        raise BadItem(f"item {item!r}: {mask} has no object pixel; draw the object, or remove the item")


def strict_labels(mask: Image.Image) -> np.ndarray:
    """The target of a mask file with labels 0 and 1, or 0, 128 (ignored) and 255: uint8 [H, W]. Raises `ValueError` for
    any other.

    Gray values are the labels, also where they are stored as RGB or through a gray palette. A coloured palette (PASCAL
    VOC, DAVIS 2017) is read only where its indices are 0 and 1; further ones would be other objects, or void.
    """
    values = _gray(mask)
    found = np.unique(values)
    if np.isin(found, (0, 1)).all():
        return (values * np.uint8(255)).astype(np.uint8)
    if np.isin(found, (0, IGNORE, 255)).all():
        return values
    shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
    blurred = " (JPEG blurs labels: save masks as PNG)" if mask.format == "JPEG" else ""
    raise ValueError(f"labels are {shown}{blurred}; expected 0 and 1, or 0, 128 (ignored) and 255 (object)")


def _gray(mask: Image.Image) -> np.ndarray:
    """A mask's values, uint8 [H, W]."""
    advice = "; save the mask as 8-bit gray"
    if mask.mode in ("L", "1"):
        return np.array(mask.convert("L"))
    if mask.mode == "P" and "transparency" not in mask.info:
        colours, indices = np.array(mask.convert("RGB")), np.array(mask)
        if (colours == colours[..., :1]).all():
            return colours[..., 0]
        if indices.max() <= 1:
            return indices
        raise ValueError(f"a coloured palette with indices up to {indices.max()}{advice}")
    if mask.mode in ("P", "LA", "RGBA", "RGB"):
        channels = np.array(mask.convert("RGBA"))
        if (channels[..., 3] < 255).any():
            raise ValueError(f"transparent pixels in a {mask.mode} mask{advice}")
        if (channels[..., :3] != channels[..., :1]).any():
            raise ValueError(f"coloured pixels in a {mask.mode} mask{advice}")
        return channels[..., 0].copy()
    raise ValueError(f"pixels of mode {mask.mode}{advice}")


def to_rgb(image: Image.Image) -> np.ndarray:
    """A decoded image as uint8 [H, W, 3]. Raises `ValueError` for those that `read_image` refuses."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"pixels of mode {image.mode} (more than 8 bits); save it as 8-bit RGB or gray with the range that you mean"
        )
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise ValueError("transparent pixels; flatten it onto the background that you mean")
    return np.array(image.convert("RGB"))


def _decode(path: Path, item: str, max_pixels: int, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """`read` of the decoded and turned image. Raises `BadItem`, also for what `read` refuses with a `ValueError`."""
    try:
        return read(_open(path, item, max_pixels))
    except ValueError as error:
        raise BadItem(f"item {item!r}: {path} has {error}") from error


def _open(path: Path, item: str, max_pixels: int) -> Image.Image:
    """A decoded image, turned by its EXIF orientation. Raises `BadItem` for what the file is to blame for.

    Faults of the machine (out of memory, too many open files, a disk that fails) pass: they are no item's.
    """
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "is missing"
            raise BadItem(f"item {item!r}: {path} {problem}; put the file there")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size  # from the header
            if width * height > max_pixels:
                raise BadItem(
                    f"item {item!r}: {path} is {_wh((height, width))}, more than the {max_pixels:,} pixels allowed; "
                    "make it smaller, or raise max_pixels"
                )
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with its preview
                raise BadItem(f"item {item!r}: {path} has several frames; save the one that you mean")
            turned = ImageOps.exif_transpose(image)
            turned.format = image.format  # lost in the copy; the advice of `strict_labels` needs it
            return turned
    except (BadItem, MemoryError):
        raise
    except Exception as error:  # a corrupt file can make a decoder raise nearly anything
        faults = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
        if isinstance(error, OSError) and error.errno in faults:
            raise
        raise BadItem(
            f"item {item!r}: {path} cannot be decoded ({type(error).__name__}: {error}); replace the file"
        ) from error


def _orientation(path: Path) -> int:
    """EXIF orientation, 1..8; those above 4 exchange width and height."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # only words an error that is raised anyway
        return 1


def _wh(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels (width x height)"
