"""The controls of StaR: a fixed cut, and as many of the annotator's actions on new tasks; endpoints by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_episodes import CLICK, INVALID, MISS, STOP, made_episode, made_task, part

from experiments.common.ablation import arm_folder
from experiments.common.ablation import write as ablation_write
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.star import Args, ablation, controls
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


class Rectangles:
    """Two tasks on one image."""

    def images_of(self, ids):
        return ["image"] * len(list(ids))

    def by_id(self, name):
        return replace(made_task(), id=name)


def test_the_tables_of_an_ablation_hold_the_claim_against_each_control(tmp_path):
    """star+ gains what the cut gains, and no better mask on the way."""
    late = [(CLICK, part(20)), (FAR, part(27)), (MISS, part(9))]
    plays = {0: late, 1: [*late[:2], (STOP, part(27))], 2: late}
    seeds, folder = (0, 1), RunFolder(tmp_path)
    for seed in seeds:
        for arm, own in ablation.ARMS.items():
            path = RunFolder(arm_folder(tmp_path, seed, arm))
            for n in range(own["rounds"] + 1):
                (path / f"round{n}").mkdir(parents=True)
                steps = plays[n] if arm == "star+" else late
                made = [replace(made_episode(made_task(), steps), task=name) for name in ("a", "b")]
                for name in ("evaluate", "greedy"):
                    with path.appending(f"round{n}/{name}.jsonl") as file:
                        for episode in made:
                            file.add(episode.to_json())
            shares = dict.fromkeys(ablation.MEASURED, 0.5) | {"stop_accuracy": None}
            rounds = range(own["rounds"] + 1)
            lessons = [{"round": n, "queries": 4 * n} if arm == "star+" else {"round": n} for n in rounds]
            path.write_json("metrics.json", {"policies": [shares] * len(rounds), "lessons": lessons})
    args = Args(ablation=True, max_steps=3, eval_data="from:6000:synthetic:test", out=str(tmp_path))
    numbers = ablation.results(args, folder, seeds, Rectangles())
    assert numbers["protocol"]["cut"] == {"0": 2, "1": 2} and numbers["protocol"]["held_out_images"] == 1
    found = {line["control"]: line for line in numbers["contrasts"]}
    assert found["S_0, cut"]["final_iou"] == pytest.approx([0] * 3)
    assert found["control"]["final_iou"] == pytest.approx([0.6] * 3)
    assert found["S_0"]["best_iou"] == [0, 0, 0] and found["demonstrations"]["on_error"] == [0, 0, 0]
    lines = {line["policy"]: line for line in numbers["policies"]}
    assert lines["S_0, cut"]["miou"] == pytest.approx(0.9) and lines["S_0, cut"]["gain"] == pytest.approx([0.6] * 3)
    assert lines["S_0, cut"]["stop_rate"] is None and lines["star+"]["stop_rate"] == 0.5
    assert lines["star+"]["on_error_2"] == 1 and lines["star+, round 2"]["queries"] == 12
    written = ablation_write(folder, numbers, ablation.report(numbers))
    said = ablation.text(written)
    assert "primary endpoint: final mIoU of star+ less S_0, cut" in said and "from:6000:synthetic:test" in said
    assert "S_0, cut after 2 actions (primary: final mIoU)" in (tmp_path / "ablation.md").read_text()
    assert len((tmp_path / "ablation.csv").read_text().splitlines()) == 1 + 3 * len(ablation.POLICIES)
    once = ablation.results(replace(args, ablation_rounds=1), folder, seeds, Rectangles())
    first = [policy.name for policy in ablation.POLICIES if policy.round < 2]
    assert [line["policy"] for line in once["policies"]] == first and once["contrasts"] == numbers["contrasts"]
    assert "continue" not in once["protocol"]["arms"] and once["protocol"]["arms"]["star+"]["rounds"] == 1
    assert "S_0, cut after 2 actions" in (tmp_path / "report.html").read_text()
