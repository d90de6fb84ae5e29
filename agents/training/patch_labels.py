"""Labels of an image's patches: the squares of each that something covers, and the digits of a place in it."""

from collections.abc import Sequence

import cv2
import numpy as np

from segenv.codec import polygons
from segenv.codec.frames import Frame
from segenv.types import Task

FINE = 5  # squares along the side of a patch
OUTLINES = polygons.make("rings")
RATIO = 0.015  # Douglas and Peucker's tolerance of outlines, in parts of a ring's length


def leading_digits(value: int) -> tuple[int, int]:
    """Hundreds and tens of a coordinate in 0..1000."""
    value = min(value, 999)
    return value // 100, value // 10 % 10


def middles(grid: int, frame: Frame) -> np.ndarray:
    """The `places` of a question whose reply names none, in the order of the frame."""
    digits = np.array([leading_digits(int(1000 * (k + 0.5) / grid)) for k in range(grid)])
    across, down = np.tile(digits, (grid, 1)), digits.repeat(grid, axis=0)
    return np.hstack([np.zeros((grid**2, 1), np.int64), *frame.ordered([across, down])])


def vertex_places(rings: Sequence[np.ndarray], task: Task, grid: int, frame: Frame) -> np.ndarray:
    """The `places` of vertices, in the order of the frame: of the first one in each patch, or else of its middle."""
    places, size = middles(grid, frame), np.array([task.width, task.height])
    thousandths = np.array(frame.extents(task), float) * 10**frame.decimals / size
    for vertex in np.concatenate(rings)[::-1] if rings else ():
        column, row = np.minimum(vertex * grid // size, grid - 1).astype(int).tolist()
        numbers = frame.ordered(np.rint(vertex * thousandths).astype(int).tolist())
        places[row * grid + column] = [1, *(digit for number in numbers for digit in leading_digits(number))]
    return places


def fine_shares(target: np.ndarray, grid: int) -> np.ndarray:
    """The part of each square of each of grid x grid patches that `target` (bool [H, W]) covers, float32 [N, FINE²]."""
    squares = cv2.resize(target.astype(np.float32), (grid * FINE,) * 2, interpolation=cv2.INTER_AREA)
    return squares.reshape(grid, FINE, grid, FINE).swapaxes(1, 2).reshape(-1, FINE**2)
