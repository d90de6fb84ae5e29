"""Time `polygon_iou` against pycocotools, and the polygon codecs on hostile text: part `geometry` of the benchmark.

    python -m experiments.benchmark --only geometry

Both sides start from the same arrays, and give the same IoUs. Polygons have 200 vertices on a mask of 640 x 640 pixels:
`smooth` ones lie on a wavy circle, `rough` ones up to a tenth of its radius beside it, as those of hair and leaves do.
`batched` is all of them with one mask; `one at a time` is each with the mask anew, as a reward function meets them;
`prepared` leaves out what either side can do to the mask beforehand.
"""

from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np
from pycocotools import mask as coco

from experiments.benchmark.timing import Timing, compare, time_parser
from segenv import codec
from segenv.codec import polygons
from segenv.geometry import polygon_iou, polygon_ious, polygons_to_mask
from segenv.geometry.rasterize import PackedMask
from segenv.types import Polygons, Task

SIZE, VERTICES, POLYGONS = 640, 200, 64
BATCHED_RATIO, SINGLE_RATIO = 2.0, 4.0  # how many times faster than pycocotools polygon_iou must be
AGREEMENT = 1e-3  # how far its IoUs may be from those of pycocotools


def rows(seconds: float) -> Iterator[Timing]:
    for kind, roughness in (("smooth", 0.0), ("rough", 0.1)):
        yield from ious(kind, roughness, seconds)
    yield raster(seconds)
    yield from parsers()


def ring_of(rng: np.random.Generator, roughness: float) -> np.ndarray:
    """Vertices around the middle of the mask, float64 [200, 2]; `roughness` is a part of the radius."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, VERTICES))
    waves = 1 + 0.25 * np.sin(rng.integers(2, 6) * angles + rng.uniform(0, 2 * np.pi))
    radii = 0.28 * SIZE * waves * (1 + roughness * rng.uniform(-1, 1, VERTICES))
    return rng.uniform(0.44, 0.56, 2) * SIZE + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def ious(kind: str, roughness: float, seconds: float) -> Iterator[Timing]:
    """Time IoUs of polygons with a mask: together, one at a time, and one at a time with a prepared mask."""
    rng = np.random.default_rng(0)
    mask = cv2.ellipse(np.zeros((SIZE, SIZE), np.uint8), (SIZE // 2, SIZE // 2), (200, 150), 20, 0, 360, 1, -1)
    target, rings = mask.astype(bool), [ring_of(rng, roughness) for _ in range(POLYGONS)]
    flat, batch = [ring.ravel() for ring in rings], [[ring] for ring in rings]
    packed = PackedMask(target)

    def coco_ious(rings: list[np.ndarray], to: dict) -> np.ndarray:
        return coco.iou(coco.frPyObjects(rings, SIZE, SIZE), [to], [0])[:, 0]

    def encode() -> dict:
        return coco.encode(np.asfortranarray(mask))

    encoded = encode()
    cases = (
        ("batched", BATCHED_RATIO, lambda: coco_ious(flat, encode()), lambda: polygon_ious(batch, target)),
        (
            "one at a time",
            SINGLE_RATIO,
            lambda: [coco_ious([ring], encode()).item() for ring in flat],
            lambda: [polygon_iou(rings, target) for rings in batch],
        ),
        (
            "one at a time, prepared",
            None,
            lambda: [coco_ious([ring], encoded).item() for ring in flat],
            lambda: [polygon_iou(rings, packed) for rings in batch],
        ),
    )
    for case, least, plain, fast in cases:
        plain_ms, fast_ms = compare(plain, fast, close, seconds)
        note = f"pycocotools | polygon_iou, {POLYGONS} polygons of {VERTICES} vertices"
        row = Timing("polygon-iou", f"{kind}, {case}", plain_ms, fast_ms, note)
        yield row if least is None else row.at_least(least)


def close(first: list[float] | np.ndarray, second: list[float] | np.ndarray) -> bool:
    return bool(np.abs(np.asarray(first) - np.asarray(second)).max() <= AGREEMENT)


def raster(seconds: float) -> Timing:
    """Time the rasterization of polygons."""
    rng = np.random.default_rng(0)
    rings = [ring_of(rng, 0.1) for _ in range(POLYGONS)]
    times = compare(
        lambda: [coco.decode(coco.frPyObjects([ring.ravel()], SIZE, SIZE))[..., 0] for ring in rings],
        lambda: [polygons_to_mask([ring], SIZE, SIZE) for ring in rings],
        lambda first, second: np.mean([(a != b).mean() for a, b in zip(first, second, strict=True)]) <= 1e-6,
        seconds,
    )
    return Timing("polygons-to-mask", "rough", *times, f"pycocotools | polygons_to_mask, {POLYGONS} polygons")


def parsers() -> Iterator[Timing]:
    """Time each polygon codec on the slowest of many hostile texts."""
    task = Task("scene", np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.uint8))
    answer = Polygons((np.array([[10, 10], [10, 90], [90, 90.0]]), np.array([[200, 10], [200, 90], [300, 50.0]])))
    for name in (*polygons.DIALECTS, "text4seg"):
        dialect = codec.make(name)
        yield time_parser(name, dialect.format(answer, task), partial(dialect.read, task=task))
