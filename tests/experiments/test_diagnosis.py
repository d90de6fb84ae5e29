"""Answers taken apart: each scripted failure is told by the line that is its own."""

from __future__ import annotations

from dataclasses import replace

import made_players
import numpy as np
import pytest
from made_data import two_discs
from made_episodes import CLICK, INVALID, MISS, SHAPE, STOP, made_episode, made_task, part
from made_players import FAILURES, Scripted

from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate import run
from experiments.evaluate.config import Args
from experiments.evaluate.episodes import diagnosis
from experiments.evaluate.episodes.metrics import outcome_of, summarise
from experiments.evaluate.episodes.step_facts import expression_of, fault_of, part_of, step_facts
from search.rollout import Reference, rollout
from segenv import codec as codecs
from segenv import data as datasets
from segenv import metrics, tools
from segenv.geometry.rle import encode_mask
from segenv.mdp import SegMDP
from segenv.types import object_of

RADIUS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    return two_discs(tmp_path_factory.mktemp("photos"), RADIUS)


def play(photos: str, player: type[Scripted], monkeypatch, steps: int = 4) -> dict:
    data = datasets.make(photos)
    monkeypatch.setattr(Scripted, "data", data)
    agent, mdp = player(codecs.make("grid1000-xy")), SegMDP(tools.make(f"disc:radius={RADIUS}"), steps)
    episodes = list(rollout(mdp, agent, list(data), correct=Reference()))
    outcomes = [outcome_of(one, task, agent.codec, True) for one, task in zip(episodes, data, strict=True)]
    return summarise(outcomes, steps, {}, data.sources)


@pytest.mark.parametrize("player", FAILURES, ids=lambda one: one.__name__)
def test_each_failure_is_told_by_the_line_that_is_its_own(photos, player, monkeypatch):
    numbers, expected = play(photos, player, monkeypatch), FAILURES[player]
    first = numbers["decomposed"]["first"]
    if expected is None:
        assert first is None and diagnosis.text(numbers) == "first to fail: none"
        assert not any(line["fails"] for line in numbers["decomposed"]["lines"])
    else:
        assert (first["stage"], expected[1] in first["name"]) == (expected[0], True), first
        assert diagnosis.text(numbers).startswith(f"first to fail: {expected[0]} (")
    first_table, by_kind = (part["table"] for part in diagnosis.sections(numbers))
    assert "first to fail" in first_table.text() or expected is None
    assert len(by_kind.rows) == sum(map(len, numbers["decomposed"]["groups"].values()))


def test_neighbours_and_kinds_of_tasks_are_told(photos, monkeypatch):
    found = play(photos, made_players.WrongObject, monkeypatch)["decomposed"]
    assert found["groups"]["expression"].keys() == {"name", "place"}
    assert {one["episodes"] for one in found["groups"]["expression"].values()} == {8}
    assert not {"part", "neighbours"} & found["groups"].keys()  # all in corners, with one other: they do not differ
    other = next(line for line in found["lines"] if line["name"] == "First click on another known object")
    assert 0 <= other["value"] <= 1 and not other["fails"]
    middle = next(line for line in found["lines"] if line["name"] == "First click on the object")
    shares = [object_of(task.target).mean() for task in datasets.make(photos)]
    assert middle["control"] == pytest.approx(np.mean(shares)) and middle["against"].startswith("random 0.")


def test_the_annotators_click_is_tried_beside_the_agents_own(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "data", datasets.make(photos))
    options = {"agent": "made_players:WrongSign", "codec": "grid1000-xy", "tool": f"disc:radius={RADIUS}"}
    args = Args(data=photos, max_steps=2, report_episodes=1, out=str(tmp_path / "run"), **options)
    numbers = run(args, quiet=True)
    for record in RunFolder(tmp_path / "run").records("episodes.jsonl"):
        step = record["steps"][0]
        assert step["other"]["action"]["positive"] and step["other"]["iou"] == 1.0 and step["iou"] == 0.0
    gain = next(line for line in numbers["decomposed"]["lines"] if line["stage"] == "gain")
    assert gain["value"] == 0 and gain["control"] > 0.9 and gain["fails"]
    assert numbers["protocol"]["reference"] is True and numbers["seconds"]["clicks"] == 32
    page = (tmp_path / "run/report.html").read_text()
    assert "Where answers fail" in page and "first to fail: sign (" in page
    off = run(replace(args, reference=False, out=str(tmp_path / "off")), quiet=True)
    for record in RunFolder(tmp_path / "off").records("episodes.jsonl"):
        assert all(step["other"] is None for step in record["steps"])
    assert off["miou"] == numbers["miou"] and off["iou_at"] == numbers["iou_at"]
    gain = next(line for line in off["decomposed"]["lines"] if line["stage"] == "gain")
    assert gain["value"] == 0 and gain["control"] is None and not gain["fails"]
    with pytest.raises(RunError, match="--reference compares single actions"):
        run(replace(args, reference=True, search="greedy:k=2,value=oracle", out=str(tmp_path / "no")), quiet=True)


