"""Codecs in files: the frame of a model whose numbers no published codec describes, as a calibration measures it.

    writes: qwen3-vl       # the codec whose prompts and way of writing it has
    unit: image            # what the numbers count: see `UNITS`
    order: yx
    scale: [1000, 1000]    # numbers a unit, of x and y
    offset: [0, 0]         # numbers at the left and the upper edge
    cap: null              # of `long-edge`: the length to which images are shrunk
    decimals: 0            # digits behind the point

`--codec FILE.yaml` takes it; its content hash stands in the protocol of a run.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml

from segenv.codec.frames import Frame, image_size, sent_size
from segenv.records import reader

Unit = Literal["image", "pixels", "sent", "padded", "cornered", "long-edge"]
UNITS: dict[Unit, str] = {
    "image": "parts of the image",
    "pixels": "pixels of the image",
    "sent": "pixels of the image as the model sees it",
    "padded": "parts of the square that padding on both sides makes of the image",
    "cornered": "parts of the square that padding right and below makes of the image",
    "long-edge": "pixels of the image shrunk until its longer side is `cap`",
}
LARGEST = 1 << 16  # bytes of a file
LIMIT = 1e9


@dataclass(frozen=True)
class CodecFile:
    """The content of a file."""

    writes: str
    unit: Unit
    order: Literal["xy", "yx"]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    cap: float | None = None
    decimals: int = 0
    prompt: str = "annotator"

    def check(self) -> None:
        """Raise ValueError for numbers that no frame has."""
        if not all(0 < value < LIMIT for value in self.scale):
            raise ValueError(f"scale is {list(self.scale)}; expected two numbers above 0")
        if not all(abs(value) < LIMIT for value in self.offset):
            raise ValueError(f"offset is {list(self.offset)}; expected two finite numbers")
        if not 0 <= self.decimals <= 12:
            raise ValueError(f"decimals is {self.decimals}; expected 0 to 12")
        if (self.unit == "long-edge") != (self.cap is not None) or (self.cap is not None and not 1 <= self.cap < LIMIT):
            raise ValueError(
                f"cap is {self.cap} and unit {self.unit!r}; expected a length with long-edge, and no other"
            )
        if self.unit == "sent" and (self.scale, self.offset) != ((1.0, 1.0), (0.0, 0.0)):
            raise ValueError("unit is 'sent'; expected it without scale and offset")

    @property
    def frame(self) -> Frame:
        """The frame of points and boxes."""
        plain = (self.scale, self.offset) == ((1.0, 1.0), (0.0, 0.0))
        if plain and self.unit in ("pixels", "sent"):
            return Frame(image_size if self.unit == "pixels" else sent_size, self.order, self.decimals)
        x, y = (Fraction(str(value)) for value in self.scale)
        start = Start(self.unit, (x, y), (Fraction(str(self.offset[0])), Fraction(str(self.offset[1]))))
        if self.unit == "image":
            return Frame((x, y), self.order, self.decimals, start.offset if any(start.offset) else None)
        return Frame(Size(self.unit, (x, y), self.cap), self.order, self.decimals, start)


@dataclass(frozen=True)
class Size:
    """How far numbers run across and down an image of a width and height."""

    unit: Unit
    scale: tuple[Fraction, Fraction]
    cap: float | None = None

    @property
    def pixels(self) -> bool:
        """Whether the numbers are pixels."""
        return self.unit in ("pixels", "long-edge")

    def __call__(self, width: int, height: int) -> tuple[Fraction, Fraction]:
        longest = max(width, height)
        part = Fraction(1)
        if self.unit in ("padded", "cornered"):
            part = Fraction(1, longest)
        elif self.cap is not None:
            part = min(part, Fraction(str(self.cap)) / longest)
        return width * part * self.scale[0], height * part * self.scale[1]


@dataclass(frozen=True)
class Start:
    """The numbers of the left and the upper edge of an image of a width and height."""

    unit: Unit
    scale: tuple[Fraction, Fraction]
    offset: tuple[Fraction, Fraction]

    def __call__(self, width: int, height: int) -> tuple[Fraction, Fraction]:
        longest, padded = max(width, height), self.unit == "padded"
        x, y = (
            scale * Fraction(longest - side, 2 * longest) * padded + offset
            for side, scale, offset in zip((width, height), self.scale, self.offset, strict=True)
        )
        return x, y


def read(path: Path) -> tuple[CodecFile, bytes]:
    """The codec in a file, and its bytes. Raises ValueError where the file cannot be read, or holds another thing."""
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else None
    except OSError as error:
        raise ValueError(f"codec {str(path)!r} cannot be read: {error.strerror or error}") from error
    if content is None:
        raise ValueError(f"codec {str(path)!r} has more than {LARGEST} bytes; expected a file of a few lines")
    try:
        value: Any = yaml.safe_load(content)
        return reader(CodecFile)(value), content
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(f"codec {str(path)!r} is none: {told}; write it with experiments.calibrate") from error
