"""Shapes, colours, surfaces and light of synthetic scenes."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from segenv.types import frozen

# Mean colour (RGB, 0..255) behind each colour word. No green: masks are shown to agents in green.
COLOURS = {
    "red": (205, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (235, 215, 50),
    "cyan": (60, 200, 215),
    "blue": (45, 75, 205),
    "purple": (125, 50, 170),
    "pink": (240, 130, 180),
    "white": (238, 238, 235),
    "black": (28, 28, 32),
}


def _circle(n: int = 48, radius: float = 1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _spiked(points: int, inner: float) -> np.ndarray:
    """A star: `points` tips at radius 1 with valleys at radius `inner` between them."""
    corners = _circle(2 * points)
    corners[1::2] *= inner
    return corners


def _rectangle(half_width: float, half_height: float) -> np.ndarray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [half_width, half_height]


def _cross(arm: float) -> np.ndarray:
    steps = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    return np.array([*steps, *[(-x, -y) for x, y in steps]])


def _comb(teeth: int, thick: float) -> np.ndarray:
    """A bar with thin teeth hanging from it."""
    corners = [(-1.0, -0.8), (1.0, -0.8), (1.0, -0.45)]
    for centre in np.linspace(1 - thick, -1 + thick, teeth):
        corners += [(centre + thick, -0.45), (centre + thick, 0.8), (centre - thick, 0.8), (centre - thick, -0.45)]
    return np.array([*corners, (-1.0, -0.45)])


def outline(shape: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Rings [N, 2] of a shape around the origin, about radius 1; where rings overlap there is a hole (even-odd)."""
    match shape:
        case "circle":
            return [_circle()]
        case "square":
            return [_rectangle(0.85, 0.85)]
        case "triangle":
            return [_circle(3)]
        case "star":
            return [_spiked(5, rng.uniform(0.38, 0.5))]
        case "cross":
            return [_cross(rng.uniform(0.25, 0.4))]
        case "ring":
            return [_circle(), _circle(radius=rng.uniform(0.45, 0.7))]
        case "frame":
            inner = rng.uniform(0.5, 0.65)
            return [_rectangle(0.9, 0.9), _rectangle(inner, inner)]
        case "bar":
            return [_rectangle(1.2, rng.uniform(0.12, 0.22))]
        case "crescent":
            bite = _circle(radius=0.85)[::-1] + [rng.uniform(0.4, 0.6), 0.0]
            return [_crescent(_circle(), bite)]
        case "sun":
            return [_spiked(int(rng.integers(9, 14)), rng.uniform(0.5, 0.62))]
        case "comb":
            return [_comb(int(rng.integers(3, 6)), rng.uniform(0.07, 0.12))]
        case "blob":
            angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
            radius = np.full(64, 0.85)
            for k in range(2, 6):
                radius += rng.normal(0, 0.28 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
            return [np.clip(radius, 0.3, 1.3)[:, None] * _circle(64)]
    raise ValueError(f"no shape {shape!r}")


def _crescent(disc: np.ndarray, bite: np.ndarray) -> np.ndarray:
    """Cut `bite` from `disc`: the disc's points outside the bite, then the bite's points inside the disc."""
    centre = bite.mean(axis=0)
    reach = np.linalg.norm(bite[0] - centre)
    outer = disc[np.linalg.norm(disc - centre, axis=1) > reach]
    start = np.argmax(np.diff(np.arctan2(outer[:, 1], outer[:, 0]), append=10) > 0.2) + 1
    outer = np.roll(outer, -start, axis=0) if start < len(outer) else outer
    inner = bite[np.linalg.norm(bite, axis=1) < 1]
    inner = inner[np.argsort(inner[:, 1])]
    return np.concatenate([outer, inner if outer[-1, 1] < 0 else inner[::-1]])


def shape_alpha(shape: str, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Random view of a shape of about `radius` pixels: coverage uint8 [h, w] on its bounding box."""
    angle = rng.uniform(0, 2 * np.pi)
    stretch = np.diag(np.exp(rng.uniform(-0.12, 0.12, 2) * (3.0 if shape == "blob" else 1.0)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rings = [radius * ring @ stretch @ turn.T for ring in outline(shape, rng)]
    points = np.concatenate(rings)
    low = points.min(axis=0) - 1
    size = np.ceil(points.max(axis=0) + 1 - low).astype(int) + 1
    alpha = np.zeros((size[1], size[0]), np.uint8)
    fixed = [np.round((ring - low) * 16).astype(np.int32) for ring in rings]  # 4 bits of sub-pixel position
    cv2.fillPoly(alpha, fixed, 255, cv2.LINE_AA, shift=4)
    return alpha


def _waves(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of several octaves, float32 [h, w] in -1..1."""
    h, w = shape
    total = np.zeros(shape, np.float32)
    weight = 1.0
    for cell in (rng.uniform(20, 60), rng.uniform(8, 18), rng.uniform(2, 6)):
        grid = rng.uniform(-1, 1, (int(h / cell) + 2, int(w / cell) + 2)).astype(np.float32)
        octave = cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
        octave *= np.float32(weight)
        total += octave
        weight *= rng.uniform(0.3, 0.8)
    return np.clip(total, -1, 1, out=total)


def _pattern(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks, dots, bricks or noise: float32 [h, w] in -1..1."""
    h, w = shape
    kind = rng.integers(5)
    if kind == 0:
        return _waves(shape, rng)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 26)
    starts = rng.random(), rng.random()

    def periods(across: float, down: float, start: float) -> np.ndarray:
        """How many periods from the first line each pixel is, float32 [h, w]."""
        at = (across * np.arange(w)[None, :] + down * np.arange(h)[:, None]).astype(np.float32)
        at /= period
        at += np.float32(start)
        return at

    u = periods(np.cos(angle), np.sin(angle), starts[0])
    if kind == 4:
        u *= np.float32(2 * np.pi)
        return np.sin(u, out=u)
    u -= np.floor(u)
    if kind == 1:
        return _signs(u < rng.uniform(0.3, 0.7))
    v = periods(-np.sin(angle), np.cos(angle), starts[1])
    v -= np.floor(v)
    if kind == 2:
        return _signs((u < 0.5) == (v < 0.5))
    return _signs((u - 0.5) ** 2 + (v - 0.5) ** 2 < rng.uniform(0.04, 0.16))


def _signs(on: np.ndarray) -> np.ndarray:
    """1 where it is on, else -1, float32."""
    return np.where(on, np.float32(1), np.float32(-1))


@lru_cache(maxsize=1024)
def _axis(pixels: int) -> np.ndarray:
    return frozen(np.linspace(-1, 1, pixels))


def lit(surface: np.ndarray, shape: tuple[int, int], rng: np.random.Generator, most: float) -> np.ndarray:
    """A surface [h, w, 3], or one colour of it [3], under light from one side: float32 [h, w, 3]. An array [h, w, 3]
    is changed in place."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, most)
    light = (np.cos(angle) * _axis(shape[1])[None, :] + np.sin(angle) * _axis(shape[0])[:, None]).astype(np.float32)
    light *= strength
    light += 1
    return np.multiply(surface, light[..., None], out=surface if surface.ndim == 3 else None)


def texture(
    shape: tuple[int, ...],
    colour: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    chance: float,
    contrast: float,
) -> np.ndarray:
    """A surface of a colour, with a pattern and a turn of light: float32 [h, w, 3], about 0..255."""
    size = shape[0], shape[1]
    base = np.asarray(colour, np.float32) * np.float32(rng.uniform(0.88, 1.1)) + rng.normal(0, 8, 3).astype(np.float32)
    surface = base
    if rng.random() < chance:
        other = (
            rng.uniform(0, 255, 3).astype(np.float32)
            if rng.random() < 0.3
            else base * np.float32(rng.uniform(0.3, 1.6))
        )
        amount = _pattern(size, rng)
        np.clip(amount, 0, 1, out=amount)
        amount *= np.float32(contrast * rng.uniform(0.4, 0.9))
        surface = amount[..., None] * (other - base)
        surface += base
    return lit(surface, size, rng, 0.35)


def background(
    shape: tuple[int, int], rng: np.random.Generator, chance: float, contrast: float, hidden_in: Sequence[float] | None
) -> np.ndarray:
    """One or two textured grounds, float32 [H, W, 3]; `hidden_in` is a colour to take, for camouflage."""
    grey = rng.uniform(30, 225)
    colour = np.clip(grey + rng.normal(0, 30, 3), 0, 255) if hidden_in is None else np.asarray(hidden_in)
    ground = texture(shape, colour, rng, chance, contrast)
    ground += (_waves(shape, rng) * np.float32(rng.uniform(0, 50) * contrast))[..., None]
    if rng.random() < 0.5:
        far = texture(shape, np.clip(rng.uniform(30, 225) + rng.normal(0, 30, 3), 0, 255), rng, chance, contrast)
        angle = rng.normal(0, 0.4)
        rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
        above = rows + np.sin(angle) * (columns - shape[1] / 2) < rng.uniform(0.2, 0.8) * shape[0]
        np.copyto(ground, far, where=above[..., None])
    return ground


def paint(
    canvas: np.ndarray, alpha: np.ndarray, corner: tuple[int, int], surface: np.ndarray, rng: np.random.Generator
) -> None:
    """Lay a surface [h, w, 3] of coverage `alpha` uint8 [h, w] on the canvas at `corner` (row, column), in place, with
    a soft shadow. The surface is used up."""
    h, w = alpha.shape
    y, x = corner
    if rng.random() < 0.5:
        dy, dx = (int(step) for step in rng.integers(-6, 7, 2))
        y0, x0 = max(0, y + dy), max(0, x + dx)
        y1, x1 = min(canvas.shape[0], y + dy + h), min(canvas.shape[1], x + dx + w)
        part = alpha[y0 - y - dy : y1 - y - dy, x0 - x - dx : x1 - x - dx]
        if part.size:  # a thin thing at the rim may cast all of its shadow beyond the canvas
            shade = cv2.GaussianBlur(part, (0, 0), 3.0).astype(np.float32) / 255 * np.float32(rng.uniform(0.2, 0.6))
            canvas[y0:y1, x0:x1] *= (1 - shade)[..., None]
    window = canvas[y : y + h, x : x + w]
    surface -= window
    surface *= (alpha.astype(np.float32) / 255)[..., None]
    window += surface
