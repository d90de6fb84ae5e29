"""Rewards of the decision process, by name, and sums of them: `iou_gain+0.1*format`.

A reward is a function of (task, mask before, action, mask after, terminal): bool [H, W] masks, and whether the episode
has ended. It reads the target; nothing that an agent sees does. Where target and mask are both empty, IoU is 1.

`polygon` rewards a whole mask in one reply, and is a reward function of TRL's as it stands.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from segenv.metrics import errors, iou
from segenv.types import Action, Click, Invalid, Task

Reward = Callable[[Task, np.ndarray, Action, np.ndarray, bool], float]


def _iou(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """R(s') = IoU of the new mask (SegAgent §3)."""
    return iou(task.target, after)


def _iou_gain(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """ΔIoU, which sums over an episode to final minus initial IoU."""
    return iou(task.target, after) - iou(task.target, before)


def _final(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """IoU of the last mask, and 0 until then."""
    return iou(task.target, after) if terminal else 0.0


def _format(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """1 for a reply that is an action, 0 for one that is not."""
    return 0.0 if isinstance(action, Invalid) else 1.0


def _invalid(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """1 for a reply that is no action, to be given a negative weight."""
    return 1.0 if isinstance(action, Invalid) else 0.0


def _step(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """1 at every step, to be given a negative weight: what a click costs."""
    return 1.0


def _placement(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """1 for a positive click on a missing pixel or a negative click on a pixel too many, else 0."""
    if not isinstance(action, Click) or not (0 <= action.x < task.width and 0 <= action.y < task.height):
        return 0.0
    pixel = np.s_[action.y : action.y + 1, action.x : action.x + 1]
    missing, extra = errors(task.target[pixel], before[pixel])
    return float((missing if action.positive else extra).item())


REWARDS: dict[str, Reward] = {
    "iou": _iou,
    "iou_gain": _iou_gain,
    "final": _final,
    "format": _format,
    "invalid": _invalid,
    "step": _step,
    "placement": _placement,
}
SUMS = {"net_gain": "iou_gain-0.01*step"}  # what the mask gained, less the cost of a click (our choice)

_TERM = re.compile(r"([+-]?)(?:([0-9]+(?:\.[0-9]+)?)\*)?([a-z_]+)")


def make(name: str | Reward) -> Reward:
    """The reward of a name, of a weighted sum of names (`iou_gain+0.1*format-0.05*invalid`), or of a function, which is
    given back."""
    if callable(name):
        return name
    if name in REWARDS:
        return REWARDS[name]
    return partial(_total, list(terms(name).values()))


def _total(added: Iterable[Reward], *step: Any) -> float:
    return sum(term(*step) for term in added)


def terms(name: str | Reward) -> dict[str, Reward]:
    """Terms of a reward by name, weights included; a function is its own only term, `reward`."""
    if callable(name):
        return {"reward": name}
    if name in REWARDS:
        return {name: REWARDS[name]}
    weights = weights_of(SUMS.get(name, name), (*REWARDS, *SUMS), "iou_gain+0.1*format")
    return {term: weighted(weight, make(term)) for term, weight in weights.items()}


def weighted(weight: float, reward: Reward) -> Reward:
    """So many times a reward."""
    return partial(_times, weight, reward)


def _times(weight: float, reward: Reward, *step: Any) -> float:
    return weight * reward(*step)


def weights_of(text: str, names: Iterable[str], example: str) -> dict[str, float]:
    """The weight of each name in a sum of them, such as `example`; of one that comes twice, both together."""
    weights: dict[str, float] = {}
    text, place = text.replace(" ", ""), 0
    while place < len(text) or not weights:
        term = _TERM.match(text, place)
        known = term is not None and term[3] in names and (place == 0 or term[1])
        if term is None or not known:
            raise ValueError(
                f"reward {text!r} is not understood at {text[place:]!r}; expected names joined by + or -, each with an "
                f"optional weight, such as {example}; names: {', '.join(names)}"
            )
        weights[term[3]] = weights.get(term[3], 0.0) + float(term[1] + (term[2] or "1"))
        place = term.end()
    if not all(map(math.isfinite, weights.values())):
        raise ValueError(f"reward {text[:60]!r}: its weights are {weights}; expected finite numbers")
    return weights
