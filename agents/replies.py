"""Replies as records: each is kept as it arrives, and none that is known is asked for again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, fields
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from agents.backends.base import Reply
from segenv.files import content_hash
from segenv.records import parse_json, reader
from segenv.texts import whole

Record = dict[str, Any]
Key = tuple[Any, ...]
FIELDS = tuple(field.name for field in fields(Reply))
_read_reply = reader(Reply)


class ReplyLog:
    """Replies by what was asked: prompt, picture, temperature and, where a reply is sampled, seed.

    `known` are records of `record_of`, such as those of a run that is resumed; each new one goes to `keep` before
    anything else is done with the reply. `path` is the file that they are kept in, and `usage` what all of them took.
    It may be used by several threads.
    """

    def __init__(
        self,
        known: Iterable[Record] = (),
        keep: Callable[[Record], None] = lambda record: None,
        path: Path | None = None,
    ) -> None:
        self._replies: dict[Key, Reply] = {}
        self.path = path
        self._keep, self._lock = keep, Lock()
        self._under_way: dict[Key, Future[Reply]] = {}
        self.usage = {"requests": 0, "prompt_tokens": 0, "tokens": 0}
        for record in known:
            self._count(record)

    def find(self, key: Key) -> Reply | None:
        """The reply to what `key` (of `key_of`) asks, or None."""
        return self._replies.get(key)

    def find_or_submit(self, key: Key, submit: Callable[[], Future[Reply]]) -> Future[Reply]:
        """The reply to what `key` asks: the one that is kept, that of an equal question under way, which is then asked
        once, or that of `submit`, which must `add` it before its future has it."""
        with self._lock:
            if (known := self.find(key)) is not None:
                found: Future[Reply] = Future()
                found.set_result(known)
                return found
            if (asked := self._under_way.get(key)) is not None:
                return follow(asked)
            mine = self._under_way[key] = submit()
        mine.add_done_callback(lambda _: self._forget(key))
        return mine

    def _forget(self, key: Key) -> None:
        with self._lock:
            del self._under_way[key]

    def add(self, record: Record) -> None:
        """Keep the record of a new reply."""
        with self._lock:
            self._keep(record)
            self._count(record)

    def _count(self, record: Record) -> None:
        self._replies[key_of(record)] = _read_reply({name: record[name] for name in FIELDS if name in record})
        self.usage["requests"] += 1
        for name in ("prompt_tokens", "tokens"):
            self.usage[name] += record.get(name) or 0


def follow(asked: Future[Reply]) -> Future[Reply]:
    """A future of its own with what comes of another."""
    own: Future[Reply] = Future()

    def hand_on(asked: Future[Reply]) -> None:
        if own.set_running_or_notify_cancel():
            error = CancelledError() if asked.cancelled() else asked.exception()
            own.set_result(asked.result()) if error is None else own.set_exception(error)

    asked.add_done_callback(hand_on)
    return own


def question_of(picture: np.ndarray | None, prompt: str, seed: int, temperature: float | None) -> Record:
    """The identity of a question: hashes of the prompt and of the picture, uint8 [H, W, 3], `temperature` (None where
    the model chooses it) and `seed` (None of a greedy reply)."""
    shape = () if picture is None else picture.shape
    pixels = b"" if picture is None else np.ascontiguousarray(picture)
    return {
        "prompt": content_hash(whole(prompt).encode()),
        "picture": content_hash(repr(shape).encode(), pixels),
        "temperature": temperature,
        "seed": seed if temperature != 0 else None,
    }


def key_of(question: Record) -> Key:
    """The key of a question, or of a record that holds one."""
    return tuple(question[name] for name in ("prompt", "picture", "temperature", "seed"))


def record_of(question: Record, reply: Reply, **item: Any) -> Record:
    """The record of a reply: the `item` that it is about (task, step, sample, size), the question and the reply."""
    return {**item, **question, **asdict(reply)}


def check(record: Any) -> Record:
    """Read a record of replies.jsonl. Raises ValueError where it is another thing."""
    if not isinstance(record, dict):
        raise ValueError("it is no reply")
    for name in ("prompt", "picture", "temperature", "seed"):
        if name not in record:
            raise ValueError(f"it has no {name!r}")
    _read_reply({name: record[name] for name in FIELDS if name in record})
    return record


def read_records(path: Path) -> Iterator[Record]:
    """The records in a replies.jsonl; a last line that is not whole yet is passed over."""
    if path.exists():
        with open(path, "rb") as file:
            yield from (check(parse_json(line)) for line in file if line.endswith(b"\n"))


def recorded(
    log: ReplyLog | None,
    questions: Sequence[Record],
    items: Sequence[Record],
    ask: Callable[[Sequence[int]], Sequence[Reply]],
) -> list[Reply]:
    """Replies to the questions: those that the log knows, and those of `ask`, which gets the indices of the others and
    whose replies are kept. `items` say what the questions are about."""
    found = [None if log is None else log.find(key_of(question)) for question in questions]
    missing = [k for k, reply in enumerate(found) if reply is None]
    for k, reply in zip(missing, ask(missing) if missing else (), strict=True):
        found[k] = reply
        if log is not None:
            log.add(record_of(questions[k], reply, **items[k]))
    return [reply for reply in found if reply is not None]
