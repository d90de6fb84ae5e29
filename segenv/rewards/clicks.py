"""Rewards of the decision process, by name, and sums of them: `iou_gain+0.1*format`.

`shaping` and `decision` take a number: `final+shaping(0.95)`.

A reward is a function of (task, mask before, action, mask after, terminal): bool [H, W] masks, and whether the episode
has ended. It reads the target; nothing that an agent sees does. Where target and mask are both empty, IoU is 1.

`polygon` rewards a whole mask in one reply, and is a reward function of TRL's as it stands.
"""

import math
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from segenv.metrics import errors, prepared
from segenv.ranges import Share, require
from segenv.types import Action, Box, Click, Invalid, Stop, Task

Reward = Callable[[Task, np.ndarray, Action, np.ndarray, bool], float]
Rule = Callable[[float, float, Action, bool], float]  # (IoU before, IoU after, action, terminal) -> reward


@dataclass(frozen=True)
class IoUReward:
    """Reward that reads masks through their IoUs with the target alone, or not at all (`measures` is False then).

    `of` is for callers who know the IoUs already: a step needs each only once, however many terms it has.
    """

    rule: Rule
    measures: bool = True
    weight: float = 1.0

    def of(self, before: float, after: float, action: Action, terminal: bool) -> float:
        """The reward of a step between masks of IoU `before` and `after`."""
        return self.weight * self.rule(before, after, action, terminal)

    def __call__(self, task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
        known = math.nan, math.nan
        if self.measures:
            known = prepared(task).iou(before), prepared(task).iou(after)
        return self.of(*known, action, terminal)


def _iou(before: float, after: float, action: Action, terminal: bool) -> float:
    """R(s') = IoU of the new mask (SegAgent §3)."""
    return after


def _iou_gain(before: float, after: float, action: Action, terminal: bool) -> float:
    """ΔIoU, which sums over an episode to final minus initial IoU."""
    return after - before


def _final(before: float, after: float, action: Action, terminal: bool) -> float:
    """IoU of the last mask, and 0 until then."""
    return after if terminal else 0.0


def _shaping(before: float, after: float, action: Action, terminal: bool, gamma: float) -> float:
    """γΦ(s') - Φ(s) with the IoU as potential Φ, which is 0 at the end of an episode (Ng et al. 1999)."""
    return (0.0 if terminal else gamma * after) - before


def _decision(before: float, after: float, action: Action, terminal: bool, threshold: float) -> float:
    """1 where it was right to stop, or to go on: stopping is right from an IoU of `threshold` on."""
    return float(isinstance(action, Stop) == (before >= threshold))


def _format(before: float, after: float, action: Action, terminal: bool) -> float:
    """1 for a reply that is an action, 0 for one that is not."""
    return 0.0 if isinstance(action, Invalid) else 1.0


def _invalid(before: float, after: float, action: Action, terminal: bool) -> float:
    """1 for a reply that is no action, to be given a negative weight."""
    return 1.0 if isinstance(action, Invalid) else 0.0


def _step(before: float, after: float, action: Action, terminal: bool) -> float:
    """1 at every step, the one that stops too; to be given a negative weight."""
    return 1.0


def _click(before: float, after: float, action: Action, terminal: bool) -> float:
    """1 for a click or a box, to be given a negative weight: what a prompt costs. Stopping is free."""
    return 1.0 if isinstance(action, (Click, Box)) else 0.0


def _placement(task: Task, before: np.ndarray, action: Action, after: np.ndarray, terminal: bool) -> float:
    """1 for a positive click on a missing pixel or a negative click on a pixel too many, else 0."""
    if not isinstance(action, Click) or not (0 <= action.x < task.width and 0 <= action.y < task.height):
        return 0.0
    pixel = np.s_[action.y : action.y + 1, action.x : action.x + 1]
    missing, extra = errors(task.target[pixel], before[pixel])
    return float((missing if action.positive else extra).item())


REWARDS: dict[str, Reward] = {
    "iou": IoUReward(_iou),
    "iou_gain": IoUReward(_iou_gain),
    "final": IoUReward(_final),
    "shaping": IoUReward(partial(_shaping, gamma=0.99)),
    "decision": IoUReward(partial(_decision, threshold=0.9)),
    "format": IoUReward(_format, measures=False),
    "invalid": IoUReward(_invalid, measures=False),
    "step": IoUReward(_step, measures=False),
    "click": IoUReward(_click, measures=False),
    "placement": _placement,
}
NUMBERS = {"shaping": "gamma", "decision": "threshold"}  # terms that take a number in 0..1: `shaping(0.95)`
RANGES = {"iou_gain": (-1.0, 1.0), "shaping": (-1.0, 1.0), "step": (1.0, 1.0)}  # of the others: 0 to 1
SUMS = {"net_gain": "iou_gain-0.01*step"}  # what the mask gained, less the cost of a click (our choice)

_TERM = re.compile(r"([+-]?)(?:([0-9]+(?:\.[0-9]+)?)\*)?([a-z_]+)(?:\(([0-9]*\.?[0-9]+)\))?")


def make(name: str | Reward) -> Reward:
    """The reward of a name, of a weighted sum of names (`iou_gain+0.1*format-0.05*invalid`), or of a function, which is
    given back."""
    if callable(name):
        return name
    if name in REWARDS:
        return REWARDS[name]
    found = _TERM.fullmatch(name)
    if found and found[3] in NUMBERS and found[4] and not (found[1] or found[2]):
        return _numbered(found[3], float(found[4]))
    return partial(_total, list(terms(name).values()))


def _total(added: Iterable[Reward], *step: Any) -> float:
    return sum(term(*step) for term in added)


def terms(name: str | Reward) -> dict[str, Reward]:
    """Terms of a reward by name, weights included; a function is its own only term, `reward`."""
    if callable(name):
        return {"reward": name}
    if name in REWARDS:
        return {name: REWARDS[name]}
    weights = weights_of(SUMS.get(name, name), (*REWARDS, *SUMS), "iou_gain+0.1*format", NUMBERS)
    return {term: weighted(weight, make(term)) for term, weight in weights.items()}


def _numbered(name: str, number: float) -> Reward:
    """The reward of a term with its number, such as `shaping(0.95)`."""
    require(Share, **{f"the number of reward {name!r}": number})
    plain = REWARDS[name]
    assert isinstance(plain, IoUReward) and isinstance(plain.rule, partial)
    return replace(plain, rule=partial(plain.rule.func, **{NUMBERS[name]: number}))


def reward_range(name: str | Reward) -> tuple[float, float]:
    """The least and the greatest reward of one step; infinite where it is a function."""
    if callable(name):
        return -math.inf, math.inf
    low = high = 0.0
    for term, weight in weights_of(SUMS.get(name, name), (*REWARDS, *SUMS), "iou_gain+0.1*format", NUMBERS).items():
        plain = term.partition("(")[0]
        ends = reward_range(term) if term in SUMS else RANGES.get(plain, (0.0, 1.0))
        low += min(weight * end for end in ends)
        high += max(weight * end for end in ends)
    return low, high


def weighted(weight: float, reward: Reward) -> Reward:
    """So many times a reward."""
    if isinstance(reward, IoUReward):
        return replace(reward, weight=weight * reward.weight)
    return partial(_times, weight, reward)


def _times(weight: float, reward: Reward, *step: Any) -> float:
    return weight * reward(*step)


def weights_of(text: str, names: Iterable[str], example: str, numbered: Container[str] = ()) -> dict[str, float]:
    """The weight of each name in a sum of them, such as `example`; of one that comes twice, both together. Names in
    `numbered` may have a number in brackets, which stays part of them."""
    weights: dict[str, float] = {}
    text, place = text.replace(" ", ""), 0
    while place < len(text) or not weights:
        term = _TERM.match(text, place)
        known = term is not None and term[3] in names and (place == 0 or term[1])
        known = known and (term[4] is None or term[3] in numbered)  # type: ignore[index]
        if term is None or not known:
            raise ValueError(
                f"reward {text!r} is not understood at {text[place:]!r}; expected names joined by + or -, each with an "
                f"optional weight, such as {example}; names: {', '.join(names)}"
            )
        name = term[3] if term[4] is None else f"{term[3]}({term[4]})"
        weights[name] = weights.get(name, 0.0) + float(term[1] + (term[2] or "1"))
        place = term.end()
    if not all(map(math.isfinite, weights.values())):
        raise ValueError(f"reward {text[:60]!r}: its weights are {weights}; expected finite numbers")
    return weights
