"""Training examples for the embedded model: states of procedural scenes with the annotator's reply, and labels of every
patch of the picture.

An example is one scene in several pictures (mask states) with a question about each. States come from the annotator's
clicks through a segmentation tool, and from masks that are cheap to make: parts of the target, its neighbours, wrong
objects, nearly perfect ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from agents.base import Agent
from agents.training.patch_labels import (
    OUTLINES,
    RATIO,
    fine_shares,
    leading_digits,
    middles,
    patches_of,
    vertex_places,
)
from segenv import annotator, codec, metrics, render
from segenv.data.synthetic import scenes
from segenv.data.synthetic.scenes import KINDS
from segenv.data.synthetic.shapes import COLOURS
from segenv.mdp import SegMDP, SegState
from segenv.tools.base import SegTool
from segenv.types import Action, Click, Stop, Task, object_of

COLOUR_NAMES = list(COLOURS)
SHAPE_NAMES = sorted({shape for level in scenes.DIFFICULTIES for shape in level.shapes})
MAX_OBJECTS = 8
STEADY = 0.75  # of the annotator's depth: as deep as a steady click is, at least


@dataclass(frozen=True)
class Question:
    """A question about a picture, the reply to learn, and labels of the N patches."""

    picture: int  # index in the example's pictures
    instruction: str
    reply: str
    shares: np.ndarray  # [3, N] float32, the parts of a patch that are target, missing from the mask, wrongly in it
    click: int  # the patch of the reply's click, or -1 where it stops
    iou: float  # of the mask
    fine: np.ndarray  # [N, FINE²] float32, the shares of target in the squares of a patch
    # [N, 5] int64: whether the reply names a click or a vertex in the patch, and two leading digits of each of the
    # coordinates of that place, or else of the patch's middle
    places: np.ndarray
    looks: tuple[int, ...] = ()  # the patches of the places that the reply names, in its order


@dataclass(frozen=True, eq=False)
class ClickExample:
    """A training example: one scene in P pictures of N patches, with its objects and questions."""

    pictures: np.ndarray  # [P, S, S, 3] uint8, as the agent sees them
    masks: np.ndarray  # [P, N, FINE²] float32, the part of each square of a patch under the mask
    patches: np.ndarray  # [N] int64, the object that fills most of each patch; 0 for background
    layout: np.ndarray  # [N, FINE²] float32, the part of each square that the object covers which has most of the patch
    # [N, 5] int64: whether an outline has a vertex in the patch, and two leading digits each of its x and y, or else of
    # the patch's middle
    vertices: np.ndarray
    # [MAX_OBJECTS + 1, 2 + len(KINDS) + 4] int64: colour, shape, which kinds of sentence pick the object out, and two
    # digits each of row and column of its first click
    objects: np.ndarray
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Mixture:
    """Numbers of an example's questions: `first` about the empty mask (one picture), one about each of `trajectory`
    states played through the tool and of `cheap` masks, and for `crossed` of these masks one about another object.
    `easy` is the part of scenes from the easiest class, `hard` that from the hardest: by default half the rest."""

    first: int = 4
    trajectory: int = 0
    cheap: int = 0
    crossed: int = 0
    easy: float = 1 / 3
    hard: float | None = None


class Rollout:
    """Plays tasks through a tool, and says for each state what to do there.

    The annotator plays, or an agent: with a chance of `share` at each step the annotator in its place, and always where
    it gives up too early. Correct is a stop from `stop_iou` on, and where the annotator's next click would gain less
    than `stop_gain`.
    """

    def __init__(
        self,
        tool: SegTool,
        agent: Agent | None = None,
        steps: int = 4,
        stop_iou: float = 0.9,
        stop_gain: float = 0.0,
        share: float = 0.25,
    ) -> None:
        self.mdp, self.agent, self.steps = SegMDP(tool, max_steps=steps + 1), agent, steps  # one more to look ahead
        self.stop_iou, self.stop_gain, self.share = stop_iou, stop_gain, share

    def states(self, task: Task, rng: np.random.Generator) -> list[tuple[Task, np.ndarray, Action]]:
        """The task, mask and correct action after each of up to `steps` clicks."""
        state, played = self.mdp.initial(task), []
        best, following = self._correct(state)
        while state.step < self.steps and following is not None:
            action = best if self.agent is None or rng.random() < self.share else self._said(state, rng)
            state = following if action == best else self.mdp.transition([state], [action])[0]
            best, following = self._correct(state)
            played.append((task, state.mask, best))
        return played

    def _correct(self, state: SegState) -> tuple[Action, SegState | None]:
        """The annotator's action and the state that follows; none after a stop."""
        action = correct_action(state.task, state.mask, state.clicks, self.stop_iou)
        if isinstance(action, Stop):
            return action, None
        [following] = self.mdp.transition([state], [action])
        if self.stop_gain and state.step:
            gain = metrics.iou(state.task.target, following.mask) - metrics.iou(state.task.target, state.mask)
            if gain < self.stop_gain:
                return Stop(), None
        return action, following

    def _said(self, state: SegState, rng: np.random.Generator) -> Action:
        """The agent's click, or the annotator's where the agent gives none."""
        assert self.agent is not None
        seen = self.mdp.observation(state)
        [text] = self.agent.act([seen], [int(rng.integers(2**32))])
        action = self.agent.codec.parse(text, seen)
        return (
            action if isinstance(action, Click) else correct_action(state.task, state.mask, state.clicks, self.stop_iou)
        )


