"""`text4seg`: a mask as a grid of labels, in rows of runs (Text4Seg, arXiv 2410.09855).

    others *16
    others *5, target *3, others *8

Each line is a row of the grid, from the top; a run is a label and how many cells it fills from the left. A cell belongs
to the object where the object covers at least half of it. Any label but `others` is the object. A grid of G x G cells
is read from G rows of G cells, or from one list of G² cells. Rows that are missing at the end make a reply
`truncated`, and belong to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from segenv.codec.base import _clip
from segenv.codec.frames import Frame, Scene
from segenv.codec.polygons import Dialect, PolygonCodec
from segenv.codec.reading import Reading
from segenv.geometry import mask_to_polygons, polygons_to_mask
from segenv.types import Action, Invalid, Polygons

OTHERS, TARGET = "others", "target"
GRID, _FINER = 16, 8
_TAG = re.compile(r"</?seg>|```[a-z]*")
_NUMBERED = re.compile(r"\A(?:row\s*)?[0-9]{1,3}\s*[.:)]\s*", re.IGNORECASE)


class GridCodec(PolygonCodec):
    """A codec of masks on a grid of `grid` x `grid` cells; points and boxes as in `simpleseg`."""

    def __init__(self, name: str, grid: int = GRID) -> None:
        if not 1 <= grid <= 256:
            raise ValueError(f"codec {name!r}: grid is {grid}; expected 1 to 256 cells a side")
        super().__init__(name, Dialect(Frame(1, decimals=3), "rings", ", "))
        self.grid = grid

    def ask(self, asked: str, task: Scene) -> str:
        """How an answer must be written; see `PolygonCodec.ask`."""
        if asked != "mask":
            return super().ask(asked, task)
        return (
            f"Divide the image into {self.grid} x {self.grid} cells. Answer with one line for each row of cells, from "
            f"the top, and nothing else: runs of cells from the left, such as `{OTHERS} *3, {TARGET} *5`, which fill "
            f"{self.grid} cells in all. `{TARGET}` is a cell that the object covers by half or more, `{OTHERS}` any "
            "other."
        )

    def outline(self, mask: np.ndarray, ratio: float = 0.001) -> Polygons:
        """A mask, bool [H, W], as its cells draw it; `ratio` changes nothing."""
        return self._drawn(cells_of(mask, self.grid), *mask.shape)

    def reply(self, mask: np.ndarray, task: Scene, budget: int, length: Callable[[str], int] = len) -> str:
        """The reply that draws a mask. Raises ValueError where it is longer than `budget`."""
        text = self._text(cells_of(mask, self.grid))
        if length(text) > budget:
            raise ValueError(f"the grid takes {length(text)}, which is more than {budget}; expected a coarser grid")
        return text

    def _statement(self, action: Action, task: Scene) -> str:
        if isinstance(action, Polygons):
            side = self.grid * _FINER  # whole cells stay whole, also on images that the grid does not divide
            scale = np.array([side / task.width, side / task.height])
            mask = polygons_to_mask([ring * scale for ring in action.rings], side, side, action.union)
            return self._text(cells_of(mask, self.grid))
        return super()._statement(action, task)

    def _read(self, answer: str, task: Scene, asked: str = "") -> Reading:
        cells = self._cells(answer)
        if not isinstance(cells, np.ndarray):
            return super()._read(answer, task, asked)
        whole = len(cells) == self.grid**2
        exact = whole and answer.strip() == self._text(cells.reshape(self.grid, -1))
        return Reading(self._of_cells(cells, task), exact)

    def _is_exact(self, answer: str, action: Action, task: Scene) -> bool:
        return not isinstance(action, Polygons) and super()._is_exact(answer, action, task)

    def _text(self, cells: np.ndarray) -> str:
        lines = []
        for row in cells:
            ends = [*(np.flatnonzero(row[1:] != row[:-1]) + 1).tolist(), len(row)]
            runs = zip([0, *ends], ends, strict=False)
            lines.append(", ".join(f"{TARGET if row[first] else OTHERS} *{last - first}" for first, last in runs))
        return "\n".join(lines)

    def _drawn(self, cells: np.ndarray, height: int, width: int, truncated: bool = False) -> Polygons:
        """Cells, bool [G, G], as polygons of an image of this size."""
        scale = np.array([width, height]) / self.grid
        return Polygons(tuple(ring * scale for ring in mask_to_polygons(cells)), self.union, truncated)

    def _parse(self, text: str, task: Scene) -> Action:
        cells = self._cells(text)
        if isinstance(cells, Invalid):
            return cells
        return super()._parse(text, task) if cells is None else self._of_cells(cells, task)

    def _of_cells(self, cells: np.ndarray, task: Scene) -> Polygons:
        """The mask of cells, bool [at most G x G]; those that lack belong to nothing, and make it truncated."""
        truncated = len(cells) < self.grid**2
        filled = np.append(cells, np.zeros(self.grid**2 - len(cells), bool))
        return self._drawn(filled.reshape(self.grid, -1), task.height, task.width, truncated)

    def _cells(self, text: str) -> np.ndarray | Invalid | None:
        """The cells that a reply fills, row by row, bool [at most G x G]; None where it has no runs."""
        if "*" not in text:
            return None
        lines = _TAG.sub("", text).strip().split("\n", 2 * self.grid + 9)
        lines = [line for line in lines if line.strip(" \t\r*`")]
        read = list(map(_row, lines))
        places = [k for k, row in enumerate(read) if row]
        if not places:
            return None
        rows = read[places[0] : places[-1] + 1]
        if not all(rows):  # what follows would move up by a row
            broken = _clip(lines[places[0] + [bool(row) for row in rows].index(False)])
            return Invalid(text, f"`{broken}` between two rows is none; expected runs, as `{OTHERS} *{self.grid}`")
        sizes, whole = [sum(count for _, count in row) for row in rows], self.grid**2
        if len(rows) == 1 and self.grid > 1:  # one list, or a reply that ended in its first row
            if sizes[0] > whole:
                return Invalid(text, f"the reply fills {sizes[0]} cells; expected {whole}")
        else:
            wrong = [k for k, n in enumerate(sizes) if n != self.grid and (k < len(sizes) - 1 or n > self.grid)]
            if wrong or len(rows) > self.grid:
                row = f"row {wrong[0] + 1} of `{_clip(text)}` fills {sizes[wrong[0]]} cells" if wrong else ""
                found = row or f"{len(rows)} rows"
                right = f"{self.grid} rows of {self.grid} cells, as `{OTHERS} *{self.grid}`"
                return Invalid(text, f"{found}; expected {right}")
        runs = [run for row in rows for run in row]
        return np.repeat([label for label, _ in runs], [count for _, count in runs])


def cells_of(mask: np.ndarray, grid: int) -> np.ndarray:
    """Cells of a mask that it covers by half or more, bool [grid, grid]."""
    height, width = mask.shape
    times = [max(1, -(-grid // side)) for side in (height, width)]  # no image is smaller than its grid
    repeated = np.repeat(np.repeat(mask, times[0], 0), times[1], 1)
    shares = cv2.resize(repeated.astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA)
    return shares >= 0.5 - 1e-6


def _row(line: str) -> Sequence[tuple[bool, int]]:
    """The runs of a line, whether each is of the object, and its cells; none where the line is something else."""
    runs: list[tuple[bool, int]] = []
    for part in re.split(r"[,|]", _NUMBERED.sub("", line.strip(" \t\r*`")), maxsplit=512):
        label, star, count = part.partition("*")
        label, count = label.strip().strip("\"'").strip(), count.strip().removesuffix(".").rstrip()
        if not (star and 0 < len(label) <= 60 and len(count) <= 6 and count.isdecimal() and count.isascii()):
            return runs if runs and not part.strip(" .;\"'") else []
        runs.append((label.lower() != OTHERS, int(count)))
    return runs
