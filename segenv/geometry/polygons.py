"""Polygons and masks: outlines of masks, simpler outlines, filling, IoU without a raster, and COCO's formats.

Polygons are a list of rings [N, 2] in continuous pixel coordinates, filled by the even-odd rule: a part is a ring, a
hole is a ring in a ring. `segenv.geometry.rasterize` says which pixels they cover.

**Canonical order.** Rings stand from the largest area to the smallest, so that a part comes before its holes and a
list that breaks off has lost the least. Each ring starts at its topmost vertex (of these, the leftmost) and runs
*counterclockwise on the screen*, where y points down: from the upper left down the left side. The same numbers read
with y up, as in SimpleSeg's paper, run *clockwise*, which is what the paper calls this order.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from segenv.geometry.rasterize import PackedMask, Rings, areas, runs

__all__ = [
    "PackedMask",
    "Rings",
    "canonical",
    "fit",
    "mask_to_polygons",
    "polygon_areas",
    "polygon_iou",
    "polygon_ious",
    "polygons_to_mask",
    "row_crossings",
    "simplify",
]


def mask_to_polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """The outlines of a mask [H, W] (bool; or uint8, where 128 is ignored and counts as background, and any other value
    but 0 is the object), in canonical order.

    They run along pixel edges and turn in every vertex; pixels that touch at a corner only are kept apart. With
    `tolerance` 0, `polygons_to_mask` gives the mask back; see `simplify` for more. An empty mask has no ring.
    """
    rings = _trace(_object(mask))
    return canonical(simplify(rings, tolerance)) if tolerance else rings


def _object(mask: np.ndarray) -> np.ndarray:
    """The object's pixels, bool [H, W]."""
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}; expected bool or uint8 [H, W]")
    return mask if mask.dtype == np.bool_ else (mask != 0) & (mask != 128)


