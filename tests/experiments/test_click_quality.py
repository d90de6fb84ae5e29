"""Quality of clicks, worked out by hand, and in the files of an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_data import photo, save, square
from made_episodes import CLICK, INVALID, MISS, STOP, made_episode, made_task, part

from experiments.common.run_folder import RunFolder
from experiments.compare.compare import compare
from experiments.evaluate import Args, run
from experiments.evaluate.episodes import click_quality
from experiments.evaluate.episodes.metrics import outcome_of, summarise
from experiments.evaluate.episodes.report import table
from search.episode import PARTS
from segenv import statistics

NEGATIVE = {**MISS, "positive": False}
FAR = {**CLICK, "x": 35}  # inside the target, outside part(20)


def test_a_click_is_right_on_an_error_of_the_mask_before_it():
    task = made_task()  # columns 10 to 39 of rows 10 to 29
    spill = part(30)
    spill[:10, 45:60] = True
    steps: list = [(CLICK, part(20)), (CLICK, part(20)), (FAR, spill), (NEGATIVE, part(30)), (MISS, part(30))]
    right = click_quality.right_clicks(made_episode(task, [*steps, (INVALID, part(30)), (STOP, part(30))]), task)
    np.testing.assert_array_equal(right, [1, 0, 1, 1, 0, np.nan, np.nan])  # the second is on what the mask has
    target = np.where(task.target, 255, 0).astype(np.uint8)
    target[12, 12] = 128
    assert click_quality.right_clicks(made_episode(task, steps[:1]), replace(task, target=target)) == [0]
    with pytest.raises(ValueError, match="it is of 40 x 60 pixels.*expected the task's 40 x 59"):
        click_quality.right_clicks(
            made_episode(task, steps), replace(task, image=task.image[:, 1:], target=target[:, 1:])
        )


def test_shares_are_of_the_clicks_made_at_a_step():
    task = made_task()
    timeless = dict.fromkeys(PARTS, 0.0)
    played: list = [[(CLICK, part(20)), (FAR, part(30))], [(MISS, part(0)), (STOP, part(0))], [(CLICK, part(20))]]
    outcomes = [outcome_of(replace(made_episode(task, steps), seconds=timeless), task) for steps in played]
    numbers = summarise(outcomes, 3, {"agent": "hand"})
    assert numbers["click_counts"] == {"all": 4, "1": 3, "2": 1, "3": 0}
    shares = numbers["clicks_on_error"]
    assert shares["all"] == 3 / 4 and shares["1"] == pytest.approx(2 / 3) and shares["2"] == 1 and np.isnan(shares["3"])
    assert numbers["first_click_in_object"] == pytest.approx(2 / 3)
    assert numbers["intervals"]["clicks_on_error"]["1"] == [0, 1]
    rows = {row[0]: row[1] for row in table(numbers).rows}
    assert rows["Clicks on a true error, step 2"] == "1.0000" and "Clicks on a true error, step 3" not in rows
    unknown = summarise([outcome_of(replace(made_episode(task, played[0]), seconds=timeless))], 3, {})
    assert unknown["click_counts"]["all"] == 0 and np.isnan(unknown["first_click_in_object"])


def test_the_annotator_clicks_on_errors_and_images_with_several_tasks_are_resampled(tmp_path):
    for name in "abc":
        save(tmp_path / "data" / "images" / f"{name}.png", photo(ord(name)))
        save(tmp_path / "data" / "masks" / f"{name}#1.png", square(ring=0))
        save(tmp_path / "data" / "masks" / f"{name}#2.png", np.roll(square(ring=0), 8, axis=1))
    args = Args(data=f"berkeley:{tmp_path / 'data'}", tool="disc:radius=3", max_steps=2, out=str(tmp_path / "run"))
    numbers = run(args, quiet=True)
    assert numbers["first_click_in_object"] == numbers["clicks_on_error"]["all"] == 1
    other = run(replace(args, tool="disc:radius=5", out=str(tmp_path / "other")), quiet=True)
    folder = RunFolder(tmp_path / "run")
    images = folder.load_json("images.json")
    assert len(images) == 6 and len(set(images.values())) == 3
    ious = [record["steps"][-1]["iou"] for record in folder.records("episodes.jsonl")]
    assert numbers["intervals"]["miou"] == list(statistics.bootstrap(ious, images=list(images.values())))
    assert compare(tmp_path / "run", tmp_path / "other")["episodes"] == 6
    again = run(replace(args, resume=args.out), quiet=True)
    assert {**again, "seconds": 0} == {**numbers, "seconds": 0} and other["episodes"] == 6
