"""Sensitivity of a model to its prompt and to the actions that it is told: the arms, their pairs, and the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.backends.base import Backend, Reply
from agents.prompted import PROMPTS, PromptedAgent
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__, protocols, run, sensitivity
from experiments.evaluate.config import Args
from segenv import codec as codecs
from segenv.mdp import Observation
from segenv.types import Click

SEEN: list[str] = []


class Echo(Backend):
    """Clicks the middle; nothing but a shrug where the prompt is short, and a stop where it is told of two clicks."""

    def seen_size(self, width, height):
        return width, height

    def _ask(self, pictures, prompts, seeds, temperature):
        SEEN.extend(prompts)
        return [Reply(self.reply(prompt)) for prompt in prompts]

    def reply(self, prompt: str) -> str:
        if prompt.startswith("Optimize"):
            return "hm"
        told = prompt.partition("Your last actions: ")[2].count("Positive point")
        return "Finish" if told > 1 else "Positive point: (500, 500)"


class Asked(PromptedAgent):
    """A model that echoes, as an agent of one's own."""

    spec = "asked"

    def __init__(self, codec=None, seed=0, prompt="codec", history=0):
        super().__init__(codec or codecs.make("grid1000-xy"), Echo(), prompt, history=history)


def test_a_prompt_tells_the_last_clicks():
    clicks = tuple(Click(x, 10) for x in (10, 20, 30))
    shown = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), bool)
    observation = Observation("a", *shown, "cat", 3, 4, clicks=clicks)
    codec = codecs.make("pixels")
    none, two = (Asked(codec, history=history).prompt(observation) for history in (0, 2))
    assert "last actions" not in none and two.startswith(none)
    assert two.removeprefix(none) == "\nYour last actions: Positive point: (20, 10); Positive point: (30, 10)"
    first = replace(observation, clicks=())
    assert Asked(codec, history=4).prompt(first) == Asked(codec).prompt(first)
    assert Asked(codec, prompt="short").prompt(first).startswith("Optimize the semi-transparent green mask")
    assert "history" not in Asked(codec).settings and Asked(codec, history=4).settings["history"] == 4


def test_arms_change_one_thing_and_are_paired(tmp_path, capsys):
    args = Args(agent=f"{__name__}:Asked", data="synthetic:val", limit=3, tool="disc:radius=20", max_steps=4)
    args = replace(args, report_episodes=0, out=str(tmp_path / "run"))
    plain = run(args, quiet=True)
    assert "sensitivity" not in plain
    flags = ["--resume", str(tmp_path / "run"), "--sensitivity"]
    assert __main__.main(flags) == 0  # a run that has ended is added to
    numbers = RunFolder(tmp_path / "run").read_json("metrics.json")
    found = numbers["sensitivity"]
    assert [(one["prompt"], one["history"]) for one in found] == [
        *(("codec", 0), ("short", 0), ("instruction", 0), ("codec", 1), ("codec", 4)),
    ]
    assert found[0]["miou"] == numbers["miou"] and found[0]["difference"] == 0
    assert found[1]["parse_rate"] == 0 and found[1]["miou"] == 0
    assert found[1]["difference"] == pytest.approx(-numbers["miou"]) and found[2]["difference"] == 0
    assert all(one["episodes"] == 3 and len(one["interval"]) == 2 for one in found)
    told = list(RunFolder(tmp_path / "run/sensitivity/4").records("episodes.jsonl"))
    assert [len(one["steps"]) for one in told] == [3, 3, 3]  # it stops when it is told of two clicks
    printed = capsys.readouterr().out
    assert "prompt       history" in printed
    assert "Sensitivity to prompt and history" in (tmp_path / "run/report.html").read_text()
    before = len(SEEN)
    again = run(replace(args, sensitivity=True, out=None, resume=str(tmp_path / "run")), quiet=True)
    assert again["sensitivity"] == found and len(SEEN) == before  # nothing is asked twice


def test_arms_play_the_tasks_that_the_protocol_chooses(tmp_path, monkeypatch, capsys):
    known = protocols.PROTOCOLS["sam2-coco-500x5"]
    chosen = replace(known, data=("synthetic:val",), sample=lambda data: [2, 5])
    monkeypatch.setitem(protocols.PROTOCOLS, "sam2-coco-500x5", chosen)
    args = Args(agent=f"{__name__}:Asked", protocol="sam2-coco-500x5", tool="disc:radius=20", max_steps=2)
    args = replace(args, sensitivity=True, report_episodes=0, out=str(tmp_path / "run"))
    assert [one["episodes"] for one in run(args)["sensitivity"]] == [2] * 5
    played = RunFolder(tmp_path / "run/sensitivity/4").load_json("metrics.json")
    assert played["episodes"] == 2 and played["protocol"]["departs_from"]["name"] == "sam2-coco-500x5"
    assert capsys.readouterr().err.count("not under protocol") == 1  # the arms do not say it again


def test_agents_without_a_prompt_and_other_tasks_are_refused(tmp_path):
    args = Args(tool="disc", limit=1, sensitivity=True, out=str(tmp_path / "run"))
    with pytest.raises(RunError, match="agent 'annotator' has no prompt"):
        run(args, quiet=True)
    with pytest.raises(RunError, match="--sensitivity is of episodes of clicks"):
        run(replace(args, task="polygon"), quiet=True)
    assert sensitivity.section({"sensitivity": None}) == [] and len(PROMPTS) == 3
