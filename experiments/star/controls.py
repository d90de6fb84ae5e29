"""Controls of StaR, and the endpoints by which it is compared with them.

A policy that learned only when to stop gains final IoU as `Played.cut` does, which takes no training. It raises neither
the best mask on the way nor the share of clicks on a true error, at the steps at which both policies click.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.evaluate.episodes.click_quality import by_step, right_clicks
from search.episode import Episode
from segenv import statistics
from segenv.types import Task

ENDPOINTS = {
    "final_iou": "final mIoU",
    "best_iou": "best mask on the way",
    "on_error": "clicks on a true error",
}
PRIMARY = "final_iou"


@dataclass(frozen=True)
class Played:
    """Episodes of one policy, of the same tasks as another's."""

    curves: np.ndarray  # [tasks, steps + 1] float64, IoU of the first mask and after each action; the last one stays
    right: np.ndarray  # [tasks, steps] float64, 1 for a click on a true error, 0 for another, NaN for no click

    @property
    def final(self) -> np.ndarray:
        """IoU of the last mask, [tasks]."""
        return self.curves[:, -1]

    @property
    def best(self) -> np.ndarray:
        """IoU of the best mask on the way, the first one included, [tasks]."""
        return self.curves.max(1)

    def cut(self, step: int) -> Played:
        """Stop every episode after so many actions, 1 or more."""
        return Played(self.curves[:, : step + 1], self.right[:, :step])

    def best_step(self) -> int:
        """The number of actions, 1 or more, after which the mean IoU is highest; the least of equals."""
        return 1 + int(self.curves[:, 1:].mean(0).argmax())


def iou_curves(episodes: Sequence[Episode], max_steps: int) -> np.ndarray:
    """`Played.curves` of episodes."""
    curves = [np.array([episode.start_iou, *episode.ious]) for episode in episodes]
    return np.array([np.pad(curve, (0, max_steps + 1 - len(curve)), mode="edge") for curve in curves])


def read_played(policies: Sequence[Sequence[Episode]], max_steps: int, load: Callable[[str], Task]) -> Iterator[Played]:
    """Measure the episodes of each policy, all of the same tasks in the same order; `load` gives the task of an id, and
    is called once for each."""
    right = []  # [tasks, policies]
    for group in zip(*policies, strict=True):
        if len({episode.task for episode in group}) > 1:
            raise ValueError("the policies played other tasks; differences are paired, so give the same ones of each")
        task = load(group[0].task)
        right.append([right_clicks(episode, task) for episode in group])
    for episodes, rows in zip(policies, zip(*right, strict=True), strict=True):
        yield Played(iou_curves(episodes, max_steps), by_step(rows, max_steps))


def compare(
    policy: Sequence[Played], reference: Sequence[Played], images: Sequence[Hashable] | None = None
) -> dict[str, list[float]]:
    """Differences of a policy to a reference by `ENDPOINTS`, of one `Played` a seed: mean and 95 % interval, paired by
    image, with seeds as a random effect. Clicks are compared at the steps at which both policies click."""
    pairs = list(zip(policy, reference, strict=True))
    differences = {
        "final_iou": [one.final - other.final for one, other in pairs],
        "best_iou": [one.best - other.best for one, other in pairs],
        "on_error": [_on_error(one, other) for one, other in pairs],
    }
    return {name: list(statistics.random_effects(values, images)) for name, values in differences.items()}


def _on_error(one: Played, other: Played) -> np.ndarray:
    """Terms [tasks] of the difference in the share of clicks on a true error, over steps at which both click."""
    steps = min(one.right.shape[1], other.right.shape[1])
    change = one.right[:, :steps] - other.right[:, :steps]  # NaN where one of them does not click
    return statistics.ratio_terms(np.nansum(change, axis=1), (~np.isnan(change)).sum(1))
