"""Procedural scenes: textured, lit, overlapping objects, and a sentence that picks out exactly one of them.

A scene is a function of (split, difficulty, index) alone. `synthetic:val` runs through the difficulties in turn,
`synthetic:val#hard` holds the hard ones only: item k of the latter is item 3k + 2 of the former. Splits are different
random streams. `single`, `charts` and `interfaces` are classes of their own, and no part of the mix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np

from segenv.data.base import Dataset
from segenv.data.synthetic import charts, interfaces
from segenv.data.synthetic import shapes as scene_shapes
from segenv.data.synthetic.drawing import Scene, SceneObject, Thing
from segenv.data.synthetic.shapes import COLOURS, background, lit, paint, texture
from segenv.files import content_hash
from segenv.types import Task

VERSION = 1  # part of every scene's seed: raise it when a scene's pixels would change
LENGTHS = {"train": 1_000_000, "val": 10_000, "test": 10_000}
SIZES = ((256, 256), (192, 256), (256, 192))  # [H, W] of a scene, drawn at random


@dataclass(frozen=True)
class Difficulty:
    """Settings of the scenes of one class; ranges are sampled uniformly and include both ends."""

    name: str
    objects: tuple[int, int]
    radius: tuple[float, float]  # of an object, in units of the scene's shorter side
    shapes: tuple[str, ...]
    texture: float  # chance that a surface has a pattern
    contrast: float  # strength of patterns, 0..1
    overlap: float  # largest part of an object that later ones may hide
    clutter: tuple[int, int]  # small things that nobody asks for
    camouflage: float  # chance that the background takes the colour of an object
    noise: float  # largest standard deviation of pixel noise, in grey levels


BASIC = ("circle", "square", "triangle", "star", "cross", "ring")
THIN = ("frame", "bar", "crescent", "sun", "comb")
SHAPES = (*BASIC, "blob", *THIN)
DIFFICULTIES = (
    Difficulty("easy", (2, 3), (0.14, 0.26), BASIC, 0.35, 0.35, 0.0, (0, 0), 0.0, 4.0),
    Difficulty("medium", (3, 5), (0.10, 0.24), (*BASIC, "blob", "bar", "frame"), 0.7, 0.6, 0.35, (0, 6), 0.15, 8.0),
    Difficulty("hard", (4, 7), (0.08, 0.26), SHAPES, 0.9, 0.9, 0.6, (4, 16), 0.4, 12.0),
)


SINGLE = Difficulty("single", (1, 1), (0.10, 0.30), SHAPES, 0.7, 0.6, 0.0, (0, 8), 0.15, 8.0)
OTHERS: dict[str, Any] = {"single": SINGLE, "charts": charts.VERSION, "interfaces": interfaces.VERSION}
CLASSES = (*(level.name for level in DIFFICULTIES), *OTHERS)  # in the order of their seeds; the mix has the first three


class Synthetic(Dataset):
    """Procedural scenes as tasks. `scene(i)` gives all objects of a scene, `load(i)` one of them as a task."""

    def __init__(self, split: str = "train", difficulty: str | None = None) -> None:
        if split not in LENGTHS:
            raise ValueError(f"synthetic has no split {split!r}; it has {', '.join(LENGTHS)}")
        if difficulty is not None and difficulty not in CLASSES:
            raise ValueError(f"synthetic has no difficulty {difficulty!r}; it has {', '.join(CLASSES)}")
        self.split, self.difficulty = split, difficulty
        self.spec = f"synthetic:{split}" + (f"#{difficulty}" if difficulty else "")
        super().__init__()

    def __len__(self) -> int:
        return LENGTHS[self.split]

    @property
    def ids(self) -> Sequence[str]:
        return _Ids(self)

    @property
    def fingerprint(self) -> str:
        """Identifies the scenes: the generator's version and its classes."""
        classes = OTHERS.get(self.difficulty or "", DIFFICULTIES)
        return content_hash(repr((VERSION, self.spec, classes)).encode(), size=8)

    def place(self, i: int) -> tuple[str, int]:
        """The difficulty of item i, and its number within that class."""
        if self.difficulty is None:
            return DIFFICULTIES[i % 3].name, i // 3
        return self.difficulty, i

    def id(self, i: int) -> str:
        name, number = self.place(i)
        return f"synthetic/{self.split}/{name}/{number}"

    def place_of(self, name: str) -> int | None:
        """The index of a scene by its id, read from the id itself."""
        number = name.rpartition("/")[2]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            return None
        levels = [level.name for level in DIFFICULTIES]
        step, names = (3, levels) if self.difficulty is None else (1, [self.difficulty])
        places = (step * int(number) + k for k in range(len(names)))
        return next((i for i in places if i < len(self) and self.id(i) == name), None)

    def _rng(self, i: int, purpose: int) -> np.random.Generator:
        name, number = self.place(i)
        return np.random.default_rng([VERSION, list(LENGTHS).index(self.split), CLASSES.index(name), number, purpose])

    def scene(self, i: int) -> Scene:
        """Scene i with at least one object that a sentence can pick out."""
        rng = self._rng(i, 0)
        while True:
            scene = draw(self.place(i)[0], rng)
            if any(expressions(scene, k) for k in range(len(scene.objects))):
                return scene

    def load(self, i: int) -> Task:
        scene = self.scene(i)
        rng = self._rng(i, 1)
        sentences = [expressions(scene, k) for k in range(len(scene.objects))]
        chosen = int(rng.choice([k for k, found in enumerate(sentences) if found]))
        texts = [str(rng.choice(found)) if found else "" for found in sentences]
        meta = {
            "difficulty": scene.difficulty,
            "colour": scene.objects[chosen].colour,
            "shape": scene.objects[chosen].shape,
            # the other objects that a sentence picks out: (sentence, number in the scene's `instances`)
            "others": [(text, k + 1) for k, text in enumerate(texts) if text and k != chosen],
            "instances": scene.instances,
        }
        return Task(self.id(i), scene.image, scene.instances == chosen + 1, texts[chosen], meta=meta)

    def lacks(self, i: int, instruction: str) -> bool:
        """Whether no object of scene `i`, clutter included, has the colour and the shape that an instruction names;
        False for one that names neither."""
        scene, words = self.scene(i), set(instruction.split())
        nouns = {"charts": charts.NOUNS, "interfaces": interfaces.NOUNS}.get(scene.difficulty, SHAPES)
        colours, shapes = words & set(COLOURS), words & set(nouns)
        return bool(colours or shapes) and not any(
            {thing.colour} >= colours and {thing.shape} >= shapes for thing in (*scene.objects, *scene.clutter)
        )


