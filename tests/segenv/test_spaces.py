"""Spaces without a fixed size keep the promises of Gymnasium's own."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from segenv.envs.spaces import FreeText, Pixels


@pytest.mark.parametrize("space", [Pixels(3), Pixels(dtype=bool), FreeText(50)], ids=repr)
def test_a_space_holds_its_samples_and_sends_them_through_json(space: gym.Space) -> None:
    space.seed(1)
    samples = [space.sample() for _ in range(5)]
    assert all(sample in space for sample in samples)
    space.seed(1)
    assert data_equivalence([space.sample() for _ in range(5)], samples, exact=True)
    back = space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples))))
    assert data_equivalence(back, samples, exact=True)


def test_spaces_know_their_own() -> None:
    image, mask = np.zeros((5, 7, 3), np.uint8), np.zeros((5, 7), bool)
    assert image in Pixels(3) and mask in Pixels(dtype=bool)
    for wrong in (image[..., 0], image[..., :2], image.astype(np.float32), image[:0], image.tolist(), mask):
        assert wrong not in Pixels(3)
    assert image not in Pixels(dtype=bool) and mask.astype(np.uint8) not in Pixels(dtype=bool)
    assert Pixels(3) == Pixels(3) != Pixels(4) != Pixels(dtype=bool)
    assert (
        "größer, 더 크게 🙂" in FreeText(20)
        and "" in FreeText(20)
        and "x" * 21 not in FreeText(20)
        and 3 not in FreeText(20)
    )
    assert FreeText(20) == FreeText(20) != FreeText(21)
    with pytest.raises(ValueError, match="expected uint8 or bool"):
        Pixels(dtype=np.float32)
