"""Pictures: `overlay` is what an agent sees, and `data_url` how it is sent; `frame` and `filmstrip` are for persons,
and `show` shows them one."""

import base64
import io
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TextIO

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segenv import metrics
from segenv.types import Click, Task, object_of

GREEN = (0, 255, 0)  # SegAgent's colour; blue and red score the same there (.750, .749, .749 mIoU)
MASK, OUTLINE = (30, 200, 255), (255, 220, 0)  # in pictures for persons: the mask, and the outline of the target
POSITIVE, NEGATIVE = (40, 220, 60), (240, 50, 50)
CAPTION = 22  # height of the line of text under a frame, in pixels


def overlay(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = GREEN, alpha: float = 0.5) -> np.ndarray:
    """Blend a plain colour over the masked pixels of `image` (uint8 [H, W, 3]); a new uint8 [H, W, 3], full resolution.

    A masked pixel becomes (1 - alpha) · image + alpha · color, rounded to the nearest integer and halves to the even
    one, which is what `cv2.addWeighted` gives; every other pixel stays. `mask` is [H, W], non-zero where it holds.
    """
    mask = _mask_of(mask, image)
    out = image.copy()
    x, y, width, height = cv2.boundingRect(mask)
    if width:  # only the mask's box is touched, and each channel is looked up instead of computed
        crop, inside = out[y : y + height, x : x + width], mask[y : y + height, x : x + width]
        cv2.copyTo(cv2.LUT(crop, _blends(tuple(color), float(alpha))), inside, crop)
    return out


@lru_cache(maxsize=16)
def _blends(color: tuple[int, int, int], alpha: float) -> np.ndarray:
    """uint8 [1, 256, 3]: the blend of each value of each channel."""
    values = np.arange(256)[None, :, None] * (1 - alpha) + np.array(color) * alpha
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _mask_of(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask as contiguous uint8 [H, W], non-zero where it holds."""
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask is {list(mask.shape)} but the image is {list(image.shape)}; both must be [H, W]")
    mask = mask if mask.dtype in (np.bool_, np.uint8) else mask != 0
    return np.ascontiguousarray(mask).view(np.uint8)


def resized(image: np.ndarray, size: int | Sequence[int] | None) -> np.ndarray:
    """Shrink an image, uint8 [H, W, 3], to at most `size` pixels on its longest side, or stretch it to `size`, (height,
    width). None leaves it as it is."""
    height, width = image.shape[:2]
    if size is None:
        return image
    if isinstance(size, int):
        scale = min(size / max(height, width), 1.0)
        size = max(round(height * scale), 1), max(round(width * scale), 1)
    if tuple(size) == (height, width):
        return image
    shrinks = size[0] * size[1] < height * width
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def data_url(picture: np.ndarray | Image.Image, kind: str = "png", effort: int = -1) -> str:
    """The picture (uint8 [H, W, 3], or a PIL image) as a `data:` address of a `png` or `jpeg` file, as OpenAI's
    messages take it. `effort` is a PNG's level of compression, 0 to 9, or -1 for zlib's own; a JPEG has quality 95."""
    file = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(file, kind.upper(), **({"quality": 95} if kind == "jpeg" else {"compress_level": effort}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def frame(
    image: np.ndarray,
    mask: np.ndarray | None = None,
    clicks: Sequence[Click] = (),
    target: np.ndarray | None = None,
    caption: str = "",
    size: int = 512,
    square: bool = False,
) -> np.ndarray:
    """One moment for a person: the image, its longer side scaled to `size` px, and one line of text under it.

    The mask is blue, the target's outline yellow, a positive click a green disc and a negative one a red disc, numbered
    from 1. Clicks are in pixels of `image`. Returns uint8 [h + 22, w, 3], whose size follows from the image's alone; a
    `square` one is letterboxed to [size + 22, size, 3].
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    if mask is not None:
        small = cv2.resize(_mask_of(mask, image), shape, interpolation=cv2.INTER_NEAREST_EXACT)
        picture = overlay(picture, small, MASK)
    if target is not None:
        small = cv2.resize(_mask_of(object_of(target), image), shape, interpolation=cv2.INTER_NEAREST_EXACT)
        contours, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, OUTLINE, max(round(size / 256), 1))
    width, height = (size, size) if square else shape
    left, top = (width - shape[0]) // 2, (height - shape[1]) // 2
    canvas = Image.new("RGB", (width, height + CAPTION), "white")
    canvas.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(canvas)
    for number, click in enumerate(clicks, 1):
        at = (left + (click.x + 0.5) * scale, top + (click.y + 0.5) * scale)
        _draw_click(draw, at, click.positive, number, radius=max(size / 50, 7.0))
    caption = shorten(draw, " ".join(caption.split()), width - 8, _font(13))
    draw.text((4, height + 3), caption, fill="black", font=_font(13))
    return np.asarray(canvas).copy()


