"""Rewards: sums that telescope, terms that compose, and names that are checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segenv import metrics, rewards
from segenv.types import Click, Invalid, Stop, Task

masks = arrays(np.bool_, (6, 7))
targets = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 128, 255]))
INVALID = Invalid("?", "no action")


def task_of(target: np.ndarray) -> Task:
    return Task("a", np.zeros((*target.shape, 3), np.uint8), target)


def episode_return(name: str, task: Task, path: list[np.ndarray], actions: list) -> float:
    reward, last = rewards.make(name), len(path) - 2
    steps = zip(path[:-1], actions, path[1:], strict=True)
    return sum(reward(task, before, action, after, i == last) for i, (before, action, after) in enumerate(steps))


@given(targets, st.lists(masks, min_size=2, max_size=8))
def test_iou_gain_telescopes(target, path):
    """Whatever the masks between, the return is final less initial IoU; `final` gives the last IoU alone."""
    task, actions = task_of(target), [Click(0, 0)] * (len(path) - 1)
    gained = metrics.iou(target, path[-1]) - metrics.iou(target, path[0])
    assert episode_return("iou_gain", task, path, actions) == pytest.approx(gained)
    assert episode_return("final", task, path, actions) == metrics.iou(target, path[-1])
    assert episode_return("net_gain", task, path, actions) == pytest.approx(gained - 0.01 * len(actions))


@given(targets, masks, masks, st.booleans(), st.sampled_from([Click(2, 3), Click(2, 3, False), Stop(), INVALID]))
def test_sums_are_sums(target, before, after, terminal, action):
    arguments = task_of(target), before, action, after, terminal
    value = {name: rewards.make(name)(*arguments) for name in rewards.REWARDS}
    assert rewards.make("iou_gain+0.1*format")(*arguments) == pytest.approx(value["iou_gain"] + 0.1 * value["format"])
    assert rewards.make("-2*iou - 0.05*invalid + final")(*arguments) == pytest.approx(
        -2 * value["iou"] - 0.05 * value["invalid"] + value["final"]
    )
    assert rewards.make("2*net_gain")(*arguments) == pytest.approx(2 * (value["iou_gain"] - 0.01))
    parts = rewards.terms("iou_gain+0.1*format")
    assert {name: term(*arguments) for name, term in parts.items()} == {
        "iou_gain": value["iou_gain"],
        "format": 0.1 * value["format"],
    }
    assert value["format"] + value["invalid"] == 1.0 and value["invalid"] == isinstance(action, Invalid)


def test_stopping_is_well_formed_and_an_invalid_reply_is_not():
    task, mask = task_of(np.ones((6, 7), bool)), np.zeros((6, 7), bool)
    reward = rewards.make("format")
    assert reward(task, mask, Stop(), mask, True) == 1.0
    assert reward(task, mask, INVALID, mask, False) == 0.0


def test_placement_wants_the_right_sign_on_the_right_error():
    target = np.array([[255, 255, 0, 0, 128]], np.uint8)
    before = np.array([[True, False, True, False, True]])
    reward, task = rewards.make("placement"), task_of(target)
    given_to = {
        (x, positive): reward(task, before, Click(x, 0, positive), before, False)
        for x in range(5)
        for positive in (True, False)
    }
    assert {place for place, value in given_to.items() if value} == {(1, True), (2, False)}
    assert set(given_to.values()) == {0.0, 1.0}
    assert reward(task, before, Stop(), before, True) == reward(task, before, Click(9, 9), before, False) == 0.0


def test_a_function_is_a_reward():
    def own(task, before, action, after, terminal):
        return 7.0

    assert rewards.make(own) is own


@pytest.mark.parametrize(
    "name", ["", "iuo", "iou_gain+", "iou iou", "0.1*", "iou*0.1", "2**iou", "__import__('os')", "1"]
)
def test_a_wrong_name_says_what_is_wrong(name):
    with pytest.raises(ValueError, match="reward .* is not understood at .* names: iou, iou_gain"):
        rewards.make(name)
