"""StaR's filters on hand-made episodes, and its lessons."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from made_episodes import CLICK, INVALID, MISS, SHAPE, STOP, UNDO, made_episode, made_task, part

import agents
from search import star
from search.episode import Episode
from search.rollout import rollout
from segenv import annotator, codec, data, tools
from segenv.mdp import SegMDP
from segenv.types import Box, Click, Stop, Task, Undo


def test_star_plus_keeps_gains_and_corrects_the_rest():
    task = made_task()
    episode = made_episode(
        task,
        [(CLICK, part(12)), (MISS, part(9)), (INVALID, part(9)), (STOP, part(9))],
    )
    rows = star.star_plus_examples(episode, task)
    assert [row.provenance for row in rows] == ["policy", "corrected", "corrected", "corrected"]
    assert rows[0].action == CLICK and rows[0].iou == 0.0 and rows[0].gain == pytest.approx(0.4)
    for row, mask in zip(rows[1:], (part(12), part(9), part(9)), strict=True):
        expected = annotator.next_click(task.target, mask, [Click(12, 12), Click(50, 5)])
        assert star.action_of(row) == expected
    assert rows[1].gain == pytest.approx(-0.1) and rows[1].text == "reply 1"


def test_a_correction_never_repeats_an_earlier_click():
    """The annotator's next pixel was clicked in vain before; clicks from this state on are no concern of it."""
    task = made_task()
    first = annotator.next_click(task.target, part(9))
    assert first is not None
    deepest = {"type": "click", "x": first.x, "y": first.y, "positive": first.positive}
    episode = made_episode(task, [(CLICK, part(9)), (deepest, part(9)), (INVALID, part(9))])
    rows = star.star_plus_examples(episode, task)
    assert star.action_of(rows[1]) == first  # judged in the state before it
    third = star.action_of(rows[2])
    assert third == annotator.next_click(task.target, part(9), [Click(12, 12), first]) and third != first


def test_from_the_stopping_iou_on_the_lesson_is_to_stop():
    task = made_task()
    episode = made_episode(task, [(CLICK, part(28)), (CLICK, part(29)), (STOP, part(29))])
    rows = star.star_plus_examples(episode, task, star.Rules(stop_iou=0.9))
    assert [(row.provenance, row.action["type"]) for row in rows] == [
        ("policy", "click"),
        ("corrected", "stop"),
        ("policy", "stop"),
    ]
    perfect = made_episode(task, [(CLICK, part(30)), (UNDO, np.zeros(SHAPE, bool))])
    assert star.action_of(star.star_plus_examples(perfect, task, star.Rules(stop_iou=1.01))[1]) == Stop()


def test_expert_rows_drop_clicks_without_gain_and_end_with_a_stop():
    task = made_task()
    episode = made_episode(task, [(CLICK, part(12)), (MISS, part(12)), (CLICK, part(28)), (CLICK, part(29))])
    rows = star.demonstration_examples(episode, star.Rules(stop_iou=0.9))
    early = made_episode(task, [(CLICK, part(12)), (CLICK, part(20)), (MISS, part(9))])
    early = star.demonstration_examples(early, star.Rules(saturation_iou=0.5), filtered=True)
    assert [(row.step, row.action["type"]) for row in early] == [(0, "click"), (1, "click"), (2, "stop")]
    assert [row.step for row in rows] == [0, 2, 3]
    assert [row.action["type"] for row in rows] == ["click", "click", "stop"]
    assert rows[-1].iou == pytest.approx(28 / 30)


def test_clicks_without_effect_are_corrected():
    task = made_task()
    episode = made_episode(task, [(CLICK, part(12)), (MISS, part(12)), (CLICK, part(20))])
    rows = star.star_plus_examples(episode, task)
    assert [row.provenance for row in rows] == ["policy", "corrected", "policy"]
    assert not star.Rules(min_gain=0.5).good("click", 0.2, 0.6)


