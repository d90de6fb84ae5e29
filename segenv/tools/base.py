"""The contract of a segmentation tool: encode an image once, then answer prompts about it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from segenv.tools.cache import Encoding, EncodingCache
from segenv.types import Prediction, Prompt, ToolError, image_hash


class SegTool(ABC):
    """Click-driven segmentation. `encode` is the slow part and is cached; `predict` is called once a click.

    Implementations give `spec` (what `segenv.tools.make` takes), `fingerprint` (model, checkpoint, preprocessing and
    dtype: what an encoding depends on beside the image), `_encode` and `_predict`. Both take batches whose items may
    have different images, sizes and click counts; a batch gives what its items give alone (but for rounding in
    floating point), and the same input always gives the same output.
    An encoding is a dict of arrays that others may read from the cache at the same time: never write into it.

    `seconds` and `calls` count what was spent in `encode` and `decode`. Faults raise `ToolError`.
    """

    spec: str
    fingerprint: str
    predicts_iou: bool = True  # whether predictions have a score

    def __init__(self, cache: EncodingCache | None = None) -> None:
        self.cache = EncodingCache() if cache is None else cache
        self.seconds = {"encode": 0.0, "decode": 0.0}
        self.calls = {"encode": 0, "decode": 0}  # in items, not in batches

    def __deepcopy__(self, memo: dict) -> SegTool:
        """Itself: weights and cache are shared. Gymnasium copies the arguments of an environment, a tool among them."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """State that crosses to another process: all but the cached encodings, and with nothing spent yet."""
        return self.__dict__ | {name: dict.fromkeys(getattr(self, name), 0) for name in ("seconds", "calls")}

    def encode(self, images: Sequence[np.ndarray], hashes: Sequence[str] | None = None) -> list[Encoding]:
        """One encoding an image (uint8 [H, W, 3], RGB), from the cache where it is known. `hashes` are the images'
        `image_hash`es, for callers who have them already."""
        began = time.perf_counter()
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ToolError(
                    f"{self.spec}: image is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3] in RGB"
                )
        hashes = [image_hash(image) for image in images] if hashes is None else hashes
        keys = [f"{self.fingerprint}:{digest}" for digest in hashes]
        found = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing = {key: image for key, image in zip(keys, images, strict=True) if found[key] is None}
        if missing:
            try:
                for key, encoding in zip(missing, self._encode(list(missing.values())), strict=True):
                    found[key] = self.cache.put(key, encoding)
            except Exception as error:
                raise _fault(self.spec, "encode", error) from error
        self.seconds["encode"] += time.perf_counter() - began
        self.calls["encode"] += len(missing)
        return [found[key] for key in keys]  # type: ignore[misc]  # every key has been found by now

    def predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        """One prediction for each pair of encoding and prompt, in order."""
        if len(encodings) != len(prompts):
            raise ValueError(f"predict got {len(encodings)} encodings and {len(prompts)} prompts; give one for each")
        began = time.perf_counter()
        try:
            predictions = self._predict(encodings, prompts)
            if len(predictions) != len(prompts):
                raise ToolError(
                    f"{self.spec}: predict gave {len(predictions)} predictions for {len(prompts)} prompts; "
                    "expected one for each"
                )
        except Exception as error:
            raise _fault(self.spec, "predict", error) from error
        self.seconds["decode"] += time.perf_counter() - began
        self.calls["decode"] += len(prompts)
        return predictions

    @abstractmethod
    def _encode(self, images: Sequence[np.ndarray]) -> list[Encoding]: ...

    @abstractmethod
    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]: ...


def _fault(spec: str, stage: str, error: Exception) -> ToolError:
    if isinstance(error, ToolError):
        return error
    return ToolError(f"{spec}: {stage} failed: {type(error).__name__}: {error}")
