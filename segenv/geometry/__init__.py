"""Polygons along pixel edges, their pixels, and run-length encodings."""

from segenv.geometry.polygons import (
    canonical,
    fit,
    mask_to_polygons,
    polygon_areas,
    polygon_iou,
    polygon_ious,
    polygons_to_mask,
    row_crossings,
    simplify,
)
from segenv.geometry.rasterize import PackedMask
from segenv.geometry.rle import polygons_to_coco, polygons_to_rle, rle_to_polygons

__all__ = [
    "PackedMask",
    "canonical",
    "fit",
    "mask_to_polygons",
    "polygon_areas",
    "polygon_iou",
    "polygon_ious",
    "polygons_to_coco",
    "polygons_to_mask",
    "polygons_to_rle",
    "rle_to_polygons",
    "row_crossings",
    "simplify",
]