def _draw_click(draw: ImageDraw.ImageDraw, at: tuple[float, float], positive: bool, number: int, radius: float) -> None:
    corners = (at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius)
    draw.ellipse(corners, fill=POSITIVE if positive else NEGATIVE, outline="white", width=max(round(radius / 5), 1))
    draw.text(at, str(number), fill="black", font=_font(round(radius * 1.4)), anchor="mm")


def shorten(draw: ImageDraw.ImageDraw, text: str, room: float, font: Any) -> str:
    """Cut a text with an ellipsis where it is wider than `room` pixels."""
    if draw.textlength(text, font) > room:
        while text and draw.textlength(text + "…", font) > room:
            text = text[:-1]
        text += "…"
    return text


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def filmstrip(
    task: Task, masks: Sequence[np.ndarray], clicks: Sequence[Sequence[Click]], columns: int = 4, size: int = 256
) -> np.ndarray:
    """A whole episode on one panel: the image, the target, and then the mask and the clicks so far after each step.

    `masks` and `clicks` are aligned, one item a step; each step's frame tells its IoU. Frames run in rows of `columns`.
    Returns uint8 [h, w, 3]; `PIL.Image.fromarray(filmstrip(...)).save("episode.png")` writes it.
    """
    if len(masks) != len(clicks):
        raise ValueError(f"filmstrip got {len(masks)} masks and {len(clicks)} lists of clicks; give one of each a step")
    frames = [
        frame(task.image, caption=task.instruction or task.id, size=size),
        frame(task.image, object_of(task.target), target=task.target, caption="target", size=size),
    ]
    for step, (mask, so_far) in enumerate(zip(masks, clicks, strict=True), 1):
        caption = f"step {step}: IoU {metrics.iou(task.target, mask):.2f}"
        frames.append(frame(task.image, mask, so_far, task.target, caption, size))
    height, width = frames[0].shape[:2]
    gap, columns = 6, min(columns, len(frames))
    rows = -(-len(frames) // columns)
    panel = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(frames):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        panel[top : top + height, left : left + width] = picture
    return panel


def show(picture: np.ndarray, stream: TextIO | None = None, columns: int = 80) -> None:
    """Put a frame before a person: in a matplotlib window or notebook, or else, without a display, on the terminal.

    The terminal gets half blocks in 24-bit colour, two pixels a character and `columns` characters wide. They are
    written to `stream`, or to standard output where it is None and a terminal; a log or a pipe gets nothing.
    """
    from matplotlib import pyplot

    if stream is None and pyplot.get_backend().lower() not in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
        figure = pyplot.figure("segenv")
        figure.clear()
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(picture)
        pyplot.pause(0.001)  # draws, and lets the window answer
        return
    if stream is None and not sys.stdout.isatty():
        return
    rows = max(round(picture.shape[0] / picture.shape[1] * columns / 2), 1)
    small = cv2.resize(picture, (columns, 2 * rows), interpolation=cv2.INTER_AREA)
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        cells = ("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*up, *low) for up, low in zip(upper, lower, strict=True))
        lines.append("".join(cells) + "\x1b[0m\n")
    (sys.stdout if stream is None else stream).write("".join(lines))


def hide() -> None:
    """Close the window that `show` has opened, if any."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("segenv")