class ClickExamples:
    """Makes example i from i, the seed and the mixture alone.

    `reuse` examples are made of each scene and of the states that were played in it, in other orientations; those of
    the last `window` examples are kept for that. `image_size` is the side of pictures and `grid` the number of patches
    along it; a mask of `stop_iou` is good enough.
    """

    rows = False  # whether patches are told vertices on rows, and not the corners of outlines

    def __init__(
        self,
        mixture: Mixture,
        rollout: Rollout | None = None,
        image_size: int = 128,
        grid: int = 8,
        stop_iou: float = 0.9,
        seed: int = 0,
        reuse: int = 4,
        window: int = 400,
    ) -> None:
        self.mixture, self.rollout, self.seed = mixture, rollout, seed
        self.image_size, self.grid, self.stop_iou = image_size, grid, stop_iou
        self.reuse, self.window = reuse, window
        self.codec = codec.make("segagent")
        self.levels = [scenes.Synthetic("train", level.name) for level in scenes.DIFFICULTIES]
        self.scene = lru_cache(maxsize=window)(self._scene)
        self.played = lru_cache(maxsize=window)(self._played)

    def __getitem__(self, i: int) -> ClickExample:
        scene, named, rng, origin = self._named_scene(i)
        tasks = {k: self._task(scene, k, str(rng.choice(sentences))) for k, sentences in named}
        empty = np.zeros(scene.instances.shape, bool)
        masks = [empty]
        questions = [self._question(0, task, empty) for task in list(tasks.values())[: self.mixture.first]]
        states = list(self._states(tasks, scene.instances, origin, rng))
        masks += [mask for _, mask, *_ in states]
        questions += [self._question(1 + k, *state) for k, state in enumerate(states)]
        for k in rng.permutation(len(states))[: self.mixture.crossed]:
            task, mask, *_ = states[k]
            others = [other for other in tasks.values() if other is not task]
            if others:
                questions.append(self._question(1 + int(k), others[rng.integers(len(others))], mask))
        pictures = [render.resized(render.overlay(scene.image, mask), (self.image_size,) * 2) for mask in masks]
        covered = np.stack([fine_shares(mask, self.grid) for mask in masks])
        return ClickExample(np.stack(pictures), covered, *self._labels(scene), tuple(questions))

    def _named_scene(
        self, i: int
    ) -> tuple[scenes.Scene, list[tuple[int, list[str]]], np.random.Generator, tuple[int, int]]:
        """Scene of example i, turned, its named objects (index and sentences) in random order, the generator, and the
        scene's number and turn."""
        rng = np.random.default_rng([self.seed, i])
        number = i // (self.window * self.reuse) * self.window + i % self.window
        turn = int(rng.integers(8))
        scene = rotated(self.scene(number), turn)
        named = _named(scene)
        if not named:  # turning moves no object past another, but rounding of centres may
            return self._named_scene(i + self.window * self.reuse)
        return scene, [named[k] for k in rng.permutation(len(named))], rng, (number, turn)

    def _scene(self, number: int) -> scenes.Scene:
        rng = np.random.default_rng([self.seed, 1, number])
        easy = self.mixture.easy
        hard = (1 - easy) / 2 if self.mixture.hard is None else self.mixture.hard
        return self.levels[rng.choice(3, p=[easy, 1 - easy - hard, hard])].scene(number)

    def _task(self, scene: scenes.Scene, k: int, instruction: str) -> Task:
        return Task("example", scene.image, scene.instances == k + 1, instruction)

    def _played(self, number: int) -> list[tuple[int, np.ndarray, Action]]:
        """States of objects of a scene, as the rollout runs into them: object, mask and correct action; at least as
        many as an example shows, if there are."""
        assert self.rollout is not None
        scene, rng = self.scene(number), np.random.default_rng([self.seed, 2, number])
        named = _named(scene)
        states: list[tuple[int, np.ndarray, Action]] = []
        for i in rng.permutation(len(named)):
            if len(states) < self.mixture.trajectory:
                k, sentences = named[i]
                task = self._task(scene, k, str(rng.choice(sentences)))
                states += [(k, mask, action) for _, mask, action in self.rollout.states(task, rng)]
        return states

    def _states(
        self, tasks: dict[int, Task], instances: np.ndarray, origin: tuple[int, int], rng: np.random.Generator
    ) -> Iterator[tuple[Task, np.ndarray, Action | None]]:
        """Tasks with a mask to improve and, where it was played, the action to take."""
        if self.mixture.trajectory and self.rollout is not None:
            number, turn = origin
            states = [state for state in self.played(number) if state[0] in tasks]  # turned, some lose their name
            for i in sorted(rng.permutation(len(states))[: self.mixture.trajectory]):
                k, mask, action = states[i]
                yield tasks[k], turned(mask, turn), action if isinstance(action, Stop) else None
        known = list(tasks.values())
        for k in range(self.mixture.cheap):
            task = known[k % len(known)]
            yield task, distorted_mask(task.target.view(bool), instances, rng), None

    def _question(self, picture: int, task: Task, mask: np.ndarray, action: Action | None = None) -> Question:
        iou = float(metrics.iou(task.target, mask))
        action = action or correct_action(task, mask, (), self.stop_iou)
        reply = self.codec.format(action, task, iou)
        target = task.target.view(bool)
        shares = np.stack([self._shares(part) for part in (target, target & ~mask, mask & ~target)])
        places, click = middles(self.grid, self.codec.points), -1
        if isinstance(action, Click):
            click = int(patches_of(np.array([[action.x, action.y]]), task, self.grid)[0])
            places[click] = [1, *self._digits(action, task)]
        fine = fine_shares(target, self.grid)
        looks = (click,) if click >= 0 else ()
        return Question(picture, task.instruction, reply, shares, click, iou, fine, places, looks)

    def _digits(self, click: Click, task: Task) -> list[int]:
        """The leading digits of a click's coordinates, in the order of the codec."""
        return [digit for text in self.codec.points.write_point(click, task) for digit in leading_digits(int(text))]

    def _shares(self, mask: np.ndarray) -> np.ndarray:
        """The part of each patch that `mask` (bool [H, W]) covers, float32 [N]."""
        size = (self.grid, self.grid)
        return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel()

    def _outline(self, task: Task) -> list[np.ndarray]:
        """The rings whose vertices are labels of the patches that they lie in."""
        return list(OUTLINES.outline(object_of(task.target), RATIO).rings)

    def _labels(self, scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """An example's `patches`, `layout`, `vertices` and `objects`."""
        tasks = [self._task(scene, k, "") for k in range(len(scene.objects))]
        targets = [object_of(task.target) for task in tasks]
        squares = np.stack([fine_shares(target, self.grid) for target in targets])
        shares = squares.mean(2)
        patches = np.where(shares.max(0) > 0.15, shares.argmax(0) + 1, 0)
        layout = squares[shares.argmax(0), np.arange(len(patches))]
        rings = [ring for task in tasks for ring in self._outline(task)]
        vertices = vertex_places(rings, tasks[0], self.grid, OUTLINES.dialect.frame, self.rows)
        table = np.zeros((MAX_OBJECTS + 1, 2 + len(KINDS) + 4), np.int64)
        nothing = np.zeros(scene.instances.shape, bool)
        for k, thing in enumerate(scene.objects):
            flags = [
                scenes.picks_out(scene, k, word, thing.colour * coloured, thing.shape * shaped)
                for word, coloured, shaped in KINDS
            ]
            click = steady_click(targets[k], nothing)
            assert click is not None
            digits = self._digits(click, tasks[k])
            names = [COLOUR_NAMES.index(thing.colour), SHAPE_NAMES.index(thing.shape)]
            table[k + 1] = [*names, *flags, *digits]
        return patches.astype(np.int64), layout, vertices, table


def correct_action(task: Task, mask: np.ndarray, clicks: Sequence[Click], stop_iou: float) -> Action:
    """The action to learn on `mask` (bool [H, W]): the steady click, or a stop from `stop_iou` on."""
    enough = metrics.iou(task.target, mask) >= stop_iou
    click = None if enough else steady_click(object_of(task.target), mask, clicks)
    return Stop() if click is None else click


def steady_click(target: np.ndarray, mask: np.ndarray, clicks: Sequence[Click] = ()) -> Click | None:
    """The annotator's next click, moved to a place that can be foreseen; `target` and `mask` are bool [H, W].

    The deepest pixel of a bar or a ring is one of many that are nearly as deep, and single pixels of its outline decide
    which. So in the part of the error that the annotator clicks, this is the pixel nearest to a point a little above
    its middle, among those of `STEADY` times the depth.
    """
    click = annotator.next_click(target, mask, clicks)
    if click is None:
        return None
    error = (target & ~mask if click.positive else mask & ~target).view(np.uint8)
    parts = cv2.connectedComponents(error, connectivity=4)[1]
    x, y, width, height = cv2.boundingRect((parts == parts[click.y, click.x]).view(np.uint8))
    part = (parts[y : y + height, x : x + width] == parts[click.y, click.x]).view(np.uint8)
    depth = cv2.distanceTransform(cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0), cv2.DIST_L2, 5)
    for one in clicks:
        if 0 <= one.x - x < width and 0 <= one.y - y < height:
            depth[one.y - y + 1, one.x - x + 1] = 0
    rows, columns = np.nonzero(depth >= STEADY * depth.max())
    inside = np.argwhere(part)
    middle = inside.mean(0) + 1 - np.array([1 + 0.1 * np.sqrt(len(inside)), 0])
    nearest = int(np.hypot(rows - middle[0], columns - middle[1]).argmin())
    return Click(x + int(columns[nearest]) - 1, y + int(rows[nearest]) - 1, click.positive)


