"""The nouns of the decision process: tasks, actions, prompts and predictions.

**Coordinates.** Everything outside `segenv.codec` is in pixels of the original image, x to the right and y down. A
`Click` names a pixel by its integer column `x` and row `y`. A `Box` has continuous corners, where pixel i covers [i,
i+1): the tight box of a mask is `(min x, min y, max x + 1, max y + 1)`; so have the vertices of `Polygons`.

**Targets** are [H, W]: 0 is background, 255 (or True) is the object, 128 is ignored: it counts in no metric and
attracts no click.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from segenv.files import content_hash
from segenv.texts import one_line, shown

IGNORE = 128  # the label of pixels that count neither as object nor as background


class SegenvError(Exception):
    """Base of every error that segenv raises on purpose."""


class BadItem(SegenvError):
    """A dataset item is corrupt, huge, mismatched, empty or missing; the message names the item."""


class ToolError(SegenvError):
    """A segmentation tool failed. Never scored: it stops the run, and the run can be resumed."""


class AgentError(SegenvError):
    """A model behind an agent gave no answer, or none that is one. Never scored: it stops the run, which can be
    resumed, or the item is skipped and listed. `of` are the errors of single questions of a batch, by their index, as
    far as they are known."""

    of: Mapping[int, "AgentError"] = MappingProxyType({})


class RunError(SegenvError):
    """A run's folder cannot be used as asked, or a run cannot go on; the message says what to do."""


def frozen(array: np.ndarray) -> np.ndarray:
    """Make an array read-only."""
    array.setflags(write=False)
    return array


def object_of(target: np.ndarray) -> np.ndarray:
    """The target's object, bool [H, W]. `target` is bool, or uint8 with 0, 255 and 128 (ignored)."""
    return target if target.dtype == np.bool_ else target == 255


def ignored_of(target: np.ndarray) -> np.ndarray | None:
    """The target's ignored pixels, bool [H, W], or None where there are none."""
    if target.dtype == np.bool_:
        return None
    ignored = target == IGNORE
    return ignored if ignored.any() else None


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to segment: an image, what to segment in it, and (hidden from the agent) the answer.

    `image` is uint8 [H, W, 3], RGB. `target` is uint8 or bool [H, W] (see the module's docstring). `initial_mask` is
    bool [H, W] or None: the mask that a refinement starts from, and `initial_box` the box that it was made of, which
    stays a prompt of the tool. `meta` carries what a dataset knows beside that (subset, difficulty, licence, text of
    other objects); nothing in it reaches an observation. The arrays become read-only. `instruction` is a text, or None
    where there is none, which becomes ""; control characters in it become spaces, and half an emoji becomes U+FFFD,
    with a warning. Raises `BadItem` for anything else.
    """

    id: str
    image: np.ndarray
    target: np.ndarray
    instruction: str = ""
    initial_mask: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict, repr=False)
    initial_box: "Box | None" = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruction", _instruction(self.id, self.instruction))
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise BadItem(
                f"task {self.id}: image is {self.image.dtype} {list(self.image.shape)}; expected uint8 [H, W, 3] in RGB"
            )
        if self.target.dtype not in (np.uint8, np.bool_):
            raise BadItem(f"task {self.id}: target is {self.target.dtype}; expected uint8 (0, 128, 255) or bool")
        known = (
            self.target.dtype == np.bool_ or ((self.target == 0) | (self.target == IGNORE) | (self.target == 255)).all()
        )
        if not known:
            labels = ", ".join(map(str, np.unique(self.target)[:8]))
            raise BadItem(f"task {self.id}: target has labels {labels}; expected 0, 128 (ignored) and 255 (object)")
        for name, mask in (("target", self.target), ("initial_mask", self.initial_mask)):
            if mask is not None and mask.shape != self.image.shape[:2]:
                raise BadItem(
                    f"task {self.id}: {name} is {list(mask.shape)} but the image is {list(self.image.shape[:2])}; "
                    "both must be [H, W]"
                )
        for array in (self.image, self.target, self.initial_mask):
            if array is not None:
                frozen(array)

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]

    @cached_property
    def image_hash(self) -> str:
        """128-bit hash of the image's content and shape, in hex."""
        return image_hash(self.image)


def _instruction(task: str, given: Any) -> str:
    """The instruction of a task, from what a file holds in its place: the one reading of it, for every dataset."""
    if given is None:
        return ""
    if not isinstance(given, str):
        raise BadItem(f"task {task}: instruction is {shown(given)}, a {type(given).__name__}; expected a text, or none")
    text = one_line(given)
    if lost := text.count("\N{REPLACEMENT CHARACTER}") - given.count("\N{REPLACEMENT CHARACTER}"):
        warnings.warn(
            f"task {task}: {lost} half surrogate pairs in the instruction, which no file can hold, are now U+FFFD; was "
            "the text cut within an emoji?",
            stacklevel=4,
        )
    return text


def image_hash(image: np.ndarray) -> str:
    """128-bit BLAKE2b of an image's shape and bytes, in hex: the image's part of an encoding's key."""
    return content_hash(repr(image.shape).encode(), np.ascontiguousarray(image).data)


@dataclass(frozen=True)
class Click:
    """A point prompt on the pixel in column `x` and row `y` of the original image."""

    x: int
    y: int
    positive: bool = True


@dataclass(frozen=True)
class Box:
    """A box prompt with continuous corners (x0, y0), (x1, y1), where pixel i covers [i, i+1)."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Stop:
    """The agent is satisfied with the mask."""


@dataclass(frozen=True)
class Absent:
    """The agent says that the object is not in the image: the end of the episode, with an empty mask."""


@dataclass(frozen=True)
class Undo:
    """Take back the last click or box."""


@dataclass(frozen=True)
class Invalid:
    """Reply that is no action: one step, and the mask stays. `reason`: what arrived, what was expected."""

    text: str
    reason: str


@dataclass(frozen=True, eq=False)
class Polygons:
    """A mask in one action: `rings` float64 [N, 2] of vertices (x, y) in continuous coordinates, where pixel i covers
    [i, i+1); none for an object that is not there.

    They are filled by the even-odd rule over all rings or, with `union`, each by itself (see
    `segenv.geometry.rasterize`). `truncated`: the reply broke off, and these are the vertices that were complete. The
    arrays become read-only.
    """

    rings: tuple[np.ndarray, ...]
    union: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        rings = tuple(frozen(np.asarray(ring, np.float64).reshape(-1, 2)) for ring in self.rings)
        object.__setattr__(self, "rings", rings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Polygons):
            return NotImplemented
        if (self.union, self.truncated, len(self.rings)) != (other.union, other.truncated, len(other.rings)):
            return False
        return all(np.array_equal(first, second) for first, second in zip(self.rings, other.rings, strict=True))


Action = Click | Box | Polygons | Stop | Absent | Undo | Invalid


@dataclass(frozen=True, eq=False)
class Prompt:
    """All that a tool is told about one image: every click so far in order, a box, and what the tool returned before.

    `mask` is bool [H, W], the current mask (None at an empty start); `logits` are the tool's own low-resolution logits
    of the previous prediction (None at the start, or where the mask did not come from the tool).
    """

    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    mask: np.ndarray | None = None
    logits: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """A tool's answer: `mask` bool [H, W] in the original image, `logits` [h, w] float32 to feed back (None where the
    tool has none), and `score`, the tool's own estimate of the mask's IoU in 0..1 (NaN where it has none)."""

    mask: np.ndarray
    logits: np.ndarray | None = None
    score: float = float("nan")
