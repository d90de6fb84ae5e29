"""Datasets of interactive segmentation, in the layouts and with the label rules of the RITM repository.

Layouts and rules: github.com/SamsungLabs/ritm_interactive_segmentation, isegm/data/datasets. Files of any suffix count,
.png too.
"""

import numpy as np
from PIL import Image

from segenv.data.base import folder
from segenv.data.folder import Pairs, pair_up
from segenv.data.images import MAX_PIXELS, to_rgb
from segenv.types import IGNORE


def grabcut_labels(mask: Image.Image) -> np.ndarray:
    """128 is ignored, more is the object, less is background: uint8 [H, W] with 0, 128 and 255."""
    values = to_rgb(mask)[..., 2]  # RITM reads the first channel of OpenCV's BGR
    return np.where(values == IGNORE, IGNORE, np.where(values > IGNORE, 255, 0)).astype(np.uint8)


def davis_labels(mask: Image.Image) -> np.ndarray:
    """Whatever is not black is the object: uint8 [H, W] with 0 and 255."""
    return np.where(to_rgb(mask).max(axis=2) > 0, 255, 0).astype(np.uint8)


class GrabCut(Pairs):
    """GrabCut (Rother, Kolmogorov, Blake 2004), 50 images: data_GT/ and boundary_GT/; 128 is ignored."""

    labels = staticmethod(grabcut_labels)

    def __init__(self, directory: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        layout = "GrabCut with data_GT/ and boundary_GT/"
        images, masks = (folder(folder(directory, layout) / name, layout) for name in ("data_GT", "boundary_GT"))
        super().__init__(f"grabcut:{directory}", pair_up(images, masks, subset="GrabCut"), skip_bad, max_pixels)


class Berkeley(Pairs):
    """Berkeley (McGuinness and O'Connor 2010), 100 objects on 96 images: images/ and masks/.

    A mask belongs to the image with its stem, or where there is none, with the stem before its last # (112082#2.png is
    the second object of 112082.jpg). Each mask is a task of its own.
    """

    labels = staticmethod(grabcut_labels)

    def __init__(self, directory: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        layout = "Berkeley with images/ and masks/"
        images, masks = (folder(folder(directory, layout) / name, layout) for name in ("images", "masks"))
        pairs = pair_up(images, masks, lambda stem: stem.rpartition("#")[0] or stem, subset="Berkeley")
        super().__init__(f"berkeley:{directory}", pairs, skip_bad, max_pixels)


class Davis(Pairs):
    """DAVIS345, frames of DAVIS 2016 (Perazzi et al. 2016) as RITM distributes them: img/ and gt/; all that is not 0 is
    the object."""

    labels = staticmethod(davis_labels)

    def __init__(self, directory: str, skip_bad: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        layout = "DAVIS with img/ and gt/"
        images, masks = (folder(folder(directory, layout) / name, layout) for name in ("img", "gt"))
        super().__init__(f"davis:{directory}", pair_up(images, masks, subset="DAVIS"), skip_bad, max_pixels)


BENCHMARKS = {"grabcut": GrabCut, "berkeley": Berkeley, "davis": Davis}