def test_facts_of_an_episode_worked_out_by_hand():
    task = made_task()  # columns 10 to 39 of rows 10 to 29, in 40 x 60 pixels
    spill = part(30)
    spill[:10, 45:60] = True
    negative = {**MISS, "positive": False}
    episode = made_episode(
        task, [(CLICK, part(20)), (MISS, spill), (negative, part(30)), (INVALID, part(30)), (STOP, part(30))]
    )
    tried = {0: 0.8, 1: 1.0, 2: 1.0}
    steps = tuple(
        replace(step, other={"action": CLICK, "iou": tried[k]} if k in tried else None)
        for k, step in enumerate(episode.steps)
    )
    facts = step_facts(replace(episode, steps=steps), task)
    ious = [metrics.iou(task.target, mask) for mask in (part(0), part(20), spill, part(30))]
    np.testing.assert_allclose(facts.gain, [*np.diff(ious), np.nan, np.nan])
    np.testing.assert_allclose(facts.reference, [0.8, 1 - ious[1], 1 - ious[2], np.nan, np.nan])
    np.testing.assert_array_equal(facts.sign, [1, np.nan, 1, np.nan, np.nan])  # the second click is on no error
    np.testing.assert_array_equal(facts.positive, [1, np.nan, 0, np.nan, np.nan])
    np.testing.assert_array_equal(facts.done, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(facts.ended, [0, 0, 0, 0, 1])
    assert facts.fault == (None, None, None, "invalid", None)
    assert facts.first == (12, 12) and facts.on_object["read"] == 1 and facts.random == 600 / 2400 and facts.centre == 1
    assert facts.groups == {"size": "large", "expression": "none", "part": "middle"} and facts.others is None


def test_a_first_click_belongs_on_an_error_of_the_mask_at_the_start():
    task = made_task()
    inside = {**CLICK, "x": 35, "y": 12}
    facts = []
    for start, action in ((part(20), CLICK), (part(20), inside), (part(30), CLICK), (part(20), STOP)):
        episode = made_episode(task, [(action, part(30))])
        facts.append(step_facts(replace(episode, start_mask=encode_mask(start)), task))
    assert [one.on_object["read"] for one in facts] == [0, 1, 0, 0]  # the first is on what the mask has already
    assert [one.random for one in facts] == [200 / 2400, 200 / 2400, 0, 200 / 2400]
    line = next(one for one in diagnosis.diagnose(facts, [1.0] * 4)["lines"] if one["stage"] == "object")
    assert line["value"] == 1 / 2  # neither a stop counts, nor a click where there is no error


def test_kinds_of_expressions_parts_and_faults():
    for text, kind in (
        ("", "none"),
        ("the cat", "name"),
        ("the red cat", "attributes"),
        ("cat on the left", "place"),
        ("the largest cat", "relation"),
        ("cat next to the dog", "relation"),
        ("What keeps the rain out?", "reasoning"),
    ):
        assert expression_of(text) == kind
    for corner, name in (((0, 0), "corner"), ((0, 25), "side"), ((16, 25), "middle")):
        mask = np.zeros(SHAPE, bool)
        mask[corner[0] : corner[0] + 8, corner[1] : corner[1] + 10] = True
        assert part_of(mask) == name
    codec, task = codecs.make("grid1000-xy"), made_task()
    for text, reason, fault in (
        ("Positive point: (1200, 5)", None, "outside"),
        ("<think>hm", None, "cut"),
        ("Positive point: (1", "length", "cut"),
        ("no idea", "stop", "invalid"),
        ("Positive point: (5, 5)", "stop", None),
    ):
        action = codec.read(text, task, reason).action
        record = {"type": "invalid", "reason": action.reason} if fault else CLICK
        step = replace(made_episode(task, [(record, part(0))]).steps[0], finish_reason=reason)
        assert fault_of(step) == fault


def test_nothing_is_told_where_nothing_is_known():
    task = made_task()
    facts = [step_facts(made_episode(task, [(INVALID, part(0))]), task)]
    found = diagnosis.diagnose(facts, [0.0])
    assert found["first"] == {"stage": "format", "name": "Replies without an action"} and found["groups"] == {}
    absent = replace(task, target=np.zeros(SHAPE, bool))
    episode = replace(made_episode(absent, [(STOP, part(0))]), start_iou=1.0)
    found = diagnosis.diagnose([step_facts(episode, absent)], [1.0])
    assert found["first"] is None
