"""Time the embedded SAM: its decoder with and without a recording, and its encoder beside bare matrix products.

python -m experiments.benchmark --only sam
"""

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from experiments.benchmark.timing import Timing, compare, where_installed
from segenv import data, tools
from segenv.types import Click, Prediction, Prompt

SCENES = 8
SIDE = 512  # of the matrices that show what the processor can do


def rows(seconds: float) -> Iterator[Timing]:
    for part in (decoder, encoder):
        yield from where_installed("sam", part.__name__, partial(part, seconds))


def decoder(seconds: float) -> Iterator[Timing]:
    """Time second clicks, whose answers must be equal in every bit."""
    from segenv.tools.sam import SamTool

    plain, fast = SamTool(refine="none"), SamTool(refine="none")
    assert fast.recorded is not None
    plain.recorded, fast.recorded.after = None, 0
    encodings = plain.encode([task.image for task in data.make("synthetic:val")[:SCENES]])
    clicks = Click(50, 60), Click(90, 70)
    first = plain.predict(encodings, [Prompt(clicks[:1])] * SCENES)
    prompts = [Prompt(clicks, mask=found.mask, logits=found.logits) for found in first]
    for count in (1, SCENES):
        ask = encodings[:count], prompts[:count]
        times = compare(partial(plain.predict, *ask), partial(fast.predict, *ask), equal, seconds, time.process_time)
        yield Timing("sam", f"a click on each of {count} scenes", *times, "decoder: the model | its recording")


def equal(first: list[Prediction], second: list[Prediction]) -> bool:
    """Whether masks, logits and scores are equal in every bit."""
    return all(
        np.array_equal(a.mask, b.mask) and np.array_equal(a.logits, b.logits) and a.score == b.score  # type: ignore[arg-type]
        for a, b in zip(first, second, strict=True)
    )


def encoder(seconds: float) -> Iterator[Timing]:
    """Time encodings beside matrix products of as many multiplications: the least that this processor could need."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tool = tools.make("sam:refine=none")
    tasks = list(data.make("synthetic:val")[:SCENES])
    images, hashes = [task.image for task in tasks], [task.image_hash for task in tasks]
    factors = torch.rand(2, SIDE, SIDE)

    def encode() -> None:
        tool.cache.clear()
        tool.encode(images, hashes)

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # attention as products, to count
        encode()
    products = round(counter.get_total_flops() / (2 * SIDE**3))

    def multiply() -> None:
        for _ in range(products):
            torch.mm(*factors)

    times = compare(encode, multiply, lambda a, b: a is b, seconds, time.process_time)
    note = f"encoder | {products} products of {SIDE} x {SIDE} matrices, as many multiplications"
    yield Timing("sam", f"encodings of {SCENES} scenes", *times, note)
