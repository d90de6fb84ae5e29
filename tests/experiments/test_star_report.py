"""The report of a StaR run: measures worked out by hand, laws of them, and everything that is written."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_episodes import CLICK, INVALID, MISS, SHAPE, STOP, UNDO, made_task, part
from made_episodes import made_episode as timeless_episode

from experiments.common.config import plain
from experiments.common.run_folder import RunFolder, manifest
from experiments.star import Args, metrics, report
from search import star
from search.episode import PARTS, Episode
from segenv.types import Task

EMPTY = np.zeros(SHAPE, bool)
PLAYED = st.lists(st.tuples(st.sampled_from([CLICK, MISS, STOP, INVALID]), st.integers(0, 30)), min_size=1)


def made_episode(task: Task, steps: list[tuple[dict, np.ndarray]]) -> Episode:
    return replace(timeless_episode(task, steps), seconds=dict.fromkeys(PARTS, 0.0))


def test_decisions_to_stop_are_judged_by_the_mask_that_was_shown():
    task = made_task()  # part(28) has IoU 28/30
    knows = made_episode(task, [(CLICK, part(12)), (CLICK, part(28)), (CLICK, part(29)), (STOP, part(29))])
    steps: list = [(CLICK, part(12)), (INVALID, part(12)), (STOP, part(12))]
    hasty = made_episode(task, steps)
    values, intervals = metrics.stopping([metrics.decisions_at(each, 0.9) for each in (knows, hasty)])
    assert values["stop_counts"] == {"decisions": 6, "stops": 2, "due": 2, "right_stops": 1}
    assert values["stop_accuracy"] == pytest.approx(4 / 6)  # wrong: to click at 28/30, to stop at 12/30
    assert values["stop_precision"] == values["stop_recall"] == 0.5
    assert intervals["stop_accuracy"] == [0.5, 0.75]  # of one episode twice
    assert intervals["stop_precision"] == [0, 1] and intervals["stop_recall"] == [0.5, 0.5]


def test_to_stop_is_right_where_the_lesson_is_to_stop():
    """From 12/30 the annotator's click, which was tried, leads to less: the tool is at its end there."""
    task, rules = made_task(), star.Rules(saturation_iou=0.3)
    tried = {"action": {"type": "click", "x": 20, "y": 20, "positive": True}, "iou": 0.35}
    steps: list = [(CLICK, part(12)), (STOP, part(12))]
    spent, missed = (made_episode(task, [*steps[:1], last]) for last in (steps[1], (MISS, part(9))))
    spent, missed = (
        replace(each, steps=(each.steps[0], replace(each.steps[1], other=tried))) for each in (spent, missed)
    )
    assert metrics.decisions(spent, task, rules) == [(False, False), (True, True)]
    assert metrics.decisions(missed, task, rules) == [(False, False), (False, True)]
    numbers = metrics.policies([[spent, replace(missed, sample=1)]], 3, lambda _: task, rules)[0]
    assert (numbers["stop_accuracy"], numbers["stop_precision"], numbers["stop_recall"]) == (3 / 4, 1, 1 / 2)
    assert numbers["stop_accuracy_at_iou"] == 3 / 4 and numbers["stop_counts"]["due"] == 2  # another three of the four
    assert metrics.decisions(spent, task, star.Rules(saturation_iou=0.5)) == [(False, False)]  # no lesson in the other


def test_where_no_state_reached_the_stopping_iou_there_is_no_recall():
    task = made_task()
    last = made_episode(task, [(CLICK, part(12)), (CLICK, part(28))])  # the budget ended it: nothing was asked at 28/30
    hasty = made_episode(task, [(CLICK, part(12)), (CLICK, part(14)), (STOP, part(14))])
    (of_last, of_both) = (metrics.policies([episodes], 3, lambda _: task)[0] for episodes in ([last], [last, hasty]))
    assert of_last["stop_accuracy"] == 1 and of_last["stop_precision"] is of_last["stop_recall"] is None
    assert of_both["stop_accuracy"] == 4 / 5 and of_both["stop_precision"] == 0 and of_both["stop_recall"] is None
    assert of_both["intervals"]["stop_recall"] == [None, None]


