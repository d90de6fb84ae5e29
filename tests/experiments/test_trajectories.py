"""Click trajectories: how the annotator makes them, and what becomes of runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import disc_task
from made_data import save

from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.trajectories import Convert, Generate, convert, generate
from search.episode import Episode, action_to_json
from search.rollout import rollout
from search.star import Rules, StarExample, demonstration_examples, star_plus_examples
from search.trajectories import Move, moves_of, select, trajectories_of
from segenv import annotator, codec, data, metrics
from segenv.data.trajectories.dataset import Trajectories
from segenv.mdp import SegMDP
from segenv.tools.disc import DiscTool
from segenv.types import Box, Click, Invalid, Prompt, Stop, Task, Undo

# ------------------------------------------------------------------------------------------------ the annotator's plays

TOOL = "disc:radius=6"


def two_discs(name: str = "two") -> Task:
    """Two discs of radius 6, far apart: two clicks of a disc tool with that radius are exact."""
    one, other = disc_task(40, 60, 12, 20, 6), disc_task(40, 60, 45, 20, 6)
    return Task(name, one.image, one.target | other.target, "both discs")


def make_index(root: Path, tasks: list[Task]) -> str:
    items = []
    for task in tasks:
        save(root / "images" / f"{task.id}.png", task.image)
        save(root / "masks" / f"{task.id}.png", np.where(task.target, 255, 0).astype(np.uint8))
        items.append({"name": task.id, "image": f"images/{task.id}.png", "mask": f"masks/{task.id}.png"})
        items[-1] |= {"instruction": task.instruction}
    (root / "index.json").write_text(json.dumps(items))
    return f"index:{root}"


@pytest.fixture
def index(tmp_path: Path) -> str:
    discs = [disc_task(40 + k, 60 - k, 25 + k, 18, 7 + 2 * k, f"disc{k}") for k in range(4)]
    return make_index(tmp_path / "data", [two_discs(), *discs])


def made(args: Generate) -> tuple[Trajectories, dict[str, Any]]:
    about = generate(args)
    found = data.make(f"trajectories:{about['file']}")
    assert isinstance(found, Trajectories)
    return found, about


def published(task: Task, rule: str, stop_iou: float, max_clicks: int, min_gain: float) -> list[tuple[Click, float]]:
    """The rules once more, in a plain loop: what is kept of a play from an empty mask."""
    tool = DiscTool(6)
    clicks: list[Click] = []
    kept: list[tuple[Click, float]] = []
    encoding, mask, best = tool.encode([task.image]), np.zeros(task.target.shape, bool), 0.0
    while len(clicks) < max_clicks and metrics.iou(task.target, mask) < stop_iou:
        click = annotator.next_click(task.target, mask, clicks)
        if click is None:
            break
        before = metrics.iou(task.target, mask)
        clicks.append(click)
        mask = tool.predict(encoding, [Prompt(tuple(clicks))])[0].mask
        iou = metrics.iou(task.target, mask)
        if rule == "released":
            if iou <= best:
                break
            best = iou
        if rule != "paper" or iou - before >= min_gain:
            kept.append((click, iou))
    return kept


@pytest.mark.parametrize(
    ("rule", "stop_iou", "max_clicks", "min_gain"),
    [
        ("released", 0.98, 20, 0.0),
        ("released", 0.5, 20, 0.0),
        ("released", 0.98, 2, 0.0),
        ("paper", 0.98, 12, 0.0),
        ("paper", 0.9, 12, 0.05),
        ("all", 0.98, 5, 0.0),
    ],
)
def test_thresholds_keep_what_a_plain_loop_keeps(
    rule: Any, stop_iou: float, max_clicks: int, min_gain: float, index: str, tmp_path: Path
) -> None:
    args = Generate(index, TOOL, rule=rule, stop_iou=stop_iou, max_clicks=max_clicks, min_gain=min_gain)
    found, about = made(replace(args, out=str(tmp_path / "run")))
    by_task: dict[str, list[tuple[Click, float]]] = {}
    for i in range(len(found)):
        recorded = found.trajectory(i)
        by_task.setdefault(str(recorded.task), []).extend((c.click, c.iou) for c in recorded.clicks)  # type: ignore[misc]
    for task in data.make(index):
        assert by_task[task.id] == published(task, rule, stop_iou, max_clicks, min_gain), task.id
    assert about["plays"] == 5 and about["clicks"] == sum(map(len, by_task.values()))
    if rule == "released":
        assert len(found) == 5, "a rising play is never cut"
        assert by_task["two"] == [(by_task["two"][0][0], 0.5), (Click(45, 20), 1.0)][: 1 if stop_iou == 0.5 else 2]


def test_the_rules_at_their_bounds() -> None:
    """A click without effect does not rise above all before it, and a ΔIoU of just the threshold is not below it."""
    ious = [0.0, 0.5, 0.5, 0.25, 0.5]
    moves = [Move(k, f"{k}", ious[k], Click(k, k), f"{k + 1}", ious[k + 1]) for k in range(4)]
    assert select(moves, "released") == moves[:1]
    assert select(moves, "paper", 0.0) == [moves[0], moves[1], moves[3]]
    assert select(moves, "paper", 0.25) == [moves[0], moves[3]]
    assert select(moves, "all") == moves and select([], "released") == []


def test_recorded_clicks_give_the_recorded_masks(index: str, tmp_path: Path) -> None:
    """A trajectory is a chain: its clicks, given to the tool in its first state, lead from mask to mask."""
    found, _ = made(Generate(index, TOOL, rule="paper", min_gain=0.03, out=str(tmp_path / "run")))
    tool = DiscTool(6)
    assert any(task.initial_mask is not None for task in found), "some plays were cut by a dropped click"
    for task in found:
        mask, encoding = task.initial_mask, tool.encode([task.image])
        for k, recorded in enumerate(task.meta["trajectory"].clicks):
            clicks = tuple(each.click for each in task.meta["trajectory"].clicks[: k + 1])
            mask = tool.predict(encoding, [Prompt(clicks, mask=mask)])[0].mask
            assert np.array_equal(task.meta["trajectory"].decode(recorded.mask), mask)
            assert recorded.iou == metrics.iou(task.target, mask) and recorded.area == mask.sum()


def test_plays_begin_with_a_box_or_with_points(index: str, tmp_path: Path) -> None:
    args = Generate(index, TOOL, starts=("empty", "box", "points"), samples=3, points=4, rule="all", max_clicks=3)
    found, about = made(replace(args, out=str(tmp_path / "one"), batch_size=1))
    assert about["plays"] == 5 * 3 * 3
    starts = [found.trajectory(i).start for i in range(len(found))]
    assert {start.kind for start in starts if start} == {"box", "points"}
    tasks = {task.id: task for task in data.make(index)}
    drawn = set()
    for i, start in enumerate(starts):
        recorded = found.trajectory(i)
        box = metrics.box_of(tasks[str(recorded.task)].target == 255)
        assert box is not None
        if start is not None and start.kind == "box":
            x0, y0, x1, y1 = (int(side) for side in (box.x0, box.y0, box.x1, box.y1))
            filled = np.zeros((recorded.height, recorded.width), bool)
            filled[y0:y1, x0:x1] = True
            assert np.array_equal(recorded.decode(start.mask), filled)
        elif start is not None:
            reach = metrics.box_of(recorded.decode(start.mask))
            assert reach is not None and box.x0 - 6 <= reach.x0 <= reach.x1 <= box.x1 + 6, (
                "discs around points in the box"
            )
            drawn.add((recorded.task, recorded.sample, start.mask))
        assert len(recorded.clicks) <= 3 and [click.idx for click in recorded.clicks] == list(
            range(len(recorded.clicks))
        )
    assert len({mask for _, _, mask in drawn}) == len(drawn) == 15, "every sample draws its own points"
    again, _ = made(replace(args, out=str(tmp_path / "many"), batch_size=7, limit=3))
    same = [
        json.dumps(found.trajectory(i).to_json()) for i in range(len(found)) if found.trajectory(i).task in again.ids
    ]
    assert [json.dumps(again.trajectory(i).to_json()) for i in range(len(again))] == same, (
        "neither batch nor limit counts"
    )


def test_a_finished_mask_gives_a_stop_and_a_play_without_a_click_is_counted(tmp_path: Path) -> None:
    square = np.zeros((30, 40), bool)
    square[8:20, 9:30] = True
    task = Task("square", np.zeros((30, 40, 3), np.uint8), square, "the square")
    spec = make_index(tmp_path / "data", [task])
    found, about = made(Generate(spec, TOOL, starts=("box",), out=str(tmp_path / "run")))
    (lesson,) = found.trajectory(0).lessons()
    assert lesson.action == Stop() and lesson.iou == 1.0 and about["plays_without_click"] == 1
    spec = make_index(tmp_path / "disc", [disc_task(30, 40, 20, 15, 9)])  # and the first click wipes out its box
    huge = Generate(spec, "disc:radius=90", starts=("box",), out=str(tmp_path / "none"))
    assert generate(huge) | {"file": ""} == {
        **{"file": "", "plays": 1, "plays_without_click": 1, "trajectories": 0, "clicks": 0},
        **{"mean_last_iou": None, "skipped": {}},
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_clicks": 0}, "--max-clicks is 0; expected 1 or more"),
        ({"min_gain": 0.1}, "min_gain 0.1 has no effect with rule 'released'; give --rule paper"),
        ({"tool": "laser"}, "unknown tool 'laser'"),
        ({"annotator": "nobody"}, "unknown annotator 'nobody'"),
        ({"images": "/none"}, "/none does not exist"),
    ],
)
def test_flags_that_cannot_be_met_are_errors(flags: dict[str, Any], message: str, index: str, tmp_path: Path) -> None:
    with pytest.raises((RunError, data.DataError), match=message):
        generate(Generate(index, **{"tool": TOOL, "out": str(tmp_path / "run"), **flags}))


def test_images_are_named_where_they_lie_if_a_folder_is_given(index: str, tmp_path: Path) -> None:
    images = tmp_path / "data" / "images"
    about = generate(Generate(index, TOOL, images=str(images), out=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "images").exists()
    found = data.make(f"trajectories:{about['file']}@{images}")
    tasks = {task.id: task for task in data.make(index)}
    assert list(found.sources)[0] == "two.png" and len(list(found)) == 5
    assert all(task.image_hash == tasks[task.id].image_hash for task in found)
    save(images / "two.png", np.zeros((40, 60, 3), np.uint8))
    shuffled = make_index(tmp_path / "other", [two_discs()])
    with pytest.raises(RunError, match="two.png is not the image of task 'two'"):
        generate(Generate(shuffled, TOOL, images=str(images), out=str(tmp_path / "again")))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_file(tmp_path: Path) -> None:
    flags = [
        "--data",
        "synthetic:val",
        "--tool",
        TOOL,
        "--limit",
        "60",
        "--starts",
        "empty",
        "points",
        "--annotator",
        "depth",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command_line(*more: str) -> list[str]:
        return [sys.executable, "-m", "experiments.trajectories", "generate", *more]

    subprocess.run(command_line(*flags, "--out", str(whole)), check=True, capture_output=True)
    process = subprocess.Popen(command_line(*flags, "--out", str(killed)), stderr=subprocess.DEVNULL)
    plays = killed / "plays.jsonl"
    while process.poll() is None and not (plays.exists() and plays.read_bytes().count(b"\n") > 20):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    with open(plays, "r+b") as file:  # and the last line was cut
        file.truncate(plays.stat().st_size - 5)
    subprocess.run(command_line("--resume", str(killed)), check=True, capture_output=True)
    assert (killed / "trajectories.json").read_bytes() == (whole / "trajectories.json").read_bytes()
    assert not plays.exists() and (killed / "generate.DONE").exists()


# ------------------------------------------------------------------------------------------------------------ from runs


def played(spec: str, agent: str, steps: int) -> list[Episode]:
    import agents

    mdp = SegMDP(DiscTool(6), steps)
    return list(rollout(mdp, agents.make(agent), data.make(spec), seed=5, samples=2))


def write_run(root: Path, spec: str, name: str, records: list[dict[str, Any]]) -> Path:
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(json.dumps({"data": spec}))
    with RunFolder(root).appending(name) as file:
        for record in records:
            file.add(record)
    return root / name


def examples_in(rows: list[StarExample]) -> list[tuple]:
    return sorted((row.task, row.sample, row.step, row.mask, row.iou, json.dumps(row.action)) for row in rows)


def examples_of_file(file: str, stop_iou: float) -> list[tuple]:
    found = data.make(f"trajectories:{file}")
    assert isinstance(found, Trajectories)
    recorded = [found.trajectory(i) for i in range(len(found))]
    pairs = [(one, lesson) for one in recorded for lesson in one.lessons(stop_iou)]
    for _, lesson in pairs:
        assert not isinstance(lesson.action, Click) or lesson.iou_after is None or lesson.iou_after > lesson.iou
    return sorted(
        (one.task, one.sample, lesson.step, lesson.mask, lesson.iou, json.dumps(action_to_json(lesson.action)))
        for one, lesson in pairs
    )


def test_rows_of_the_annotator_survive_the_way_through_the_file(index: str, tmp_path: Path) -> None:
    """D_0 as StaR makes it, converted and read again, holds equal examples; the file's stops are at one IoU."""
    rules = Rules(min_gain=0.0, stop_iou=0.9)
    rows = [row for episode in played(index, "annotator", 9) for row in demonstration_examples(episode, rules)]
    assert {row.action["type"] for row in rows} == {"click", "stop"}
    run = write_run(tmp_path / "run" / "round0", index, "rows.jsonl", [row.to_json() for row in rows])
    about = convert(Convert(run, tmp_path / "d0"))
    assert examples_of_file(about["file"], 0.9) == examples_in(rows)


