"""A run as a folder that survives a kill: settings, provenance, append-only records, finished stages.

    config.yaml     the settings; written once
    manifest.json   provenance: versions, platform, command, seed, data and model hashes, protocol
    *.jsonl         records, appended one a line; a line that a kill cut short is dropped when the run is resumed;
                    *-00017.jsonl is one part of several, which are read as one file
    *.DONE          one for each finished stage

Everything but the .jsonl files appears whole or not at all (temporary file, fsync, rename). Nothing is pickled.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypedDict, TypeVar

import yaml
from filelock import FileLock, Timeout

from experiments.common.config import RunError, changes, load_config, plain
from segenv import __version__, files, records
from segenv.files import finite as finite  # for all commands
from segenv.records import reader
from segenv.types import SegenvError

LIBRARIES = (
    *("numpy", "opencv-python-headless", "pycocotools", "pillow", "gymnasium", "torch", "transformers"),
    *("tokenizers", "safetensors", "trl", "peft", "accelerate", "segment-anything", "stable-baselines3", "ray"),
    "openai",
)
PATH = re.compile(r"(?<![\w./)\]])(?:~|\.{1,2})?/[\w.+-][^\s@#,|`'\"]*")
COPY = "put it back from a copy, or start another run with --out"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no bytes or inodes left, a quota, a limit on the size of a file
FULL_WORDS = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter failed", "unexpected pos")
T = TypeVar("T")
OBJECT = reader(dict)  # values by name, whatever they are
FSYNC_EVERY = 1.0  # seconds; a kill loses nothing, a power cut may lose this much and the run does it again


class _Begun(TypedDict):
    command: list[str]
    python: str
    platform: dict[str, Any]
    versions: dict[str, str]
    seed: int
    hashes: dict[str, str | None]
    protocol: dict[str, Any]
    started: str


class Manifest(_Begun, total=False):
    """The content of manifest.json; `resumed` by which other versions of segenv, and when."""

    resumed: list[dict[str, str]]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing `path`, or into the folder `path`, into a message that says how to go on."""
    try:
        yield
    except Exception as error:
        if (told := disk_full(error, path)) is None:
            raise
        raise told from error


def disk_full(error: BaseException | None, path: Path) -> RunError | None:
    """Error to tell where a full disk caused another; None where it did not. Not every library says so (torch: an
    unexpected position)."""
    if isinstance(error, OSError):
        full = error.errno in FULL
    else:
        full = any(words in str(error) for words in FULL_WORDS) and not isinstance(error, RunError)  # safetensors
        if not full and isinstance(error, RuntimeError):
            there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
            full = shutil.disk_usage(there).free < 1 << 20
    if not full:
        return None
    return RunError(
        f"the disk is full ({getattr(error, 'strerror', None) or 'No space left on device'}) while writing "
        f"{getattr(error, 'filename', None) or path}; nothing written before is lost: free some space (or raise the "
        "quota, or the limit on the size of a file), then go on with --resume"
    )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old one or the whole new one."""
    with disk_errors(path):
        files.write_atomic(path, content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, at once; NaN has no place in JSON and becomes null."""
    write_atomic(path, json.dumps(finite(value), indent=1) + "\n")


