"""Masks with what is true of them: what a process reward model learns from, and is measured on.

They come from the environment: from clicks of the annotator, of the policy and of an annotator who errs, and from
random points. Each carries its true IoU and what the annotator would do about it, so that a model that learns from them
stays a policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

import agents
from agents.base import Agent
from search.episode import Episode, action_from_json, action_to_json, clicks_of, decode_mask
from search.rollout import rollout
from search.star import Rules
from segenv import annotator, metrics
from segenv import codec as codecs
from segenv.data.trajectories.record import encode_mask
from segenv.envs.filter import random_prompt
from segenv.mdp import Observation, SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Click, Task

SOURCES = ("annotator", "policy", "noisy", "points")
SAMPLES = {"annotator": 1, "policy": 2, "noisy": 2, "points": 4}  # episodes, or masks, of a task
ERRORS = 0.35  # chance that a click of the noisy annotator is a mistake
BINS = 10  # of the IoU, in balancing
TASKS_KEPT = 1024  # in memory while rows are rendered


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
        """What JSON holds; `Judged(**record)` reads it."""
        return dataclasses.asdict(self)


class NoisyAnnotator(Agent):
    """The annotator, who errs: with a chance of `ERRORS` a click asks for another object of the scene, where its task
    says what else is in it, or falls anywhere, with any sign once there is a mask."""

    privileged = True
    spec = "noisy annotator"

    def __init__(self) -> None:
        super().__init__(codecs.get("pixels"))

    def _act_on(self, states: Sequence[SegState], seeds: Sequence[int]) -> list[str]:
        return [self._click(state, np.random.default_rng(seed)) for state, seed in zip(states, seeds, strict=True)]

    def _click(self, state: SegState, rng: np.random.Generator) -> str:
        task, mask = state.task, state.mask
        click = annotator.next_click(task.target, mask, state.clicks)
        if click is None or rng.random() < ERRORS:
            if (instances := task.meta.get("instances")) is not None:
                click = wrong_click(task, mask, instances, rng)
            else:
                x, y = int(rng.integers(task.width)), int(rng.integers(task.height))
                click = Click(x, y, bool(rng.random() < 0.5) or not mask.any())
        return self.codec.format(click, task)


def collect_masks(
    mdp: SegMDP,
    policy: Agent,
    tasks: Sequence[Task],
    seed: int = 0,
    rules: Rules = Rules(),  # noqa: B008  # frozen
) -> list[list[LabelledMask]]:
    """For each task, the masks that annotator, policy, noisy annotator and random points lead to in episodes of
    `mdp.max_steps`, each mask once, the empty one included. Random draws derive from `seed` and the task's id."""
    found: list[dict[str, LabelledMask]] = [{} for _ in tasks]
    players = {"annotator": agents.make("annotator"), "policy": policy, "noisy": NoisyAnnotator()}
    for k, (source, player) in enumerate(players.items()):
        samples = SAMPLES[source]
        size = samples * len(tasks)
        episodes = rollout(mdp, player, tasks, seed=seed, round_index=k, samples=samples, batch_size=size)
        for i, episode in enumerate(episodes):
            for judged in _episode_masks(episode, source, tasks[i // samples], rules):
                found[i // samples].setdefault(judged.mask, judged)
    for masks, made in zip(found, point_masks(mdp, tasks, SAMPLES["points"], seed, rules), strict=True):
        for judged in made:
            masks.setdefault(judged.mask, judged)
    return [[replace(one, number=number) for number, one in enumerate(masks.values())] for masks in found]


def _episode_masks(episode: Episode, source: str, task: Task, rules: Rules) -> Iterator[LabelledMask]:
    """The masks of an episode, the first and the last one included."""
    for k in range(len(episode.steps) + 1):
        score = episode.steps[k - 1].score if k else None
        yield _label(task, source, episode.mask(k), clicks_of(episode.steps[:k]), score, rules)


def point_masks(
    mdp: SegMDP,
    tasks: Sequence[Task],
    count: int,
    seed: int = 0,
    rules: Rules = Rules(),  # noqa: B008  # frozen
) -> list[list[LabelledMask]]:
    """For each task, `count` masks that the tool makes of random points in the target's box, as in
    `segenv/Filter-v0`."""
    encodings = mdp.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
    found = []
    for task, encoding in zip(tasks, encodings, strict=True):
        prompts = [
            random_prompt(task, np.random.default_rng(seed_of(seed, task.id, "points", j))) for j in range(count)
        ]
        made = mdp.tool.predict([encoding] * count, prompts)
        pairs = enumerate(zip(prompts, made, strict=True))
        found.append([_label(task, "points", one.mask, asked.clicks, one.score, rules, k) for k, (asked, one) in pairs])
    return found


def _label(
    task: Task,
    source: str,
    mask: np.ndarray,
    clicks: Sequence[Click],
    score: float | None,
    rules: Rules,
    number: int = 0,
) -> LabelledMask:
    iou = float(metrics.iou(task.target, mask))
    return LabelledMask(
        task=task.id,
        number=number,
        source=source,
        height=task.height,
        width=task.width,
        mask=encode_mask(mask),
        iou=iou,
        score=None if score is None or np.isnan(score) else float(score),
        action=action_to_json(rules.annotator_action(task, mask, clicks, iou)),
    )


def balanced(masks: Iterable[LabelledMask], limit: int, seed: int = 0) -> list[LabelledMask]:
    """At most `limit` of the masks, as many empty ones as of each tenth of IoU, and within a tenth as many of each
    source, as far as there are enough; chosen by a hash of what they are, and in no order that means anything."""
    strata: dict[int, dict[str, list[tuple[int, LabelledMask]]]] = {}
    for one in masks:
        stratum = min(int(BINS * one.iou), BINS - 1) if one.pixels.any() else -1
        sources = strata.setdefault(stratum, {})
        sources.setdefault(one.source, []).append((seed_of(seed, "balance", one.task, one.number), one))
    chosen: list[tuple[int, LabelledMask]] = []
    fewest_first = sorted(strata, key=lambda stratum: (sum(map(len, strata[stratum].values())), stratum))
    for k, sources in enumerate(strata[stratum] for stratum in fewest_first):
        share = (limit - len(chosen)) // (len(strata) - k)
        ranked = [enumerate(sorted(drawn, key=lambda pair: pair[0])) for drawn in sources.values()]
        in_turn = sorted((rank, *pair) for drawn in ranked for rank, pair in drawn)
        chosen += [(key, one) for _, key, one in in_turn[:share]]
    return [one for _, one in sorted(chosen, key=lambda pair: pair[0])]


class PredictedIouExamples(Sequence):
    """Masks as rows for `agents.training.sft.finetune`, rendered when they are asked for: what `pupil` (an `MllmAgent`)
    would see of each, and the reply that states its IoU and then the annotator's action. `task` gives the task of an
    id."""

    def __init__(self, masks: Sequence[LabelledMask], pupil: Any, task: Callable[[str], Task]) -> None:
        self.masks, self.pupil = masks, pupil
        self.task = lru_cache(maxsize=TASKS_KEPT)(task)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, k: Any) -> Any:
        one = self.masks[k]
        seen = observation_of(one, self.task(one.task))
        reply = self.pupil.codec.format(action_from_json(one.action), seen, iou=one.iou)
        return {"image": self.pupil.picture(seen), "prompt": self.pupil.prompt(seen), "reply": reply}


def observation_of(one: LabelledMask, task: Task) -> Observation:
    """What an agent sees of the mask, with one step left."""
    return Observation(task.id, task.image, one.pixels, task.instruction, 0, 1)


def wrong_click(task: Task, mask: np.ndarray, instances: np.ndarray, rng: np.random.Generator) -> Click:
    """A click for another object of the scene, or anywhere."""
    other = instances == rng.integers(1, instances.max() + 1)
    click = annotator.next_click(other, mask) if rng.random() < 0.7 else None
    if click is not None:
        return click
    x, y = int(rng.integers(task.width)), int(rng.integers(task.height))
    return Click(x, y, bool(rng.random() < 0.5) if mask.any() else True)
