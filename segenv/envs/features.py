"""Features of the object that is meant, in numbers: words of the instruction, a reference click or box."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from segenv import specs
from segenv.annotator import next_click
from segenv.data.synthetic.scenes import PLACE_WORDS, SHAPES, SIZE_WORDS
from segenv.data.synthetic.shapes import COLOURS
from segenv.metrics import box_of
from segenv.types import Task, object_of

Embedding = Callable[[str], Any]  # an instruction -> numbers [d], always as many
Observe = str | Embedding | Sequence[str | Embedding] | None

VOCABULARY: tuple[tuple[str, ...], ...] = (  # superlatives, colours and shapes; a word's index starts at 1
    (*SIZE_WORDS[1:], *PLACE_WORDS[1:]),
    tuple(COLOURS),
    SHAPES,
)


def word_indices(instruction: str) -> np.ndarray:
    """Superlative, colour and shape that an instruction names, int64 [3]: places in `VOCABULARY` from 1, and 0 where
    none is named. Raises ValueError where an instruction names nothing of the vocabulary."""
    words = set(instruction.split())
    found = [next((i for i, word in enumerate(known, 1) if word in words), 0) for known in VOCABULARY]
    if words and not any(found):
        raise ValueError(
            f"instruction {instruction[:80]!r} names no superlative, colour or shape of synthetic scenes; for other "
            "data give an embedding: observe=FUNCTION, from an instruction to numbers [d]"
        )
    return np.array(found, np.int64)


def clicked(task: Task, size: int) -> np.ndarray:
    """The reference click as uint8 [size, size], 255 within size / 28 pixels of it: the annotator's first, in the
    middle of the object. Zero everywhere for a task without an object."""
    channel = np.zeros((size, size), np.uint8)
    click = next_click(task.target, np.zeros(task.target.shape, bool))
    if click is not None:
        centre = (2 * click.x + 1) * size // (2 * task.width), (2 * click.y + 1) * size // (2 * task.height)
        cv2.circle(channel, centre, max(size // 28, 1), 255, -1)
    return channel


def boxed(task: Task, size: int) -> np.ndarray:
    """The object's tight box as uint8 [size, size], 255 inside. Zero everywhere for a task without an object."""
    channel = np.zeros((size, size), np.uint8)
    if (box := box_of(object_of(task.target))) is not None:
        x0, x1 = (round(x * size / task.width) for x in (box.x0, box.x1))
        y0, y1 = (round(y * size / task.height) for y in (box.y0, box.y1))
        x0, y0 = min(x0, size - 1), min(y0, size - 1)
        channel[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 255
    return channel


CHANNELS: dict[str, Callable[[Task, int], np.ndarray]] = {"click": clicked, "box": boxed}


class Features:
    """The parts that `observe` names: `instruction`, `click`, `box`, several joined by +, or an embedding.

    `channels` [size, size] each are beside the image, and `space` and `instruction` are the observation's
    `instruction`, or None.
    """

    def __init__(self, observe: Observe) -> None:
        parts: list[Any] = list(observe) if isinstance(observe, (list, tuple)) else [observe]
        names = [name for part in parts for name in (part.split("+") if isinstance(part, str) else [part])]
        self.channels: list[Callable[[Task, int], np.ndarray]] = []
        self.instruction: Embedding | None = None
        self.space: gym.Space | None = None
        for name in names:
            if name is None or name == "":
                continue
            if callable(name) or name == "instruction":
                if self.instruction is not None:
                    raise ValueError(f"observe is {observe!r}; expected one instruction or embedding, not two")
                self._read_instruction_with(name)
            else:
                specs.name_of("observe", str(name), ["instruction", *CHANNELS])
                self.channels.append(CHANNELS[name])

    def _read_instruction_with(self, part: str | Embedding) -> None:
        if isinstance(part, str):
            self.instruction = word_indices
            self.space = gym.spaces.MultiDiscrete([len(known) + 1 for known in VOCABULARY])
            return
        shape = np.shape(part(""))
        if len(shape) != 1 or not shape[0]:
            raise ValueError(f"the embedding in observe gives {list(shape)} for an empty text; expected numbers [d]")
        self.instruction, self.space = part, gym.spaces.Box(-np.inf, np.inf, shape, np.float32)

    def read(self, instruction: str) -> np.ndarray:
        """The observation's `instruction`."""
        assert self.instruction is not None and self.space is not None
        return np.array(self.instruction(instruction), self.space.dtype)
