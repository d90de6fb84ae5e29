"""The contract of backends: pictures, prompts and seeds in, replies out."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from segenv import render

Size = tuple[int, int]  # width and height, in pixels
SENT_AT = {"seg-zero": (840, 840)}  # height and width at which images are sent, where a codec is in pixels of that


@dataclass(frozen=True)
class Reply:
    """A model's reply, and what is known of it; None where the backend does not tell.

    `text` is what a codec reads; `thinking` is what a server keeps apart from it. `finish_reason` is "stop" where the
    model ended the reply, and "length" where the limit of tokens did. `tokens` are those of the reply without its end,
    thinking included, and `prompt_tokens` those before it. `seconds` are those until it was whole, an equal share of a
    batch. `sent` is the size of the picture that was sent, and `frame` the size at which the model saw it.
    `log_probability` is the natural one, with the end where the reply has one, under the model's own distribution.
    `model` is what a server calls the model that it used.
    """

    text: str
    thinking: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    sent: Size | None = None
    frame: Size | None = None
    log_probability: float | None = None
    model: str | None = None


class Backend(ABC):
    """Answers prompts about pictures. Implementations give `sent`, `seen_size` and `_ask`.

    `max_new_tokens` limits each reply. `image_size` is what pictures are shrunk to before they are sent: the longest
    side in pixels, or an exact (height, width); None leaves it to the backend. With `squared` they are padded to a
    square before that, equally on both sides, as LLaVA-1.5 is trained. `top_p` below 1 samples from the
    likeliest tokens that have this much probability together; with `own_sampling` the model samples as its makers set
    it, and the temperatures that are given count for nothing. `in_flight` is how many requests are worth having under
    way: 1 where a batch is answered in one call, or one at a time. `takes_one` says that `submit` is there. `seconds`,
    and `tokens` by "prompt" and "reply", are counted, and `replies` are those of the last call.
    """

    in_flight: int = 1
    takes_one: bool = False

    def __init__(
        self,
        max_new_tokens: int = 64,
        image_size: int | Sequence[int] | None = None,
        top_p: float = 1.0,
        own_sampling: bool = False,
    ) -> None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; expected a number above 0 and at most 1")
        self.max_new_tokens = max_new_tokens
        self.image_size = image_size if image_size is None or isinstance(image_size, int) else tuple(image_size)
        self.squared = False
        self.top_p, self.own_sampling = top_p, own_sampling
        self.seconds = 0.0
        self.tokens = {"prompt": 0, "reply": 0}
        self.replies: list[Reply] = []

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes replies. Those that only some runs make stand there in those runs."""
        chosen = {"top_p": (self.top_p, 1.0), "own_sampling": (self.own_sampling, False)}
        return {
            "image_size": self.image_size,
            "max_new_tokens": self.max_new_tokens,
            **{name: value for name, (value, usual) in chosen.items() if value != usual},
        }

    def sent(self, image: np.ndarray) -> np.ndarray:
        """The image, uint8 [H, W, 3], as it is sent: padded and resized."""
        return render.resized(padded(image) if self.squared else image, self.image_size)

    def check_size(self, width: int, height: int) -> None:  # noqa: B027  # most take any
        """Raise ValueError where the model takes no image of `width` x `height` pixels, after `sent`."""

    @abstractmethod
    def seen_size(self, width: int, height: int) -> Size:
        """Width and height, in pixels, at which the model sees an image of `width` x `height`. Raises ValueError where
        that cannot be known."""

    def generate(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float = 0.0
    ) -> list[str]:
        """The texts of `ask`."""
        return [reply.text for reply in self.ask(images, prompts, seeds, temperature)]

    def ask(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float = 0.0
    ) -> list[Reply]:
        """One reply for each image (uint8 [H, W, 3]), prompt and seed; `temperature` 0 is greedy."""
        if not len(images) == len(prompts) == len(seeds):
            raise ValueError(
                f"got {len(images)} images, {len(prompts)} prompts and {len(seeds)} seeds; give as many of each"
            )
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; expected 0 (the likeliest token) or more")
        began = time.perf_counter()
        self.replies = self._ask([self.sent(image) for image in images], prompts, seeds, temperature)
        self.seconds += time.perf_counter() - began
        return self.replies

    def submit(
        self, image: np.ndarray, prompt: str, seed: int, temperature: float, done: Callable[[Reply], None]
    ) -> Future[Reply]:
        """Ask for one reply without waiting for it, of a backend that takes several requests at a time. `done` is
        called with the reply before the future has it."""
        raise NotImplementedError(f"{type(self).__name__} answers in batches; call ask")

    @abstractmethod
    def _ask(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float
    ) -> list[Reply]:
        """One reply for each picture, as `sent` made it."""


def padded(image: np.ndarray) -> np.ndarray:
    """An image, uint8 [H, W, 3], in the middle of a grey square."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    square = np.full((side, side, 3), 127, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square
