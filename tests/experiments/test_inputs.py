"""The probe of an agent's inputs tells agents that use them from agents that do not."""

from __future__ import annotations

import re

import numpy as np
import pytest

import agents
from agents.base import Agent
from experiments import inputs
from experiments.common.config import RunError
from segenv import data, metrics
from segenv.types import Click


class Reader(Agent):
    """Knows where the named object of each scene is, by its instruction; undoes its work where it sees no mask."""

    spec = "reader"

    def _act(self, observations, seeds):
        replies = []
        for observation in observations:
            place = PLACES[observation.image.tobytes(), observation.instruction]
            positive = observation.step == 0 or bool(observation.mask.any())
            replies.append(self.codec.format(Click(*place, positive), observation))
        return replies


PLACES: dict[tuple[bytes, str], tuple[int, int]] = {}


@pytest.fixture
def reader(monkeypatch):
    for task in (data.make("synthetic:val")[k] for k in range(12)):
        for each in filter(None, (task, inputs.exchanged(task))):
            rows, columns = np.nonzero(each.target)
            middle = len(rows) // 2
            PLACES[each.image.tobytes(), each.instruction] = (int(columns[middle]), int(rows[middle]))
    make = agents.make
    monkeypatch.setattr(
        agents, "make", lambda spec, *a, **k: Reader(make("random").codec) if spec == "reader" else make(spec)
    )


def test_a_reader_follows_the_instruction_and_needs_the_mask(reader):
    numbers = inputs.run(inputs.Args(agent="reader", tool="disc", limit=12, max_steps=3))["measures"]
    assert numbers["first click in the object"]["value"] == 1
    assert numbers["other instruction: mask goes to the other object"]["value"] == 1
    assert numbers["IoU@2, mask seen - hidden, paired"]["interval"][0] > 0
    assert numbers["first click in the object, random"]["value"] < 0.5
    assert numbers["final mIoU, share of the annotator's"]["value"] < 1


def test_random_clicks_use_no_input(capsys):
    assert inputs.main(["--agent", "random", "--tool", "disc", "--limit", "12", "--max-steps", "2"]) == 0
    assert re.search(r"IoU@2, mask seen - hidden, paired +\+0\.0000", capsys.readouterr().out)


def test_the_other_object_is_another_one():
    task = next(task for task in data.make("synthetic:val#hard") if task.meta["others"])
    other = inputs.exchanged(task)
    assert other is not None and other.instruction != task.instruction
    assert metrics.iou(other.target, other.meta["first"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"), [({"agent": "annotator"}, "reads the target"), ({"tool": "x"}, "set up")]
)
def test_what_cannot_be_asked_is_refused(flags, message):
    with pytest.raises(RunError, match=message):
        inputs.run(inputs.Args(limit=2, **{"agent": "random", "tool": "disc", **flags}))
