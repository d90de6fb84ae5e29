"""Lessons in drawing: questions about procedural scenes that are answered by a whole outline at once, by a box or by a
point (SimpleSeg's task interface), for the tiny model that has learned where things are by clicking.

Most questions name an object and ask for its mask; some give its box or a point on it, ask for its box, or name
something that is not there, which is answered by an empty list.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import cv2
import numpy as np

from agents.backends.transformers import resized
from agents.training.click_examples import (
    COLOUR_NAMES,
    FINE,
    SHAPE_NAMES,
    ClickExample,
    ClickExamples,
    Mixture,
    Question,
    rotated,
)
from segenv import queries
from segenv.codec import polygons
from segenv.data.synthetic.scenes import Scene, expressions
from segenv.geometry import fit
from segenv.types import Task, object_of

# What is asked, with its chance. The rest, ABSENT, are masks of objects that are not there.
QUERY_SHARES = {("text", "mask"): 0.72, ("box", "mask"): 0.08, ("point", "mask"): 0.08, ("text", "box"): 0.08}
NO_TARGET_SHARE = 0.04
VERTICES, RATIO = 12, 0.015  # of an outline: at most, and simplified by this part of each ring's length
ORDERS = ("canonical", "reversed", "random-start", "random")

# Frequent runs of brackets and digits of the polygon codecs as one token each: a vertex then takes eight.
TOKENS = ("],[", "]],[[", "[[[", "]]]", "], [0.", "]], [[0.", "[[[0.", ", 0.", "Vertices:")


class PolygonExamples(ClickExamples):
    """Lesson i is a function of i, the seed and the plan (which says how many questions a scene is asked).

    `codec` is a polygon codec's spec; `vertices`, `ratio` and `order` are as for `drawn`.
    """

    def __init__(
        self,
        plan: Mixture,
        codec: str = "rings",
        vertices: int = VERTICES,
        ratio: float = RATIO,
        order: str = "canonical",
        **how: Any,
    ) -> None:
        super().__init__(plan, **how)
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; expected one of {', '.join(ORDERS)}")
        self.dialect, self.vertices, self.ratio, self.order = polygons.get(codec), vertices, ratio, order

    def __getitem__(self, i: int) -> ClickExample:
        rng = np.random.default_rng([self.seed, i])
        number = i // (self.window * self.reuse) * self.window + i % self.window
        scene = rotated(self.scene(number), int(rng.integers(8)))
        named = [(k, found) for k in range(len(scene.objects)) if (found := expressions(scene, k))]
        if not named:
            return self[i + self.window * self.reuse]
        asked = [named[k] for k in rng.permutation(len(named))]
        questions = []
        for k in range(self.plan.first):
            number, sentences = asked[k % len(asked)]
            questions.append(self._asked(scene, number, str(rng.choice(sentences)), rng))
        pictures = resized(scene.image, (self.image_size,) * 2)[None]
        patches, objects = self._labels(scene)
        return ClickExample(pictures, np.zeros((1, self.grid**2), np.float32), patches, objects, tuple(questions))

    def _asked(self, scene: Scene, k: int, sentence: str, rng: np.random.Generator) -> Question:
        chance = rng.random()
        if chance < NO_TARGET_SHARE and (words := absent_instructions(scene)):
            task = Task("lesson", scene.image, np.zeros(scene.instances.shape, bool), str(rng.choice(words)))
            given, wanted = "text", "mask"
        else:
            task = self._task(scene, k, sentence)
            weights = np.array(list(QUERY_SHARES.values()))
            given, wanted = list(QUERY_SHARES)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        query = queries.query(task, self.dialect, given, wanted, style="instruction")
        if wanted == "mask":
            reply = format_rings(task, self.dialect, self.vertices, self.ratio, self.order, rng)
        else:
            reply = queries.reply(query, self.dialect)
        covered = self._shares(task.target)
        shares = np.stack([covered, covered, np.zeros_like(covered)])
        begins = wanted == "mask" and self.order in ("canonical", "reversed")
        first = self._first(task) if begins else -1
        return Question(0, query.prompt, reply, shares, first, 0.0, self._fine(task))

    def _fine(self, task: Task) -> np.ndarray:
        """The target's share of the squares of each patch, float32 [N, FINE²]."""
        side = self.grid * FINE
        shares = cv2.resize(task.target.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        return shares.reshape(self.grid, FINE, self.grid, FINE).swapaxes(1, 2).reshape(-1, FINE**2)

    def _first(self, task: Task) -> int:
        """The patch in which a drawing begins, -1 where there is none."""
        rows, columns = np.nonzero(task.target)
        if not len(rows):
            return -1
        return int(rows[0]) * self.grid // task.height * self.grid + int(columns[0]) * self.grid // task.width


def format_rings(
    task: Task,
    codec: polygons.PolygonCodec,
    vertices: int = VERTICES,
    ratio: float = RATIO,
    order: str = "canonical",
    rng: np.random.Generator | None = None,
) -> str:
    """The reply that draws a task's target: simplified by `ratio` of each ring's length, so that the corners stay and
    not the steps of a slanted edge; and where that still takes more than `vertices`, the best outline that does not
    (one rectangle where that is too few).

    `order` is that of a ring's vertices: counterclockwise on the screen from the topmost one (canonical), reversed,
    from a random one, or shuffled.
    """
    rings = list(codec.outline(object_of(task.target), ratio=ratio).rings)
    if rings:
        rings = fit(rings, lambda found: sum(map(len, found)) <= max(4, vertices), codec.union)
    if order == "reversed":
        rings = [np.roll(ring[::-1], 1, axis=0) for ring in rings]  # from the same vertex
    elif order != "canonical":
        rng = rng or np.random.default_rng(0)
        rings = [
            np.roll(ring, int(rng.integers(len(ring))), axis=0) if order == "random-start" else rng.permutation(ring)
            for ring in rings
        ]
    return codec.drawn(rings, task)


def absent_instructions(scene: Scene) -> list[str]:
    """Sentences of a colour and a shape that nothing in the scene has, clutter included."""
    there = {(thing.colour, thing.shape) for thing in (*scene.objects, *scene.clutter)}
    pairs = ((colour, shape) for colour, shape in product(COLOUR_NAMES, SHAPE_NAMES) if (colour, shape) not in there)
    return [f"the {colour} {shape}" for colour, shape in pairs]
