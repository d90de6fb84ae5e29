"""Scenes nearer to photographs: dead leaves behind and before things that are put together of unlike parts.

Images of overlapping pieces of all sizes have the statistics of natural ones (Lee, Mumford and Huang 2001). A thing
here is an outline with limbs, filled with patches of unlike colours and patterns, so that no single surface gives it
away. Nobody names these things: they train the click tool, beside `Synthetic`.
"""

import cv2
import numpy as np

from segenv.data.synthetic.shapes import paint, shape_alpha, texture

SIDE = 256  # pixels of a scene, both ways
_PIECES = ("blob", "blob", "blob", "square", "circle", "triangle", "bar")


def sample_dead_leaves(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [256, 256, 3], and map uint8 [256, 256] of at most three visible things (0: the rest)."""
    palette = _palette(rng, int(rng.integers(3, 9)))
    canvas = texture((SIDE, SIDE), palette[0], rng, 0.7, 0.7)
    instances = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(int(rng.integers(3, 40))):
        _leaf(canvas, None, palette, rng)
    for number in range(1, int(rng.integers(1, 4)) + 1):
        _thing(canvas, instances, number, rng)
        for _ in range(int(rng.integers(0, 4))):
            _leaf(canvas, instances, palette, rng)
    if rng.random() < 0.7:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.6))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0, 10))
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), instances


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours of one scene, float [count, 3]: unlike in lightness, alike in hue, as under one light."""
    tint = rng.normal(0, 25, 3)
    spread = rng.uniform(8, 60)
    return np.clip(rng.uniform(20, 235, (count, 1)) + tint + rng.normal(0, spread, (count, 3)), 5, 250)


def _leaf(canvas: np.ndarray, instances: np.ndarray | None, palette: np.ndarray, rng: np.random.Generator) -> None:
    """One piece somewhere, small ones more often than large ones; it hides what is under it, things too."""
    radius = min(0.3, 0.03 / np.sqrt(rng.uniform(0.005, 1))) * SIDE
    alpha = shape_alpha(str(rng.choice(_PIECES)), radius if instances is None else radius / 2, rng)
    alpha = alpha[: SIDE - 1, : SIDE - 1]
    corner = int(rng.integers(0, SIDE - alpha.shape[0])), int(rng.integers(0, SIDE - alpha.shape[1]))
    paint(canvas, alpha, corner, texture(alpha.shape, rng.choice(palette), rng, 0.7, 0.8), rng)
    if instances is not None:
        window = instances[corner[0] : corner[0] + alpha.shape[0], corner[1] : corner[1] + alpha.shape[1]]
        window[alpha > 127] = 0


def _thing(canvas: np.ndarray, instances: np.ndarray, number: int, rng: np.random.Generator) -> None:
    """A thing of several parts: a body, limbs that overlap it, and patches within, in colours of its own."""
    cover = np.zeros((SIDE, SIDE), np.uint8)
    radius = rng.uniform(0.12, 0.36) * SIDE
    centre = rng.uniform(0.2, 0.8, 2) * SIDE  # row, column
    _stamp(cover, shape_alpha(str(rng.choice(["blob", "blob", "circle", "square", "triangle"])), radius, rng), centre)
    for _ in range(int(rng.integers(0, 5))):
        limb = shape_alpha(str(rng.choice(["blob", "bar", "circle", "square"])), radius * rng.uniform(0.25, 0.8), rng)
        _stamp(cover, limb, centre + rng.normal(0, 0.7 * radius, 2))
    x, y, w, h = cv2.boundingRect(cover)
    alpha = np.ascontiguousarray(cover[y : y + h, x : x + w])
    palette = _palette(rng, int(rng.integers(1, 5)))
    surface = texture(alpha.shape, palette[0], rng, 0.6, 0.7)
    for _ in range(int(rng.integers(0, 7))):
        patch = np.zeros_like(alpha)
        _stamp(
            patch,
            shape_alpha(str(rng.choice(_PIECES)), radius * rng.uniform(0.1, 0.7), rng),
            rng.uniform(0, 1, 2) * [h, w],
        )
        soft = (patch.astype(np.float32) / 255)[..., None] * np.float32(rng.uniform(0.5, 1))
        surface = surface + soft * (texture(alpha.shape, rng.choice(palette), rng, 0.6, 0.7) - surface)
    depth = cv2.distanceTransform((alpha > 127).astype(np.uint8), cv2.DIST_L2, 3)
    surface = surface * (1 - rng.uniform(0, 0.5) * np.exp(-depth / (0.15 * radius)))[..., None].astype(np.float32)
    paint(canvas, alpha, (y, x), surface, rng)
    instances[y : y + h, x : x + w][alpha > 127] = number


def _stamp(cover: np.ndarray, alpha: np.ndarray, centre: np.ndarray) -> None:
    """Add a shape to a coverage map, in place, centred at (row, column) and cut at the border."""
    y, x = (round(float(c) - side / 2) for c, side in zip(centre, alpha.shape, strict=True))
    y0, x0 = max(0, y), max(0, x)
    y1, x1 = min(cover.shape[0], y + alpha.shape[0]), min(cover.shape[1], x + alpha.shape[1])
    if y1 > y0 and x1 > x0:
        window = cover[y0:y1, x0:x1]
        np.maximum(window, alpha[y0 - y : y1 - y, x0 - x : x1 - x], out=window)
