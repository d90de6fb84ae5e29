"""Time a tool service against the tool in this process: part `service` of the benchmark.

    python -m experiments.benchmark --only service

The service runs in a process of its own on this machine, and `CLIENTS` threads ask it at the same time, each for one
image after the other. The ratio is the throughput of the service over that of the tool itself: below 1 is what the way
there and back costs.
"""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from experiments.benchmark.timing import Timing, compare, where_installed
from segenv import data, tools
from segenv.tools import SegTool
from segenv.types import Click, Prediction, Prompt, ToolError

CLIENTS, ROUNDS = 8, 4  # threads, and prompts of each in one turn


def rows(seconds: float) -> Iterator[Timing]:
    for spec in ("disc", "sam:refine=none", "sam"):
        yield from where_installed("service", spec, partial(row, spec, seconds))


@contextmanager
def running(spec: str) -> Iterator[str]:
    """A service in a process of its own; its address."""
    command = [sys.executable, "-m", "experiments.serve_tool", "--tool", spec, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "http://" not in line:
            raise ToolError(f"the service of {spec} did not start; see python -m experiments.serve_tool --tool {spec}")
        yield line.rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.wait(30)


def row(spec: str, seconds: float) -> Iterator[Timing]:
    """Time answers to prompts, in this process and by a service."""
    local, images = tools.make(spec), [task.image for task in data.make("synthetic:val")[:CLIENTS]]
    prompts = [Prompt((Click(image.shape[1] // 2, image.shape[0] // 2),)) for image in images]
    with running(spec) as url, ThreadPoolExecutor(CLIENTS) as threads:
        served = [tools.make(url) for _ in images]

        def ask(tool: SegTool, place: int) -> list[Prediction]:
            encodings = tool.encode(images[place : place + 1])
            return [tool.predict(encodings, prompts[place : place + 1])[0] for _ in range(ROUNDS)]

        def plain() -> list[list[Prediction]]:
            return [ask(local, place) for place in range(CLIENTS)]

        def fast() -> list[list[Prediction]]:
            return list(threads.map(ask, served, range(CLIENTS)))

        times = compare(plain, fast, equal, seconds)
    note = f"the tool in this process | {CLIENTS} clients of a service, {CLIENTS * ROUNDS} clicks"
    yield Timing("service", spec, *times, note)


def equal(first: list[list[Prediction]], second: list[list[Prediction]]) -> bool:
    """Whether all masks are equal."""
    pairs = zip(sum(first, []), sum(second, []), strict=True)
    return all(np.array_equal(one.mask, other.mask) for one, other in pairs)