def _trace(mask: np.ndarray) -> list[np.ndarray]:
    """The rings along the pixel edges of a bool mask [H, W], in canonical order.

    Every corner of the outline ends one edge along its row and one along its column: sorted along a row, corners 0 and
    1 are the ends of an edge, and so are 2 and 3; the same along a column. Where two pixels touch at a corner, it
    counts twice.
    """
    if not mask.any():
        return []
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    padded = np.pad(mask[top : top + height, left : left + width], 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    touching = (nw == se) & (ne == sw) & (nw != ne)
    places = np.flatnonzero((nw ^ ne ^ sw ^ se) | touching)
    twice = touching.ravel()[places]
    places, falling = places.repeat(1 + twice), (twice & nw.ravel()[places]).repeat(1 + twice)
    y, x = np.divmod(places, width + 1)
    second = np.append(False, places[1:] == places[:-1])
    rising = twice.repeat(1 + twice) & ~falling
    order = (2 * (x * (height + 1) + y) + (second ^ rising)).argsort()
    along_column = np.empty_like(order)
    along_column[order[::2]], along_column[order[1::2]] = order[1::2], order[::2]
    points = np.stack((x + left, y + top), axis=1).astype(np.float64)
    rings = [points[ring] for ring in _cycles(along_column.tolist())]
    return sorted(rings, key=lambda ring: -abs(_area(ring)))  # stable: equal ones stay from top to bottom


def _cycles(along_column: list[int]) -> list[list[int]]:
    """Rings of corners, numbered along the rows: from each corner down or up its column, and on along the row."""
    seen = bytearray(len(along_column))
    rings: list[list[int]] = []
    for start in range(len(along_column)):
        ring: list[int] = []
        corner = start
        while not seen[corner]:
            across = along_column[corner]
            seen[corner] = seen[across] = 1
            ring += (corner, across)
            corner = across ^ 1
        if ring:
            rings.append(ring)
    return rings


def _area(ring: np.ndarray) -> float:
    """Area by the shoelace formula, positive for rings that run clockwise on the screen."""
    x, y = (ring - ring[:1]).T  # near the origin, where whole numbers stay exact
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def canonical(polygons: Rings, clockwise: bool = False) -> list[np.ndarray]:
    """Put rings into canonical order (see the module's docstring), each without repeats of the vertex before, and
    without rings that have no vertex. `clockwise` turns them the other way on the screen."""
    rings = [_turned(np.asarray(ring, np.float64), clockwise) for ring in polygons if len(ring)]
    return sorted(rings, key=lambda ring: (-abs(_area(ring)), ring[:, ::-1].tolist()))


def _turned(ring: np.ndarray, clockwise: bool) -> np.ndarray:
    """A ring from its first vertex on, in its canonical direction. Where it passes its first vertex more than once, or
    has no area, the sequence that is smallest by (y, x) is taken."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1) | (np.arange(len(ring)) == 0)]
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    area = _area(ring)
    ways = [ring, ring[::-1]] if area == 0 else [ring if (area > 0) == clockwise else ring[::-1]]
    top = ring[np.lexsort((ring[:, 0], ring[:, 1]))[0]]
    turns = [np.roll(way, -i, axis=0) for way in ways for i in np.flatnonzero((way == top).all(axis=1))]
    return turns[0] if len(turns) == 1 else min(turns, key=lambda turn: turn[:, ::-1].tolist())


def simplify(polygons: Rings, tolerance: float = 0.0, ratio: float = 0.0) -> list[np.ndarray]:
    """Rings with fewer of their vertices, by Douglas and Peucker's rule (OpenCV's), in float32: of those left out, none
    lies farther from the new ring than about `tolerance` pixels or `ratio` of the ring's own length (SimpleSeg's way,
    with 0.001), whichever is more.

    Rings that shrink to less than three vertices are left out: holes and parts no wider than the tolerance. If all do,
    the longest one stays as the smallest rectangle around it, so that no object disappears.
    """
    if not (tolerance >= 0 and ratio >= 0):
        raise ValueError(f"tolerance is {tolerance} and ratio {ratio}; expected lengths from 0")
    given = [np.asarray(ring, np.float32) for ring in polygons if len(ring)]
    if not tolerance and not ratio or not given:
        return [np.asarray(ring, np.float64) for ring in polygons if len(ring)]
    lengths = [cv2.arcLength(ring, True) for ring in given]
    found = [
        cv2.approxPolyDP(ring, max(tolerance, ratio * length), True)[:, 0]
        for ring, length in zip(given, lengths, strict=True)
    ]
    kept = [ring for ring in found if len(ring) > 2]
    if not kept:
        kept = [cv2.boxPoints(cv2.minAreaRect(given[int(np.argmax(lengths))]))]
    return [ring.astype(np.float64) for ring in kept]


def row_crossings(polygons: Rings, rows: Sequence[float] | np.ndarray, inset: float) -> list[np.ndarray]:
    """The points at which rings cross `rows` (rising y, in pixels), in canonical order; of each ring also those `inset`
    pixels below its top and above its bottom, or a sixth of its height where it is low, in place of rows nearer to
    these than `inset`, which is more than 0. Rings that cross fewer than three times are left out."""
    found, rows = [], np.asarray(rows, np.float64)
    for ring in (np.asarray(ring, np.float64) for ring in polygons if len(ring)):
        low, high = ring[:, 1].min(), ring[:, 1].max()
        within = min(inset, (high - low) / 6)
        between = rows[(rows > low + 2 * within) & (rows < high - 2 * within)]
        ys = np.concatenate([[low + within], between, [high - within]])
        after = np.roll(ring, -1, axis=0)
        first = np.searchsorted(ys, np.minimum(ring, after)[:, 1], "right")
        crossed = np.searchsorted(ys, np.maximum(ring, after)[:, 1], "right") - first
        edges = np.repeat(np.arange(len(ring)), crossed)
        nth = np.arange(len(edges)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
        falls = after[edges, 1] < ring[edges, 1]
        y = ys[first[edges] + np.where(falls, crossed[edges] - 1 - nth, nth)]
        step = after[edges] - ring[edges]
        if len(edges) > 2:
            found.append(np.stack([ring[edges, 0] + (y - ring[edges, 1]) / step[:, 1] * step[:, 0], y], axis=1))
    return canonical(found)


def fit(polygons: Rings, fits: Callable[[list[np.ndarray]], bool], union: bool = False) -> list[np.ndarray]:
    """The best simplification that `fits` a budget, in canonical order: by the least tolerance, to a 64th of a pixel,
    at which `fits` says yes, without the smallest rings where others need their vertices more (by IoU with the
    polygons, read as `union` says). For a budget of vertices that is `lambda rings: sum(map(len, rings)) <= 200`; for
    one of tokens, count those of the text that says the rings. Raises ValueError where not even one rectangle fits.
    """
    rings = canonical(polygons)
    if fits(rings):
        return rings
    points = np.concatenate(rings) if rings else np.zeros((1, 2))
    corner = np.floor(points.min(0))
    width, height = np.ceil(points.max(0) - corner).astype(int)
    aim = PackedMask(polygons_to_mask([ring - corner for ring in rings], height, width, union))

    def likeness(found: Rings) -> float:
        return polygon_iou([ring - corner for ring in found], aim, union)

    largest_first = sorted(range(len(rings)), key=lambda k: -abs(_area(rings[k])))
    number, best, most = len(rings), None, -1.0
    while number:
        kept = [rings[k] for k in sorted(largest_first[:number])]
        if best is not None and likeness(kept) <= most:
            break  # what is left out by now is more than all that was lost
        found = _finest(kept, fits)
        if found is not None and (alike := likeness(found)) > most:
            best, most = found, alike
        # rings that vanish at this tolerance may as well go first, but not too many at once
        number = min(number - 1, max(len(found or kept), number - number // 8))
    if best is None:
        raise ValueError("the budget has no room for the coarsest outline, that of one ring; allow more")
    return best


def _finest(rings: list[np.ndarray], fits: Callable[[list[np.ndarray]], bool]) -> list[np.ndarray] | None:
    """All rings by the least tolerance that fits, or None."""
    low, high = -1, 64 + int(64 * max(np.ptp(ring, axis=0).sum() for ring in rings))
    best = canonical(simplify(rings, high / 64))
    if not fits(best):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        tried = canonical(simplify(rings, middle / 64))
        if fits(tried):
            best, high = tried, middle
        else:
            low = middle
    return best


def polygons_to_mask(polygons: Rings, height: int, width: int, union: bool = False) -> np.ndarray:
    """Pixels that polygons cover, bool [height, width], by the even-odd rule, or with `union` ring by ring."""
    columns = np.zeros(width * height, np.uint8)
    places = runs(polygons, height, width, union).tolist()
    for first, last in zip(places[::2], places[1::2], strict=True):
        columns[first:last] = 1
    mask = cv2.transpose(columns.reshape(width, height)) if columns.size else np.zeros((height, width), np.uint8)
    return mask.view(np.bool_)


def polygon_iou(polygons: Rings, mask: np.ndarray | PackedMask, union: bool = False, empty: float = 1.0) -> float:
    """IoU of polygons with a mask [H, W], without a raster: equal to that of `polygons_to_mask`. Ignored pixels (128 in
    uint8) count in neither; `empty` where both are empty. Rings as for `polygons_to_mask`."""
    packed = mask if isinstance(mask, PackedMask) else PackedMask(mask)
    covered, known = packed.covered(runs(polygons, packed.height, packed.width, union))
    intersection = int(np.add.reduce(covered, dtype=np.int64))
    total = packed.size + int(np.add.reduce(known, dtype=np.int64)) - intersection
    return intersection / total if total else empty


def polygon_ious(
    batch: Sequence[Rings],
    masks: np.ndarray | PackedMask | Sequence[np.ndarray | PackedMask],
    union: bool = False,
    empty: float = 1.0,
) -> np.ndarray:
    """`polygon_iou` of many polygons, float64 [N]: with one mask [H, W], or each with its own of a sequence of N. Pairs
    that share a mask (the same object, one after the other) are counted together."""
    intersections, unions = polygon_areas(batch, masks, union)
    return np.divide(intersections, unions, out=np.full(len(unions), empty), where=unions > 0)


def polygon_areas(
    batch: Sequence[Rings], masks: np.ndarray | PackedMask | Sequence[np.ndarray | PackedMask], union: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Intersections and unions in pixels, int64 [N] both, as for `polygon_ious`."""
    if isinstance(masks, (np.ndarray, PackedMask)):
        return areas(batch, masks, union)
    if len(masks) != len(batch):
        raise ValueError(f"{len(batch)} polygons and {len(masks)} masks; expected one mask, or one for each")
    found, start = [np.zeros((2, 0), np.int64)], 0
    for i in range(1, len(batch) + 1):
        if i == len(batch) or masks[i] is not masks[start]:
            found.append(np.stack(areas(batch[start:i], masks[start], union)))
            start = i
    intersections, unions = np.concatenate(found, axis=1)
    return intersections, unions