@contextmanager
def as_expected(path: Path | str, what: str) -> Iterator[None]:
    """Turn errors of reading further than a check of types goes into a RunError: `path` is no `what`, or damaged."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, SegenvError):
            raise
        raise RunError(
            f"{path} is damaged, or no {what} of this version ({type(error).__name__}: {error}); {COPY}"
        ) from error


def of_tasks(read: Callable[[Any], T], ids: Container[str]) -> Callable[[Any], T]:
    """Make a reader of records that refuses those of tasks that are not in `ids`."""

    def check(value: Any) -> T:
        record = read(value)
        if value["task"] not in ids:
            raise ValueError(f"it holds task {value['task']!r}, which the data does not")
        return record

    return check


class RunFolder:
    """The folder of one run. `create` starts it, `resume` opens one that exists; one process writes to it at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = FileLock(self / ".lock", timeout=0, thread_local=False)

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Any) -> RunFolder:
        """Start a run in `path` (made if missing) with the dataclass `config`; RunError where one is there."""
        folder = cls(path)
        if folder.path.exists() and not folder.path.is_dir():
            raise RunError(f"--out {path} is a file; expected a folder, or a name that is free")
        if folder.path.is_dir() and (folder / "config.yaml").exists():
            raise RunError(f"--out {path} holds a run already; go on with it by --resume {path}, or name another --out")
        folder._acquire()
        write_atomic(folder / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))
        return folder

    @classmethod
    def resume(cls, path: str | os.PathLike[str], config: Any, resumable: frozenset[str] = frozenset()) -> RunFolder:
        """Open the run in `path`; RunError where there is none, where another process is writing to it, or where
        `config` differs from the run's in a field outside `resumable` (those that change no result), `out` and
        `resume`."""
        folder = cls(path)
        if changed := changes(load_config(path, type(config)), config, resumable | {"out", "resume"}):
            raise RunError(
                f"--resume {path} would change results: {'; '.join(changed)}. Leave these out to go on with the run as "
                "it began, or start another with --out"
            )
        folder._acquire()
        return folder

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` to the file `name`, at once; see `write_json`."""
        write_json(self / name, value)

    def read_json(self, name: str, read: Callable[[Any], Any] = OBJECT, advice: str = COPY) -> Any:
        """The content of the file `name`, as `read` makes it, or None where it does not exist. Raises RunError where it
        is damaged, with advice."""
        path = self / name
        return records.read_json(path, read, advice) if path.exists() else None

    def load_json(self, name: str, read: Callable[[Any], Any] = OBJECT, advice: str = COPY) -> Any:
        """As `read_json`, of a file that must exist."""
        return records.read_json(self / name, read, advice)

    def manifest(self) -> Manifest:
        """The content of manifest.json."""
        return self.load_json("manifest.json", reader(Manifest))

    def keep_manifest(self, about: dict[str, Any], definitions: Iterable[str] = ()) -> dict[str, Any]:
        """Write `about` (of `manifest`) as manifest.json at the start of a run. When the run is resumed, compare with
        the manifest that it began with, and return that; RunError where data, models or protocol have changed since.

        Entries of the protocol named in `definitions` explain numbers, which are made again from the records: where
        their texts changed, or another version of segenv resumes the run, stderr says so, and the manifest keeps it."""
        if not (self / "manifest.json").exists():
            self.write_json("manifest.json", about)
            return about
        now: dict[str, Any] = finite(about)
        before: dict[str, Any] = {**self.manifest()}
        explained = frozenset(definitions)
        if changed := [
            f"the {name}" for part in ("hashes", "protocol") for name in changes(before[part], now[part], explained)
        ]:
            raise RunError(
                f"what {self.path} began with changed, so its episodes would be mixed: {'; '.join(changed)}. Put back "
                "what was there, or start another run with --out"
            )
        told = [
            f"the definition of {name} is another"
            for name in sorted(explained & now["protocol"].keys())
            if before["protocol"].get(name) != now["protocol"][name]
        ]
        kept = {**before, "protocol": now["protocol"]}
        seen = [before["versions"].get("segenv"), *(one["segenv"] for one in before.get("resumed", []))]
        if seen[-1] != __version__:
            told.insert(0, f"begun by segenv {seen[0]}, resumed by {__version__}")
            kept["resumed"] = [*before.get("resumed", []), {"segenv": __version__, "at": now["started"]}]
        if told:
            print(f"{self.path}: {'; '.join(told)}", file=sys.stderr)
            self.write_json("manifest.json", kept)
        return kept

    def records(self, name: str, read: Callable[[Any], Any] = OBJECT) -> Iterator[Any]:
        """The records of the file `name` and of its parts (`part_name`), in the order written, as `read` makes them; a
        last line that was cut short is passed over. Raises RunError for a line that is damaged, or that `read` refuses
        with a ValueError."""
        whole = self / name
        parts = whole.parent.glob(f"{whole.stem}-{'[0-9]' * 5}{whole.suffix}")
        for path in (*([whole] if whole.exists() else []), *sorted(parts)):
            yield from self._lines(path, read)

    def _lines(self, path: Path, read: Callable[[Any], Any]) -> Iterator[Any]:
        if not path.is_file():
            raise RunError(f"{path} is no file; expected records, one a line; {COPY}")
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return  # killed while writing: its item is not done
                try:
                    record = read(records.parse_json(line))
                except ValueError as error:
                    raise RunError(
                        f"{path}, line {number} is damaged ({error}); delete that line, and the .DONE of the stage "
                        "that wrote it if there is one, and go on with --resume"
                    ) from error
                yield record

    def keep_records(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records of the file `name` that `keep` refuses, at once."""
        every = list(self.records(name))
        if len(kept := [record for record in every if keep(record)]) < len(every):
            write_atomic(self / name, "".join(map(_line, kept)))

    def appending(self, name: str) -> Appender:
        """Append records to the file `name`, having cut off a line that a kill left unfinished; a context."""
        return Appender(self / name)

    def done(self, stage: str) -> bool:
        """Whether `finish(stage)` was called."""
        return (self / f"{stage}.DONE").exists()

    def finish(self, stage: str) -> None:
        """Mark `stage` as finished: a resumed run skips it."""
        write_atomic(self / f"{stage}.DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))

    def close(self) -> None:
        """Release the folder's lock, so that another process may write to it."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if (told := disk_full(error, self.path)) is not None:
            raise told from error

    def _acquire(self) -> None:
        """Lock the folder until `close` or the end of the process, so that no two runs write the same file."""
        try:
            with disk_errors(self / "config.yaml"):
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
        except Timeout:
            raise RunError(f"another process is writing to {self.path}; wait for it, or end it first") from None


class Appender:
    """Writes records to a .jsonl file, each whole line handed to the system before `add` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            self._file = open(path, "a+b")  # noqa: SIM115  # closed by `close`
            self._file.truncate(_whole_lines(self._file))
        self._synced = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        """Append one record."""
        line = _line(record)
        with disk_errors(self.path):
            self._file.write(line.encode("ascii"))
            self._file.flush()
            if time.monotonic() - self._synced > FSYNC_EVERY:
                self._sync()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Sync to the disk and close."""
        with disk_errors(self.path), self._file:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def part_name(name: str, part: int | None) -> str:
    """The name of part number `part` of the file `name`, such as episodes-00017.jsonl; `name` itself for None."""
    path = Path(name)
    return name if part is None else str(path.with_name(f"{path.stem}-{part:05}{path.suffix}"))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(finite(record), separators=(",", ":")) + "\n"  # ASCII: a reply may hold any character


def _whole_lines(file: IO[bytes], block: int = 1 << 16) -> int:
    """Count the bytes of `file` that are whole lines, looking from the end."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - block)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def hide_home(value: Any) -> Any:
    """`value` with the user's home folder written as ~ in every text."""
    home = os.path.expanduser("~")
    if isinstance(value, dict):
        return {key: hide_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_home(item) for item in value]
    return value.replace(home, "~") if isinstance(value, str) and len(home) > 1 else value


def hidden(text: str) -> str:
    """`text` with each absolute path, and each that leaves its folder, as DIR or as the name of its file."""

    def short(match: re.Match[str]) -> str:
        name = match[0].rsplit("/", 1)[-1]
        return name if re.search(r"\w\.\w{2,11}$", name) else "DIR"

    return PATH.sub(short, text)


def manifest(seed: int, protocol: dict[str, Any], hashes: dict[str, str | None]) -> dict[str, Any]:
    """Provenance of a run, without names of machines or users. `hashes` identify data and models."""
    versions = {"segenv": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": hide_home([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "versions": versions,
        "seed": seed,
        "hashes": hashes,
        "protocol": hide_home(protocol),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
