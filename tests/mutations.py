"""Damage to JSON and CSV files, from a seed: values of other kinds, names twice, bytes lost or changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


VALUES: list[Any] = [
    *(None, "", [], {}, -1, 0, 1, 1.0, 1.5, True, False, float("nan"), float("inf"), 1e308, 10**400, -(10**400)),
    *(2**31, 2**63, 10**9, "1", "a\nb", "\ud83d", "\0", "../../x", "x" * 600, "é", [1, 2, 3], {"id": 1}, [[]], [None]),
    *([0, 10**400], [-1, 2], [1e9] * 8, ["a"] * 6, {"size": [10**9, 10**9], "counts": [10**18]}, nested(200)),
    *({"size": [50_000, 40_000], "counts": [0, 2 * 10**9]}, {"size": [1, 2], "counts": "~~~~"}, [[0, 0] * 5000]),
]
CELLS = ["", "-1", "nan", "inf", "1e400", "1" * 5000, '"', '""', '"a\nb"', "\0", "é", "x" * 200_000, "../../x", "[]"]
_TWICE = "@twice"


def mutated(content: Any, seed: int) -> bytes:
    """The file of `content` with one to three faults."""
    rng = np.random.default_rng(seed)
    content = copy.deepcopy(content)
    if rng.random() < 0.04:
        content = VALUES[rng.integers(len(VALUES))]
    twice = None
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(content))
        if not places:
            break
        held, key = places[rng.integers(len(places))]
        match rng.choice(["delete", "replace", "replace", "replace", "double", "swap"]):
            case "delete":
                del held[key]
            case "replace":
                held[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            case "double" if isinstance(held, list):
                held.insert(rng.integers(len(held) + 1), copy.deepcopy(held[key]))
            case "double":
                twice, held[_TWICE] = key, copy.deepcopy(held[key])
            case "swap":
                other, place = places[rng.integers(len(places))]
                held[key] = copy.deepcopy(other[place]) if place in other or isinstance(other, list) else None
    return _damaged(json.dumps(content).replace(_TWICE, twice or "").encode(), rng, b"[" * 100_000)


def mutated_table(text: str, seed: int) -> bytes:
    """The CSV file of `text` with one to three faults."""
    rng = np.random.default_rng(seed)
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.choice([1, 1, 2, 3])):
        row = rows[rng.integers(len(rows))]
        match rng.choice(["replace", "replace", "delete", "double", "row"]):
            case "replace":
                row[rng.integers(len(row))] = CELLS[rng.integers(len(CELLS))]
            case "delete" if len(row) > 1:
                del row[rng.integers(len(row))]
            case "double":
                row.insert(rng.integers(len(row)), row[rng.integers(len(row))])
            case "row":
                rows.insert(rng.integers(len(rows)), list(row))
    return _damaged("\n".join(map(",".join, rows)).encode(), rng, b'"')


def _damaged(file: bytes, rng: np.random.Generator, inserted: bytes) -> bytes:
    """The bytes of a file, of which some are lost, changed, `inserted` or in another encoding."""
    match rng.choice(["", "cut", "flip", "insert", "encoding"], p=[0.7, 0.08, 0.14, 0.04, 0.04]):
        case "cut":
            return file[: rng.integers(len(file))]
        case "flip":
            damaged = bytearray(file)
            for place in rng.integers(len(file), size=rng.integers(1, 4)):
                damaged[place] ^= 1 << rng.integers(8)
            return bytes(damaged)
        case "insert":
            place = rng.integers(len(file))
            return file[:place] + inserted + file[place:]
        case "encoding":
            return rng.choice([b"\xef\xbb\xbf" + file, file.decode().encode("utf-16"), b"\xff" + file, b""])
    return file


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or record with each of its keys, down to a depth that no file of ours has."""
    waiting = [(content, 0)]
    while waiting:
        held, depth = waiting.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
        for key in keys:
            yield held, key
            if depth < 8:
                waiting.append((held[key], depth + 1))
