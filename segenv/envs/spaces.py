"""Gymnasium spaces for what has no fixed size: images and masks of any size, and texts in any language."""

import string
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces

MAX_TEXT = 65_536  # characters; far above any prompt or reply of use, and a bound for what one step may cost


class Pixels(spaces.Space[np.ndarray]):
    """Arrays [H, W, *channels] of one dtype, for any height and width of at least 1.

    `Box` fixes the shape, and the images of a dataset differ in size. `Pixels(3)` holds RGB images (uint8 [H, W, 3]),
    and `Pixels(dtype=bool)` masks (bool [H, W]). Samples are uniform in every pixel, and small: sides of 1 to 64 px.
    """

    def __init__(self, *channels: int, dtype: Any = np.uint8, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(None, dtype, seed)
        if self.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
            raise ValueError(f"dtype is {self.dtype}; expected uint8 or bool")
        self.channels = channels

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """A random array of random size. `mask` and `probability` have no meaning here."""
        if mask is not None or probability is not None:
            raise ValueError("Pixels has no masked or weighted samples; leave mask and probability at None")
        shape = (*self.np_random.integers(1, 65, 2), *self.channels)
        return self.np_random.integers(0, 2 if self.dtype == bool else 256, shape, dtype=np.uint8).astype(self.dtype)

    def contains(self, x: Any) -> bool:
        return (
            isinstance(x, np.ndarray)
            and x.dtype == self.dtype
            and x.ndim == 2 + len(self.channels)
            and x.shape[2:] == self.channels
            and x.size > 0
        )

    def to_jsonable(self, sample_n: Iterable[np.ndarray]) -> list[list]:
        return [sample.tolist() for sample in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[np.ndarray]:
        return [np.array(sample, self.dtype) for sample in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pixels) and (self.channels, self.dtype) == (other.channels, other.dtype)

    def __repr__(self) -> str:
        return f"Pixels({', '.join([*map(str, self.channels), f'dtype={self.dtype}'])})"


class FreeText(spaces.Text):
    """Strings of at most `max_length` characters, in any script; the empty one too.

    `spaces.Text` holds what can be spelled in its charset, letters and digits by default, while instructions and
    replies come in every language. So the charset (printable ASCII, newline and tab) is what samples are drawn from,
    and `contains` asks for the length alone.
    """

    def __init__(self, max_length: int = MAX_TEXT, seed: int | np.random.Generator | None = None) -> None:
        letters = string.digits + string.ascii_letters + string.punctuation + " \n\t"
        super().__init__(max_length, min_length=0, charset=letters, seed=seed)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FreeText) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"FreeText({self.max_length})"
