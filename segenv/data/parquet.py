"""Data in parquet files: ReasonSeg and its variants -R and -X as the Hugging Face hub has them, and Ref-L4.

Layouts: huggingface.co/datasets/Ricky06662/ReasonSeg_val, sj9909/ReasonSeg_refine (ReasonSeg-R), sj9909/ReasonSegX_test
(ReasonSeg-X) and JierunChen/Ref-L4.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from segenv.data.base import DataError, Dataset, changed, folder, numbered, within
from segenv.data.images import MAX_PIXELS, check_size, check_target, read_image
from segenv.files import file_hash, file_size, json_hash
from segenv.texts import one_line, shown
from segenv.types import BadItem, Task


class Table:
    """The rows of parquet files, of which each must have the `columns`; rows are read where they are asked for.

    Raises `DataError` where a file is no parquet, or lacks a column.
    """

    def __init__(self, paths: Sequence[Path], columns: Iterable[str]) -> None:
        self.paths = list(paths)
        self._places: list[tuple[Path, int, int]] = []  # file, group of rows, number in it
        for path in self.paths:
            try:
                file = _pyarrow().ParquetFile(path)
                lacking = sorted(set(columns) - set(file.schema_arrow.names))
                groups = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
            except (OSError, ValueError) as error:  # Arrow's errors are among these
                raise DataError(
                    f"{path} cannot be read as parquet ({one_line(str(error))}); put the published file there"
                ) from error
            if lacking:
                raise DataError(
                    f"{path} has no column {', '.join(lacking)}; it has {', '.join(file.schema_arrow.names)}"
                )
            self._places += [(path, group, k) for group, count in enumerate(groups) for k in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    def columns(self, names: list[str]) -> list[dict[str, Any]]:
        """These columns of all rows."""
        return [row for path in self.paths for row in _pyarrow().read_table(path, columns=names).to_pylist()]

    def path(self, i: int) -> Path:
        return self._places[i][0]

    def row(self, i: int, item: str) -> Any:
        """Row number `i`: a table of one row. Raises `BadItem`."""
        path, group, k = self._places[i]
        try:
            return _group(path, changed(path), group).slice(k, 1)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a fault of the machine, and no damage to the file
            problem = f"cannot be read ({one_line(str(error))}); put the published file there"
            raise BadItem(f"item {item!r}: {path} {problem}") from error


class ReasonSegTable(Dataset):
    """The rows of ReasonSeg, ReasonSeg-R or ReasonSeg-X, each of them a task: an image, a text, and a mask without
    ignored pixels. `meta["reasoning_type"]` is what ReasonSeg-X says of it."""

    def __init__(self, where: str, paths: Sequence[Path], skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(skip_bad)
        self.spec, self.max_pixels = f"reasonseg:{where}", max_pixels
        self._table = Table(paths, ["image", "text", "mask", "image_id", "ann_id"])
        self._rows = self._table.columns(["image_id", "ann_id"])
        if not self._rows:
            raise DataError(f"data {self.spec!r} has no rows; put the published files there")
        self._ids = tuple(numbered(f"{row['image_id']}_{row['ann_id']}" for row in self._rows))

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [str(row["image_id"]) for row in self._rows]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the files' contents."""
        return json_hash([type(self).__name__, *map(file_hash, self._table.paths)])

    def load(self, i: int) -> Task:
        item, path = self.ids[i], self._table.path(i)
        row = self._table.row(i, item)
        known = row.drop_columns(["mask"]).to_pylist()[0]
        held = known["image"]
        content = held.get("bytes") if isinstance(held, dict) else None
        if not isinstance(content, bytes):
            raise BadItem(f"item {item!r}: {path} holds no image in this row, but {shown(held)}; expected its bytes")
        image = read_image(path, item, self.max_pixels, content)
        height, width = image.shape[:2]
        mask = _mask(row.column("mask")[0], item, path)
        check_size(mask.shape, (height, width), item, path, path)
        target = np.where(mask, 255, 0).astype(np.uint8)
        check_target(target, (height, width), item, path, path)
        meta = {name: known.get(name) for name in ("image_id", "ann_id", "reasoning_type")}
        return Task(item, image, target, known["text"], meta={**meta, "text": "human"})