def _named(scene: scenes.Scene) -> list[tuple[int, list[str]]]:
    """Objects of a scene that sentences pick out: index and sentences."""
    return [(k, sentences) for k in range(len(scene.objects)) if (sentences := scenes.expressions(scene, k))]


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """An array [H, W, …] in one of 8 orientations (bits of `turn`: mirrored left to right, upside down, transposed)."""
    array = array[:, ::-1] if turn & 1 else array
    array = array[::-1] if turn & 2 else array
    return np.ascontiguousarray(array.swapaxes(0, 1) if turn & 4 else array)


def rotated(scene: scenes.Scene, turn: int) -> scenes.Scene:
    """The scene in one of its 8 orientations, see `turned`."""
    height, width = scene.instances.shape

    def place(x: float, y: float) -> tuple[float, float]:
        x, y = (width - x if turn & 1 else x), (height - y if turn & 2 else y)
        return (y, x) if turn & 4 else (x, y)

    def moved(things: Sequence[scenes.SceneObject]) -> tuple[scenes.SceneObject, ...]:
        return tuple(replace(thing, centre=place(*thing.centre)) for thing in things)

    arrays: dict[str, Any] = {"image": turned(scene.image, turn), "instances": turned(scene.instances, turn)}
    return replace(scene, objects=moved(scene.objects), clutter=moved(scene.clutter), **arrays)


