"""Checkpoints of models: hashes of their weights, and loading without noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segenv.files import stream_hash

if TYPE_CHECKING:
    import torch


def weights_hash(model: torch.nn.Module, facts: str = "", label: str = "{name} {shape} {dtype}") -> str:
    """128-bit hash of a model's weights and of `facts` that its weights do not show, in hex. Each weight is preceded by
    its `label`."""
    import torch

    def parts() -> Iterator[Any]:  # weights leave a GPU one at a time
        yield facts.encode()
        for name, tensor in sorted(model.state_dict().items()):
            yield label.format(name=name, shape=list(tensor.shape), dtype=tensor.dtype).encode()
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data

    return stream_hash(parts())


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Keep transformers' "Loading weights" bars out of the midst of the caller's own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
