"""Laws of the decision process, over any images, targets and actions; the tool is the disc, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from segenv.mdp import SegMDP, SegState
from segenv.metrics import iou
from segenv.tools.cache import Encoding
from segenv.tools.disc import DiscTool
from segenv.types import Absent, Action, BadItem, Box, Click, Invalid, Prediction, Prompt, Stop, Task, ToolError, Undo

SIDE = st.integers(3, 24)


def mdp_of(max_steps: int = 20, reward: str = "iou_gain") -> SegMDP:
    return SegMDP(DiscTool(radius=4), max_steps, reward)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Noise of any size, with a rectangle as target: bool, or uint8 with an ignored rim; some start from a mask."""
    height, width = draw(SIDE), draw(SIDE)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top, left = rng.integers(height), rng.integers(width)
    target = np.zeros((height, width), bool)
    target[top : top + 1 + rng.integers(height), left : left + 1 + rng.integers(width)] = True
    if draw(st.booleans()):
        target = target.astype(np.uint8) * np.uint8(255)
        target[:, -1] = 128
    initial = rng.random((height, width)) < 0.3 if draw(st.booleans()) else None
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Task(f"noise{height}x{width}", image, target, "the rectangle", initial)


clicks = st.builds(Click, st.integers(-1, 24), st.integers(-1, 24), st.booleans())  # some lie outside the image
boxes = st.builds(Box, st.integers(0, 8), st.integers(0, 8), st.integers(4, 26), st.integers(4, 26))
moves = st.one_of(clicks, clicks, clicks, boxes, st.just(Undo()), st.just(Invalid("?", "'?' is no action")))


def path(mdp: SegMDP, task: Task, actions: list[Action]) -> list[SegState]:
    """The states of an episode, the first one included; it ends where the process does."""
    states = [mdp.initial(task)]
    for action in actions:
        if mdp.terminal(states[-1]):
            break
        states += mdp.transition([states[-1]], [action])
    return states


def contents(state: SegState) -> tuple:
    """Everything that a state holds, by value."""
    kept = (state.clicks, state.box, state.step, state.stopped, state.error)
    logits = None if state.logits is None else state.logits.tobytes()
    return state.mask.tobytes(), state.mask.shape, logits, np.float64(state.score).tobytes(), *kept


def seen(mdp: SegMDP, state: SegState) -> tuple:
    """Everything that an agent sees of a state, by value."""
    now = mdp.observation(state)
    return now.task_id, now.image.tobytes(), now.mask.tobytes(), now.instruction, now.step, now.steps_left, now.error


@given(tasks(), st.lists(moves, max_size=6), st.lists(moves, min_size=1, max_size=4))
def test_branching_leaves_the_parent_alone(task: Task, actions: list[Action], branches: list[Action]) -> None:
    mdp = mdp_of()
    parent = path(mdp, task, actions)[-1]
    before = contents(parent)
    children = mdp.transition([parent] * len(branches), branches)
    mdp.transition(children, [Click(0, 0)] * len(children))
    assert contents(parent) == before
    for state in (parent, *children):
        for array in (state.mask, state.packed, state.task.image, state.task.target):
            assert array is None or not array.flags.writeable


@given(st.lists(st.tuples(tasks(), st.lists(moves, max_size=5), moves), min_size=1, max_size=5))
def test_a_batch_gives_what_its_items_give_alone(items: list[tuple[Task, list[Action], Action]]) -> None:
    """The items have different images, sizes and numbers of clicks."""
    mdp = mdp_of()
    states = [path(mdp, task, actions)[-1] for task, actions, _ in items]
    actions = [action for *_, action in items]
    together = mdp.transition(states, actions)
    alone = [mdp_of().transition([state], [action])[0] for state, action in zip(states, actions, strict=True)]
    assert [contents(state) for state in together] == [contents(state) for state in alone]


@given(tasks(), st.integers(0, 2**32 - 1), st.lists(moves | st.just(Stop()), max_size=8))
def test_swapping_the_target_changes_no_observation(task: Task, seed: int, actions: list[Action]) -> None:
    other = replace(task, target=np.random.default_rng(seed).random(task.target.shape) < 0.5, meta={"secret": seed})
    mdp = mdp_of()
    first, second = path(mdp, task, actions), path(mdp, other, actions)
    assert [seen(mdp, state) for state in first] == [seen(mdp, state) for state in second]


@given(tasks(), st.lists(moves, max_size=8))
def test_gains_in_iou_add_up_to_final_less_initial(task: Task, actions: list[Action]) -> None:
    mdp = mdp_of()
    states = path(mdp, task, actions)
    gains = [mdp.reward(*step) for step in zip(states, actions, states[1:])]  # noqa: B905  # one state more than actions
    assert sum(gains) == pytest.approx(iou(task.target, states[-1].mask) - iou(task.target, states[0].mask), abs=1e-9)


@given(tasks(), st.lists(moves, max_size=5), clicks)
def test_undo_returns_to_the_earlier_mask(task: Task, actions: list[Action], click: Click) -> None:
    """All that the tool is told is as it was too, so going on from there is as if the click had never been."""
    mdp = mdp_of()
    before = path(mdp, task, actions)[-1]
    [clicked] = mdp.transition([before], [click])
    assume(clicked.error is None)  # a click outside the image is not carried out, and so not undone
    [undone] = mdp.transition([clicked], [Undo()])
    assert contents(replace(undone, step=before.step, error=before.error)) == contents(before)
    assert undone.step == before.step + 2
    again, fresh = mdp.transition([undone, before], [Click(0, 0)] * 2)
    assert contents(replace(again, step=fresh.step)) == contents(fresh)


