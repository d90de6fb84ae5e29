"""Masks labelled with their true IoU, which a process reward model is trained and evaluated on.

They come from the environment: from clicks of the annotator, of the policy and of an annotator who errs, and from
random points. Each is labelled with the annotator's action too, so that a model that learns from them stays a policy.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import agents
from agents.base import Agent
from search.episode import action_to_json, check_action, clicks_of
from search.rollout import rollout
from search.star import Conversations, Rules
from segenv import annotator, metrics
from segenv import codec as codecs
from segenv.envs.filter import random_prompt
from segenv.geometry.rle import check_counts, decode_mask, encode_mask
from segenv.mdp import Observation, SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Click, Task

SOURCES = ("annotator", "policy", "noisy", "points")
SAMPLES = {"annotator": 1, "policy": 2, "noisy": 2, "points": 4}  # episodes, or masks, of a task
ERRORS = 0.35  # chance that a click of the noisy annotator is a mistake
BINS = 10  # of the IoU, in balancing


@dataclass(frozen=True)
class LabelledMask:
    """Mask `number` of a task, `source` (of `SOURCES`) that led to it, its true IoU, the tool's own estimate `score`
    (None where the tool did not make it), and the annotator's `action` in that state. `mask` is in COCO's run lengths,
    [height, width]."""

    task: str
    number: int
    source: str
    height: int
    width: int
    mask: str
    iou: float
    score: float | None
    action: dict[str, Any]

    @property
    def pixels(self) -> np.ndarray:
        """The mask, bool [H, W]."""
        return decode_mask(self.mask, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """The mask as a JSON record, which `reader(LabelledMask)` reads."""
        return dataclasses.asdict(self)

    def check(self) -> None:
        """Raise ValueError where the action or the mask of a record cannot be read."""
        check_action(self.action)
        check_counts(self.mask, self.height, self.width)


class NoisyAnnotator(Agent):
    """The annotator, who errs: with a chance of `ERRORS` a click is a `wrong_click`."""

    privileged = True
    spec = "noisy annotator"

    def __init__(self) -> None:
        super().__init__(codecs.make("pixels"))

    def _answer(self, state: SegState, rng: np.random.Generator) -> str:
        task, mask = state.task, state.mask
        click = annotator.next_click(task.target, mask, state.clicks)
        if click is None or rng.random() < ERRORS:
            click = wrong_click(task, mask, rng)
        return self.codec.format(click, task)


def collect_masks(
    mdp: SegMDP, policy: Agent, tasks: Sequence[Task], seed: int = 0, rules: Rules | None = None
) -> list[list[LabelledMask]]:
    """For each task, the masks that annotator, policy, noisy annotator and random points lead to in episodes of
    `mdp.max_steps`, each mask once, the empty one included. Seeds derive from `seed` and the task's id."""
    masks: list[dict[str, LabelledMask]] = [{} for _ in tasks]
    rules = rules or Rules()
    players = {"annotator": agents.make("annotator"), "policy": policy, "noisy": NoisyAnnotator()}
    for k, (source, player) in enumerate(players.items()):
        samples = SAMPLES[source]
        size = samples * len(tasks)
        episodes = rollout(mdp, player, tasks, seed=seed, round_index=k, samples=samples, batch_size=size)
        for i, episode in enumerate(episodes):
            for j in range(len(episode.steps) + 1):
                score = episode.steps[j - 1].score if j else None
                clicks = clicks_of(episode.steps[:j])
                labelled = _label(tasks[i // samples], source, episode.mask(j), clicks, score, rules)
                masks[i // samples].setdefault(labelled.mask, labelled)
    for of_task, of_points in zip(masks, point_masks(mdp, tasks, SAMPLES["points"], seed, rules), strict=True):
        for labelled in of_points:
            of_task.setdefault(labelled.mask, labelled)
    return [[replace(mask, number=k) for k, mask in enumerate(of_task.values())] for of_task in masks]


def point_masks(
    mdp: SegMDP, tasks: Sequence[Task], count: int, seed: int = 0, rules: Rules | None = None
) -> list[list[LabelledMask]]:
    """`count` masks of each task from random points in the target's box, as in `segenv/Filter-v0`."""
    encodings = mdp.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
    masks, rules = [], rules or Rules()
    for task, encoding in zip(tasks, encodings, strict=True):
        rngs = [np.random.default_rng(seed_of(seed, task.id, "points", k)) for k in range(count)]
        prompts = [random_prompt(task, rng) for rng in rngs]
        predictions = zip(prompts, mdp.tool.predict([encoding] * count, prompts), strict=True)
        labelled = (_label(task, "points", made.mask, prompt.clicks, made.score, rules) for prompt, made in predictions)
        masks.append([replace(mask, number=k) for k, mask in enumerate(labelled)])
    return masks


def _label(
    task: Task, source: str, mask: np.ndarray, clicks: Sequence[Click], score: float | None, rules: Rules
) -> LabelledMask:
    iou = float(metrics.iou(task.target, mask))
    known = None if score is None or np.isnan(score) else float(score)
    action = action_to_json(rules.annotator_action(task, mask, clicks, iou))
    return LabelledMask(task.id, 0, source, task.height, task.width, encode_mask(mask), iou, known, action)


def balanced(masks: Iterable[LabelledMask], limit: int, seed: int = 0) -> list[LabelledMask]:
    """At most `limit` of the masks, as many empty ones as of each tenth of IoU, and within a tenth as many of each
    source, as far as there are enough; chosen and ordered by a hash of task and number."""
    strata: dict[int, dict[str, list[tuple[int, LabelledMask]]]] = {}
    for mask in masks:
        stratum = min(int(BINS * mask.iou), BINS - 1) if mask.pixels.any() else -1
        sources = strata.setdefault(stratum, {})
        sources.setdefault(mask.source, []).append((seed_of(seed, "balance", mask.task, mask.number), mask))
    chosen: list[tuple[int, LabelledMask]] = []
    fewest_first = sorted(strata, key=lambda stratum: (sum(map(len, strata[stratum].values())), stratum))
    for k, sources in enumerate(strata[stratum] for stratum in fewest_first):
        share = (limit - len(chosen)) // (len(strata) - k)
        ranked = [enumerate(sorted(pairs, key=lambda pair: pair[0])) for pairs in sources.values()]
        in_turn = sorted((rank, *pair) for pairs in ranked for rank, pair in pairs)
        chosen += [(key, mask) for _, key, mask in in_turn[:share]]
    return [mask for _, mask in sorted(chosen, key=lambda pair: pair[0])]


class PredictedIouExamples(Conversations):
    """Labelled masks as conversations: the reply states the IoU and then the annotator's action."""

    def __init__(self, masks: Sequence[LabelledMask], policy: Any, task: Callable[[str], Task]) -> None:
        super().__init__(masks, policy, task, max_steps=1)

    def observation(self, row: LabelledMask, task: Task) -> Observation:
        """The policy's observation of the mask."""
        return observation_of(row, task)


def observation_of(mask: LabelledMask, task: Task) -> Observation:
    """The observation of an agent that has the mask and one step left."""
    return Observation(task.id, task.image, mask.pixels, task.instruction, 0, 1)


def wrong_click(task: Task, mask: np.ndarray, rng: np.random.Generator) -> Click:
    """A click for another object of a known scene, or anywhere, of any sign once there is a mask."""
    if (instances := task.meta.get("instances")) is not None:
        other = instances == rng.integers(1, instances.max() + 1)
        click = annotator.next_click(other, mask) if rng.random() < 0.7 else None
        if click is not None:
            return click
    x, y = int(rng.integers(task.width)), int(rng.integers(task.height))
    return Click(x, y, bool(rng.random() < 0.5) or not mask.any())
