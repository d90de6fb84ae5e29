"""COCO's run-length encodings and segmentations, to and from masks and polygons along pixel edges."""

from typing import Any

import numpy as np
from pycocotools import mask as coco

from segenv.geometry.polygons import mask_to_polygons
from segenv.geometry.rasterize import Rings, runs


def encode_mask(mask: np.ndarray) -> str:
    """Encode a bool mask [H, W] in COCO's compressed run lengths (down the columns), in ASCII."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def decode_mask(counts: str | bytes, height: int, width: int) -> np.ndarray:
    """Decode the compressed run lengths of `encode_mask` to a bool mask [height, width]. They are not checked;
    `segmentation_mask` reads what others wrote."""
    return coco.decode({"size": [height, width], "counts": counts}).astype(bool)


def segmentation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation as bool [height, width]: polygons [[x, y, x, y, …], …], or RLE with counts as a list or
    compressed.

    Everything is checked first, because pycocotools reads out of bounds, or takes four numbers for a box. Raises
    `ValueError`.
    """
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError(f"is a {type(segmentation).__name__}; expected polygons, or RLE with size and counts")
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"has size {segmentation.get('size')!r}; expected the image's [height, width], [{height}, {width}]"
        )
    counts = segmentation["counts"]
    counts = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("has counts that are no lengths; expected whole numbers from 0, or a compressed string")
    if sum(counts) != height * width:
        raise ValueError(f"has counts for {sum(counts)} pixels; expected {height * width}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)  # runs of background and object in turn
    return np.ascontiguousarray(values.reshape(width, height).T)  # COCO runs down the columns


def _polygons(polygons: list[Any], height: int, width: int) -> np.ndarray:
    if not polygons:
        raise ValueError("has no polygon; expected at least one")
    reach = max(height, width)  # pycocotools walks every edge pixel by pixel, wherever it leads
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"has a polygon that is {str(polygon)[:60]}; expected [x, y, x, y, …] with at least three points"
            )
        if not all(type(value) in (int, float) and -reach <= value <= 2 * reach for value in polygon):
            raise ValueError(
                f"has a polygon with coordinates far from the image of {width} x {height} pixels, or no numbers"
            )
    joined = coco.merge(coco.frPyObjects(polygons, height, width))
    return segmentation_mask({**joined, "counts": joined["counts"].decode()}, height, width)


def _uncompressed(text: str) -> list[int]:
    """Run lengths of compressed RLE: five bits a character, low ones first, as differences from the run
    before the last.

    Source: rleFrString in cocoapi's common/maskApi.c. Raises `ValueError`.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"has compressed counts with {character!r} in them; expected what pycocotools writes")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:  # more to come
            continue
        if code & 0x10:  # negative
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("has compressed counts that end too early; expected what pycocotools writes")
    return counts


def polygons_to_rle(polygons: Rings, height: int, width: int, union: bool = False) -> dict[str, Any]:
    """Polygons as COCO's run lengths, `{"size": [height, width], "counts": str}`, which pycocotools reads."""
    places = runs(polygons, height, width, union)
    ends, times = np.unique(places, return_counts=True)
    ends = ends[(times % 2 == 1) & (ends < height * width)]  # where one run ends, the next may begin
    counts = np.diff(ends, prepend=0, append=height * width).tolist()
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def rle_to_polygons(rle: dict[str, Any]) -> list[np.ndarray]:
    """The outlines of COCO's run lengths, compressed or as a list of counts, along pixel edges."""
    return mask_to_polygons(segmentation_mask(rle, *rle["size"]))


def polygons_to_coco(polygons: Rings, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """A COCO segmentation that covers the same pixels: a list of rings [x, y, x, y, …] where these need no even-odd
    rule (no holes), and run lengths elsewhere."""
    rings = [np.asarray(ring, np.float64) for ring in polygons if len(ring) > 2]  # COCO reads two points as a box
    rle = polygons_to_rle(polygons, height, width)
    if rings and rle == polygons_to_rle(rings, height, width, union=True):
        return [ring.ravel().tolist() for ring in rings]
    return rle