class RefL4(Dataset):
    """Ref-L4 (Chen et al. 2024), referring expressions of boxes: the target is the box, at the nearest pixels, and
    `meta["box"]` the box itself, [x0, y0, x1, y1]. There are no masks, so only boxes can be measured on it."""

    COLUMNS = ("id", "caption", "bbox", "file_name", "height", "width")

    def __init__(self, where: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(skip_bad)
        self.spec, self.max_pixels = f"ref-l4:{where}", max_pixels
        what = (
            "Ref-L4 with ref-l4-val.parquet, ref-l4-test.parquet and what is in images.tar.gz, published at "
            "huggingface.co/datasets/JierunChen/Ref-L4"
        )
        split = Path(where).name
        if split not in ("val", "test", "all"):
            raise DataError(f"data {self.spec!r} has no split val, test or all; expected ref-l4:DIR/val with {what}")
        self._root = folder(Path(where).parent, what)
        paths = [self._root / f"ref-l4-{name}.parquet" for name in (("val", "test") if split == "all" else (split,))]
        if lacking := [path for path in paths if not path.is_file()]:
            raise DataError(f"{lacking[0]} is missing; expected {what}")
        self._table = Table(paths, self.COLUMNS)
        self._rows = self._table.columns([*self.COLUMNS])
        if not self._rows:
            raise DataError(f"data {self.spec!r} has no rows; expected {what}")
        self._ids = tuple(numbered(str(row["id"]) for row in self._rows))

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def sources(self) -> Sequence[str]:
        return [str(row["file_name"]) for row in self._rows]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the files' contents, and of the images' sizes in bytes."""
        sizes = [file_size(self._image(name, name)) for name in dict.fromkeys(self.sources)]
        return json_hash([type(self).__name__, *map(file_hash, self._table.paths), *sizes])

    def load(self, i: int) -> Task:
        item, row, file = self.ids[i], self._rows[i], self._table.path(i)
        path = self._image(row["file_name"], item)
        image = read_image(path, item, self.max_pixels)
        height, width = image.shape[:2]
        check_size((row["height"], row["width"]), (height, width), item, path, file)
        box = row["bbox"]
        sides = [float(side) for side in box] if isinstance(box, list) and all(map(_is_number, box)) else []
        if len(sides) != 4 or not (sides[2] > 0 and sides[3] > 0 and np.isfinite(sides).all()):
            raise BadItem(
                f"item {item!r}: {file} has the box {shown(box)}; expected [x, y, width, height] with an area"
            )
        x, y, wide, high = sides
        left, top, right, bottom = (
            round(side) for side in np.clip([x, y, x + wide, y + high], 0, 2 * max(image.shape))
        )
        target = np.zeros((height, width), np.uint8)
        target[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
        check_target(target, (height, width), item, path, file)
        meta = {"file_name": row["file_name"], "box": [x, y, x + wide, y + high], "text": "human"}
        return Task(item, image, target, row["caption"], meta=meta)

    def _image(self, name: Any, item: str) -> Path:
        """The file of an image, in DIR or in its images/, by where the archive was unpacked."""
        path = within(self._root, name, item, self.follow_links)
        return path if path.is_file() else within(self._root, f"images/{name}", item, self.follow_links)


def tables_of(where: str) -> list[Path]:
    """The parquet files of DIR/SPLIT, as the hub has them: DIR/data/SPLIT-*.parquet, or DIR/SPLIT-*.parquet."""
    home, split = Path(where).expanduser().parent, Path(where).name
    for place in (home / "data", home):
        if place.is_dir() and (found := sorted(path for path in place.glob("*.parquet") if _is_part(path, split))):
            return found
    return []


def _is_part(path: Path, split: str) -> bool:
    return path.name.startswith(f"{split}-") or path.name == f"{split}.parquet"


def _mask(value: Any, item: str, path: Path) -> np.ndarray:
    """A mask from a list of rows of truth values, bool [H, W]. Raises `BadItem`."""
    rows = value.values
    lengths: set[int] = set() if rows is None else {len(row) if row.is_valid else 0 for row in rows}
    flat = np.empty(0) if rows is None else rows.flatten().to_numpy(zero_copy_only=False)
    if len(lengths) != 1 or 0 in lengths or flat.dtype != bool:
        raise BadItem(f"item {item!r}: {path} has no mask in this row; expected rows of truth values, of equal length")
    return flat.reshape(-1, lengths.pop())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("parquet files need PyArrow: pip install 'segenv[parquet]'") from error
    return pyarrow.parquet


@lru_cache(maxsize=1)
def _group(path: Path, changed: int, group: int) -> Any:
    """A group of rows. `changed` is when the file was, as a part of the cache's key."""
    return _pyarrow().ParquetFile(path).read_row_group(group)
