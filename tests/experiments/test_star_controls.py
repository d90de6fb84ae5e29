"""The controls of StaR: a fixed cut, and as many of the annotator's actions on new tasks; endpoints by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_episodes import CLICK, INVALID, MISS, STOP, made_episode, made_task, part

from experiments.common.config import RunError
from experiments.star import Args, controls
from experiments.star.config import check
from experiments.star.controls import Played
from experiments.star.train import Star
from search.star import annotator_queries

FAR = {**CLICK, "x": 35}


def played(*episodes: list, max_steps: int = 3) -> Played:
    """What a policy played on as many tasks, each of one rectangle of 30 columns."""
    task = made_task()
    made = [replace(made_episode(task, steps), task=f"t{k}") for k, steps in enumerate(episodes)]
    [found] = controls.read_played([made], max_steps, lambda name: replace(task, id=name))
    return found


def test_a_cut_keeps_what_came_before_it():
    one = played([(CLICK, part(15)), (FAR, part(27)), (MISS, part(6))], [(CLICK, part(30)), (STOP, part(30))])
    np.testing.assert_allclose(one.curves, [[0, 0.5, 0.9, 0.2], [0, 1, 1, 1]])
    np.testing.assert_array_equal(one.right, [[1, 1, 0], [1, np.nan, np.nan]])
    assert one.best_step() == 2
    cut = one.cut(2)
    np.testing.assert_allclose(cut.final, [0.9, 1])
    np.testing.assert_allclose(cut.best, one.best)
    np.testing.assert_allclose(one.cut(1).best, [0.5, 1])
    assert played([(CLICK, part(15)), (INVALID, part(15))]).best_step() == 1, "the least of equals"


def test_a_policy_that_only_stops_earlier_gains_by_the_final_iou_alone():
    late = [(CLICK, part(20)), (FAR, part(27)), (MISS, part(9))]
    start = [played(late, late, late) for _ in range(3)]
    stops = [played(*[[*late[:2], (STOP, part(27))]] * 3) for _ in range(3)]
    found = controls.compare(stops, start)
    assert found["final_iou"] == pytest.approx([0.6] * 3)
    assert found["best_iou"] == [0, 0, 0] and found["on_error"] == [0, 0, 0]
    assert controls.compare(stops, [one.cut(2) for one in start])["final_iou"] == [0, 0, 0]
    refines = [played(*[[(CLICK, part(20)), (FAR, part(28)), (STOP, part(28))]] * 3) for _ in range(3)]
    misses = [played(*[[(CLICK, part(20)), (MISS, part(20)), (STOP, part(20))]] * 3) for _ in range(3)]
    found = controls.compare(refines, misses)
    assert found["on_error"] == pytest.approx([0.5] * 3) and found["best_iou"] == pytest.approx([8 / 30] * 3)
    silent = [played(*[[(STOP, part(0))]] * 3) for _ in range(3)]
    assert np.isnan(controls.compare(refines, silent)["on_error"][0]), "they click at no common step"


def test_seeds_that_differ_widen_the_difference():
    seeds = [played(*[[(CLICK, part(n + k))] for k in range(4)]) for n in (10, 14, 18)]
    base = [played(*[[(CLICK, part(10 + k))] for k in range(4)])] * 3
    mean, low, high = controls.compare(seeds, base)["final_iou"]
    assert mean == pytest.approx(4 / 30) and low < 0 < high, "three seeds of +0, +4 and +8 columns show nothing"


def test_policies_of_other_tasks_are_not_paired():
    task = made_task()
    one = made_episode(task, [(CLICK, part(9))])
    with pytest.raises(ValueError, match="give the same ones"):
        list(controls.read_played([[one], [replace(one, task="other")]], 3, lambda name: task))


def test_demonstrations_take_as_many_actions_on_new_tasks_as_rollouts_ask_for(tmp_path):
    settings = {
        "limit": 3,
        "rollout_tasks": 3,
        "samples": 2,
        "eval_limit": 1,
        "max_steps": 3,
        "batch_size": 1,
        "sft_steps": 0,
    }
    args = Args(agent="mllm:untrained", tool="disc", variant="demonstrations", out=str(tmp_path / "run"), **settings)
    with Star.open(args) as this:
        this.stage(1, "rollout", this.rollout)
        wanted = annotator_queries(this.episodes("round1/rollout"))
        assert wanted == sum(len(one.steps) for one in this.episodes("round1/rollout")), "it errs always"
        this.stage(1, "expert", this.demonstrate)
        rates = json.loads((this.folder / "round1" / "rates.json").read_text())
        rows = this.read_examples(1)
        before = (this.folder / "round1" / "expert.jsonl").read_bytes()
        this.demonstrate(1)
        assert (this.folder / "round1" / "expert.jsonl").read_bytes() == before, "a resumed run plays nothing again"
        own = {this.train_data.ids[index] for index in this.train_indices}
        first = this.train_data.ids[3]
    assert rates["queries_wanted"] == wanted and wanted <= rates["queries"] < wanted + args.max_steps
    assert rows and not own & {row.task for row in rows} and first in {row.task for row in rows}
    assert {row.provenance for row in rows} == {"expert"}
    with pytest.raises(RunError, match="--variant demonstrations has one round; got --rounds 2"):
        check(replace(args, rounds=2))
