"""Contract of every dataset, and access to its files.

A dataset is a lazy sequence of `Task`: nothing is decoded before it is asked for, and a second reading of an item
equals the first.
"""

from __future__ import annotations

import copy
import json
import os
import posixpath
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, overload

from segenv.files import json_hash
from segenv.seeds import seed_of
from segenv.texts import shown
from segenv.types import BadItem, SegenvError, Task

_LONGEST = 4096  # characters of a path, on every system
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

    `checks` are called with each task that is read, and raise `BadItem` where it cannot be used: an agent's, for one,
    whose model takes no image of that shape. With `follow_links`, files may be links that lead out of their folder.
    """

    spec: str

    def __init__(self, skip_bad: bool = False, follow_links: bool = False) -> None:
        self.skip_bad, self.follow_links = skip_bad, follow_links
        self.checks: list[Callable[[Task], None]] = []
        self._skipped: dict[str, str] = {}

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Every task's id in order, unique, without decoding an image."""

    @property
    def sources(self) -> Sequence[str]:
        """The image behind each task, by name: tasks that share one must not be divided between training and test."""
        return self.ids

    def images_of(self, ids: Iterable[str]) -> list[str]:
        """The image behind each task of `ids`, by name: tasks of one image are alike, so statistics resample images."""
        found = dict(zip(self.ids, self.sources, strict=True))
        return [found[name] for name in ids]

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
        return all(own) and not any(content_words(words) & content_words(instruction) for words in own)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash, in hex, of what identifies the data (not of where it lies)."""

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(id, reason) of each bad item that was met so far under `skip_bad`."""
        return list(self._skipped.items())

    def skip(self, name: str, reason: str) -> None:
        """Count the item `name` among those that were skipped, for a reason that lies outside the data."""
        self._skipped[name] = reason

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
            task = self.load(i)
            for check in self.checks:
                check(task)
            return task
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
        place = self.place_of(name)
        if place is None:
            raise KeyError(name)
        return self[place]

    def place_of(self, name: str) -> int | None:
        """The index of the task whose id is `name`, or None; all ids are read at the first call."""
        return self._index.get(name)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def checked(self, check: Callable[[Task], None]) -> Dataset:
        """This dataset with one more of `checks`; it reports into the same `skipped`."""
        other = copy.copy(self)
        other.checks = [*self.checks, check]
        return other

    def select(self, positions: Sequence[int]) -> Dataset:
        """The items at `positions`, in that order."""
        return _Selection(self, positions)


class _Selection(Dataset):
    """Some items of another dataset; `spec` is the whole one's."""

    def __init__(self, whole: Dataset, positions: Sequence[int]) -> None:
        super().__init__(whole.skip_bad, whole.follow_links)
        self.spec = whole.spec
        self._skipped, self.checks = whole._skipped, whole.checks
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


def later(whole: Dataset, start: int, spec: str) -> Dataset:
    """The tasks of a dataset from index `start` on, as a dataset that `spec` names. Raises `DataError` where none is
    left."""
    if start >= len(whole):
        raise DataError(
            f"data {spec!r}: {whole.spec} has {len(whole)} tasks, so none from index {start} on; start before"
        )
    data = whole[start:]
    data.spec = spec
    return data


def content_words(words: str) -> set[str]:
    """The words of an instruction, in small letters, without articles."""
    return set(words.casefold().split()) - {"the", "a", "an"}


def folder(path: str | Path, what: str) -> Path:
    """`path` as an existing folder. Raises `DataError`; `what` says what was expected in it."""
    found = Path(path).expanduser()
    if not found.is_dir():
        state = "is not a folder" if found.exists() else "does not exist"
        raise DataError(f"{found} {state}; expected {what}")
    return found