@given(st.lists(PLAYED, min_size=1, max_size=5))
def test_what_the_filter_keeps_was_decided_rightly(played):
    """The report and the filter agree, as they judge by the same rules; and shares are of all actions."""
    task, rules = made_task(), star.Rules()
    made = [made_episode(task, [(action, part(width)) for action, width in steps]) for steps in played]
    episodes = [replace(episode, sample=k) for k, episode in enumerate(made)]
    rows = [row for episode in episodes for row in star.star_plus_examples(episode, task, rules)]
    fates = metrics.acceptance(rows, episodes)
    assert fates["accepted"] + fates["corrected"] + fates["dropped"] == pytest.approx(1)
    assert sum(fates["faults"].values()) == pytest.approx(fates["corrected"])
    decided = [metrics.decisions(episode, task, rules) for episode in episodes]
    by_iou = [metrics.decisions_at(episode, rules.stop_iou) for episode in episodes]
    assert decided == by_iou  # no click of the annotator's was tried
    counts = metrics.stopping(decided)[0]["stop_counts"]
    right = counts["decisions"] - counts["stops"] - counts["due"] + 2 * counts["right_stops"]
    assert round(fates["accepted"] * fates["actions"]) <= right


def test_what_was_corrected_is_told_by_its_fault():
    task = made_task()
    steps: list = [(CLICK, part(12)), (MISS, part(9)), (INVALID, part(9)), (STOP, part(9))]
    late: list = [(CLICK, part(28)), (CLICK, part(29)), (UNDO, part(28))]
    episodes = [made_episode(task, steps), replace(made_episode(task, late), task="other")]
    rows = [row for episode in episodes for row in star.star_plus_examples(episode, replace(task, id=episode.task))]
    fates = metrics.acceptance(rows, episodes)
    assert fates["actions"] == 7 and fates["accepted"] == 2 / 7 and fates["dropped"] == 0
    assert fates["faults"] == {name: 1 / 7 for name in metrics.FAULTS}
    assert fates["intervals"]["accepted"] == [0.25, pytest.approx(1 / 3)]  # of one task twice
    whole = metrics.acceptance(star.star_examples(episodes[1], star.Rules()), episodes)
    assert (whole["accepted"], whole["corrected"]) == (3 / 7, 0) and whole["dropped"] == pytest.approx(4 / 7)


def test_differences_are_of_the_same_tasks():
    task = made_task()
    first, second = (replace(made_episode(task, [(CLICK, part(12))]), task=name) for name in "ab")
    with pytest.raises(ValueError, match="not the same tasks in the same order"):
        metrics.policies([[first, second], [second, first]], 3, lambda _: task)


def test_an_equal_policy_gains_exactly_nothing():
    task = made_task()
    episodes = [replace(made_episode(task, [(CLICK, part(k))]), task=str(k)) for k in (3, 12, 28)]
    _, again = metrics.policies([episodes, episodes], 3, lambda _: task)
    assert again["gain"] == 0 and again["intervals"]["gain"] == [0, 0]
    assert again["against_S_0"] == {"better": 0, "worse": 0} and set(again["gains"].values()) == {0}


# ------------------------------------------------------------------------------------------------------ what is written

NAMES = ("first", "second", "third", "fourth")
EVIL = "</script><script>alert(1)</script>"


def story(rounds: int) -> tuple[dict, list[list[Episode]], dict[str, Task]]:
    """A run in which each policy is better than the one before; one episode stops at once, another breaks the page."""
    tasks = {name: replace(made_task(), id=name, instruction=f"the {name} one") for name in NAMES}
    played = []
    for n in range(rounds + 1):
        widths = (4 + 8 * n, 10 - n, 9, 28)
        steps: list = [[(CLICK, part(2)), (CLICK, part(width)), (STOP, part(width))] for width in widths]
        steps[2] = [(STOP, EMPTY)]
        made = [made_episode(task, each) for task, each in zip(tasks.values(), steps, strict=True)]
        evil = replace(made[1].steps[0], text=EVIL)
        made[1] = replace(made[1], steps=(evil, *made[1].steps[1:]))
        played.append(made)
    lessons: list[dict] = [{"round": 0, "rows": 9, "visited": 9, "expert": 1.0, "policy": 0.0, "corrected": 0.0}]
    for n, episodes in enumerate(played[:-1], 1):
        rows = [row for episode in episodes for row in star.star_plus_examples(episode, tasks[episode.task])]
        lessons.append({"round": n, "rows": len(rows), **metrics.acceptance(rows, episodes)})
    asked = {"data": "made", "tool": "disc", "max_steps": 3}
    numbers = {
        "policies": metrics.policies(played, 3, tasks.__getitem__),
        "lessons": lessons,
        "skipped": {},
        "protocol": {**plain(Args()), **asked, **metrics.METRIC_DEFINITIONS},
    }
    return numbers, played, tasks


