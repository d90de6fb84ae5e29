"""COCO's run-length encodings and segmentations, to and from masks and polygons along pixel edges.

Run lengths are read here and nowhere else, and checked: pycocotools reads out of bounds where they do not fill the
image.
"""

import math
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from segenv.geometry.polygons import mask_to_polygons
from segenv.geometry.rasterize import Rings, runs
from segenv.texts import shown
from segenv.types import Box, SegenvError

_MOST = 2**31 - 1  # pixels, beyond every image: what claims more would only fill the memory
_REACH = 1e9  # pixels from the origin, beyond every image
_DIGITS = 7  # characters of a compressed number, enough for 32 bits and a sign


class MaskError(SegenvError, ValueError):
    """A segmentation is not as COCO's are; the message continues a sentence that begins with its name."""


def encode_mask(mask: np.ndarray) -> str:
    """Encode a bool mask [H, W] in COCO's compressed run lengths (down the columns), in ASCII."""
    columns = cv2.transpose(np.ascontiguousarray(mask, np.uint8))  # faster than NumPy's copy in Fortran's order
    return coco.encode(columns.T)["counts"].decode("ascii")


def decode_mask(counts: str | bytes, height: int, width: int) -> np.ndarray:
    """Decode the compressed run lengths of `encode_mask` to a bool mask [height, width]. Raises `MaskError`."""
    try:
        return segmentation_mask({"size": [height, width], "counts": counts}, height, width)
    except MaskError as error:
        raise MaskError(f"a recorded mask {error}; the record is damaged, or of another image") from error


def check_counts(text: str, height: int, width: int) -> None:
    """Raise ValueError where compressed run lengths are no mask [height, width], without decoding them to one."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    last = (codes & 0x20) == 0  # of a number's characters
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError(f"a mask has run lengths {text[:20]!r}, which are none")
    first = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, np.diff([*first, len(codes)]))
    if place.max() > 6:
        raise ValueError("a mask has a run length beyond all images")
    values = np.add.reduceat((codes & 0x1F) << 5 * place, first)
    ends = np.flatnonzero(last)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << 5 * (place[ends] + 1), 0)
    values[1::2] = np.cumsum(values[1::2])  # numbers after the third are differences from the one before the last
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.sum() != height * width:
        raise ValueError(f"a mask has run lengths of {values.sum()} pixels; expected {height} x {width}")


def segmentation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation as bool [height, width]: polygons [[x, y, x, y, …], …], or RLE with counts as a list or
    compressed. Raises `MaskError`."""
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width)
    if (size := rle_size(segmentation)) != (height, width):
        raise MaskError(f"has size {[*size]}; expected the image's [height, width], [{height}, {width}]")
    counts = _counts(segmentation["counts"], height * width)
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)  # runs of background and object in turn
    return np.ascontiguousarray(values.reshape(width, height).T)  # COCO runs down the columns


def segmentation_box(segmentation: Any) -> Box | None:
    """The tight box of a COCO segmentation: of its polygons' vertices, or of its run lengths' pixels; None where it has
    no area. Raises `MaskError`."""
    if isinstance(segmentation, list):
        _check_polygons(segmentation, -_REACH, _REACH)
        x, y = (np.concatenate([polygon[k::2] for polygon in segmentation]) for k in (0, 1))
        box = Box(float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        return box if box.x0 < box.x1 and box.y0 < box.y1 else None
    height, width = rle_size(segmentation)
    ends = _counts(segmentation["counts"], height * width).cumsum()
    first, last = ends[:-1:2], ends[1::2] - 1  # of each run of the object
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return None
    (left, top), (right, bottom) = np.divmod(first, height), np.divmod(last, height)
    high = (left < right).any()  # a run that goes on in the next column
    y0, y1 = (0, height) if high else (int(top.min()), int(bottom.max()) + 1)
    return Box(int(left.min()), y0, int(right.max()) + 1, y1)


def rle_size(segmentation: Any) -> tuple[int, int]:
    """Height and width of RLE. Raises `MaskError`."""
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise MaskError(f"is a {type(segmentation).__name__}; expected polygons, or RLE with size and counts")
    size = segmentation.get("size")
    sides = list(size) if isinstance(size, (list, tuple, np.ndarray)) and len(size) == 2 else []
    whole = [int(side) for side in sides if _is_number(side) and 1 <= side <= _MOST and side % 1 == 0]
    if len(whole) != 2 or math.prod(whole) > _MOST:
        raise MaskError(f"has size {shown(size)}; expected the image's [height, width]")
    return whole[0], whole[1]


def _counts(counts: Any, pixels: int) -> np.ndarray:
    """Run lengths that fill an image of `pixels`, int64 [runs]."""
    if isinstance(counts, (str, bytes)):
        counts = _uncompressed(counts if isinstance(counts, str) else counts.decode("latin-1"))
    elif isinstance(counts, np.ndarray):
        counts = counts.tolist()
    if not isinstance(counts, np.ndarray):
        if not isinstance(counts, (list, tuple)) or not all(type(count) is int and count >= 0 for count in counts):
            raise MaskError("has counts that are no lengths; expected whole numbers from 0, or a compressed string")
        counts = np.array([min(count, pixels + 1) for count in counts], np.int64)
    if len(counts) and (counts.min() < 0 or counts.max() > pixels):
        raise MaskError(f"has counts with a run below 0 or above {pixels} pixels; expected runs of its image")
    if (total := int(counts.sum())) != pixels:
        raise MaskError(f"has counts for {total} pixels; expected {pixels}")
    return counts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer)) and not isinstance(value, bool)


