"""Filling polygons, and comparing them with masks, by the scanlines that their edges cross: no raster is made for it.

**Rings** are arrays [N, 2] of vertices (x, y) in pixels of the image, in continuous coordinates where pixel i covers
[i, i+1). A ring closes itself. *Polygons*, here and in `segenv.geometry`, are a list of rings, filled by the even-odd
rule over all of them: a ring in a ring is a hole. With `union` each ring is filled by itself and the results are
joined, as COCO does with the polygons of one annotation.

**Which pixels a ring covers** is COCO's rule: vertices are rounded to fifths of a pixel, edges are walked on that finer
grid, and where they cross the middles of the pixel columns is counted (rleFrPoly in cocoapi's common/maskApi.c, which
takes every step of the walk; here the crossings of an edge are a linear function of the column). The pixels are COCO's,
but for single ones where an edge of odd slope meets the finer grid's half steps, and rounding decides. Rings along
pixel edges come out exactly. A ring of one or two vertices, or with no area, covers nothing; a place that a ring goes
around twice, because it crosses itself, is not covered.

Crossings are kept as places `column * height + row`, counting pixels down the columns. Sorted, they are the ends of
runs of covered pixels, and the object's pixels in a run are read off from a mask that is packed into bits.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import cv2
import numpy as np

Rings = Sequence[np.ndarray | Sequence[Sequence[float]]]  # [N, 2] each

REACH = 1e6  # pixels from the origin, beyond every image: places there still differ by less than 1e-9 pixels
_TIE = 1e-8  # pixels that move a tie of the finer grid to the side where COCO has it; others lie farther apart
_CHUNK = 12_000  # crossings at a time: arrays that stay in the cache, and are too small for malloc to map anew


class PackedMask:
    """A mask [H, W] in bits, with counts of them down its columns; to give instead of the mask where calls share one.

    Made from a bool mask, or from uint8, where 128 is ignored and any other value but 0 is the object. `size` is the
    number of the object's pixels.
    """

    def __init__(self, mask: np.ndarray) -> None:
        if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}; expected bool or uint8 [H, W]")
        self.height, self.width = mask.shape
        labels, self._ignored = mask.view(np.uint8), None
        if mask.dtype == np.uint8 and (ignored := labels == 128).any():
            self._ignored = _Bits(ignored.view(np.uint8))
            labels = np.where(ignored, np.uint8(0), labels)
        self._object = _Bits(labels)
        self.size = self._object.total

    def covered(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the runs between the places 0 and 1, 2 and 3, …: how many pixels of the object each one covers, and how
        many pixels that are not ignored; [runs] both."""
        known = _lengths(places)
        if self._ignored is not None:
            known = known - _lengths(self._ignored.before(places))
        return _lengths(self._object.before(places)), known