def written(folder: RunFolder, rounds: int) -> tuple[dict, dict[str, bytes]]:
    """The numbers of the story, and all files of its report."""
    numbers, played, tasks = story(rounds)
    folder.write_json("manifest.json", {**manifest(0, {}, {}), "started": "2026-01-02T03:04:05+0100"})
    folder.write_json("round0/policy/sft.json", {"log": [[1, 2.5], [2, 0.5]]})
    report.write(folder, numbers, [played[0], played[-1]], tasks.__getitem__, 3)
    files = {str(path.relative_to(folder.path)): path for path in folder.path.rglob("*") if path.is_file()}
    return numbers, {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_report_holds_every_measure_once_and_is_the_same_when_written_again(tmp_path, rounds):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = RunFolder(tmp_path)
    numbers, files = written(folder, rounds)
    again = written(folder, rounds)[1]
    assert set(again) == set(files)
    assert all(again[name] == files[name] for name in files if not name.startswith("tensorboard/"))
    rows = list(csv.DictReader(files["metrics.csv"].decode().splitlines()))
    found = {(int(row["round"]), row["measure"]): row for row in rows}
    assert len(found) == len(rows)
    for n, policy in enumerate(numbers["policies"]):
        for measure, value, (low, high) in (
            ("miou", policy["miou"], policy["intervals"]["miou"]),
            ("noc/85", policy["noc"]["85"], policy["intervals"]["noc"]["85"]),
            ("gains/best_iou", policy["gains"]["best_iou"], policy["intervals"]["gains"]["best_iou"]),
            ("stop_accuracy", policy["stop_accuracy"], policy["intervals"]["stop_accuracy"]),
        ):
            row = found[n, f"held_out/{measure}"]
            assert [float(row[key]) for key in ("value", "low", "high")] == [value, low, high]
    assert float(found[rounds, "lessons/accepted"]["value"]) == numbers["lessons"][rounds]["accepted"]
    assert (0, "lessons/accepted") not in found

    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "rounds"))
    board.Reload()
    told = [(e.step, tag, e.value) for tag in board.Tags()["scalars"] for e in board.Scalars(tag)]
    prefixes = (("value", ""), ("low", "low/"), ("high", "high/"))
    expected = [
        (int(row["round"]), prefix + row["measure"], np.float32(row[key]))
        for row in rows
        for key, prefix in prefixes
        if row[key]
    ]
    assert sorted(told) == sorted(expected)
    first = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "S_0"))
    first.Reload()
    assert [(e.step, e.value) for e in first.Scalars("training_loss")] == [(1, 2.5), (2, 0.5)]


def test_the_page_shows_episodes_before_and_after_and_trusts_no_reply(tmp_path):
    _, files = written(RunFolder(tmp_path), 2)
    page = files["report.html"].decode()
    assert EVIL not in page and "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    shown = [name for name in NAMES if f"<h3>the {name} one</h3>" in page]
    assert len(shown) == 3 and {"first", "second"} <= set(shown)  # the greatest gain and the greatest loss
    steps = sum(1 if name == "third" else 3 for name in shown)
    assert page.count("data-episode=") == 2 * steps == page.count('src="data:image/webp') - 3
    plots = {name for name in files if name.startswith("plots/")}
    assert plots == {
        *(f"plots/{name}_by_round.png" for name in ("iou", "gain", "noc", "rates", "acceptance")),
        *("plots/iou_before_after.png", "plots/iou_over_clicks.png", "plots/loss.png"),
    }
    assert all(files[name].startswith(b"\x89PNG") for name in plots)


def test_a_table_marks_what_is_surely_better_or_worse():
    def policy(n: int, gain: float, low: float, high: float) -> dict:
        numbers = story(1)[0]["policies"][0]
        numbers["gains"]["noc/85"], numbers["intervals"]["gains"]["noc/85"] = gain, [low, high]
        return numbers | {"round": n, "gain": gain, "intervals": numbers["intervals"] | {"gain": [low, high]}}

    numbers = {"policies": [policy(0, 0, 0, 0), policy(1, -0.2, -0.3, -0.1), policy(2, 0.2, -0.1, 0.5)]}
    rows = {row["name"]: [cell["verdict"] for cell in row["cells"]] for row in report.table(numbers)}
    assert rows["mIoU"] == ["", "worst", ""]
    assert rows["clicks to 0.85 IoU (NoC@85)"] == ["", "best", ""]  # fewer are better


def test_a_run_without_tensorboard_says_so_and_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    _, files = written(RunFolder(tmp_path), 1)
    assert "pip install tensorboard" in capsys.readouterr().err
    assert "metrics.csv" in files and not any(name.startswith("tensorboard") for name in files)
    told = report.text(story(1)[0])
    assert "D_1: 10 rows of 10 actions" in told and "gain over S_0, paired" in told
