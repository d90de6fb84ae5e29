"""GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) through OpenCV: a tool that needs no weights."""

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from segenv.metrics import distances
from segenv.ranges import Count, NotNegative, require
from segenv.tools.base import SegTool
from segenv.tools.cache import Encoding, EncodingCache
from segenv.types import Box, Click, Prediction, Prompt

SAMPLES = 10  # with fewer pixels of one class, there is no colour model to fit
Place = tuple[tuple[int, int], bool]  # ((x, y) in the scaled image, positive)


class GrabCutTool(SegTool):
    """Every click so far is a disc of certain object or background; colours and edges decide about the rest.

    Works on the image scaled to at most `size` px. A cut starts from the current mask (without one: from the box), and
    near clicks from the nearest click: within `reach` / sqrt(number of clicks) of it, a pixel is probably of its kind.
    The discs have `seed_radius`, but at most 0.4 times the distance to the nearest click of the other kind. Both are in
    image diagonals. Of the result, the parts stay that hold a positive click or overlap what the cut started from;
    nothing outside the box stays. No logits and no score. OpenCV's random numbers, which start the colour models, are
    seeded before each cut, so that the same input gives the same mask.
    """

    predicts_iou = False

    def __init__(
        self,
        size: int = 320,
        iterations: int = 1,
        reach: float = 0.2,
        seed_radius: float = 0.03,
        cache: EncodingCache | None = None,
    ) -> None:
        super().__init__(cache)
        require(Count, size=size, iterations=iterations)
        require(NotNegative, reach=reach, seed_radius=seed_radius)
        self.size, self.iterations, self.reach, self.seed_radius = size, iterations, reach, seed_radius
        self.fingerprint = f"grabcut:size={size}"
        options = {"size": 320, "iterations": 1, "reach": 0.2, "seed_radius": 0.03}
        changed = [f"{key}={getattr(self, key)}" for key, default in options.items() if getattr(self, key) != default]
        self.spec = "grabcut" + ":" * bool(changed) + ",".join(changed)

    def _encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        return [{"image": shrink(image, self.size), "size": np.array(image.shape[:2])} for image in images]

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        return [self._answer(encoding, prompt) for encoding, prompt in zip(encodings, prompts, strict=True)]

    def _answer(self, encoding: Encoding, prompt: Prompt) -> Prediction:
        image = np.ascontiguousarray(encoding["image"])
        height, width = encoding["size"].tolist()
        h, w = image.shape[:2]
        places = places_of(prompt.clicks, (height, width), (h, w))
        current = np.zeros((h, w), np.uint8)
        if prompt.mask is not None:
            share = cv2.resize(prompt.mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
            current = (share.reshape(h, w) >= 0.5).astype(np.uint8)
        box = None if prompt.box is None else pixels_of(prompt.box, h / height, w / width)
        start = current
        if box is not None and not current.any():
            start = np.zeros((h, w), np.uint8)
            start[box] = 1
        diagonal = math.hypot(h, w)
        reach = self.reach * diagonal / math.sqrt(max(len(places), 1))
        labels = labels_of(start, places, reach, self.seed_radius * diagonal)
        if box is not None:
            inside = labels[box].copy()
            labels[:] = cv2.GC_BGD
            labels[box] = inside
        mask = enlarge(cut(image, labels, start, places, self.iterations), (height, width))
        if prompt.box is not None:
            outside = np.ones_like(mask)
            outside[pixels_of(prompt.box, 1, 1)] = False
            mask[outside] = False
        for click in prompt.clicks:
            mask[click.y, click.x] = click.positive
        return Prediction(mask)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """The image, uint8 [H, W, 3], scaled to at most `size` px on its longer side."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale >= 1:
        return image
    new = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, new, interpolation=cv2.INTER_AREA)


def enlarge(found: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask uint8 [h, w] of 0 and 1 as bool [height, width] of `shape`; a new array."""
    if found.shape == shape:
        return found.astype(bool)
    return cv2.resize(found * 255, shape[::-1], interpolation=cv2.INTER_LINEAR) > 127


def places_of(clicks: Iterable[Click], shape: tuple[int, int], small: tuple[int, int]) -> list[Place]:
    """The clicks of an image of `shape` (height, width) on the scaled one of shape `small`."""
    (height, width), (h, w) = shape, small
    return [
        ((min(int((c.x + 0.5) * w / width), w - 1), min(int((c.y + 0.5) * h / height), h - 1)), c.positive)
        for c in clicks
    ]


def labels_of(
    start: np.ndarray, places: list[Place], reach: float, seed_radius: float, certain: np.ndarray | None = None
) -> np.ndarray:
    """Labels that a cut starts from, uint8 [h, w]: GC_BGD, GC_FGD, GC_PR_BGD or GC_PR_FGD.

    Probable are the mask `start` [h, w] and, within `reach` of the nearest click, what it says; certain are the pixels
    that `certain` [h, w] (int8: 1 object, -1 background, 0 unknown) tells and, over them, a disc of `seed_radius` at
    each click, at most .4 of the way to the nearest one of the other kind. Both lengths are in pixels."""
    objects = _distance(start.shape, [place for place, positive in places if positive])
    others = _distance(start.shape, [place for place, positive in places if not positive])
    near = np.minimum(objects, others) <= reach
    labels = np.where(np.where(near, objects < others, start > 0), cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    if certain is not None:
        labels[certain > 0] = cv2.GC_FGD
        labels[certain < 0] = cv2.GC_BGD
    for (x, y), positive in places:
        radius = round(min(seed_radius, 0.4 * float((others if positive else objects)[y, x])))
        cv2.circle(labels, (x, y), radius, cv2.GC_FGD if positive else cv2.GC_BGD, -1)
    return labels


def cut(
    image: np.ndarray, labels: np.ndarray, start: np.ndarray, places: list[Place], iterations: int = 1
) -> np.ndarray:
    """The cut from `labels`, which are overwritten: uint8 [h, w], 1 for object. Only the parts stay that hold a
    positive click or overlap `start`. Without enough samples of both classes, the labels decide alone."""
    if np.bincount(labels.ravel() & 1, minlength=2).min() >= SAMPLES:  # odd labels are object, certain or probable
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, labels, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)  # no rectangle
    count, parts = cv2.connectedComponents(labels & 1)
    stays = np.zeros(count, np.uint8)
    stays[parts[start > 0]] = 1
    for (x, y), positive in places:
        if positive:
            stays[parts[y, x]] = 1
    stays[0] = 0  # background
    return stays[parts]


def pixels_of(box: Box, sy: float, sx: float) -> tuple[slice, slice]:
    """The pixels (rows, columns) of a box in an image scaled by (sy, sx), one at least, at its far edge too."""
    y1, x1 = max(1, round(box.y1 * sy)), max(1, round(box.x1 * sx))
    return slice(min(round(box.y0 * sy), y1 - 1), y1), slice(min(round(box.x0 * sx), x1 - 1), x1)


def _distance(shape: tuple[int, ...], places: list[tuple[int, int]]) -> np.ndarray:
    """float32 [h, w]: the distance of each pixel to the nearest of `places` ((x, y)); infinite without any."""
    if not places:
        return np.full(shape, np.inf, np.float32)
    away = np.ones(shape, np.uint8)
    for x, y in places:
        away[y, x] = 0
    return distances(away)