def within(root: Path, relative: object, item: str, follow_links: bool = False) -> Path:
    """The file of `item` that `relative` names from the folder `root`: the one resolver of names in data files.

    Where there is no file of that very name, `\\` counts as `/`, and letters with accents are equal however Unicode
    composes them. The file must lie in `root`, links followed, or, where `root` is in a snapshot of the Hugging Face
    hub, among the blobs of that repository; with `follow_links` only the name must, and links in the folder may lead
    anywhere. Raises `BadItem` where it is no text or leaves `root`.
    """
    whole = isinstance(relative, str) and len(relative.splitlines()) == 1 and "\0" not in relative
    if not isinstance(relative, str) or not whole or len(relative) > _LONGEST:
        raise BadItem(f"item {item!r}: file name is {shown(relative)}; expected a path relative to {root}")
    path = _spelled(root, relative)
    try:
        target, home = path.resolve(), root.resolve()
        if target.is_relative_to(home) or _is_blob(target, home):
            return path
        named = Path(os.path.abspath(path))  # no ".." is left, which links might lead astray
        linked = named.is_relative_to(os.path.abspath(root)) and named.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that no file can have
        raise BadItem(f"item {item!r}: {path} cannot be followed ({error}); repair the name or the link") from error
    if linked and follow_links:
        return named
    advice = "copy the file into that folder and name it from there"
    if linked:
        advice += ", or allow links that lead out of it with --follow-links (follow_links=True in Python)"
    raise BadItem(f"item {item!r}: {relative!r} leaves {root}; {advice}")


def same_name(name: str) -> str:
    """A path's one spelling, of all that `within` takes for the same: composed letters, `/`, no `./`."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def _spelled(root: Path, relative: str) -> Path:
    """The path `root/relative` in the spelling of the file that is there; as given where there is none."""
    if os.path.exists(root / relative):
        return root / relative
    slashes = relative.replace("\\", "/")
    found = root
    for part in PurePosixPath(slashes).parts:
        if not part.isascii() and not os.path.lexists(found / part):
            part = _listing(str(found), changed(found)).get(unicodedata.normalize("NFC", part), part)
        found /= part
    return found if os.path.lexists(found) else root / slashes


@lru_cache(maxsize=16)
def _listing(directory: str, changed: int) -> dict[str, str]:
    """The names in a folder by their composed form. `changed` is when the folder was, as a part of the cache's key."""
    try:
        return {unicodedata.normalize("NFC", name): name for name in sorted(os.listdir(directory), reverse=True)}
    except (OSError, ValueError):
        return {}


def changed(path: Path) -> int:
    """When a file or a folder was changed, in ns, for the keys of caches; 0 where it cannot be told."""
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _is_blob(target: Path, home: Path) -> bool:
    """Whether a file is a blob of the hub repository whose snapshot (snapshots/HASH) the folder `home` is in."""
    return any(
        parent.parent.name == "snapshots" and target.is_relative_to(parent.parent.parent / "blobs")
        for parent in (home, *home.parents)
    )


def id_of(value: Any) -> int | str | None:
    """An id as JSON holds it, 7.0 as 7; None where the value is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def unique(ids: Iterable[Hashable], what: str, where: object) -> None:
    """Raise `DataError` where two records of `where` have the same id. `what` names records with a preposition, such as
    "images with id"."""
    seen: set[Hashable] = set()
    for name in ids:
        if name in seen:
            raise DataError(
                f"{where} lists two {what} {shown(name)}, so that it cannot be known which one is meant; give each its "
                "own, or remove one"
            )
        seen.add(name)


def numbered(names: Iterable[str]) -> Iterator[str]:
    """Yield the names, with "~2", "~3", … behind those that came before."""
    seen: dict[str, int] = {}
    for name in names:
        own = name
        while own in seen:
            seen[name] += 1
            own = f"{name}~{seen[name]}"
        seen[own] = 1
        yield own


def read_json(path: Path, what: str, else_in: str | None = None) -> Any:
    """Read a JSON file in UTF-8, or where that cannot be, in the encoding `else_in`. Raises `DataError`; `what` says
    what was expected of the file."""

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            unique((name for name, _ in pairs), "values of one record as", path)
        return found

    try:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            if else_in is None:
                raise
            text = path.read_text(encoding=else_in)
        return json.loads(text, object_pairs_hook=record)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); expected {what}") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); expected {what}") from error