def distorted_mask(target: np.ndarray, instances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask (bool [H, W]) as a tool might give for `target` (bool [H, W]) in a scene with these `instances`."""
    other = (instances == rng.integers(1, instances.max() + 1)) & ~target
    kind = rng.random()
    if kind < 0.25:  # nearly right: good enough to stop, or not yet
        return _grown(target, int(rng.integers(-2, 3)))
    if kind < 0.40:
        return _grown(target, int(rng.integers(-6, 9)))
    if kind < 0.60:  # a part of it
        return target & _half_plane(target, rng)
    if kind < 0.72:  # too much
        return target | other
    if kind < 0.84:
        return target | (_half_plane(target, rng) & _grown(target, int(rng.integers(6, 30))))
    if kind < 0.92:  # the wrong one
        return other if other.any() else target & _half_plane(target, rng)
    return (target & _half_plane(target, rng)) | other


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """`mask` dilated by `by` pixels, or eroded where negative."""
    side = 2 * abs(by) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    change = cv2.dilate if by > 0 else cv2.erode
    return change(mask.astype(np.uint8), disc, borderValue=0).view(bool) if by else mask.copy()


def _half_plane(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One side of a random line through a random pixel of `mask`, bool [H, W]."""
    rows, columns = np.nonzero(mask)
    k, angle = rng.integers(len(rows)), rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return (x - columns[k]) * np.cos(angle) + (y - rows[k]) * np.sin(angle) > 0
