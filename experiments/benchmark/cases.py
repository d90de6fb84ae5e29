"""The comparisons that are timed, by name."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np

import agents
from experiments.benchmark import environments, geometry, sam, search, service
from experiments.benchmark.timing import Timing, compare, time_parser, where_installed
from search.episode import Episode
from search.rollout import rollout
from segenv import annotator, codec, data, metrics, render, tools
from segenv.mdp import SegMDP
from segenv.tools import EncodingCache
from segenv.types import Click, Prompt, Task

HEIGHT, WIDTH = 768, 1024  # of the images that the kernels are timed on
BATCH, LARGE_BATCH = 8, 32
PAIR_RATIO = 3.0  # how many times faster the embedded pair must play a large batch


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image of noise, uint8 [H, W, 3], and bool [H, W] masks of an object and of a prediction that is off."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    target, prediction = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(target, (600, 400), (128, 90), 20, 0, 360, 1, -1)
    cv2.ellipse(prediction, (625, 420), (120, 80), -10, 0, 360, 1, -1)
    return image, target.astype(bool), prediction.astype(bool)


def iou(seconds: float) -> Iterator[Timing]:
    _, target, prediction = scene()

    def plain() -> float:
        return np.logical_and(target, prediction).sum() / np.logical_or(target, prediction).sum()

    size = f"{WIDTH} x {HEIGHT}"
    times = compare(plain, lambda: metrics.iou(target, prediction), lambda a, b: a == b, seconds)
    yield Timing("iou", size, *times, "sums over the image | counts").at_least(3)
    labels = cv2.ellipse(target.astype(np.uint8) * 255, (600, 400), (140, 100), 20, 0, 360, 128, 10)
    ready = metrics.PreparedTarget(labels)
    times = compare(
        lambda: environments.plain_iou(labels, prediction), lambda: ready.iou(prediction), lambda a, b: a == b, seconds
    )
    yield Timing("iou", f"{size}, ignored pixels", *times, "sums over the image | counts, target prepared").at_least(3)


def next_click(seconds: float) -> Iterator[Timing]:
    _, target, prediction = scene()
    clicked = [Click(600, 400)]

    def plain() -> Click:
        depths = []
        for error in (target & ~prediction, prediction & ~target):
            padded = np.pad(error, 1).astype(np.uint8)
            depths.append(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1])
            for click in clicked:
                depths[-1][click.y, click.x] = 0
        positive = bool(depths[0].max() > depths[1].max())
        y, x = divmod(int(depths[not positive].argmax()), WIDTH)
        return Click(x, y, positive)

    times = compare(plain, lambda: annotator.next_click(target, prediction, clicked), Click.__eq__, seconds)
    note = "distance transform of the image | of the error's box"
    yield Timing("next-click", f"{WIDTH} x {HEIGHT}", *times, note).at_least(6)


def overlay(seconds: float) -> Iterator[Timing]:
    image, _, mask = scene()

    def plain() -> np.ndarray:
        blend = np.rint(image * 0.5 + np.array(render.GREEN) * 0.5).astype(np.uint8)
        return np.where(mask[..., None], blend, image)

    times = compare(plain, lambda: render.overlay(image, mask), np.array_equal, seconds)
    note = "blend of the image | lookup table on the mask's box"
    yield Timing("overlay", f"{WIDTH} x {HEIGHT}", *times, note).at_least(10)


def branch(seconds: float) -> Iterator[Timing]:
    image, target, _ = scene()
    mdp = SegMDP(tools.make("disc"))
    state = mdp.initial(Task("scene", image, target))
    for x in range(550, 650, 20):
        (state,) = mdp.transition([state], [Click(x, 400)])

    times = compare(
        lambda: copy.deepcopy(state, {id(state.task): state.task}),  # image and target shared, to be fair
        lambda: replace(state),
        lambda a, b: a.clicks == b.clicks and np.array_equal(a.mask, b.mask),
        seconds,
    )
    yield Timing("branch", "after 5 clicks", *times, "deep copy of the state | a new state over the same arrays")


def parser(seconds: float) -> Iterator[Timing]:
    task = Task("scene", *scene()[:2])
    for name in codec.CODECS:
        dialect = codec.make(name)

        def parse(text: str, dialect: codec.Codec = dialect) -> None:
            dialect.read(text, task)

        yield time_parser(name, dialect.format(Click(500, 300), task), parse)


def tool(seconds: float) -> Iterator[Timing]:
    for spec in ("disc", "grabcut", "sam"):
        measure = partial(time_tool, spec, f"{spec}, {BATCH} images", seconds)
        yield from where_installed("tool", spec, measure)


def time_tool(spec: str, case: str, seconds: float) -> Iterator[Timing]:
    one = tools.make(spec)
    tasks = list(data.make("synthetic:val")[:BATCH])
    images, hashes = [task.image for task in tasks], [task.image_hash for task in tasks]
    encodings, prompts = one.encode(images, hashes), [Prompt((deepest(task),)) for task in tasks]

    def encode(size: int) -> list[Any]:
        one.cache = EncodingCache()
        parts = [one.encode(images[i : i + size], hashes[i : i + size]) for i in range(0, BATCH, size)]
        return [encoding for part in parts for encoding in part]

    def decode(size: int) -> list[np.ndarray]:
        parts = [one.predict(encodings[i : i + size], prompts[i : i + size]) for i in range(0, BATCH, size)]
        return [prediction.mask for part in parts for prediction in part]

    times = compare(lambda: encode(1), lambda: encode(BATCH), close, seconds)
    yield Timing("tool", case, *times, "encode: singly | batched")
    times = compare(lambda: decode(1), lambda: decode(BATCH), agree, seconds)
    yield Timing("tool", case, *times, "decode: singly | batched")


def deepest(task: Task) -> Click:
    """Ask the annotator for the first click."""
    click = annotator.next_click(task.target, np.zeros(task.target.shape, bool))
    assert click is not None, f"task {task.id} has an empty target"
    return click


def close(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> bool:
    """Whether encodings are equal within a batched matrix product's rounding."""
    return all(np.allclose(a[key], b[key], atol=1e-3) for a, b in zip(first, second, strict=True) for key in a)


