"""A tool service under 64 clients for a minute: each mask is checked, and memory stays within bounds."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from test_tools import same

from segenv.tools import SegTool, make
from segenv.tools.service import wire
from segenv.types import Click, Prediction, Prompt

for needed in ("fastapi", "tenacity"):
    pytest.importorskip(needed)
urllib3 = pytest.importorskip("urllib3")


ROOT = Path(__file__).resolve().parents[2]
CLIENTS, SECONDS, IMAGES, CLICKS = 64, 60, 80, 3
MEMORY = 48  # MiB that the service keeps: less than the images have


@contextmanager
def running(tool: str) -> Iterator[tuple[str, int]]:
    """A service in a process of its own: its address, and its process id."""
    flags = ["--tool", tool, "--port", "0", "--memory", str(MEMORY), "--max-pixels", "1000000"]
    command = [sys.executable, "-m", "experiments.serve_tool", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().rpartition(" ")[2].strip(), process.pid
    finally:
        process.terminate()
        process.wait(60)


def memory(pid: int) -> float:
    """MiB that a process has now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def episode(tool: SegTool, image: np.ndarray) -> list[Prediction]:
    """Predictions of three clicks, each after the other."""
    encoding, prompt, found = tool.encode([image]), Prompt(), []
    for k in range(CLICKS):
        prompt = Prompt((*prompt.clicks, Click(60 + 90 * k, 90 + 40 * k, k != 1)), None, prompt.mask, prompt.logits)
        found += tool.predict(encoding, [prompt])
        prompt = Prompt(prompt.clicks, None, found[-1].mask, found[-1].logits)
    return found


def same_bits(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions are equal, bit by bit."""
    arrays = [(one.mask, other.mask), (one.logits, other.logits)]
    return all(np.array_equal(*pair) for pair in arrays) and repr(one.score) == repr(other.score)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads memory from /proc")
@pytest.mark.parametrize("spec", ["disc", "sam:refine=none"])
def test_64_clients_for_a_minute(spec):
    with running(spec) as (url, pid):
        _play(spec, url, pid)


def _play(spec: str, url: str, pid: int) -> None:
    rng = np.random.default_rng(0)
    images = [np.repeat(np.repeat(rng.integers(0, 255, (16, 16, 3), np.uint8), 30, 0), 32, 1) for _ in range(IMAGES)]
    assert sum(image.nbytes for image in images) > MEMORY << 20
    first, local = make(url), make(spec)
    expected = [episode(first, image) for image in images]
    for image, found in zip(images[:3], expected, strict=False):
        for ours, theirs in zip(episode(local, image), found, strict=True):
            same(ours, theirs, exact=False)  # another process: its weights lie elsewhere in memory
    began, answers, faults, sizes = time.monotonic(), [0] * CLIENTS, list[str](), [memory(pid)]

    def play(client: int) -> None:
        choose, tool = random.Random(client), make(url)
        while time.monotonic() - began < SECONDS and not faults:
            place = choose.randrange(IMAGES)
            try:
                for ours, theirs in zip(episode(tool, images[place]), expected[place], strict=True):
                    if not same_bits(ours, theirs):
                        faults.append(f"client {client} got another mask of image {place}")
                    answers[client] += 1
            except Exception as error:
                faults.append(f"client {client}: {error}")

    def attack() -> None:
        """Send what has to be refused, all the time."""
        pool = urllib3.PoolManager(retries=False)
        for body, status in 1000 * ((bytes(100), 400), (bytes(5 << 20), 413), (wire.pack({"images": ["../x"]}), 400)):
            if time.monotonic() - began > SECONDS:
                return
            try:
                answer = pool.request("POST", f"{url}/encode", body=body, headers={"Content-Type": wire.CONTENT_TYPE})
                if answer.status not in (status, 503):
                    faults.append(f"status {answer.status} in place of {status}")
            except urllib3.exceptions.HTTPError as error:  # it hung up on what is too large
                if status != 413:
                    faults.append(str(error))
            sizes.append(memory(pid))
            time.sleep(0.2)

    threads = [threading.Thread(target=play, args=(client,)) for client in range(CLIENTS)]
    threads.append(threading.Thread(target=attack))
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    seconds = time.monotonic() - began
    assert faults == []
    assert min(answers) > 0, "a client was starved"
    assert max(sizes) - sizes[0] < 2 * MEMORY + 64, sizes
    rate, alone = sum(answers) / seconds, time.monotonic()
    for image in images[:10]:
        episode(local, image)
    of_the_tool = 10 * CLICKS / (time.monotonic() - alone)
    print(f"\n{sum(answers)} answers, {rate:.1f} a second, {rate / of_the_tool:.2f} of the tool's own rate;", end=" ")
    print(f"memory {sizes[0]:.0f} MiB at first, {max(sizes):.0f} at most")