def test_corrected_rows_become_lessons_whose_outcome_is_not_known(index: str, tmp_path: Path) -> None:
    rules, tasks = Rules(min_gain=0.0, stop_iou=0.9), {task.id: task for task in data.make(index)}
    rows = [
        row for episode in played(index, "random", 5) for row in star_plus_examples(episode, tasks[episode.task], rules)
    ]
    assert {row.provenance for row in rows} == {"policy", "corrected"}
    run = write_run(tmp_path / "run" / "round1", index, "rows.jsonl", [row.to_json() for row in rows])
    assert examples_of_file(convert(Convert(run, tmp_path / "d1"))["file"], 0.9) == examples_in(rows)


def test_episodes_become_what_their_actions_led_to(tmp_path: Path) -> None:
    """An undone click leaves no trace, a box is a first mask, and what was not carried out is passed over."""
    task, mdp = two_discs(), SegMDP(DiscTool(6), 9)
    script = [
        Invalid("hm", "no action"),
        Click(3, 3),
        Undo(),
        Click(12, 20),
        Box(38, 13, 52, 27),
        Click(45, 20),
        Stop(),
    ]
    from agents.base import Agent

    class Script(Agent):
        spec = "script"

        def _act(self, observations, seeds):
            return [self.codec.format(script[seen.step], seen) for seen in observations]

    (episode,) = rollout(mdp, Script(codec.make("pixels")), [task])
    first, second = trajectories_of(moves_of(episode), task, "two.png")
    assert [click.click for click in first.clicks] == [Click(12, 20)] and first.start is None
    assert [click.click for click in second.clicks] == [Click(45, 20)]
    assert second.start is not None and second.start.kind == "state" and second.start.mask == episode.steps[4].mask
    assert [lesson.iou for lesson in first.lessons()] == [0.0] and second.clicks[0].iou == episode.final_iou
    assert trajectories_of(select(moves_of(episode), "released"), task, "two.png")[0] == first


def test_a_run_that_does_not_fit_its_data_is_an_error(index: str, tmp_path: Path) -> None:
    episodes = [episode.to_json() for episode in played(index, "random", 2)]
    run = write_run(tmp_path / "run", index, "episodes.jsonl", [*episodes, {**episodes[0], "task": "elsewhere"}])
    with pytest.raises(RunError, match="holds task 'elsewhere', which the data 'index:.* does not; say .* --data"):
        convert(Convert(run, tmp_path / "out"))
    with pytest.raises(RunError, match="none.jsonl is missing or holds no record"):
        convert(Convert(tmp_path / "run" / "none.jsonl", tmp_path / "out"))
    (tmp_path / "run" / "odd.jsonl").write_text('{"task": "two", "gain": 1}\n')
    with pytest.raises(RunError, match="odd.jsonl, line 1 is damaged .neither a row nor an episode: has no"):
        convert(Convert(tmp_path / "run" / "odd.jsonl", tmp_path / "out"))
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(RunError, match="its data is not known; say what was played with --data"):
        convert(Convert(run, tmp_path / "out"))
