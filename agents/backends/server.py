"""Settings of servers that answer for a model, and what a run may spend on them."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml

from agents.backends.base import SENT_AT, Size
from segenv.ranges import Count, CountOrNone, Positive, Range
from segenv.records import reader
from segenv.types import RunError

InFlight = Annotated[int, Range(1, 1024)]
COSTLY = (500, 502, 504)  # statuses behind which a reply may have been made


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked; none of this changes a reply."""

    in_flight: InFlight = 16
    """requests under way at a time; episodes advance each on its own"""
    connect_timeout: Positive = 10.0
    """seconds until a connection stands"""
    read_timeout: Positive = 300.0
    """seconds without a byte"""
    timeout: Positive = 600.0
    """seconds until a reply is whole"""
    retries: CountOrNone = 5
    """times that a request is sent again after a timeout, a cut or damaged reply, 429 or 5xx; between them stands what
    Retry-After says, else 0.5 to 8 seconds"""
    key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the API key; the key is written nowhere"""


@dataclass(frozen=True)
class BudgetOptions:
    """Limits on what a run spends at servers, with what it spent before it was resumed."""

    max_requests: Count | None = None
    """of a server: stop the run before it sends more requests, with those sent again"""
    max_total_tokens: Count | None = None
    """of a server: stop the run before prompts and replies may have more tokens in all"""
    max_cost: Positive | None = None
    """of a server: stop the run before it may cost more, in the unit of the prices file"""
    prices: Path | None = None
    """YAML file with the price of a million tokens: MODEL: {input: 2.5, output: 10.0}"""


class Budget:
    """Costs of a run at a server so far, and whether one more request may be sent.

    Requests under way count with the most that they may cost: `reply_tokens`, and as many prompt tokens, for the size
    of the prompt, as the replies so far had at most (before the first one, a token for each byte of text and each
    14 x 14 pixels). So do requests without a whole reply, as the server may have made one: after a timeout, a cut or
    damaged answer, and the statuses in `COSTLY`. `spent` counts requests, prompt_tokens and tokens, in a resumed run
    those of before too. `keep` gets a record of each request that brought no reply, with what was counted for it.
    """

    def __init__(self, options: BudgetOptions, model: str, reply_tokens: int) -> None:
        self.options, self.reply_tokens = options, reply_tokens
        priced = options.max_cost is not None or options.prices is not None
        self.prices = prices_of(options.prices, model) if priced else None
        self.spent = {"requests": 0, "prompt_tokens": 0, "tokens": 0}
        self.lost = dict(self.spent)  # the part of `spent` that brought no reply
        self.keep: Callable[[dict[str, Any]], None] = lambda record: None
        self.reserved = self.under_way = 0  # prompt tokens, and questions
        self.rate: float | None = None  # prompt tokens for the size of a prompt, the most so far
        self.untold = False  # whether a reply came without its tokens

    @property
    def cost(self) -> float | None:
        """Money spent, in the unit of the prices; None where no prices are given."""
        return None if self.prices is None else self._cost(self.spent["prompt_tokens"], self.spent["tokens"])

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers for the results of a run."""
        return {**self.spent, "cost": self.cost, "without_reply": dict(self.lost)}

    def restore(self, usage: Mapping[str, int], lost: Iterable[Mapping[str, Any]]) -> None:
        """Count what the kept replies took, and the records that `keep` got before the run was resumed."""
        self.spent.update(usage)
        for record in lost:
            self._lose({name: int(record[name]) for name in self.spent})

    def request(self) -> None:
        """Count a request that is sent. Raises RunError where it is one too many, or may cost too much: the question's
        earlier requests may have cost something."""
        limit = self.options.max_requests
        if limit is not None and self.spent["requests"] >= limit:
            raise RunError(f"{limit} requests are sent, as many as --max-requests allows{_AGAIN}")
        self._check()
        self.spent["requests"] += 1

    def begin(self, size: float) -> int:
        """Reserve what a question of `size` may cost, and return its prompt tokens. Raises RunError where that is more
        than is left."""
        limited = self.options.max_total_tokens is not None or self.options.max_cost is not None
        if self.untold and limited:
            raise RunError(
                "the server does not tell how many tokens its replies have, so --max-total-tokens and --max-cost "
                "cannot hold; go on with --resume DIR and --max-requests"
            )
        prompt_tokens = math.ceil(size * (1.0 if self.rate is None else self.rate))
        self.reserved += prompt_tokens
        self.under_way += 1
        try:
            self._check()
        except RunError:
            self.end(prompt_tokens)
            raise
        return prompt_tokens

    def end(self, reserved: int) -> None:
        """Give back what a question reserved."""
        self.reserved -= reserved
        self.under_way -= 1

    def told(self, size: float, prompt_tokens: int | None, tokens: int | None) -> None:
        """Count the tokens of a reply, as the server tells them, to a question of `size`."""
        self.untold |= prompt_tokens is None or tokens is None
        self.rate = max(self.rate or 0.0, (prompt_tokens or 0) / size)
        self.spent["prompt_tokens"] += prompt_tokens or 0
        self.spent["tokens"] += tokens or 0

    def lose(self, reason: str, prompt_tokens: int, tokens: int | None = None) -> None:
        """Count a request that was sent and brought no reply: at most `prompt_tokens`, and `tokens` or the longest
        reply."""
        record = {"requests": 1, "prompt_tokens": prompt_tokens}
        record["tokens"] = self.reply_tokens if tokens is None else tokens
        self._lose({**record, "requests": 0})
        self.lost["requests"] += 1
        self.keep({**record, "reason": reason})

    def discard(self, reason: str, prompt_tokens: int | None, tokens: int | None) -> None:
        """Note that a reply, whose tokens are counted, is none that can be used."""
        record = {"requests": 1, "prompt_tokens": prompt_tokens or 0, "tokens": tokens or 0}
        for name, count in record.items():
            self.lost[name] += count
        self.keep({**record, "reason": reason})

    def _lose(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.spent[name] += count
            self.lost[name] += count

    def _cost(self, prompt_tokens: int, tokens: int) -> float:
        prices = self.prices or (0.0, 0.0)
        return (prompt_tokens * prices[0] + tokens * prices[1]) / 1e6

    def _check(self) -> None:
        """Raise RunError where what is spent and reserved is beyond a limit."""
        prompt = self.spent["prompt_tokens"] + self.reserved
        tokens = self.spent["tokens"] + self.under_way * self.reply_tokens
        for name, value in (("max_total_tokens", prompt + tokens), ("max_cost", self._cost(prompt, tokens))):
            limit = getattr(self.options, name)
            if limit is not None and value > limit:
                flag, now = f"--{name.replace('_', '-')}", self.spent["prompt_tokens"] + self.spent["tokens"]
                spent = now if name == "max_total_tokens" else f"{self.cost:.4f}"
                lost = self.lost["requests"]
                told = f" (with {lost} requests without a reply, at the most they may cost)" * bool(lost)
                raise RunError(
                    f"{flag} is {limit}, {spent} of it is spent{told}, and one more reply may pass it{_AGAIN}"
                )


def size_of_prompt(prompt: str, width: int, height: int) -> float:
    """The size of a prompt with a picture, by which its tokens are estimated: bytes of text, and patches of 14 x 14
    pixels."""
    return 1 + len(prompt.encode("utf-8", "replace")) + width * height / 196


_AGAIN = "; every reply is kept: go on with --resume DIR and a larger limit"


def prices_of(file: Path | None, model: str) -> tuple[float, float]:
    """Prices of a million tokens of `model` in a prompt and in a reply, from a YAML file. Raises ValueError."""
    if file is None:
        raise ValueError("--max-cost needs the prices of tokens; give a file with --prices")
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
        prices = reader(dict[str, dict[str, float]])(table)[model]
        found = prices["input"], prices["output"]
    except (ValueError, yaml.YAMLError, LookupError) as error:
        raise ValueError(f"{file}: expected {model}: {{input: PRICE, output: PRICE}} of a million tokens") from error
    if not all(math.isfinite(price) and price >= 0 for price in found):
        raise ValueError(f"{file}: the prices of {model} are {found}; expected numbers of 0 or more")
    return found


def key_of(variable: str) -> str | None:
    """The API key in an environment variable, or None."""
    return os.environ.get(variable, "").strip() or None


LONGEST = 200  # times the shorter side


def kept_size(codec: str, width: int, height: int, size: int | Sequence[int] | None = None) -> Size:
    """Width and height at which an image of `width` x `height` pixels is sent so that servers of the family whose codec
    is `codec` keep it: its own, or a smaller one of about the same shape. `size` is one to send at most: the longest
    side, or height and width.

    Qwen2.5-VL's processors keep multiples of 28 with 256 to 1,280 patches of 28 x 28 pixels in all, which lies within
    the limits of its checkpoints. Hosts of Claude keep 1,568 pixels on the long side and 1.15 million in all, those of
    GPT 2,048 on the long and 768 on the short side. Codecs in pixels of the image have it sent as it is, and all others
    at most 2,048 pixels on the long side.
    """
    if size is None and codec in SENT_AT:
        return SENT_AT[codec][1], SENT_AT[codec][0]
    if codec in ("qwen2.5-vl", "medsam-agent"):
        width, height = _scaled(width, height, size)
        return _patches(width, height, 28, 256 if size is None else 4, 1280)
    if size is not None or codec == "pixels":
        return _scaled(width, height, size)
    longest, shortest, most = {"claude": (1568, 1568, 1_150_000), "gpt": (2048, 768, 1 << 22)}.get(
        codec, (2048, 2048, 1 << 22)
    )
    scale = min(1.0, longest / max(width, height), shortest / min(width, height), math.sqrt(most / (width * height)))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def _scaled(width: int, height: int, size: int | Sequence[int] | None) -> Size:
    """The size that `segenv.render.resized` makes."""
    if isinstance(size, int):
        scale = min(size / max(height, width), 1.0)
        return max(round(width * scale), 1), max(round(height * scale), 1)
    return (width, height) if size is None else (size[1], size[0])


def _patches(width: float, height: float, side: int, fewest: int, most: int) -> Size:
    """The size in whole patches of `side` pixels, between `fewest` and `most` of them, nearest in shape; no side is
    longer than 200 times the other, which Qwen's processors refuse."""
    width, height = max(width, height / LONGEST), max(height, width / LONGEST)
    columns, rows = max(1, round(width / side)), max(1, round(height / side))
    if columns * rows > most:
        scale = math.sqrt(most * side * side / (width * height))
        columns = min(most, max(1, math.floor(width * scale / side)))
        rows = max(1, min(math.floor(height * scale / side), most // columns))
    elif columns * rows < fewest:
        scale = math.sqrt(fewest * side * side / (width * height))
        columns = min(fewest, math.ceil(width * scale / side))
        rows = max(math.ceil(height * scale / side), math.ceil(fewest / columns))
    if rows > LONGEST * columns:
        columns = math.ceil(rows / LONGEST)
        rows = min(rows, most // columns)
    elif columns > LONGEST * rows:
        rows = math.ceil(columns / LONGEST)
        columns = min(columns, most // rows)
    return columns * side, rows * side


def plain(text: Any, key: str | None, longest: int = 300) -> str:
    """A server's words, on one line, not at length, and without the key."""
    shown = " ".join(str(text).split())
    if key:
        shown = shown.replace(key, "***")
    return shown if len(shown) <= longest else shown[:longest] + "…"