def test_corrections_are_tried_and_recorded_beside_the_play():
    """A policy that always clicks the corner is told the annotator's click each time, and continues from its own."""
    task = synthetic_task()
    mdp = SegMDP(tools.make("disc"), max_steps=4)
    rules = star.Rules(stop_iou=0.95)
    corner = Corner(codec.make("segagent"))
    [played] = rollout(mdp, corner, [task], correct=rules.correction)
    [untouched] = rollout(mdp, corner, [task])
    [expert] = rollout(mdp, agents.make("annotator", "segagent"), [task])
    assert played.ious == untouched.ious and all(step.action["x"] == 0 for step in played.steps)
    assert played.steps[0].other == {"action": expert.steps[0].action, "iou": expert.ious[0]}
    first = star.star_plus_examples(played, task, rules)[0]
    assert (first.provenance, first.action) == ("corrected", expert.steps[0].action)
    assert first.iou_after == played.ious[0]
    assert Episode.from_json(json.loads(json.dumps(played.to_json()))) == played


def test_where_no_click_helps_the_lesson_is_to_stop():
    task = made_task()
    episode = made_episode(task, [(CLICK, part(12)), (MISS, part(9)), (STOP, part(9))])
    tried = {"action": {"type": "click", "x": 20, "y": 20, "positive": True}, "iou": 0.35}
    steps = tuple(dataclasses.replace(step, other=tried) if k else step for k, step in enumerate(episode.steps))
    episode = dataclasses.replace(episode, steps=steps)
    rules = star.Rules(saturation_iou=0.3)
    rows = star.star_plus_examples(episode, task, rules)
    assert [(row.provenance, row.action["type"]) for row in rows] == [
        ("policy", "click"),
        ("corrected", "stop"),  # from .4 the annotator's click would lead to .35
        ("corrected", "click"),  # from .3 it helps: too early to stop
    ]
    other = star.Rules(saturation_iou=0.5)
    assert [row.action["type"] for row in star.star_plus_examples(episode, task, other)] == ["click"] * 2
    stopping = dataclasses.replace(
        episode, steps=(*episode.steps[:1], dataclasses.replace(episode.steps[2], other=tried))
    )
    last = star.star_plus_examples(stopping, task, rules)[-1]
    assert (last.provenance, last.action) == ("policy", STOP)  # it stopped where nothing helped


class Corner(agents.Agent):
    """Clicks the corner, whatever it sees."""

    def _act(self, observations, seeds):
        return [self.codec.format(Click(0, 0), observation) for observation in observations]


def synthetic_task() -> Task:
    task = data.make("synthetic:val#easy")[0]
    assert not task.target[0, 0]
    return task


def test_plain_star_keeps_whole_trajectories():
    task = made_task()
    good = made_episode(task, [(CLICK, part(12)), (INVALID, part(12)), (CLICK, part(25))])
    bad = made_episode(task, [(CLICK, part(12)), (MISS, part(9))])
    assert [row.step for row in star.star_examples(good, star.Rules(keep_iou=0.7))] == [0, 2]
    assert star.star_examples(bad, star.Rules(keep_iou=0.7)) == []


def test_equal_lessons_count_once_and_rows_survive_json():
    task = made_task()
    rows = star.star_plus_examples(made_episode(task, [(CLICK, part(12)), (MISS, part(9))]), task)
    assert star.unique_examples(rows + rows) == rows
    assert [star.StarExample(**json.loads(json.dumps(row.to_json()))) for row in rows] == rows
    assert star.provenance_rates(rows) == {"expert": 0.0, "policy": 0.5, "corrected": 0.5}


@pytest.mark.parametrize("action", [Click(3, 4, False), Box(1, 2, 3, 4), Stop(), Undo()])
def test_actions_survive_rows(action):
    from search.episode import action_to_json

    row = star.StarExample("t", 0, 0, 4, 4, "", 0.0, action_to_json(action), "policy", 0.0, "")
    assert star.action_of(row) == action


def test_equal_states_with_other_complaints_are_two_lessons():
    task = made_task()
    steps: list = [(INVALID, part(0)), (INVALID, part(0)), (INVALID, part(0))]
    rows = star.star_plus_examples(made_episode(task, steps), task)
    assert [row.error for row in rows] == [None, "not read", "not read"]
    assert star.unique_examples(rows) == rows[:2]
