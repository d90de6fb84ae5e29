"""Time environments: a step beside the tool's part of it, batches against Gymnasium's, memory, and large images.

On processor time of this process, but for what runs in several: so other work on the machine counts little.

    python -m experiments.benchmark --only vector
    python -m experiments.benchmark --only photos --photos index:DIR

Most play `segenv/HLMATGrid-v0` with clicks drawn at random, in step: every episode has as many steps.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from experiments.benchmark import timing
from experiments.benchmark.timing import Timing, where_installed
from segenv import data, metrics, tools
from segenv.data.pool import Pool
from segenv.envs.base import Moment
from segenv.envs.numbers import View
from segenv.envs.numeric import HLMATGridEnv
from segenv.mdp import Observation, SegState
from segenv.tools.base import SegTool
from segenv.tools.cache import Encoding
from segenv.tools.disc import DiscTool
from segenv.types import IGNORE, Prediction, Prompt, Task, ignored_of, object_of

ID = "segenv:segenv/HLMATGrid-v0"
MANY, SOME, FEW = 32, 16, 8  # environments
STEPS, LONG = 5, 20  # of an episode
LARGE = 2048  # px, a side of a large image
MEGABYTES = 60  # that many environments may take above one
SAMS = ("sam:refine=none", "sam")  # the model alone, and with its finish
PLACE = 20_000  # of a task that is looked for by its id

clock = time.process_time
compare = partial(timing.compare, clock=clock)


class NullTool(DiscTool):
    """A tool that does nothing: it gives the mask back."""

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        shapes = [encoding["size"] for encoding in encodings]
        return [
            Prediction(np.zeros(shape, bool) if prompt.mask is None else prompt.mask)
            for shape, prompt in zip(shapes, prompts, strict=True)
        ]


# --- a step, and the tool's part of it ----------------------------------------------------------------------------


def steps(seconds: float) -> Iterator[Timing]:
    tasks = list(data.make("synthetic:val")[:MANY])
    for spec in SAMS:
        case = f"{spec}, {MANY} scenes"
        yield from where_installed("step", spec, partial(step, spec, tasks, case, 1.05, seconds))


def step(spec: str, tasks: Sequence[Task], case: str, most: float, seconds: float) -> Iterator[Timing]:
    """Time steps of as many environments as there are tasks, and `predict` within these steps."""
    tool, parts_of_step = warm(spec), []
    predict = tool.predict

    def timed(encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        began = clock()
        found = predict(encodings, prompts)
        parts_of_step.append(clock() - began)
        return found

    tool.predict = timed  # type: ignore[method-assign]
    envs = make(tool, tasks, len(tasks), autoreset_mode="Disabled")
    clicks = actions(envs, STEPS)
    parts, rests = np.full((2, STEPS), np.inf)
    end, turns = clock() + seconds, 0
    while turns < 3 or clock() < end:
        envs.reset(options={"task": list(tasks)})
        for i, click in enumerate(clicks):
            began = clock()
            envs.step(click)
            whole_step, part = clock() - began, parts_of_step.pop()
            parts[i], rests[i] = min(parts[i], part), min(rests[i], whole_step - part)
        turns += 1
    part, whole = 1000 * float(parts.sum()), 1000 * float((parts + rests).sum())
    yield Timing("step", case, whole, part, f"{STEPS} steps | the batched predict in them").at_most(most)


# --- batches ------------------------------------------------------------------------------------------------------


def make(tool: str | SegTool, tasks: Any, count: int, mode: str | None = None, **options: Any) -> Any:
    """`count` environments whose episodes have `STEPS` steps; `mode` is Gymnasium's way to make a batch of singles."""
    return gym.make_vec(ID, count, mode, tool=tool, data=tasks, **{"max_steps": STEPS, "stop": False, **options})


def actions(envs: Any, count: int) -> list[np.ndarray]:
    envs.action_space.seed(0)
    return [envs.action_space.sample() for _ in range(count)]


def play(envs: Any, clicks: Sequence[np.ndarray], fresh: bool) -> np.ndarray:
    """Rewards of one episode each, [steps, environments]; `fresh` forgets what was encoded before."""
    if fresh:
        for env in envs.envs:
            env.unwrapped.mdp.tool.cache.clear()
    envs.reset(seed=0)
    return np.stack([envs.step(click)[1] for click in clicks])


def warm(spec: str) -> SegTool:
    """A tool that records its decoder at the first click of a kind, as it else does after many."""
    tool = tools.make(spec)
    if (recorded := getattr(tool, "recorded", None)) is not None:
        recorded.after = 0
    return tool


