"""Pictures of small discs at known places, and the numbers in replies about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import cv2
import numpy as np

from segenv.codec import reading, statements, values
from segenv.seeds import seed_of
from segenv.types import Task

COLOURS = {"red": (214, 40, 40), "blue": (36, 84, 200), "yellow": (240, 200, 30), "magenta": (200, 40, 180)}
RADIUS = 0.07  # of a disc, in parts of the image's short side
EDGE, MIDDLE = 0.1, 0.1  # parts of a side: how near a target may be to an edge, and to the image's middle lines


@dataclass(frozen=True)
class Probe:
    """A picture of one disc, and the disc's middle in pixels (x, y)."""

    task: Task
    middle: tuple[float, float]


def draw(size: tuple[int, int], number: int, seed: int = 0) -> Probe:
    """Picture `number` of a width and height: a disc on soft noise, away from the edges and the middle lines."""
    width, height = size
    rng = np.random.default_rng(seed_of(seed, "calibrate", width, height, number))
    name = list(COLOURS)[number % len(COLOURS)]
    coarse = rng.integers(90, 170, (8, 8, 3)).astype(np.uint8)
    image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    x, y = (round(part * side) for part, side in zip(_place(number, rng), size, strict=True))
    radius = max(3, round(RADIUS * min(size)))
    target = np.zeros((height, width), np.uint8)
    cv2.circle(target, (x, y), radius, 255, -1)
    cv2.circle(image, (x, y), radius, COLOURS[name], -1, cv2.LINE_AA)
    task = Task(f"{width}x{height}/{number}", image, target, f"the {name} circle")
    return Probe(task, (x + 0.5, y + 0.5))


def _place(number: int, rng: np.random.Generator) -> tuple[float, float]:
    """A place in parts of the sides: the quadrants in turn, evenly within each."""
    for _ in count():
        u, v = (rng.uniform(EDGE, 0.5 - MIDDLE) for _ in range(2))
        if abs(u - v) > 0.06:  # else x and y could be swapped unseen
            break
    return (1 - u if number & 1 else u), (1 - v if number & 2 else v)


def numbers_in(text: str) -> tuple[float, float] | None:
    """The two numbers of the first point in a reply's last block, in the order as written (x first where they are
    named); of a box its middle. None where the reply states no place. A thought is not read."""
    answer = statements.tail(values.lowered(reading.split(text)[1]))
    for one in statements.last_block(answer, statements.find(answer)):
        if one.kind in ("point", "box") and one.values is not None:
            return _middle(one.values.numbers[: 2 if one.kind == "point" else 4])
    return None


def _middle(numbers: Sequence[values.Number]) -> tuple[float, float] | None:
    if len(numbers) == 2 and numbers[0].name.startswith(("y", "row")) and numbers[1].name.startswith(("x", "col")):
        numbers = numbers[::-1]
    try:
        found = [float(number.text.replace(",", "")) for number in numbers]
    except ValueError:
        return None
    if not np.isfinite(found).all():
        return None
    first, second = found[::2], found[1::2]
    return sum(first) / len(first), sum(second) / len(second)
