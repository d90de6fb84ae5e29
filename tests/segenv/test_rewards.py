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


@given(targets, st.lists(masks, min_size=2, max_size=8), st.sampled_from(["0.5", "0.9", "1"]))
def test_shaping_adds_to_every_episode_what_its_start_was_worth(target, path, gamma):
    """The discounted sum of potential-based shaping is minus the first potential, so no policy gains by it."""
    task, reward = task_of(target), rewards.make(f"shaping({gamma})")
    last, discounted = len(path) - 2, 0.0
    for i, (before, after) in enumerate(zip(path[:-1], path[1:], strict=True)):
        discounted += float(gamma) ** i * reward(task, before, Click(0, 0), after, i == last)
    assert discounted == pytest.approx(-metrics.iou(target, path[0]))
    assert rewards.make("shaping")(task, path[0], Click(0, 0), path[1], False) == pytest.approx(
        0.99 * metrics.iou(target, path[1]) - metrics.iou(target, path[0])
    )


def test_a_decision_is_right_on_its_side_of_the_threshold():
    task, mask = task_of(np.ones((6, 7), bool)), np.ones((6, 7), bool)
    worse = mask.copy()
    worse[0] = False  # IoU 5/6
    for before, threshold, stop, value in (
        (mask, "", True, 1.0),
        (mask, "", False, 0.0),
        (worse, "", True, 0.0),
        (worse, "", False, 1.0),
        (worse, "(0.8)", True, 1.0),
    ):
        action = Stop() if stop else Click(0, 0)
        assert rewards.make(f"decision{threshold}")(task, before, action, before, stop) == value
    clicks = [rewards.make("-0.5*click")(task, mask, one, mask, False) for one in (Click(0, 0), Stop(), INVALID)]
    assert clicks == [-0.5, 0.0, 0.0]


NAMES = [
    "iou_gain",
    "final-0.01*click",
    "decision(0.7)",
    "net_gain",
    "shaping(0.5)-step",
    "2*net_gain",
    "placement-invalid",
]


@given(targets, masks, masks, st.booleans(), st.sampled_from([Click(2, 3), Stop(), INVALID]), st.sampled_from(NAMES))
def test_rewards_stay_in_their_range_and_known_ious_change_nothing(target, before, after, terminal, action, name):
    task = task_of(target)
    terms = rewards.terms(name)
    value = sum(term(task, before, action, after, terminal) for term in terms.values())
    low, high = rewards.reward_range(name)
    assert low - 1e-9 <= value <= high + 1e-9
    known = metrics.iou(target, before), metrics.iou(target, after)
    for term in terms.values():
        if isinstance(term, rewards.IoUReward):
            assert term.of(*known, action, terminal) == term(task, before, action, after, terminal)


def test_ranges_are_sums_of_weighted_ends():
    assert rewards.reward_range("iou_gain-0.5*step+2*format") == (-1.5, 2.5)
    assert rewards.reward_range("-2*iou") == (-2.0, 0.0)
    assert rewards.reward_range(lambda *step: 0.0) == (-np.inf, np.inf)


@pytest.mark.parametrize("name", ["shaping()", "shaping(a)", "iou(0.5)", "net_gain(1)", "shaping(0.5"])
def test_a_number_goes_to_terms_that_take_one(name):
    with pytest.raises(ValueError, match="is not understood"):
        rewards.make(name)
    with pytest.raises(ValueError, match="the number of reward 'shaping' is 1.5"):
        rewards.make("final+shaping(1.5)")


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