def nearly(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether rewards are equal but for what a batch's rounding tips over, which later steps may enlarge."""
    return bool((np.abs(first - second) <= 1e-3).mean() >= 0.9)


def vectors(seconds: float) -> Iterator[Timing]:
    pool = Pool(data.make("synthetic:val"), MANY)
    yield light(NullTool(), "a tool that does nothing", pool, seconds).at_least(2)
    yield light(DiscTool(), "disc", pool, seconds)
    yield beside_processes(DiscTool(), "disc", pool, seconds)
    for spec in SAMS:
        yield from where_installed("vector", spec, partial(with_sam, spec, seconds))
    yield by_id(seconds)


def light(tool: SegTool, case: str, pool: Pool, seconds: float) -> Timing:
    """Time what surrounds the tool, on tasks in memory and with episodes of the usual length."""
    plain, fast = (make(tool, pool, MANY, mode, max_steps=LONG) for mode in ("sync", None))
    clicks = actions(fast, LONG)
    compare(lambda: play(plain, clicks, False), lambda: play(fast, clicks, False), np.array_equal, 0.0)
    best, end, turns = np.full((2, LONG), np.inf), clock() + seconds, 0
    while turns < 3 or clock() < end:
        for envs in (plain, fast):
            envs.reset(seed=0)
        for i, click in enumerate(clicks):  # in turns at each step, of which the fastest counts: they are short
            for envs, times in zip((plain, fast), best, strict=True):
                began = clock()
                envs.step(click)
                times[i] = min(times[i], clock() - began)
        turns += 1
    plain_ms, fast_ms = (1000 * best.sum(1)).tolist()
    return Timing("vector", f"{case}, {MANY} at once", plain_ms, fast_ms, f"Sync | vector, {LONG} steps")


def beside_processes(tool: SegTool, case: str, pool: Pool, seconds: float) -> Timing:
    """Time a batch beside Gymnasium's processes, one for each environment, by the clock on the wall."""
    processes, fast = (make(tool, pool, FEW, mode, max_steps=LONG) for mode in ("async", None))
    try:
        clicks = actions(fast, LONG)
        ways = partial(play, processes, clicks, False), partial(play, fast, clicks, False)
        times = timing.compare(*ways, np.array_equal, seconds)
    finally:
        processes.close()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Timing("vector", f"{case}, {FEW} at once", *times, f"Async on {cores} cores | vector, {LONG} steps")


def with_sam(spec: str, seconds: float) -> Iterator[Timing]:
    """Time episodes with the embedded SAM: on scenes drawn and encoded anew, and on a pool of them. All environments of
    a batch have one tool."""
    scenes = data.make("synthetic:val")
    pool = Pool(scenes, 2 * SOME)
    sync, fast = make(warm(spec), scenes, SOME, "sync"), make(warm(spec), scenes, SOME)
    known, pooled = make(warm(spec), pool, SOME, "sync"), make(warm(spec), scenes, SOME, pool=2 * SOME)
    clicks = actions(fast, STEPS)
    case, note = f"{spec}, {SOME}", f"an episode of {STEPS} steps"
    new = compare(lambda: play(sync, clicks, True), lambda: play(fast, clicks, True), nearly, seconds)
    yield Timing("vector", f"{case} fresh scenes", *new, f"Sync | vector, {note}").at_least(1.5)
    ready = compare(lambda: play(known, clicks, False), lambda: play(pooled, clicks, False), nearly, seconds)
    both = f"Sync on fresh scenes | vector with a warm pool, {note}"
    yield Timing("vector", f"{case} with a pool", new[0], ready[1], both).at_least(3)
    yield Timing("vector", f"{case} in memory", *ready, f"Sync | vector, both with all in memory, {note}")


def by_id(seconds: float) -> Timing:
    """Time the search for a task of a large dataset by its id."""
    scenes = data.make("synthetic:train")
    name = scenes.ids[PLACE]

    def search() -> int:
        return next(i for i, known in enumerate(scenes.ids) if known == name)

    times = compare(search, partial(scenes.place_of, name), int.__eq__, seconds)
    return Timing("reset", f"by id, task {PLACE:,} of {len(scenes):,}", *times, "a look at each id | read from the id")


# --- memory -------------------------------------------------------------------------------------------------------


def memory(seconds: float) -> Iterator[Timing]:
    yield from where_installed("memory", "sam", more_memory)


def more_memory() -> Iterator[Timing]:
    """Compare the highest memory of processes that play on fresh scenes."""
    tools.make("sam")  # is it there?
    code = "from experiments.benchmark.environments import peak; print(peak({}))"
    held = []
    for count in (1, MANY):
        done = subprocess.run(
            [sys.executable, "-c", code.format(count)], capture_output=True, text=True, check=True, timeout=600
        )
        held.append(float(done.stdout.split()[-1]))
    more, note = held[1] - held[0], f"{MANY} environments | one: {held[1]:.0f} | {held[0]:.0f} MB at their highest"
    yield Timing("memory", f"sam, {MANY} fresh scenes", None, None, note, more < MEGABYTES, f"< {MEGABYTES} MB more")


def peak(count: int) -> float:
    """The highest memory of this process, in MB, after an episode in `count` environments."""
    cv2.setNumThreads(1)
    envs = make("sam", data.make("synthetic:val"), count)
    play(envs, actions(envs, STEPS), False)
    return highest()


def highest() -> float:
    """The highest memory that this process has held, in MB."""
    if sys.platform == "linux":  # where ru_maxrss of a child begins at what its parent held
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


# --- large images -------------------------------------------------------------------------------------------------


class PlainGridEnv(HLMATGridEnv):
    """An environment that keeps nothing between two steps: each resizes the image, and finds both IoUs by sums."""

    def _moment(self, state: SegState) -> Moment:
        observation = self.mdp.observation(state)
        return Moment(state, observation, plain_iou(state.task.target, observation.mask))

    def _observe(self, observation: Observation) -> dict[str, Any]:
        self.view = View(self.size)
        return super()._observe(observation)


def large(seconds: float) -> Iterator[Timing]:
    rows, columns = np.ogrid[:LARGE, :LARGE]
    away = np.hypot(rows - 1000, columns - 900)
    image = np.random.default_rng(0).integers(0, 256, (LARGE, LARGE, 3), dtype=np.uint8)
    task = Task("large", image, np.where(away < 400, 255, np.where(away < 420, 128, 0)).astype(np.uint8))
    clicks = np.random.default_rng(0).integers(0, 256, STEPS).tolist()

    def episode(env: gym.Env) -> list[Any]:
        env.reset()
        seen = [env.step(click)[:2] for click in clicks]
        return [(step["image"].tobytes(), reward) for step, reward in seen]

    for tool, case in ((NullTool(), "a tool that does nothing"), (DiscTool(200), "disc")):
        plain, fast = (kind(tool, [task], max_steps=STEPS, stop=False) for kind in (PlainGridEnv, HLMATGridEnv))
        times = compare(partial(episode, plain), partial(episode, fast), list.__eq__, seconds)
        note = f"nothing kept between steps | one resize and one target an episode; {STEPS} steps and a reset"
        yield Timing("large", f"{case}, {LARGE} px", *times, note).at_least(2)


# --- photographs --------------------------------------------------------------------------------------------------


def photos(spec: str | None, seconds: float) -> Iterator[Timing]:
    """Time steps and IoUs on photographs of the user's."""
    if spec is None:
        yield Timing("photos", "", None, None, "not measured: name photographs with --photos, a data spec")
        return
    tasks = list(data.make(spec)[:MANY])
    for tool in SAMS:
        case = f"{tool}, {len(tasks)} photos"
        yield from where_installed("step", tool, partial(step, tool, tasks, case, 1.08, seconds))
    yield from photos_iou(tasks, seconds)


def photos_iou(tasks: Sequence[Task], seconds: float) -> Iterator[Timing]:
    """Time the IoU of each object with a mask that is some pixels larger."""
    masks = [cv2.dilate(object_of(task.target).astype(np.uint8), np.ones((15, 15))).astype(bool) for task in tasks]

    def plain() -> list[float]:
        return [plain_iou(task.target, mask) for task, mask in zip(tasks, masks, strict=True)]

    def fast() -> list[float]:
        return [metrics.prepared(task).iou(mask) for task, mask in zip(tasks, masks, strict=True)]

    row = Timing("iou", f"{len(tasks)} photos", *compare(plain, fast, list.__eq__, seconds), "")
    ignoring = sum(ignored_of(task.target) is not None for task in tasks)
    yield replace(row, note=f"sums over the image | counts; {ignoring} photos have ignored pixels").at_least(3)


def plain_iou(target: np.ndarray, prediction: np.ndarray) -> float:
    """The IoU by sums over the whole image."""
    wanted, counted = object_of(target), target != IGNORE  # which no bool is
    union = ((wanted | prediction) & counted).sum()
    return float((wanted & prediction & counted).sum() / union) if union else 1.0
