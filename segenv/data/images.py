"""Decoding of images and masks from files, and the label rules of masks."""

import errno
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segenv.types import IGNORE, BadItem

MAX_PIXELS = 50_000_000  # of one image; checked against the file's header, before anything is decoded

# Formats that are worth the risk of decoding: Pillow would also hand EPS to Ghostscript, for one.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
CAMERAS = "3fr arw cr2 cr3 dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 sr2 srw x3f"
UNREAD = f"{CAMERAS} ai bpg dds emf eps exr flif hdr heic heics heif heifs hif ico jls jxl jxr pcx psb psd qoi svg svgz"


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case endings of image files, `.png`: of those that are read, and of those that are bad items."""
    read = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset(read | {f".{name}" for name in f"{UNREAD} tga wdp wmf xcf".split()})


def read_pair(
    image: Path, mask: Path, item: str, labels: Callable[[Image.Image], np.ndarray], max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 [H, W, 3] in RGB, and its target, uint8 [H, W] with 0, 128 and 255.

    `labels` makes the target of the decoded mask (`strict_labels`, or a published dataset's own rule), and raises
    `ValueError` where it cannot. Raises `BadItem` for files that are missing, corrupt, huge, of unequal size or without
    an object.
    """
    pixels = read_image(image, item, max_pixels)
    target = _decode(mask, item, max_pixels, labels)
    check_target(target, pixels.shape[:2], item, image, mask)
    return pixels, target


def read_image(path: Path, item: str, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> np.ndarray:
    """An image as uint8 [H, W, 3], RGB, turned as its EXIF orientation says (as viewers and OpenCV show it). `content`
    is the image where that is a part of the file `path`.

    Gray, palette and CMYK become RGB; 16-bit colour keeps its high byte. 16-bit gray, float and transparent images are
    refused, because every way to bring them to RGB is a choice that is not ours. Raises `BadItem`.
    """
    return _decode(path, item, max_pixels, to_rgb, content)


def check_target(target: np.ndarray, size: tuple[int, ...], item: str, image: Path, mask: Path) -> None:
    """Raise `BadItem` where `target` [H, W] is not of the image's `size` (height, width), or has no object pixel."""
    check_size(target.shape, size, item, image, mask)
    if not (target == 255).any():
        raise BadItem(f"item {item!r}: {mask} has no object pixel; draw the object, or remove the item")


def check_size(told: tuple[int, ...], size: tuple[int, ...], item: str, image: Path, mask: Path) -> None:
    """Raise `BadItem` where the size that a mask has, or is told to have, is not the image's; (height, width) both."""
    if told != tuple(size):
        turned = told == tuple(size)[::-1] and _orientation(image) > 4
        raise BadItem(
            f"item {item!r}: {mask} is {_wh(told)} but {image} is {_wh(size)}"
            + (" once turned by its EXIF orientation: the mask was drawn on the unturned pixels" if turned else "")
            + "; "
            + ("remove the image's orientation tag" if turned else "make a mask of the image's size")
        )


def strict_labels(mask: Image.Image) -> np.ndarray:
    """The target of a mask file with labels 0 and 1, or 0, 128 (ignored) and 255: uint8 [H, W]. Raises `ValueError` for
    any other.

    Gray values are the labels, also where they are stored as RGB or through a gray palette. A coloured palette (PASCAL
    VOC, DAVIS 2017) is read only where its indices are 0 and 1; further ones would be other objects, or void.
    """
    values = gray_values(mask)
    found = np.unique(values)
    if np.isin(found, (0, 1)).all():
        return (values * np.uint8(255)).astype(np.uint8)
    if np.isin(found, (0, IGNORE, 255)).all():
        return values
    shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
    blurred = " (JPEG blurs labels: save masks as PNG)" if mask.format == "JPEG" else ""
    raise ValueError(f"labels are {shown}{blurred}; expected 0 and 1, or 0, 128 (ignored) and 255 (object)")


def gray_values(mask: Image.Image) -> np.ndarray:
    """The gray values of a decoded mask, uint8 [H, W]. Raises `ValueError` for colours and transparent pixels."""
    advice = "; save the mask as 8-bit gray"
    if mask.mode in ("L", "1"):
        return np.array(mask.convert("L"))
    if mask.mode == "P" and "transparency" not in mask.info:
        colours, indices = np.array(mask.convert("RGB")), np.array(mask)
        if (colours == colours[..., :1]).all():
            return colours[..., 0]
        if indices.max() <= 1:
            return indices
        raise ValueError(f"a coloured palette with indices up to {indices.max()}{advice}")
    if mask.mode in ("P", "LA", "RGBA", "RGB"):
        channels = np.array(mask.convert("RGBA"))
        if (channels[..., 3] < 255).any():
            raise ValueError(f"transparent pixels in a {mask.mode} mask{advice}")
        if (channels[..., :3] != channels[..., :1]).any():
            raise ValueError(f"coloured pixels in a {mask.mode} mask{advice}")
        return channels[..., 0].copy()
    raise ValueError(f"pixels of mode {mask.mode}{advice}")


def to_rgb(image: Image.Image) -> np.ndarray:
    """A decoded image as uint8 [H, W, 3]. Raises `ValueError` for those that `read_image` refuses."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"pixels of mode {image.mode} (more than 8 bits); save it as 8-bit RGB or gray with the range that you mean"
        )
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise ValueError("transparent pixels; flatten it onto the background that you mean")
    return np.array(image.convert("RGB"))


def _decode(
    path: Path,
    item: str,
    max_pixels: int,
    read: Callable[[Image.Image], np.ndarray],
    content: bytes | None = None,
) -> np.ndarray:
    """`read` of the decoded and turned image. Raises `BadItem`, also for what `read` refuses with a `ValueError`."""
    try:
        return read(_open(path, item, max_pixels, content))
    except ValueError as error:
        raise BadItem(f"item {item!r}: {path} has {error}") from error


def _open(path: Path, item: str, max_pixels: int, content: bytes | None = None) -> Image.Image:
    """A decoded image, turned by its EXIF orientation. Raises `BadItem` for what the file is to blame for.

    Faults of the machine (out of memory, too many open files, a disk that fails) pass: they are no item's.
    """
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "is missing"
            raise BadItem(f"item {item!r}: {path} {problem}; put the file there")
        with Image.open(path if content is None else BytesIO(content), formats=_formats()) as image:
            width, height = image.size  # from the header
            if width * height > max_pixels:
                raise BadItem(
                    f"item {item!r}: {path} is {_wh((height, width))}, more than the {max_pixels:,} pixels allowed; "
                    "make it smaller, or raise max_pixels"
                )
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with its preview
                raise BadItem(f"item {item!r}: {path} has several frames; save the one that you mean")
            turned = ImageOps.exif_transpose(image)
            turned.format = image.format  # lost in the copy; the advice of `strict_labels` needs it
            return turned
    except (BadItem, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadItem(
            f"item {item!r}: {path} cannot be decoded (it is of none of the formats {', '.join(_formats())}); replace "
            "the file, or save it as PNG"
        ) from error
    except Exception as error:  # a corrupt file can make a decoder raise nearly anything
        faults = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
        if isinstance(error, OSError) and error.errno in faults:
            raise
        raise BadItem(
            f"item {item!r}: {path} cannot be decoded ({type(error).__name__}: {error}); replace the file"
        ) from error


def _orientation(path: Path) -> int:
    """EXIF orientation, 1..8; those above 4 exchange width and height."""
    try:
        with Image.open(path, formats=_formats()) as image:
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # only words an error that is raised anyway
        return 1


def _wh(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels (width x height)"
