"""Run-length encodings and COCO's polygons, to and from polygons along pixel edges."""

from typing import Any

import numpy as np

from segenv.geometry.polygons import mask_to_polygons
from segenv.geometry.rasterize import Rings, runs


def polygons_to_rle(polygons: Rings, height: int, width: int, union: bool = False) -> dict[str, Any]:
    """Polygons as COCO's run lengths, `{"size": [height, width], "counts": str}`, which pycocotools reads."""
    from pycocotools import mask as coco

    places = runs(polygons, height, width, union)
    ends, times = np.unique(places, return_counts=True)
    ends = ends[(times % 2 == 1) & (ends < height * width)]  # where one run ends, the next may begin
    counts = np.diff(ends, prepend=0, append=height * width).tolist()
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def rle_to_polygons(rle: dict[str, Any]) -> list[np.ndarray]:
    """The outlines of COCO's run lengths, compressed or as a list of counts, along pixel edges."""
    from pycocotools import mask as coco

    packed = coco.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
    return mask_to_polygons(np.ascontiguousarray(coco.decode(packed)))


def polygons_to_coco(polygons: Rings, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """A COCO segmentation that covers the same pixels: a list of rings [x, y, x, y, …] where these need no even-odd
    rule (no holes), and run lengths elsewhere."""
    rings = [np.asarray(ring, np.float64) for ring in polygons if len(ring) > 2]  # COCO reads two points as a box
    rle = polygons_to_rle(polygons, height, width)
    if rings and rle == polygons_to_rle(rings, height, width, union=True):
        return [ring.ravel().tolist() for ring in rings]
    return rle


def coco_to_polygons(segmentation: list[list[float]] | dict[str, Any], height: int, width: int) -> list[np.ndarray]:
    """The polygons of a COCO segmentation: its own rings, where they cover the same pixels by the even-odd rule; the
    outlines of what it covers, where its rings overlap or it is run lengths."""
    if isinstance(segmentation, dict):
        return rle_to_polygons(segmentation)
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in segmentation]
    covered = polygons_to_rle(rings, height, width, union=True)
    return rings if covered == polygons_to_rle(rings, height, width) else rle_to_polygons(covered)