class _Ids(Sequence):
    """The ids of a dataset, made on demand: the training split has a million."""

    def __init__(self, data: Synthetic) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i):  # int or slice, as in every sequence
        if isinstance(i, slice):
            return [self.data.id(k) for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.data.spec} has {len(self)} items, so there is no item {i}")
        return self.data.id(i % len(self))


def draw(name: str, rng: np.random.Generator) -> Scene:
    """One scene of the class `name`, from the random stream `rng`."""
    match name:
        case "charts":
            return charts.draw(rng)
        case "interfaces":
            return interfaces.draw(rng)
    return draw_scene(next(level for level in (*DIFFICULTIES, SINGLE) if level.name == name), rng)


def draw_scene(level: Difficulty, rng: np.random.Generator) -> Scene:
    """One scene of a difficulty, from the random stream `rng`."""
    height, width = SIZES[rng.integers(len(SIZES))]
    wanted = int(rng.integers(level.objects[0], level.objects[1] + 1))
    drawn = [(_one_of(tuple(COLOURS), rng), _one_of(level.shapes, rng)) for _ in range(wanted)]
    hidden_in = COLOURS[drawn[0][0]] if rng.random() < level.camouflage else None
    canvas = background((height, width), rng, level.texture, level.contrast, hidden_in)
    pieces, scraps = _clutter(canvas, level, rng)

    instances = np.zeros((height, width), np.uint8)
    full: list[int] = []  # area of each object before anything hides it
    kept: list[tuple[str, str]] = []
    for colour, shape in drawn:
        alpha, corner = _place(instances, full, shape, level, rng)
        if alpha is None:
            continue
        y, x = corner
        window = np.s_[y : y + alpha.shape[0], x : x + alpha.shape[1]]
        surface = texture(alpha.shape, COLOURS[colour], rng, level.texture, level.contrast)
        paint(canvas, alpha, corner, surface, rng)
        inside = alpha > 127
        instances[window][inside] = len(kept) + 1
        full.append(int(inside.sum()))
        kept.append((colour, shape))

    image = _photograph(canvas, level, rng)
    scraps[instances > 0] = 0
    return Scene(image, instances, _described(instances, kept), level.name, _described(scraps, pieces))


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    """`rng.choice` without an array."""
    return words[int(rng.integers(len(words)))]


def _described(instances: np.ndarray, words: list[tuple[str, str]]) -> tuple[SceneObject, ...]:
    """Describe each visible thing; `words` are colour and shape of number 1, 2, … in `instances`."""
    things = []
    for number, (colour, shape) in enumerate(words, 1):
        sums = cv2.moments((instances == number).view(np.uint8), binaryImage=True)
        if area := sums["m00"]:
            centre = sums["m10"] / area + 0.5, sums["m01"] / area + 0.5
            things.append(SceneObject(colour, shape, int(area), centre))
    return tuple(things)


