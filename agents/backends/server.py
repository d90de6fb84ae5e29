"""Settings of servers that answer for a model, and what a run may spend on them."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml

from agents.backends.base import SENT_AT, Size
from segenv.ranges import Count, CountOrNone, Positive, Range
from segenv.records import reader
from segenv.types import RunError

InFlight = Annotated[int, Range(1, 1024)]


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
    max_requests: Count | None = None
    """stop the run before it sends more requests, with those sent again"""
    max_tokens: Count | None = None
    """stop the run before prompts and replies have more tokens in all"""
    max_cost: Positive | None = None
    """stop the run before it costs more, in the unit of the prices file"""
    prices: Path | None = None
    """YAML file with the price of a million tokens: MODEL: {input: 2.5, output: 10.0}"""


class Budget:
    """Costs of a run at a server so far, and whether one more request may be sent.

    Requests under way count with the most that they may cost: as many prompt tokens as the largest so far, and
    `reply_tokens`. `spent` counts requests, prompt_tokens and tokens, in a resumed run those of the kept replies too.
    """

    def __init__(self, options: ServerOptions, model: str, reply_tokens: int) -> None:
        self.options, self.reply_tokens = options, reply_tokens
        self.prices = (0.0, 0.0) if options.max_cost is None else prices_of(options.prices, model)
        self.spent = {"requests": 0, "prompt_tokens": 0, "tokens": 0}
        self.under_way = self.largest = 0
        self.untold = False  # whether a reply came without its tokens

    @property
    def cost(self) -> float:
        """Money spent, in the unit of the prices; 0 where no prices are given."""
        return self._cost(self.spent["prompt_tokens"], self.spent["tokens"])

    def _cost(self, prompt_tokens: int, tokens: int) -> float:
        return (prompt_tokens * self.prices[0] + tokens * self.prices[1]) / 1e6

    def request(self) -> None:
        """Count a request that is sent. Raises RunError where it is one too many."""
        limit = self.options.max_requests
        if limit is not None and self.spent["requests"] >= limit:
            raise RunError(f"{limit} requests are sent, as many as --server.max-requests allows{_AGAIN}")
        self.spent["requests"] += 1

    def begin(self) -> None:
        """Reserve what a question may cost. Raises RunError where that is more than is left."""
        if self.untold and (self.options.max_tokens is not None or self.options.max_cost is not None):
            raise RunError(
                "the server does not tell how many tokens its replies have, so --server.max-tokens and "
                "--server.max-cost cannot hold; go on with --resume DIR and --server.max-requests"
            )
        ahead = self.under_way + 1
        prompt = self.spent["prompt_tokens"] + ahead * self.largest
        tokens = self.spent["tokens"] + ahead * self.reply_tokens
        for name, value in (("max_tokens", prompt + tokens), ("max_cost", self._cost(prompt, tokens))):
            limit = getattr(self.options, name)
            if limit is not None and value > limit:
                flag, now = f"--server.{name.replace('_', '-')}", sum(list(self.spent.values())[1:])
                spent = now if name == "max_tokens" else f"{self.cost:.4f}"
                raise RunError(f"{flag} is {limit}, {spent} of it is spent, and one more reply may pass it{_AGAIN}")
        self.under_way += 1

    def end(self, prompt_tokens: int | None = None, tokens: int | None = None, replied: bool = True) -> None:
        """Replace what a question reserved by what it cost; `replied` says whether there was a reply at all."""
        self.under_way -= 1
        self.untold |= replied and (prompt_tokens is None or tokens is None)
        self.largest = max(self.largest, prompt_tokens or 0)
        self.spent["prompt_tokens"] += prompt_tokens or 0
        self.spent["tokens"] += tokens or 0


_AGAIN = "; every reply is kept: go on with --resume DIR and a larger limit"


def prices_of(file: Path | None, model: str) -> tuple[float, float]:
    """Prices of a million tokens of `model` in a prompt and in a reply, from a YAML file. Raises ValueError."""
    if file is None:
        raise ValueError("--server.max-cost needs the prices of tokens; give a file with --server.prices")
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


def _patches(width: int, height: int, side: int, fewest: int, most: int) -> Size:
    """The size in whole patches of `side` pixels, between `fewest` and `most` of them, nearest in shape."""
    columns, rows = max(1, round(width / side)), max(1, round(height / side))
    if columns * rows > most:
        scale = math.sqrt(most * side * side / (width * height))
        columns = min(most, max(1, math.floor(width * scale / side)))
        rows = max(1, min(math.floor(height * scale / side), most // columns))
    elif columns * rows < fewest:
        scale = math.sqrt(fewest * side * side / (width * height))
        columns = min(fewest, math.ceil(width * scale / side))
        rows = max(math.ceil(height * scale / side), math.ceil(fewest / columns))
    return columns * side, rows * side


def plain(text: Any, key: str | None, longest: int = 300) -> str:
    """A server's words, on one line, not at length, and without the key."""
    shown = " ".join(str(text).split())
    if key:
        shown = shown.replace(key, "***")
    return shown if len(shown) <= longest else shown[:longest] + "…"
