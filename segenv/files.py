"""Files that appear whole or not at all, and hashes of content."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from segenv.texts import whole


@contextmanager
def replacing(path: Path, encoding: str | None = None, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a file to write (bytes, or text in `encoding`) that takes the place of `path` when the block ends without an
    error: a reader, or a kill, sees the old file or the whole new one. With `sync` a power cut does too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb" if encoding is None else "w", encoding=encoding) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Write a file as `replacing` does; a text in UTF-8, `whole`."""
    with replacing(path, sync=sync) as file:
        file.write(whole(content).encode() if isinstance(content, str) else content)


def stream_hash(parts: Iterable[Any], size: int = 16) -> str:
    """BLAKE2b of bytes (or buffers of them), of `size` bytes, in hex; one part is in memory at a time."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def content_hash(*parts: Any, size: int = 16) -> str:
    """BLAKE2b of bytes (or buffers of them), of `size` bytes, in hex."""
    return stream_hash(parts, size)


def json_hash(parts: Iterable[object]) -> str:
    """128-bit hash of values, in hex. Each is written as JSON, so that ("a", "bc") differs from ("ab", "c")."""
    return stream_hash(json.dumps(part, sort_keys=True, default=str).encode() + b"\n" for part in parts)


def finite(value: Any) -> Any:
    """`value` with tuples as lists, NumPy scalars as Python's, and NaN and infinities as None, for JSON."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def file_hash(path: Path) -> str | None:
    """128-bit hash of a file's bytes, in hex; None where it cannot be read."""
    try:
        return content_hash(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError):  # ValueError: no name that a file can have
        return None


def folder_hash(folder: Path) -> str:
    """128-bit hash of the names and bytes of all files in a folder, in hex."""
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        state.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def file_size(path: Path) -> int | None:
    """A file's size in bytes; None where there is none."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None
