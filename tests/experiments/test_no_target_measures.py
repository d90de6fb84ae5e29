"""Measures of a set with absent objects, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_data import save
from made_episodes import CLICK, INVALID, MISS, SHAPE, STOP, made_episode, made_task, part

from experiments.evaluate import Args, run
from experiments.evaluate.episodes.metrics import outcome_of, summarise
from experiments.evaluate.episodes.report import table
from search.episode import PARTS
from segenv.types import Task

ABSENT = {"type": "absent"}


def spot() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[:10, 45:60] = True
    return mask


def played(name: str, present: bool, *steps: tuple[dict, np.ndarray], knows_task: bool = True):
    """Outcome of an episode on the rectangle of 600 pixels, or on an image without it."""
    task = replace(made_task(), id=name)
    task = task if present else Task(name, task.image, np.zeros(SHAPE, bool))
    episode = made_episode(task, list(steps))
    final = episode.mask(len(steps))
    areas = {"intersection": int((final & task.target).sum()), "union": int((final | task.target).sum())}
    ended = steps[-1][0]["type"] in ("stop", "absent")
    start = 0.0 if present else 1.0  # of the empty first mask
    episode = replace(episode, stopped=ended, start_iou=start, seconds=dict.fromkeys(PARTS, 0.0), **areas)
    return outcome_of(episode, task if knows_task else None)


@pytest.mark.parametrize("knows_task", [True, False])
def test_a_set_with_absent_objects_worked_out_by_hand(knows_task):
    outcomes = [
        played("a", True, (CLICK, part(20)), (STOP, part(20)), knows_task=knows_task),  # 400 of 600
        played("b", True, (CLICK, part(30)), (MISS, part(30) | spot()), knows_task=knows_task),  # 600 of 750
        played("c", True, (ABSENT, part(0)), knows_task=knows_task),  # 0 of 600: said to be absent
        played("d", False, (ABSENT, part(0)), knows_task=knows_task),  # right: 1 by the rule of two empty masks
        played("e", False, (MISS, spot()), (STOP, part(0)), knows_task=knows_task),  # right, after a click
        played("f", False, (MISS, spot()), (MISS, spot()), knows_task=knows_task),  # 0 of 150
        played("g", False, (INVALID, part(0)), (INVALID, part(0)), knows_task=knows_task),  # empty, but nothing said
    ]
    numbers = summarise(outcomes, 2, {})
    assert numbers["no_target"] == 4
    assert numbers["n_acc"] == 2 / 4 and numbers["t_acc"] == 2 / 3
    assert numbers["miou"] == pytest.approx((400 / 600 + 600 / 750 + 0 + 1 + 1 + 0 + 1) / 7)  # gIoU
    assert numbers["ciou"] == pytest.approx((400 + 600) / (600 + 750 + 600 + 150))
    assert numbers["absent_steps"] == (0 + 1 + 2 + 2) / 4
    best = [400 / 600, 1, 0, 1, 1, 0, 1]  # of f: both of its masks are wrong, and its first one does not count
    assert numbers["best_iou"] == pytest.approx(np.mean(best))
    assert numbers["regret"] == pytest.approx((1 - 600 / 750) / 7)
    low, high = numbers["intervals"]["n_acc"]
    assert 0 <= low <= 0.5 <= high <= 1
    if knows_task:
        assert numbers["first_click_in_object"] == pytest.approx(2 / 3)
    rows = {row[0]: row[1] for row in table(numbers | {"nof_never": numbers["nof_never"]}).rows}
    assert rows["N-acc"] == "0.5000" and rows["T-acc"] == "0.6667" and rows["Steps on absent objects"] == "1.25"


def test_a_set_without_absent_objects_has_no_such_measure():
    numbers = summarise([played("a", True, (CLICK, part(20)))], 1, {})
    assert numbers["no_target"] == 0 and np.isnan(numbers["n_acc"]) and numbers["t_acc"] == 1
    assert "N-acc" not in [row[0] for row in table(numbers).rows]


def things(root: Path) -> str:
    """Six images of a rectangle, each named by another word."""
    items = []
    for k in range(6):
        mask = np.zeros((20, 30), np.uint8)
        mask[4:16, 2 + 3 * k : 10 + 3 * k] = 255
        save(root / f"{k}.png", np.full((20, 30, 3), 40 * k, np.uint8))
        save(root / f"{k}_mask.png", mask)
        items.append({"name": f"{k}", "image": f"{k}.png", "mask": f"{k}_mask.png", "instruction": f"thing{k}"})
    (root / "index.json").write_text(json.dumps(items))
    return f"index:{root}"


def test_the_annotator_answers_absent_objects_by_nothing(tmp_path):
    data = f"no-target:0.5:{things(tmp_path)}"
    args = Args(data=data, tool="disc:radius=6", max_steps=4, report_episodes=0, out=str(tmp_path / "run"))
    numbers = run(args, quiet=True)
    assert 0 < numbers["no_target"] < 6
    assert numbers["n_acc"] == numbers["t_acc"] == 1 and numbers["absent_steps"] == 0


@pytest.mark.parametrize("task", ["box", "point", "polygon"])
def test_boxes_points_and_polygons_of_absent_objects_are_measured(tmp_path, task):
    data = f"no-target:0.5:{things(tmp_path)}"
    args = Args(task=task, data=data, agent="annotator", report_episodes=0, out=str(tmp_path / "run"))
    numbers = run(args, quiet=True)
    assert numbers["no_target"]["tasks"] in range(1, 6)
    assert numbers["n_acc"] == numbers["t_acc"] == numbers["acc_at_50"] == numbers["giou"] == 1
    assert numbers["intervals"]["n_acc"] == [1, 1] and ("inside" in numbers) == (task == "point")
