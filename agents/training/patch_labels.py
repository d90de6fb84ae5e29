"""Labels of an image's patches: the squares of each that something covers, and the digits of a place in it."""

from collections.abc import Sequence

import cv2
import numpy as np

from segenv.codec import polygons
from segenv.codec.frames import Frame
from segenv.geometry import row_crossings, simplify
from segenv.types import Task

FINE = 5  # squares along the side of a patch
OUTLINES = polygons.make("rings")
ROWS = 50.0  # thousandths between rows, which run through the middles of 20 x 20 patches
INSET = 4.0  # thousandths from an outline's top and bottom to its outermost vertices
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


def thousandths(frame: Frame, task: Task) -> np.ndarray:
    """Thousandths of the image, as a frame of whole thousandths or of three decimals counts them, in a pixel: [2]."""
    return np.array(frame.extents(task), float) * 10**frame.decimals / (task.width, task.height)


def vertices_on_rows(outline: Sequence[np.ndarray], scale: np.ndarray, every: float) -> list[np.ndarray]:
    """The points at which an outline crosses rows that lie `every` thousandths apart, one of them at half of `ROWS`,
    and those just inside its top and bottom; `scale` as of `thousandths`."""
    smooth, pixels = simplify(outline, 1.0), 1 / float(scale[1])  # without the steps of the pixels
    rows = np.arange(ROWS / 2 - every, 1000 + every, every) * pixels
    return row_crossings(smooth, rows, INSET * pixels)


def patches_of(vertices: np.ndarray, task: Task, grid: int) -> np.ndarray:
    """The patches [V] that vertices [V, 2] lie in."""
    columns, rows = np.minimum(vertices * grid // (task.width, task.height), grid - 1).astype(int).T
    return rows * grid + columns


def vertex_places(rings: Sequence[np.ndarray], task: Task, grid: int, frame: Frame, rows: bool = False) -> np.ndarray:
    """The `places` of vertices, in the order of the frame: of the first one in each patch, or of that nearest to its
    middle row where they stand on `rows`, or else of its middle."""
    places, scale = middles(grid, frame), thousandths(frame, task)
    vertices = np.concatenate([np.zeros((0, 2)), *rings])
    off_middle = np.round(np.abs(vertices[:, 1] * grid / task.height % 1 - 0.5), 2) * rows
    patches = patches_of(vertices, task, grid)
    for k in np.argsort(off_middle, kind="stable")[::-1]:
        numbers = frame.ordered(np.rint(vertices[k] * scale).astype(int).tolist())
        places[patches[k]] = [1, *(digit for number in numbers for digit in leading_digits(number))]
    return places


def fine_shares(target: np.ndarray, grid: int) -> np.ndarray:
    """The part of each square of each of grid x grid patches that `target` (bool [H, W]) covers, float32 [N, FINE²]."""
    squares = cv2.resize(target.astype(np.float32), (grid * FINE,) * 2, interpolation=cv2.INTER_AREA)
    return squares.reshape(grid, FINE, grid, FINE).swapaxes(1, 2).reshape(-1, FINE**2)
