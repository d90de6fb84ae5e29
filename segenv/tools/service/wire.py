"""Format of requests and answers: JSON and arrays in one safetensors file, behind the hash of its content.

    POST /blobs     arrays under any names                               -> {"keys": [KEY, ...]}
    POST /encode    {"images": [KEY, ...]}                               -> {}
    POST /predict   {"items": [Item, ...]}                               -> {"items": N} and arrays, see `pack_answer`

A KEY is the `segenv.types.image_hash` of an array: an image (uint8 [H, W, 3]), a mask as packed bits (uint8
[ceil(H W / 8)]) or logits (float32 [h, w]). Where the service lacks some, it answers 404 and {"unknown": [KEY, ...]}.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from segenv.files import content_hash
from segenv.records import parse_json, reader
from segenv.types import Box, Click, Prediction, Prompt, image_hash

CONTENT_TYPE = "application/vnd.segenv.tool"  # which no form of a browser sends
TOKEN = "SEGENV_TOOL_TOKEN"  # environment variable of the token, for client and service
MOST_ITEMS = 1024  # of one request
MOST_CLICKS = 1024  # of one item
MOST_LOGITS = 1 << 22  # values of one array
HEAD = 32  # bytes of the hash before the content
KEY = re.compile(r"[0-9a-f]{32}")


def check_token(token: str | None) -> None:
    """Raise ValueError where a token cannot stand in a header."""
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ValueError(
            f"{TOKEN} has a character that no header can hold; expected printable ASCII: set another token"
        )


def pack(facts: Any, arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Write `facts` (for JSON) and named arrays as bytes."""
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    content = safetensors.numpy.save({"": text, **{name: np.asarray(one) for name, one in (arrays or {}).items()}})
    return content_hash(content).encode() + content


def unpack(content: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """Read the facts and arrays (read-only) that `pack` wrote. Raises ValueError for anything else."""
    if content_hash(memoryview(content)[HEAD:]).encode() != content[:HEAD]:
        raise ValueError("the content is not what its hash says: it was damaged, or is of another format")
    try:
        arrays = safetensors.numpy.load(content[HEAD:])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the content is no safetensors file ({error})") from None
    if (text := arrays.pop("", None)) is None or text.dtype != np.uint8 or text.ndim != 1:
        raise ValueError("the content holds no JSON under the empty name")
    return parse_json(text.tobytes()), arrays


@dataclass(frozen=True)
class Item:
    """A prompt by keys, as JSON."""

    image: str
    clicks: list[tuple[int, int, bool]]
    box: tuple[float, float, float, float] | None
    mask: str | None
    logits: str | None

    def check(self) -> None:
        """Raise ValueError for what is no key, and for more clicks than may be."""
        check_keys([key for key in (self.image, self.mask, self.logits) if key is not None])
        if len(self.clicks) > MOST_CLICKS:
            raise ValueError(f"an item has {len(self.clicks)} clicks; expected {MOST_CLICKS} at most")

    @property
    def keys(self) -> list[str]:
        """Keys of its arrays."""
        return [key for key in (self.image, self.mask, self.logits) if key is not None]


READ_ITEMS = reader(dict[str, list[Item]])
READ_KEYS = reader(dict[str, list[str]])


def check_keys(keys: Sequence[str]) -> None:
    """Raise ValueError for what is no key."""
    for key in keys:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key[:40]!r} is no key; expected 32 hexadecimal digits")


def arrays_of(prompt: Prompt) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The mask of a prompt as packed bits, and its logits, as they are sent."""
    mask = None if prompt.mask is None else np.packbits(prompt.mask)
    return mask, None if prompt.logits is None else np.ascontiguousarray(prompt.logits, np.float32)


def item_of(image: str, prompt: Prompt) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The item for a prompt about the image with that key, and its mask and logits by their keys."""
    mask, logits = ((one, None if one is None else image_hash(one)) for one in arrays_of(prompt))
    box = None if prompt.box is None else [float(one) for one in vars(prompt.box).values()]
    clicks = [[int(one.x), int(one.y), bool(one.positive)] for one in prompt.clicks]
    facts = {"image": image, "clicks": clicks, "box": box, "mask": mask[1], "logits": logits[1]}
    return facts, {key: array for array, key in (mask, logits) if array is not None and key is not None}