def _check_polygons(polygons: list[Any], low: float, high: float) -> None:
    """Raise `MaskError` where polygons are none, or have coordinates that are not within `low` and `high`."""
    if not polygons:
        raise MaskError("has no polygon; expected at least one")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise MaskError(
                f"has a polygon that is {shown(polygon)}; expected [x, y, x, y, …] with at least three points"
            )
        if not all(type(value) in (int, float) and low <= value <= high for value in polygon):
            raise MaskError("has a polygon with coordinates far from the image, or no numbers; expected pixels of it")


def _polygons(polygons: list[Any], height: int, width: int) -> np.ndarray:
    reach = max(height, width)  # pycocotools walks every edge pixel by pixel, wherever it leads
    _check_polygons(polygons, -reach, 2 * reach)
    joined = coco.merge(coco.frPyObjects(polygons, height, width))
    return segmentation_mask(joined, height, width)


def _uncompressed(text: str) -> np.ndarray:
    """Run lengths of compressed RLE, int64 [runs]: five bits a character, low ones first, as differences from the run
    before the last.

    Source: rleFrString in cocoapi's common/maskApi.c.
    """
    for character in text if not text.isascii() else set(text):
        if not 48 <= ord(character) < 112:
            raise MaskError(f"has compressed counts with {character!r} in them; expected what pycocotools writes")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes < 32)  # of each number; a set sixth bit says that more is to come
    if not len(codes) or not len(last) or last[-1] != len(codes) - 1:
        raise MaskError("has compressed counts that end too early; expected what pycocotools writes")
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    if lengths.max() > _DIGITS:
        raise MaskError("has compressed counts with a number that is too long; expected what pycocotools writes")
    shifts = 5 * (np.arange(len(codes)) - first.repeat(lengths))
    values = np.add.reduceat((codes & 31) << shifts, first)
    values -= (codes[last] >> 4) << (5 * lengths)  # negative ones
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def polygons_to_rle(polygons: Rings, height: int, width: int, union: bool = False) -> dict[str, Any]:
    """Polygons as COCO's run lengths, `{"size": [height, width], "counts": str}`, which pycocotools reads."""
    places = runs(polygons, height, width, union)
    ends, times = np.unique(places, return_counts=True)
    ends = ends[(times % 2 == 1) & (ends < height * width)]  # where one run ends, the next may begin
    counts = np.diff(ends, prepend=0, append=height * width).tolist()
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def rle_to_polygons(rle: dict[str, Any]) -> list[np.ndarray]:
    """The outlines of COCO's run lengths, compressed or as a list of counts, along pixel edges. Raises `MaskError`."""
    return mask_to_polygons(segmentation_mask(rle, *rle_size(rle)))


def polygons_to_coco(polygons: Rings, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """A COCO segmentation that covers the same pixels: a list of rings [x, y, x, y, …] where these need no even-odd
    rule (no holes), and run lengths elsewhere."""
    rings = [np.asarray(ring, np.float64) for ring in polygons if len(ring) > 2]  # COCO reads two points as a box
    rle = polygons_to_rle(polygons, height, width)
    if rings and rle == polygons_to_rle(rings, height, width, union=True):
        return [ring.ravel().tolist() for ring in rings]
    return rle
