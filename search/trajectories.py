"""Episodes of annotators and policies, and StaR's training examples, as trajectories.

A trajectory is a chain: each click is made in the state that the click before led to. Where a rule drops a click, the
chain is cut in two.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from agents.annotator import AnnotatorAgent
from search.episode import Episode, action_from_json
from search.executors import Player, Setup
from search.rollout import rollout
from search.star import StarExample, action_of
from segenv import codec, metrics
from segenv.data.trajectories.record import RecordedClick, Start, Trajectory
from segenv.geometry.rle import encode_mask
from segenv.mdp import SegState
from segenv.ranges import Count, NotNegative
from segenv.seeds import seed_of
from segenv.types import Action, BadItem, Box, Click, Stop, Task, Undo, object_of

Opening = Literal["empty", "box", "points"]
Rule = Literal["released", "paper", "all"]


class Expert(AnnotatorAgent):
    """The annotator, who first plays the actions in `task.meta["opening"]`, and then clicks: until the mask reaches
    `stop_iou`, `max_clicks` times at most and, if `rising`, until a click did not raise the IoU."""

    def __init__(self, variant: str, stop_iou: float, max_clicks: int, rising: bool) -> None:
        super().__init__(variant, codec.make("pixels"))
        self.stop_iou, self.max_clicks, self.rising = stop_iou, max_clicks, rising

    def _answer(self, state: SegState, rng: np.random.Generator) -> str:
        task, first = state.task, state.task.meta["opening"]
        clicks = state.step - len(first)
        if clicks < 0:
            return self.codec.format(first[state.step], task)
        iou, before = metrics.iou(task.target, state.mask), state.undone
        failed = self.rising and clicks > 0 and before is not None and iou <= metrics.iou(task.target, before.mask)
        done = failed or iou >= self.stop_iou or clicks >= self.max_clicks
        return self.codec.format(Stop(), task) if done else super()._answer(state, rng)


def opening(task: Task, start: Opening, rng: np.random.Generator, points: int = 3) -> tuple[Box | Click, ...]:
    """The actions that lead to the first mask of an episode, which stay in the tool's prompt: none, the object's tight
    box, or 1 to `points` positive clicks anywhere in that box, off the object too (SegAgent §4)."""
    box = metrics.box_of(object_of(task.target))
    if start == "empty" or box is None:
        return ()
    if start == "box":
        return (box,)
    corners, count = [int(side) for side in (box.x0, box.y0, box.x1, box.y1)], int(rng.integers(1, points + 1))
    return tuple(Click(x, y) for x, y in rng.integers(corners[:2], corners[2:], (count, 2)).tolist())


@dataclass(frozen=True)
class Play:
    """A play of the data's task at `index`, from a first mask."""

    index: int
    task: str
    start: Opening
    sample: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Identify a play among those of its data."""
        return self.task, self.start, self.sample

    @property
    def id(self) -> str:
        """The id of the play's task, from which the play's seeds derive."""
        return json.dumps(self.key)


@dataclass(frozen=True)
class ExpertSetup(Setup):
    """A setup with the settings of its expert, and the most points that a first mask is drawn from."""

    agent: str = "annotator"
    variant: str = "ritm"
    stop_iou: NotNegative = 1.0
    max_clicks: Count = 20
    rising: bool = True
    points: Count = 3


class ExpertPlayer(Player):
    """Player whose items are plays of an `Expert`, and whose results are their episodes, each on a task of the play's
    id with the opening in its `meta`."""

    setup: ExpertSetup

    def __init__(self, setup: ExpertSetup) -> None:
        # the expert counts its own clicks, and then stops
        super().__init__(replace(setup, max_steps=setup.max_clicks + setup.points + 1))
        self.expert = Expert(setup.variant, setup.stop_iou, setup.max_clicks, setup.rising)
        self.load = lru_cache(maxsize=setup.batch_size)(self.dataset.__getitem__)

    def play(self, plays: Sequence[Play]) -> Iterator[Episode]:
        """The episodes of `plays`, without those of bad items; all of them advance together."""
        begun = []
        for play in plays:
            try:
                begun.append(self.begun(play))
            except BadItem:
                if not self.setup.skip_bad:
                    raise
        yield from rollout(self.mdp, self.expert, begun, seed=self.setup.seed, batch_size=len(plays))

    def begun(self, play: Play) -> Task:
        """The task of a play, with its opening and its id."""
        task, rng = self.load(play.index), np.random.default_rng(seed_of(self.setup.seed, "opening", *play.key))
        meta = {"opening": opening(task, play.start, rng, self.setup.points)}
        return replace(task, id=play.id, initial_mask=None, meta=meta)

    def images(self) -> Callable[[Play], Hashable]:
        """A function that names the image of a play."""
        sources = self.dataset.sources
        return lambda play: sources[play.index]


@dataclass(frozen=True)
class Move:
    """An action in the state `before` (a mask in COCO's run lengths, with its IoU), which led to `after`, or to None
    where it was never played."""

    step: int
    before: str
    before_iou: float
    action: Action
    after: str | None
    after_iou: float | None


def moves_of(episode: Episode, opened: int = 0) -> list[Move]:
    """The actions of an episode after its first `opened` steps, without those that failed or were undone."""
    moves: list[Move] = []
    mask, iou = episode.start_mask, episode.start_iou
    for k, step in enumerate(episode.steps):
        if step.error is None:
            action = action_from_json(step.action)
            if isinstance(action, Undo):
                moves.pop()
            else:
                moves.append(Move(k - opened, mask, iou, action, step.mask, step.iou))
        mask, iou = step.mask, step.iou
    return moves[opened:]


def moves_of_rows(rows: Sequence[StarExample]) -> list[Move]:
    """The examples of an episode as moves. Corrections were never played, and the mask after the last is not known."""
    moves: list[Move] = []
    after: str | None
    iou: float | None
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        played = row.provenance != "corrected"
        if isinstance(action_of(row), Stop):
            after, iou = row.mask, row.iou
        elif played and following is not None and following.step == row.step + 1:
            after, iou = following.mask, following.iou
        else:
            after, iou = None, row.iou_after if played else None
        moves.append(Move(row.step, row.mask, row.iou, action_of(row), after, iou))
    return moves


def select(moves: Sequence[Move], rule: Rule, min_gain: float = 0.0) -> list[Move]:
    """The moves that `rule` keeps: all of them; those up to the first click whose IoU is not above all before
    ("released"); those without the clicks whose ΔIoU is below `min_gain` ("paper")."""
    kept: list[Move] = []
    best = moves[0].before_iou if moves else 0.0
    for move in moves:
        if isinstance(move.action, Click) and move.after_iou is not None:
            if rule == "released" and move.after_iou <= best:
                break
            if rule == "paper" and move.after_iou - move.before_iou < min_gain:
                continue
            best = move.after_iou
        kept.append(move)
    return kept


def trajectories_of(
    moves: Iterable[Move], task: Task, image_name: str, start: str = "given", sample: int = 0
) -> list[Trajectory]:
    """Trajectories of the clicks: another begins where a click does not follow on the click before, which was dropped,
    corrected or a box, with the mask of its state. `start` names the origin of the episode's first mask."""
    chains: list[list[Move]] = []
    for move in moves:
        if not isinstance(move.action, (Click, Stop)):
            continue
        if chains and chains[-1][-1].after == move.before:
            chains[-1].append(move)
        else:
            chains.append([move])
    empty, trajectories = encode_mask(np.zeros((task.height, task.width), bool)), []
    for chain in chains:
        first = chain[0]
        kind = start if first.step == 0 else "state"
        begun = None if first.before == empty else Start(kind, first.before, first.before_iou)
        clicks = [
            RecordedClick.measured(move.step, move.action, move.after, move.after_iou, task.height, task.width)
            for move in chain
            if isinstance(move.action, Click)
        ]
        if clicks or begun is not None:
            trajectories.append(Trajectory.of_task(task, image_name, clicks, begun, sample))
    return trajectories