def prompt_of(item: Item, arrays: Mapping[str, np.ndarray]) -> Prompt:
    """The prompt that an item stands for. Raises ValueError where it does not fit its image."""
    height, width = kind_of(arrays[item.image], "image").shape[:2]
    for x, y, _ in item.clicks:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"click ({x}, {y}) lies outside the image of {width} x {height} pixels")
    if item.box is not None:
        x0, y0, x1, y1 = item.box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"box {item.box} is empty or leaves the image of {width} x {height} pixels")
    mask = None if item.mask is None else unpacked(kind_of(arrays[item.mask], "mask"), height, width)
    logits = None if item.logits is None else kind_of(arrays[item.logits], "logits")
    clicks = tuple(Click(*one) for one in item.clicks)
    return Prompt(clicks, None if item.box is None else Box(*item.box), mask, logits)


def kind_of(array: np.ndarray, kind: str) -> np.ndarray:
    """The array, where it is an image, a mask or logits, as `kind` says. Raises ValueError."""
    found = {3: "image", 1: "mask", 2: "logits"}.get(array.ndim)
    if found != kind:
        raise ValueError(f"a key is of {found or 'another array'}; expected one of {kind}")
    return array


def check_blob(array: np.ndarray, max_pixels: int) -> None:
    """Raise ValueError where an array is no image, mask or logits that a service takes."""
    shape, kind = list(array.shape), (array.dtype.name, array.ndim)
    if kind == ("uint8", 3):
        fits, expected = shape[2] == 3 and 0 < shape[0] * shape[1] <= max_pixels, f"[H, W, 3] of {max_pixels} pixels"
    elif kind == ("uint8", 1):
        fits, expected = 0 < shape[0] <= math.ceil(max_pixels / 8), f"bits of {max_pixels} pixels"
    elif kind == ("float32", 2):
        fits, expected = 0 < array.size <= MOST_LOGITS and bool(np.isfinite(array).all()), f"{MOST_LOGITS} finite"
    else:
        fits, expected = False, "an image (uint8 [H, W, 3]), packed bits (uint8 [N]) or logits (float32 [h, w])"
    if not fits:
        raise ValueError(f"an array is {array.dtype} {shape}; expected {expected} at most")


def unpacked(bits: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask bool [height, width] of packed bits. Raises ValueError where there are more or fewer."""
    if bits.dtype != np.uint8 or bits.shape != (math.ceil(height * width / 8),):
        raise ValueError(f"a mask has {bits.size} bytes; expected those of {width} x {height} pixels")
    return np.unpackbits(bits, count=height * width).view(bool).reshape(height, width)


def pack_answer(predictions: Sequence[Prediction], facts: Mapping[str, Any]) -> tuple[bytes, list[np.ndarray]]:
    """Write predictions, and return their masks and logits beside, as a later item may name them."""
    arrays: dict[str, np.ndarray] = {"scores": np.array([one.score for one in predictions], np.float64)}
    for place, one in enumerate(predictions):
        arrays[f"{place}.mask"] = np.packbits(one.mask)
        if one.logits is not None:
            arrays[f"{place}.logits"] = np.ascontiguousarray(one.logits, np.float32)
    states = [array for name, array in arrays.items() if name != "scores"]
    return pack({"items": len(predictions), **facts}, arrays), states


def read_answer(arrays: Mapping[str, np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
    """Predictions of an answer, for images of those sizes (height, width). Raises ValueError where they do not fit."""
    scores = arrays.get("scores")
    if scores is None or scores.dtype != np.float64 or scores.shape != (len(sizes),):
        raise ValueError(f"the answer holds no {len(sizes)} scores")
    found = []
    for place, (height, width) in enumerate(sizes):
        if (bits := arrays.get(f"{place}.mask")) is None:
            raise ValueError(f"the answer holds no mask number {place}")
        logits = arrays.get(f"{place}.logits")
        if logits is not None and (logits.dtype != np.float32 or logits.ndim != 2):
            raise ValueError(f"logits number {place} are {logits.dtype} {list(logits.shape)}")
        found.append(Prediction(unpacked(bits, height, width), logits, float(scores[place])))
    return found
