"""Image encodings within a bound of bytes: in memory, and optionally on disk for several processes and later runs."""

import contextlib
import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from segenv.files import content_hash

Encoding = dict[str, np.ndarray]  # what a tool keeps of an image: its arrays by name


class EncodingCache:
    """Least recently used encodings by key. A key names everything that the encoding depends on (see `SegTool.encode`).

    In memory, encodings stay as they are, at most `max_bytes` of them. With a `directory` they are also kept on disk,
    one memory-mapped .npy file each, at most about `max_disk_bytes`, the least recently used going first. Files are
    written beside their place and moved there, so that any number of processes may share a directory.

    The disk layer rounds floating point to float16. So that what a tool answers does not depend on what happened to be
    cached, `put` then rounds what it keeps in memory too, and returns it: use what it returns. `precision` says which
    of the two holds; results of both differ slightly, so it is part of a tool's fingerprint and of a run's protocol.
    """

    def __init__(
        self, max_bytes: int = 1 << 29, directory: str | os.PathLike | None = None, max_disk_bytes: int = 1 << 34
    ) -> None:
        self.max_bytes = max_bytes
        self.max_disk_bytes = max_disk_bytes
        self.directory = None if directory is None else Path(directory)
        self.hits = self.misses = 0
        self.nbytes = 0  # of what is in memory now
        self._memory: OrderedDict[str, Encoding] = OrderedDict()
        self._lock = threading.Lock()
        self._disk_bytes = 0
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._shrink_disk()

    def __reduce__(self) -> tuple:
        """An empty cache of the same bounds and directory: encodings are not sent to another process."""
        return EncodingCache, (self.max_bytes, self.directory, self.max_disk_bytes)

    @property
    def precision(self) -> str:
        """`"exact"`, or `"float16"` where a directory is in use."""
        return "exact" if self.directory is None else "float16"

    def __len__(self) -> int:
        return len(self._memory)

    def get(self, key: str) -> Encoding | None:
        """The encoding put under `key`, or None."""
        with self._lock:
            if (encoding := self._memory.get(key)) is not None:
                self._memory.move_to_end(key)
            elif (encoding := self._read(key)) is not None:
                self._keep(key, encoding)
            self.hits += encoding is not None
            self.misses += encoding is None
            return encoding

    def put(self, key: str, encoding: Encoding) -> Encoding:
        """Keep `encoding`, and return it as every later `get` does: read-only, and rounded if a directory is in use."""
        kept = {name: self._rounded(array) for name, array in encoding.items()}
        with self._lock:
            self._keep(key, kept)
            self._write(key, kept)
        return kept

    def clear(self) -> None:
        """Forget what is in memory; files stay."""
        with self._lock:
            self._memory.clear()
            self.nbytes = 0

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        if self.directory is not None and array.dtype in (np.float32, np.float64):
            limit = np.finfo(np.float16).max
            array = array.clip(-limit, limit).astype(np.float16)
        array = array.view()
        array.setflags(write=False)
        return array

    def _keep(self, key: str, encoding: Encoding) -> None:
        size = _nbytes(encoding)
        if size > self.max_bytes:
            return
        if (known := self._memory.pop(key, None)) is not None:
            self.nbytes -= _nbytes(known)
        self._memory[key] = encoding
        self.nbytes += size
        while self.nbytes > self.max_bytes:
            _, oldest = self._memory.popitem(last=False)
            self.nbytes -= _nbytes(oldest)

    def _path(self, key: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{content_hash(key.encode())}.npy"

    def _read(self, key: str) -> Encoding | None:
        if self.directory is None:
            return None
        path = self._path(key)
        try:
            record = np.load(path, mmap_mode="r", allow_pickle=False)
            os.utime(path)  # the order in which files are removed
            return {name: record[name][0] for name in record.dtype.names}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, TypeError):  # not a file of ours, or one that a full disk cut short
            path.unlink(missing_ok=True)
            return None

    def _write(self, key: str, encoding: Encoding) -> None:
        """One record whose fields are the encoding's arrays: a single .npy file holds them all, and maps them all."""
        if self.directory is None:
            return
        path = self._path(key)
        if path.exists():
            return
        record = np.empty(1, [(name, array.dtype, array.shape) for name, array in encoding.items()])
        for name, array in encoding.items():
            record[name][0] = array
        handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=self.directory)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, record, allow_pickle=False)
            with contextlib.suppress(FileNotFoundError):  # another process may have made room meanwhile
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._disk_bytes += record.nbytes
        if self._disk_bytes > self.max_disk_bytes:
            self._shrink_disk()

    def _shrink_disk(self) -> None:
        """Count what all processes have written; above the bound, remove the least recently used down to 0.9 of it."""
        assert self.directory is not None
        files = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith((".npy", ".tmp")):
                        files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        self._disk_bytes = sum(size for _, size, _ in files)
        if self._disk_bytes <= self.max_disk_bytes:
            return
        for _, size, path in sorted(files):
            if self._disk_bytes <= 0.9 * self.max_disk_bytes:
                break
            Path(path).unlink(missing_ok=True)
            self._disk_bytes -= size


def _nbytes(encoding: Encoding) -> int:
    return sum(array.nbytes for array in encoding.values())
