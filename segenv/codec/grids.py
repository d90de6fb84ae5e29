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
from segenv.geometry import mask_to_polygons, polygons_to_mask
from segenv.types import Action, Invalid, Polygons

OTHERS, TARGET = "others", "target"
GRID, _FINER = 16, 8
_TAG = re.compile(r"</?seg>|```[a-z]*")
_NUMBERED = re.compile(r"\A(?:row\s*)?[0-9]{1,3}\s*[.:)]\s*", re.IGNORECASE)
_RUN = re.compile(r"\s*[\"']?([^\"'*]{1,60}?)[\"']?\s*\*\s*([0-9]{1,6})\s*\.?\s*\Z")


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

    def _is_exact(self, answer: str, action: Action, task: Scene) -> bool:
        return answer == self.format(action, task)

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
        if "*" not in text:
            return super()._parse(text, task)
        lines = _TAG.sub("", text).strip().split("\n", 2 * self.grid + 9)
        lines = [line for line in lines if line.strip(" \t\r*`")]
        read = list(map(_row, lines))
        places = [k for k, row in enumerate(read) if row]
        if not places:
            return super()._parse(text, task)
        rows = read[places[0] : places[-1] + 1]
        if not all(rows):  # what follows would move up by a row
            broken = _clip(lines[places[0] + [bool(row) for row in rows].index(False)])
            return Invalid(text, f"`{broken}` between two rows is none; expected runs, as `{OTHERS} *{self.grid}`")
        sizes = [sum(count for _, count in row) for row in rows]
        if len(rows) == 1 and self.grid > 1:  # one list, or a reply that ended in its first row
            runs, whole = rows[0], self.grid**2
            labels = np.repeat([label for label, _ in runs], [min(count, whole + 1) for _, count in runs])
            if len(labels) > whole:
                return Invalid(text, f"the reply fills {len(labels)} cells; expected {whole}")
            cells = np.zeros(whole, bool)
            cells[: len(labels)] = labels
            return self._drawn(cells.reshape(self.grid, -1), task.height, task.width, len(labels) < whole)
        wrong = [k for k, size in enumerate(sizes) if size != self.grid and (k < len(sizes) - 1 or size > self.grid)]
        if wrong or len(rows) > self.grid:
            found = (
                f"row {wrong[0] + 1} of `{_clip(text)}` fills {sizes[wrong[0]]} cells" if wrong else f"{len(rows)} rows"
            )
            return Invalid(text, f"{found}; expected {self.grid} rows of {self.grid} cells, as `{OTHERS} *{self.grid}`")
        cells = np.zeros((self.grid, self.grid), bool)
        for k, row in enumerate(rows):
            labels = np.repeat([label for label, _ in row], [count for _, count in row])
            cells[k, : len(labels)] = labels
        truncated = len(rows) < self.grid or sizes[-1] < self.grid
        return self._drawn(cells, task.height, task.width, truncated)


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
        run = _RUN.match(part)
        if run is None:
            return runs if runs and not part.strip(" .;\"'") else []
        runs.append((run[1].strip().lower() != OTHERS, int(run[2])))
    return runs