class _Bits:
    """Where a uint8 [H, W] is not zero, read down the columns: 64 pixels a word, and the count before each word."""

    def __init__(self, mask: np.ndarray) -> None:
        self.words = np.zeros(mask.size // 64 + 1, np.uint64)
        self.counts = np.zeros(len(self.words) + 1, np.int32 if mask.size < 2**31 else np.int64)
        if mask.size:
            bits = np.packbits(np.asarray(cv2.transpose(mask), np.uint8), bitorder="little")
            self.words.view(np.uint8)[: len(bits)] = bits
            np.bitwise_count(self.words).cumsum(out=self.counts[1:])
        self.total = int(self.counts[-1])

    def before(self, places: np.ndarray) -> np.ndarray:
        """How many pixels before each place are not zero."""
        words = places >> 6
        bits = self.words.take(words)
        bits &= _BELOW.take(places & 63)
        counts = self.counts.take(words)
        counts += np.bitwise_count(bits)
        return counts


_BELOW = np.array([(1 << bit) - 1 for bit in range(64)], np.uint64)  # the bits below each bit of a word


def _lengths(ends: np.ndarray) -> np.ndarray:
    """From end 0 to end 1, from 2 to 3, …"""
    return ends[1::2] - ends[::2]


def runs(polygons: Rings, height: int, width: int, union: bool = False) -> np.ndarray:
    """The runs of pixels of [height, width] that polygons cover, as sorted places [2 x runs]: the first of each pair is
    covered, and the second is the first behind the run. Runs may be empty, or touch."""
    rings = _rings(polygons)
    edges = _Edges(rings, height, width)
    if not union or len(rings) < 2:
        return edges.places(_ONE if height * width < 2**31 else _ONE.astype(np.int64))
    apart = _apart(len(rings), height, width)
    return _joined(_split(edges.places(apart.repeat(edges.slots)), apart)[0])


def areas(batch: Sequence[Rings], mask: np.ndarray | PackedMask, union: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of many polygons with one mask, int64 [N] pixels, without ignored ones."""
    packed = mask if isinstance(mask, PackedMask) else PackedMask(mask)
    sums = [np.zeros((2, 0), np.int64)]
    for places, bounds in _chunks(batch, packed.height, packed.width, union):
        totals = [np.append(0, counts.cumsum(dtype=counts.dtype))[bounds] for counts in packed.covered(places)]
        sums.append(np.diff(totals))
    covered, known = np.concatenate(sums, axis=1)
    return covered, known + packed.size - covered


def _chunks(batch: Sequence[Rings], height: int, width: int, union: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The runs of many polygons, some polygons at a time: places as in `runs`, and the numbers [polygons + 1] of the
    runs before each polygon's."""
    split = [_rings(polygons) for polygons in batch]
    edges = _Edges([ring for rings in split for ring in rings], height, width)
    rings = np.append(0, np.cumsum([len(rings) for rings in split], dtype=np.int64))  # before each polygon
    slots = np.append(0, edges.slots.cumsum())[rings]
    crossings = np.append(0, edges.counts.cumsum())[slots]
    first = 0
    while first < len(batch):
        last = max(first + 1, int(crossings.searchsorted(crossings[first] + _CHUNK, "right")) - 1)
        owners = np.arange(last - first).repeat(np.diff(rings[first : last + 1]))
        window, counts = slice(slots[first], slots[last]), edges.slots[rings[first] : rings[last]]
        apart = _apart(max(last - first, len(owners)), height, width)
        polygons, each = apart[: last - first], apart[: len(owners)]
        if union:
            places, bounds = _split(edges.places(each.repeat(counts), window), each)
            places = _joined(places + apart[owners].repeat(2 * np.diff(bounds)))
        else:
            places = edges.places(apart[owners].repeat(counts), window)
        yield _split(places, polygons)
        first = last


class _Edges:
    """The edges of rings, and where they cross the columns' middles, from left to right.

    `slots` [rings] are the numbers of edges of each ring, with an empty one at the end. Each edge has `counts`
    crossings, the first in column `columns` at height `rows` in pixels, and each `slopes` lower than the one before:
    [sum of slots], the counts int64 and the others float64.
    """

    def __init__(self, rings: Sequence[np.ndarray], height: int, width: int) -> None:
        self.height = height
        self.slots = np.array([len(ring) + 1 for ring in rings], np.int64)
        points = np.concatenate([*chain.from_iterable((ring, ring[:1]) for ring in rings), _END])
        if not np.vdot(points, points) <= REACH**2:  # a cheap test, which lets nothing pass that the real one stops
            far = ~(np.abs(points) <= REACH).all(axis=1)
            if far.any():
                raise ValueError(f"a ring has the vertex {points[far][0].tolist()}; expected pixels of an image")
        points *= 5
        points += 0.5
        np.trunc(points, out=points)
        points *= 0.2
        points += 0.4 + _TIE  # so that the middle of column c, from 5c + 2 to 5c + 3 fifths, ends at c + 1
        x, y = points[:, 0], points[:, 1]
        columns = np.floor(x)
        np.maximum(columns, 0, out=columns)
        np.minimum(columns, width, out=columns)
        crossed = np.abs(columns[1:] - columns[:-1])
        crossed[self.slots.cumsum() - 1] = 0
        steps = points[1:] - points[:-1]
        slopes = steps[:, 1] / (steps[:, 0] + 1e-200)  # finite where an edge is upright and crosses nothing
        # COCO steps along x and rounds y where an edge is flat, along y where it is steep, and takes the upper end of
        # the step that crosses a middle: for flat edges, less than half a fifth below the edge itself.
        below = np.abs(slopes)
        below *= -0.1
        below += 0.1 + 6 * _TIE
        np.maximum(below, 0, out=below)
        columns = np.minimum(columns[1:], columns[:-1])
        rows = columns + (0.9 - 3 * _TIE)
        rows -= x[:-1]
        rows *= slopes
        rows += y[:-1]
        rows += below
        self.counts, self.columns, self.rows, self.slopes = crossed.astype(np.int64), columns, rows, slopes

    def places(self, offsets: np.ndarray, window: slice = slice(None)) -> np.ndarray:
        """The sorted places of all crossings of the edges in `window`, each moved by the offset [E] of its edge, or by
        one offset [1], and of the offsets' type: [crossings]."""
        counts = self.counts[window]
        ends = counts.cumsum()
        edge = np.arange(len(counts)).repeat(counts)  # one repeat and then takes, which no run's length slows down
        rows = np.arange(len(edge), dtype=np.float64)
        rows -= (ends - counts).astype(np.float64).take(edge)  # 0, 1, … along each edge
        places = (self.columns[window] * self.height + offsets).take(edge)
        places += rows * self.height
        rows *= self.slopes[window].take(edge)
        rows += self.rows[window].take(edge)
        whole = rows.astype(offsets.dtype)
        np.maximum(whole, 0, out=whole)
        np.minimum(whole, self.height, out=whole)
        whole += places.astype(offsets.dtype)
        whole.sort()
        return whole


_END = np.zeros((1, 2))  # closes the last empty slot
_ONE = np.zeros(1, np.int32)  # the offset of a single group


def _rings(polygons: Rings) -> list[np.ndarray]:
    """The rings that have a vertex, as float64 [N, 2]. Raises ValueError for what is no ring."""
    rings = []
    for ring in polygons:
        points = np.asarray(ring, np.float64)
        if points.ndim == 2 and points.shape[1] == 2 and len(points):
            rings.append(points)
        elif points.size:
            raise ValueError(
                f"a ring is {list(points.shape)}; expected a list of rings, each with vertices (x, y), [N, 2]"
            )
    return rings


def _apart(groups: int, height: int, width: int) -> np.ndarray:
    """Offsets that keep groups' places apart, [groups]: int32 where that is enough, as it sorts twice as fast."""
    stride = height * width + 1
    return np.arange(groups, dtype=np.int32 if groups * stride < 2**31 else np.int64) * stride


def _split(places: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted places of groups without the offsets that keep these apart, and the numbers [groups + 1] of the runs
    before each group's."""
    bounds = np.append(places[::2].searchsorted(apart), len(places) // 2)
    return places - apart.repeat(2 * np.diff(bounds)), bounds


def _joined(places: np.ndarray) -> np.ndarray:
    """Runs in any order as sorted runs that neither overlap nor touch."""
    order = places[::2].argsort()
    starts, reach = places[::2][order], np.maximum.accumulate(places[1::2][order])
    opens = np.append(True, starts[1:] > reach[:-1])[: len(starts)]
    return np.stack((starts[opens], reach[np.append(opens[1:], True)[: len(starts)]]), axis=1).ravel()
