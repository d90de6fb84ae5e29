"""Timing of two ways side by side, and of parsers on hostile texts."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from segenv.types import SegenvError

PARSER_BYTES, PARSER_LIMIT_MS = 100_000, 20.0


@dataclass(frozen=True)
class Timing:
    """A row of the table: milliseconds of the plain way (None where there is none) and of the fast one; `note` says
    what was timed, or why it could not be; `goal` is the limit in words, and `passed` whether it is kept, None where
    there is none."""

    name: str
    case: str
    plain_ms: float | None
    fast_ms: float | None
    note: str
    passed: bool | None = None
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.plain_ms is None or self.fast_ms is None else self.plain_ms / self.fast_ms

    def at_least(self, ratio: float) -> "Timing":
        """The row with the goal that its ratio is no smaller than this."""
        return replace(self, goal=f"≥ {ratio:g}", passed=self.ratio is not None and self.ratio >= ratio)

    def at_most(self, ratio: float) -> "Timing":
        """The row with the goal that its ratio is no greater than this."""
        return replace(self, goal=f"≤ {ratio:g}", passed=self.ratio is not None and self.ratio <= ratio)


def compare(
    plain: Callable[[], Any],
    fast: Callable[[], Any],
    equal: Callable[[Any, Any], bool],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Milliseconds of the fastest call of each; called in turns for about `seconds`, and at least twice. Raises
    RuntimeError where results differ. `time.process_time` as `clock` counts this process alone, on a busy machine
    too."""
    if not equal(plain(), fast()):
        raise RuntimeError(
            "the fast and the plain way give different results, so their times say nothing; fix the fast one"
        )
    best, end, turns = [float("inf")] * 2, clock() + seconds, 0
    while turns < 2 or clock() < end:
        for i, call in enumerate((plain, fast)):
            began = clock()
            call()
            best[i] = min(best[i], (clock() - began) * 1000)
        turns += 1
    return best[0], best[1]


def where_installed(name: str, case: str, measure: Callable[[], Iterator[Timing]]) -> Iterator[Timing]:
    """Yield what `measure` yields; where an extra or its weights are missing, a row that says so."""
    try:
        yield from measure()
    except (ImportError, SegenvError) as error:
        yield Timing(name, case, None, None, f"not measured: {error}")


def adversarial_texts(reply: str) -> Iterator[tuple[str, str]]:
    """Make texts of 100 kB on which a parser may backtrack, nest or count without end, each with a description; many
    grow from a good `reply`: its beginnings over and over, and the whole of it torn open at each place."""
    units = ["(", "[", "{", "<", '"', "\\", " ", "\n", "-", ".", "9", "1,", "1 ", "1e9", "\0", "٣", "😀", "IOU: "]
    units += ["[1,", '{"a":', "```json\n", "（", "<think>", "click(", "location: [", "others *1, "]
    units += ['{"point":[1,2],', "[[0.1, 0.2], [0.3, 0.4], [0.5, 0.1]], "]
    for unit in [*units, *(reply[:i] for i in range(1, len(reply) + 1))]:
        yield f"{unit!r} over and over", (unit * (PARSER_BYTES // len(unit) + 1))[:PARSER_BYTES]
    for filling in " 9(":
        for i in range(1, len(reply)):
            text = reply[:i] + filling * (PARSER_BYTES - len(reply)) + reply[i:]
            yield f"{filling!r} over and over after {reply[:i]!r}", text


def time_parser(name: str, reply: str, parse: Callable[[str], Any]) -> Timing:
    """Time a parser on the slowest of the hostile texts that grow from `reply`."""
    texts = dict(adversarial_texts(reply))

    def read(kind: str) -> float:
        began = time.thread_time()  # of this thread alone: a parser waits for nothing
        parse(texts[kind])
        return (time.thread_time() - began) * 1000

    slowest = max(texts, key=read)
    best = min(read(slowest) for _ in range(3))  # again, so that a pause of the machine does not count
    note = f"slowest of {len(texts)} texts of {PARSER_BYTES // 1000} kB: {slowest}"
    return Timing("parser", name, None, best, note, best < PARSER_LIMIT_MS, f"< {PARSER_LIMIT_MS:g} ms")