def _place(
    instances: np.ndarray, full: list[int], shape: str, level: Difficulty, rng: np.random.Generator
) -> tuple[np.ndarray | None, tuple[int, int]]:
    """Place a shape where it hides nothing too far: its alpha [h, w] uint8 and corner (row, column)."""
    height, width = instances.shape
    areas = [cv2.countNonZero((instances == number).view(np.uint8)) for number in range(1, len(full) + 1)]
    for _ in range(12):
        radius = rng.uniform(*level.radius) * min(height, width)
        alpha = scene_shapes.shape_alpha(shape, radius, rng)
        h, w = alpha.shape
        if h > height or w > width:
            continue
        y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        inside = alpha > 127
        if inside.sum() < 0.006 * height * width:
            continue
        under = np.bincount(instances[y : y + h, x : x + w][inside], minlength=len(full) + 1)[1:]
        visible = (np.array(areas, int) - under).tolist()
        if all(left >= (1 - level.overlap) * area and left >= 150 for left, area in zip(visible, full, strict=True)):
            return alpha, (y, x)
    return None, (0, 0)


def _clutter(
    canvas: np.ndarray, level: Difficulty, rng: np.random.Generator
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Lay small things under the objects, in place: their colours and shapes, and their numbers, uint8 [H, W]."""
    height, width = canvas.shape[:2]
    words, scraps = [], np.zeros((height, width), np.uint8)
    for number in range(1, int(rng.integers(level.clutter[0], level.clutter[1] + 1)) + 1):
        shape = _one_of(("blob", "bar", "ring", "triangle"), rng)
        alpha = scene_shapes.shape_alpha(shape, rng.uniform(0.02, 0.05) * min(height, width), rng)
        y, x = int(rng.integers(0, height - alpha.shape[0])), int(rng.integers(0, width - alpha.shape[1]))
        colour = _one_of(tuple(COLOURS), rng)
        surface = texture(alpha.shape, COLOURS[colour], rng, level.texture, level.contrast)
        paint(canvas, alpha, (y, x), surface, rng)
        scraps[y : y + alpha.shape[0], x : x + alpha.shape[1]][alpha > 127] = number
        words.append((colour, shape))
    return words, scraps


def _photograph(canvas: np.ndarray, level: Difficulty, rng: np.random.Generator) -> np.ndarray:
    """Light, lens, sensor and JPEG: float [H, W, 3] in 0..255 to uint8."""
    canvas = lit(canvas, canvas.shape[:2], rng, 0.3)
    if (blur := rng.uniform(0, 0.9)) > 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), blur)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    noise *= np.float32(rng.uniform(0, level.noise))
    noise += canvas
    image = np.clip(noise, 0, 255, out=noise).astype(np.uint8)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])
        decoded: Any = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        image = np.ascontiguousarray(decoded[..., ::-1])
    return image


SIZE_WORDS = ("", "largest", "smallest")
PLACE_WORDS = ("", "leftmost", "rightmost", "topmost", "bottommost")
# of a sentence: the superlative, and whether colour and shape are named
KINDS = list(product((*SIZE_WORDS, *PLACE_WORDS[1:]), (False, True), (False, True)))
_SHORTEST_FIRST = sorted(KINDS, key=lambda kind: sum(map(bool, kind)))
_MARGIN = 0.06  # of the scene's side: how far ahead the outermost object of a kind must be
_RATIO = 1.35  # of areas: how far ahead the largest or smallest must be


def expressions(scene: Scene, k: int) -> list[str]:
    """All sentences, of at most one superlative, that are true of object k and of nothing else in the scene, clutter
    included.

    Sentences with more words than needed are left out: "the largest red star" appears only where "the red star" is
    ambiguous.
    """
    if isinstance(thing := scene.objects[k], Thing):
        return list(thing.sentences)
    found: list[tuple[set[str], str]] = []
    for word, coloured, shaped in _SHORTEST_FIRST:
        colour, shape = coloured * thing.colour, shaped * thing.shape
        used = {part for part in (word, colour, shape) if part}
        if not used or any(shorter <= used for shorter, _ in found) or not picks_out(scene, k, word, colour, shape):
            continue
        found.append((used, " ".join(part for part in ("the", word, colour, shape or "object") if part)))
    return [sentence for _, sentence in found]


def picks_out(scene: Scene, k: int, superlative: str, colour: str, shape: str) -> bool:
    """Whether object k is, by a margin, the largest, leftmost, … object of that colour and shape."""

    def fits(thing: SceneObject) -> bool:
        return (not colour or thing.colour == colour) and (not shape or thing.shape == shape)

    if not fits(scene.objects[k]):
        return False
    rest = (*scene.objects[:k], *scene.objects[k + 1 :], *scene.clutter)
    others = [thing for thing in rest if fits(thing)]
    if not superlative:
        return not others
    me, (height, width) = scene.objects[k], scene.instances.shape
    match superlative:
        case "largest":
            ahead = [me.area >= _RATIO * other.area for other in others]
        case "smallest":
            ahead = [other.area >= _RATIO * me.area for other in others]
        case "leftmost":
            ahead = [other.centre[0] - me.centre[0] >= _MARGIN * width for other in others]
        case "rightmost":
            ahead = [me.centre[0] - other.centre[0] >= _MARGIN * width for other in others]
        case "topmost":
            ahead = [other.centre[1] - me.centre[1] >= _MARGIN * height for other in others]
        case _:
            ahead = [me.centre[1] - other.centre[1] >= _MARGIN * height for other in others]
    return bool(others) and all(ahead)
