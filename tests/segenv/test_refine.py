"""A refinement starts from a mask that is wrong as it was asked to be, and that replays."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from hypothesis import given
from hypothesis import strategies as st

from segenv.envs import starts
from segenv.metrics import iou
from segenv.tools.disc import DiscTool
from segenv.types import Box, Prompt, Task


@pytest.mark.parametrize("start", ["box", "points", "points:k=1", "distort", "distort:low=0.2,high=0.5"])
def test_a_refinement_starts_from_a_mask_that_replays(make_env: Callable[..., gym.Env], start: str) -> None:
    env = make_env("segenv/Refine-v0", start=start, codec="pixels")
    seen, info = env.reset(seed=1)
    assert seen["mask"].any() and info["clicks"] == () and info["step"] == 0
    again = make_env("segenv/Refine-v0", start="given", codec="pixels")
    repeated, _ = again.reset(options={"task": env.unwrapped.state.task})  # type: ignore[attr-defined]
    assert data_equivalence(repeated, seen, exact=True)
    boxes = [one.unwrapped.state.box for one in (env, again)]  # type: ignore[attr-defined]
    assert boxes[0] == boxes[1] and (boxes[0] is not None) == (start == "box"), "a box stays a prompt of the tool"
    click, undo = [env.step(text) for text in ("Positive point: (3, 3)", "Undo")]
    assert click[0]["mask"][3, 3] and data_equivalence(undo[0]["mask"], seen["mask"], exact=True)


@pytest.mark.parametrize("start", ["box", "points:k=2", "distort", "empty"])
def test_the_text_environment_starts_as_the_refinement_does(make_env: Callable[..., gym.Env], start: str) -> None:
    seen = [make_env(name, start=start).reset(seed=2)[0] for name in ("segenv/HLMAT-v0", "segenv/Refine-v0")]
    assert data_equivalence(*seen, exact=True) and seen[0]["mask"].any() == (start != "empty")


def test_box_and_points_ask_the_tool(task: Task) -> None:
    """The disc tool fills a box; the object spans x 28..52 and y 8..32."""
    rng, tool = np.random.default_rng(0), DiscTool(2)
    filled = np.zeros((48, 64), bool)
    filled[8:33, 28:53] = True
    np.testing.assert_array_equal(starts.box(task, tool, rng).initial_mask, filled)
    counts = set()
    for _ in range(60):
        made = starts.points(task, DiscTool(0), rng, 3).initial_mask
        assert made is not None and not (made & ~filled).any()
        counts.add(int(made.sum()))
    assert counts >= {1, 2, 3}
    [expected] = tool.predict(tool.encode([task.image]), [Prompt(box=Box(28, 8, 53, 33))])
    np.testing.assert_array_equal(expected.mask, filled)


@given(st.integers(0, 2**32 - 1), st.integers(6, 20), st.floats(0.2, 0.95))
def test_a_distortion_has_the_iou_that_was_asked_for(seed: int, radius: int, wanted: float) -> None:
    rows, columns = np.ogrid[:48, :64]
    target = (columns - 30) ** 2 + (rows - 24) ** 2 <= radius**2
    task = Task("t", np.zeros((48, 64, 3), np.uint8), target)
    made = starts.distort(task, DiscTool(), np.random.default_rng(seed), wanted, wanted).initial_mask
    assert made is not None and abs(iou(target, made) - wanted) < 0.05


def test_distortions_differ_and_go_wrong_both_ways(task: Task) -> None:
    made = [starts.distort(task, DiscTool(), np.random.default_rng(seed)).initial_mask for seed in range(30)]
    assert len({mask.tobytes() for mask in made if mask is not None}) == 30
    extra = [(mask & ~task.target).sum() for mask in made if mask is not None]
    missing = [(task.target & ~mask).sum() for mask in made if mask is not None]
    assert sum(e > m for e, m in zip(extra, missing, strict=True)) in range(5, 26)


def test_starts_are_refused_by_name(make_env: Callable[..., gym.Env], task: Task) -> None:
    for start, message in [
        ("boxes", "unknown start 'boxes'; expected one of given, empty, box, points, distort (did you mean 'box'?)"),
        ("points:n=3", "'n=3' is no option of points; expected KEY=VALUE of k"),
        ("box:k=3", "'k=3' is no option of box; it has none"),
        ("distort:low=x", "low is 'x'; expected a number"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            make_env("segenv/Refine-v0", start=start)
    with pytest.raises(ValueError, match="task disc has no initial_mask"):
        make_env("segenv/Refine-v0", start="given").reset(options={"task": task})
    with pytest.raises(ValueError, match="no object pixel"):
        empty = replace(task, target=np.zeros((48, 64), bool))
        make_env("segenv/Refine-v0").reset(options={"task": empty})
