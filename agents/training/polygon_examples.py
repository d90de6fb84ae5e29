"""Training examples for polygons: questions about procedural scenes that are answered by all polygons of an object at
once, by a box or by a point (SimpleSeg's task interface), for the tiny model that has learned to click.

Most questions name an object and want its mask; some give its box or a point on it, want its box, or name something
that is not there, which is answered by an empty list.
"""

from itertools import product
from typing import Any

import numpy as np

from agents.training.click_examples import (
    COLOUR_NAMES,
    SHAPE_NAMES,
    ClickExample,
    ClickExamples,
    Mixture,
    Question,
)
from agents.training.patch_labels import (
    FINE,
    OUTLINES,
    RATIO,
    ROWS,
    fine_shares,
    patches_of,
    thousandths,
    vertex_places,
    vertices_on_rows,
)
from segenv import queries, render
from segenv.codec import polygons
from segenv.data.synthetic.scenes import Scene
from segenv.geometry import fit
from segenv.types import Polygons, Task, object_of

# Chance of each (prompt type, output type). The rest, NO_TARGET_SHARE, are masks of objects that are not there.
QUERY_SHARES = {("text", "mask"): 0.72, ("box", "mask"): 0.08, ("point", "mask"): 0.08, ("text", "box"): 0.08}
NO_TARGET_SHARE = 0.04
VERTICES = 12  # of an object's polygons, at most
ORDERS = ("canonical", "reversed", "random-start", "random")

# Frequent runs of brackets and digits of the polygon codecs as one token each: a vertex then takes eight.
TOKENS = ("],[", "]],[[", "[[[", "]]]", "], [0.", "]], [[0.", "[[[0.", ", 0.", "Vertices:")


class PolygonExamples(ClickExamples):
    """Makes example i from i, the seed and the mixture, whose `first` is the number of questions about a scene.

    `codec` is a polygon codec's spec; `vertices`, `ratio`, `order` and `rows` are as for `format_rings`.
    """

    def __init__(
        self,
        mixture: Mixture,
        codec: str = "rings",
        vertices: int = VERTICES,
        ratio: float = RATIO,
        order: str = "canonical",
        rows: bool = False,
        **how: Any,
    ) -> None:
        super().__init__(mixture, **how)
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; expected one of {', '.join(ORDERS)}")
        self.polygon_codec, self.vertices, self.ratio, self.order = polygons.make(codec), vertices, ratio, order
        self.rows = rows

    def __getitem__(self, i: int) -> ClickExample:
        scene, named, rng, _ = self._named_scene(i)
        questions = []
        for k in range(self.mixture.first):
            index, sentences = named[k % len(named)]
            questions.append(self._polygon_question(scene, index, str(rng.choice(sentences)), rng))
        pictures = render.resized(scene.image, (self.image_size,) * 2)[None]
        nothing = np.zeros((1, self.grid**2, FINE**2), np.float32)
        return ClickExample(pictures, nothing, *self._labels(scene), tuple(questions))

    def _polygon_question(self, scene: Scene, k: int, sentence: str, rng: np.random.Generator) -> Question:
        chance = rng.random()
        if chance < NO_TARGET_SHARE and (words := absent_instructions(scene)):
            task = Task("example", scene.image, np.zeros(scene.instances.shape, bool), str(rng.choice(words)))
            prompt_type, output_type = "text", "mask"
        else:
            task = self._task(scene, k, sentence)
            weights = np.array(list(QUERY_SHARES.values()))
            prompt_type, output_type = list(QUERY_SHARES)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        query = queries.query(task, self.polygon_codec, prompt_type, output_type, style="instruction")
        if output_type == "mask":
            reply = format_rings(task, self.polygon_codec, self.vertices, self.ratio, self.order, rng, self.rows)
        else:
            reply = queries.reply(query, self.polygon_codec)
        covered = self._shares(task.target)
        shares = np.stack([covered, covered, np.zeros_like(covered)])
        starts = output_type == "mask" and self.order in ("canonical", "reversed")
        fine = fine_shares(object_of(task.target), self.grid)
        drawn = self.polygon_codec.parse(reply, task)  # as the reply writes it
        rings = list(drawn.rings) if isinstance(drawn, Polygons) else []
        looks = patches_of(np.concatenate(rings), task, self.grid).tolist() if rings else []
        first = looks[0] if starts and rings else -1
        places = vertex_places(rings, task, self.grid, self.polygon_codec.dialect.frame, self.rows)
        return Question(0, query.prompt, reply, shares, first, 0.0, fine, places, tuple(looks))

    def _outline(self, task: Task) -> list[np.ndarray]:
        if not self.rows:
            return super()._outline(task)
        outline = OUTLINES.outline(object_of(task.target)).rings
        return vertices_on_rows(outline, thousandths(OUTLINES.dialect.frame, task), ROWS)


def format_rings(
    task: Task,
    codec: polygons.PolygonCodec,
    vertices: int = VERTICES,
    ratio: float = RATIO,
    order: str = "canonical",
    rng: np.random.Generator | None = None,
    rows: bool = False,
) -> str:
    """Format the polygons of a task's target as a reply: simplified by `ratio` of each ring's length, so that the
    corners stay and not the steps of a slanted edge; and where that still takes more than `vertices`, the best polygons
    within that number (one rectangle where that is too few).

    With `rows` vertices are where the outline crosses 20, 10 or 5 rows of the image, the most at which they are few
    enough, and just inside its top and bottom. Then the next vertex can be foreseen but for its x, which one look at
    the image tells; which corner of a disc is a vertex, nothing does. Where five rows give too many, it is the corners.

    A ring's vertices are in `order`: counterclockwise on the screen from the topmost one (canonical), reversed, from a
    random one, or shuffled.
    """
    rings = list(codec.outline(object_of(task.target), ratio=ratio).rings)
    if rows:
        whole, scale = codec.outline(object_of(task.target)).rings, thousandths(codec.dialect.frame, task)
        found = (vertices_on_rows(whole, scale, ROWS * step) for step in (1, 2, 4))
        rings = next((some for some in found if 0 < sum(map(len, some)) <= vertices), rings)
    if rings:
        rings = fit(rings, lambda candidates: sum(map(len, candidates)) <= max(4, vertices), codec.union)
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
