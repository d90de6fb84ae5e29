"""Rewards by name: of a step (`clicks`), and of a whole mask in one reply (`polygons`)."""

from segenv.rewards.clicks import (
    REWARDS,
    SUMS,
    IoUReward,
    Reward,
    make,
    reward_range,
    terms,
    weighted,
    weights_of,
)
from segenv.rewards.polygons import PARTS, PolygonReward, goal_of, polygon

__all__ = [
    "PARTS",
    "REWARDS",
    "SUMS",
    "IoUReward",
    "PolygonReward",
    "Reward",
    "goal_of",
    "make",
    "polygon",
    "reward_range",
    "terms",
    "weighted",
    "weights_of",
]
