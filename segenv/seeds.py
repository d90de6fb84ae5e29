"""Seeds that follow from what an item is, so that no result depends on a worker, a batch or an order."""

import json
from collections.abc import Sequence
from typing import Union

from segenv.files import content_hash

Part = Union[str, int, float, bool, None, Sequence["Part"]]  # noqa: UP007


def seed_of(*parts: Part) -> int:
    """A seed in 0 .. 2^63 - 1 for the item that `parts` name: the run's seed, task id, round, sample, step.

    The same parts give the same seed on every machine and in every process (BLAKE2b of their JSON, unlike `hash`);
    parts of different type or order give another: `seed_of(1)` is not `seed_of("1")`, and `seed_of("a", "bc")` is not
    `seed_of("ab", "c")`.
    """
    try:
        text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    except TypeError as error:
        raise TypeError(
            f"seed_of got {[type(part).__name__ for part in parts]}; give str, int, float, bool, None or sequences of "
            "them (a NumPy scalar has .item())"
        ) from error
    return int(content_hash(text.encode("ascii"), size=8), 16) >> 1