def test_undo_goes_back_click_by_click_and_then_has_nothing_to_undo(task: Task) -> None:
    states = path(mdp_of(), task, [Click(40, 20), Click(10, 10), Box(2, 2, 9, 9), Undo(), Undo(), Undo(), Undo()])
    masks = [state.mask.tobytes() for state in states]
    assert masks[4:] == [masks[2], masks[1], masks[0], masks[0]]
    assert [state.error for state in states] == [None] * 7 + ["nothing to undo: no click has been made"]


@given(tasks(), st.lists(moves, max_size=5), st.text(max_size=20))
def test_an_invalid_reply_leaves_the_mask_and_takes_a_step(task: Task, actions: list[Action], text: str) -> None:
    mdp = mdp_of()
    before = path(mdp, task, actions)[-1]
    [after] = mdp.transition([before], [Invalid(text, f"{text!r} is no action")])
    assert contents(replace(after, step=before.step, error=before.error)) == contents(before)
    assert (after.step, mdp.observation(after).error) == (before.step + 1, f"{text!r} is no action")
    assert mdp.observation(mdp.transition([after], [Click(0, 0)])[0]).error is None, "an error is shown once"


@pytest.mark.parametrize("action", [Click(64, 5), Click(5, 48), Click(-1, 0), Box(9, 9, 9, 20), Box(0, 0, 65, 4)])
def test_what_lies_outside_the_image_is_not_carried_out(task: Task, action: Action) -> None:
    """The image is 64 px wide and 48 px high."""
    [after] = mdp_of().transition([mdp_of().initial(task)], [action])
    assert not after.mask.any() and after.clicks == () and after.box is None and after.step == 1
    assert "64 x 48" in str(after.error)


@given(tasks(), st.lists(moves, max_size=5))
def test_stop_ends_the_episode_with_the_mask_it_has(task: Task, actions: list[Action]) -> None:
    mdp = mdp_of()
    before = path(mdp, task, actions)[-1]
    [after] = mdp.transition([before], [Stop()])
    assert mdp.terminal(after) and not mdp.terminal(before)
    assert after.mask.tobytes() == before.mask.tobytes()
    with pytest.raises(ValueError, match="start a new episode"):
        mdp.transition([after], [Click(0, 0)])


@given(tasks(), st.integers(1, 5), st.lists(moves, min_size=6, max_size=6))
def test_the_budget_counts_every_action_and_ends_the_episode(task: Task, budget: int, actions: list[Action]) -> None:
    mdp = mdp_of(budget)
    states = path(mdp, task, actions)
    assert [mdp.observation(state).steps_left for state in states] == list(range(budget, -1, -1))
    assert [mdp.terminal(state) for state in states] == [False] * budget + [True]


@given(tasks(), st.lists(moves | st.just(Stop()), max_size=8))
def test_replaying_the_actions_reproduces_the_episode(task: Task, actions: list[Action]) -> None:
    first, second = path(mdp_of(), task, actions), path(mdp_of(), task, actions)
    assert [contents(state) for state in first] == [contents(state) for state in second]


def test_a_refinement_starts_from_the_given_mask(task: Task) -> None:
    given_mask = task.target.copy()
    given_mask[:, :40] = False
    mdp = mdp_of()
    start = mdp.initial(replace(task, initial_mask=given_mask))
    np.testing.assert_array_equal(start.mask, given_mask)
    [after] = mdp.transition([start], [Click(35, 20)])
    assert (after.mask & given_mask).sum() == given_mask.sum(), "the tool goes on from that mask"
    assert mdp.reward(start, Click(35, 20), after) > 0


def test_absent_ends_the_episode_with_an_empty_mask_which_is_right_where_nothing_is(task: Task) -> None:
    mdp, nothing = mdp_of(reward="iou"), replace(task, target=np.zeros_like(task.target))
    for given_, reward in ((task, 0.0), (nothing, 1.0)):
        _, clicked, ended = states = path(mdp, given_, [Click(40, 20), Absent()])
        assert clicked.mask.any() and not ended.mask.any() and mdp.terminal(ended) and ended.step == 2
        assert mdp.reward(clicked, Absent(), ended) == reward and states[0].packed is None


def test_final_reward_comes_at_the_end_only(task: Task) -> None:
    mdp = mdp_of(reward="final")
    actions = [Click(40, 20), Click(36, 20), Stop()]
    states = path(mdp, task, actions)
    rewards = [mdp.reward(*step) for step in zip(states, actions, states[1:])]  # noqa: B905
    assert rewards == [0.0, 0.0, iou(task.target, states[-1].mask)] and rewards[-1] > 0


def test_a_mask_of_another_size_is_a_fault_of_the_tool_and_no_mask(task: Task) -> None:
    class Wrong(DiscTool):
        def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
            return [Prediction(answer.mask[1:]) for answer in super()._predict(encodings, prompts)]

    mdp = SegMDP(Wrong())
    with pytest.raises(ToolError, match=r"disc: mask is \[47, 64\] for task disc; expected the image's \[48, 64\]"):
        mdp.transition([mdp.initial(task)], [Click(40, 20)])


def test_labels_that_mean_nothing_are_refused_and_not_taken_for_background(task: Task) -> None:
    with pytest.raises(BadItem, match="target has labels 0, 1; expected 0, 128"):
        replace(task, target=task.target.astype(np.uint8))


def test_a_wrong_kind_of_action_is_refused_by_name(task: Task) -> None:
    mdp = mdp_of()
    with pytest.raises(TypeError, match="action is tuple; expected Click, Box, Polygons, Stop, Absent, Undo or"):
        mdp.transition([mdp.initial(task)], [(3, 4)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 states and 2 actions"):
        mdp.transition([mdp.initial(task)], [Stop(), Stop()])