def agree(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether masks are equal but for one pixel in ten thousand, which rounding may tip over."""
    return all((a != b).mean() <= 1e-4 for a, b in zip(first, second, strict=True))


def episodes(seconds: float) -> Iterator[Timing]:
    def annotator_and(spec: str) -> Iterator[Timing]:
        mdp = SegMDP(tools.make(spec), max_steps=5)
        yield time_rollout(mdp, agents.make("annotator"), BATCH, f"annotator and {spec}, {BATCH} episodes", seconds)

    def pair() -> Iterator[Timing]:
        mdp, writer = SegMDP(tools.make("sam"), max_steps=7), agents.make("mllm", temperature=1.0)
        case = f"mllm and sam, {LARGE_BATCH} episodes"
        yield time_rollout(mdp, writer, LARGE_BATCH, case, seconds).at_least(PAIR_RATIO)

    for spec in ("disc", "sam"):
        yield from where_installed("rollout", spec, partial(annotator_and, spec))
    yield from where_installed("rollout", "mllm and sam", pair)


def time_rollout(mdp: SegMDP, player: agents.Agent, count: int, case: str, seconds: float) -> Timing:
    """Time `count` episodes one at a time, and all together."""
    tasks = list(data.make("synthetic:val")[:count])

    def play(size: int) -> list[Episode]:
        mdp.tool.cache.clear()
        return list(rollout(mdp, player, tasks, batch_size=size))

    plain, fast = compare(lambda: play(1), lambda: play(count), same_episodes, seconds)
    rates = " | ".join(f"{1000 * count / time:.3g}" for time in (plain, fast))
    note = f"one at a time | together, images encoded anew: {rates} episodes a second"
    return Timing("rollout", case, plain, fast, note)


def same_episodes(first: list[Episode], second: list[Episode]) -> bool:
    """Whether clicks and IoUs are equal but in one episode of ten, of which rounding in a near tie makes another."""
    same = [
        [step.action for step in a.steps] == [step.action for step in b.steps]
        and np.allclose(a.ious, b.ious, atol=1e-3)
        for a, b in zip(first, second, strict=True)
    ]
    return sum(same) >= 0.9 * len(same)


BENCHMARKS: dict[str, Callable[[float], Iterator[Timing]]] = {
    "iou": iou,
    "next-click": next_click,
    "overlay": overlay,
    "branch": branch,
    "parser": parser,
    "geometry": geometry.rows,
    "tool": tool,
    "sam": sam.rows,
    "service": service.rows,
    "rollout": episodes,
    "tree": search.rows,
    "step": environments.steps,
    "vector": environments.vectors,
    "memory": environments.memory,
    "large": environments.large,
}
