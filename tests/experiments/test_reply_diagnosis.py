"""Replies with masks, boxes and points taken apart: each scripted failure is told by the line that is its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import two_discs

from experiments.common.run_folder import RunFolder
from experiments.evaluate import run
from experiments.evaluate.answers import reply_diagnosis
from experiments.evaluate.answers.polygon_metrics import record
from experiments.evaluate.answers.reply_facts import reply_facts
from experiments.evaluate.config import Args, PolygonOptions
from experiments.evaluate.episodes import diagnosis
from segenv import codec as codecs
from segenv import data as datasets
from segenv import metrics, queries
from segenv.codec.frames import Frame, image_size
from segenv.codec.polygons import PolygonCodec, of_family
from segenv.data import Dataset
from segenv.types import Absent, Box, Polygons, Task, object_of

RINGS = codecs.make("rings")
assert isinstance(RINGS, PolygonCodec)
Answer = Callable[[Task, str], str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Dataset:
    return datasets.make(two_discs(tmp_path_factory.mktemp("photos"), 12))


def right(task: Task, asked: str) -> Any:
    return queries.answer(task, RINGS, asked)


def writes(frame: Frame) -> Answer:
    """Replies with the right places in another frame."""
    other = copy.copy(RINGS)
    other.points, other.boxes, other.dialect = frame, frame, replace(RINGS.dialect, frame=frame)
    return lambda task, asked: other.format(right(task, asked), task)


def grown(answer: Any, by: float, task: Task) -> Any:
    """An answer `by` times as large around its middle; a point stays."""
    match answer:
        case Box(x0, y0, x1, y1):
            (x0, y0), (x1, y1) = _around(np.array([(x0, y0), (x1, y1)]), by, task).tolist()
            return Box(x0, y0, x1, y1)
        case Polygons(rings, union):
            return Polygons(tuple(_around(ring, by, task) for ring in rings), union)
    return answer


def _around(points: np.ndarray, by: float, task: Task) -> np.ndarray:
    middle = (points.min(0) + points.max(0)) / 2
    return np.clip((points - middle) * by + middle, 0, (task.width, task.height))


def two_squares() -> list[Task]:
    """Tasks for each of two squares in eight images, which tell of each other."""
    tasks = []
    for k in range(8):
        height, width = [(100, 160), (160, 100), (120, 200), (180, 130)][k % 4]
        instances = np.zeros((height, width), np.uint8)
        for number, (across, down) in enumerate([(0.15, 0.5), (0.8, 0.6)], 1):
            x, y = int(across * width), int(down * height)
            instances[y - 9 : y + 9, x - 9 : x + 9] = number
        for number in (1, 2):
            target = np.where(instances == number, 255, 0).astype(np.uint8)
            image, about = np.zeros((height, width, 3), np.uint8), {"instances": instances}
            tasks.append(Task(f"{k}/{number}", image, target, "the square", meta=about))
    return tasks


def sized(by: float) -> Answer:
    """The right place, at another size."""
    return lambda task, asked: RINGS.format(grown(right(task, asked), by, task), task)


def nothing(task: Task, asked: str) -> str:
    """It is not there."""
    return RINGS.format(Absent(), task)


FAILURES: dict[str, tuple[Answer, str, str]] = {  # what a model writes, the stage and words of the line that tells it
    "words": (lambda task, asked: "It is at the left.", "format", "without an answer"),
    "swapped axes": (writes(Frame(999, "yx")), "frame", "axes exchanged"),
    "pixels": (writes(Frame(image_size)), "frame", "pixels"),
    "outside": (
        lambda task, asked: re.sub("[0-9]+(?=,)", "7000", RINGS.format(right(task, asked), task), count=1),
        *("frame", "outside"),
    ),
    "nothing there": (nothing, "object", "tell of no object"),
    "too small": (sized(0.4), "quality", "IoU of"),
}


def diagnose(
    tasks: Sequence[Task], answer: Answer, asked: str, codec: PolygonCodec = RINGS, shared: bool = True
) -> dict[str, Any]:
    scored = [record(task, codec, answer(task, asked), 1, 0, asked) for task in tasks]
    facts = [reply_facts(one, task, codec, asked, shared) for one, task in zip(scored, tasks, strict=True)]
    found = reply_diagnosis.diagnose(facts, asked, [task.id.partition("/")[0] for task in tasks])
    assert found is not None
    return found


@pytest.mark.parametrize("asked", ("mask", "box", "point"))
def test_right_replies_fail_nowhere(photos, asked):
    found = diagnose(photos, lambda task, asked: RINGS.format(right(task, asked), task), asked)
    assert found["first"] is None and not any(line["fails"] for line in found["lines"])
    values = {line["name"]: line["value"] for line in found["lines"]}
    assert values[f"{reply_diagnosis.PLACES[asked]} on the object"] == 1 and values[reply_diagnosis.OTHER] == 0
    for names in found["groups"].values():
        assert all(one["on_object"] == one["valid"] == 1 and one["on_other"] == 0 for one in names.values())
    assert found["groups"]["expression"].keys() == {"name", "place"}


@pytest.mark.parametrize("asked", ("mask", "box", "point"))
@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_told_by_the_line_that_is_its_own(photos, failure, asked):
    answer, stage, words = FAILURES[failure]
    found = diagnose(photos, answer, asked)
    if stage == "quality" and asked == "point":
        assert found["first"] is None  # a point on the object has no size
        return
    assert (found["first"]["stage"], words in found["first"]["name"]) == (stage, True), found["first"]


@pytest.mark.parametrize("shared", (True, False))  # other tasks tell of the neighbour, or the task itself
@pytest.mark.parametrize("asked", ("mask", "box", "point"))
def test_the_other_object_is_told_of(asked, shared):
    tasks = two_squares()
    others = {task.id: tasks[k + 1 if k % 2 == 0 else k - 1] for k, task in enumerate(tasks)}
    if shared:
        tasks = [replace(task, meta={}) for task in tasks]

    def answer(task: Task, asked: str) -> str:
        return RINGS.format(right(others[task.id], asked), task)

    found = diagnose(tasks, answer, asked, shared=shared)
    assert found["first"] == {"stage": "object", "name": f"{reply_diagnosis.PLACES[asked]} on the object"}
    other = next(line for line in found["lines"] if line["name"] == reply_diagnosis.OTHER)
    assert other["value"] == 1 and other["fails"]


def test_absent_objects_have_a_line_of_their_own():
    data = list(datasets.make("no-target:synthetic:val#easy")[:6])
    drawn = diagnose(data, lambda task, asked: "[100,100,300,300]", "box")
    assert drawn["first"] == {"stage": "absent", "name": "Tasks without an object that are answered so"}
    assert drawn["lines"][-1]["value"] == 0 and drawn["groups"] == {}
    told = diagnose(data, nothing, "box")
    assert told["first"] is None and told["lines"][-1]["value"] == 1


def test_groups_and_lines_count_the_same_replies(photos):
    def answer(task: Task, asked: str) -> str:
        silent = int(task.id.partition("/")[0]) % 2
        return "It is at the left." if silent else RINGS.format(right(task, asked), task)

    found = diagnose(photos, answer, "box")
    values = {line["name"]: line["value"] for line in found["lines"]}
    groups = found["groups"]["expression"].values()
    assert values["Middle of the box on the object"] == 1 and values["Replies without an answer"] == 0.5
    assert {(one["valid"], one["on_object"]) for one in groups} == {(0.5, 1)}


def test_cut_replies_and_their_scores(photos):
    cut = diagnose(photos, lambda task, asked: RINGS.format(right(task, asked), task)[:-9], "mask")
    assert cut["first"] == {"stage": "format", "name": "Replies cut, or ended inside a thought"}
    assert reply_diagnosis.diagnose([], "text") is None


def test_families_are_read_again_in_their_own_words(photos):
    """A family that counts boxes in thousandths writes them in pixels of the image."""

    def answer(task: Task, asked: str) -> str:
        box = metrics.box_of(object_of(task.target))
        return f'[{{"bbox_2d": [{box.x0}, {box.y0}, {box.x1}, {box.y1}], "label": "it"}}]' if box else ""

    first = diagnose(list(photos), answer, "box", of_family(codecs.make("qwen3-vl"), "box"))["first"]
    assert first["stage"] == "frame" and "pixels" in first["name"]


@pytest.mark.parametrize("asked", ("box", "point"))
def test_replies_in_the_words_of_every_family_are_taken_apart(photos, asked):
    """Whatever frame its own numbers are in, a right reply fails nowhere."""
    tasks, read = list(photos), 0
    for name in codecs.CODECS:
        spoken = of_family(copy.copy(codecs.make(name)), asked)
        assert spoken.family is not None

        def answer(task: Task, asked: str, family: Any = spoken.family) -> str:
            return family.format(right(task, asked), task)

        try:
            answer(tasks[0], asked)
        except (ValueError, TypeError):  # a family without a word for it
            continue
        found = diagnose(tasks, answer, asked, spoken)
        assert found["first"] is None, (name, found["first"])
        read += 1
    assert read > 10, read


def test_the_report_of_a_run_shows_the_lines_and_the_kinds_of_tasks(photos, tmp_path: Path):
    options = PolygonOptions(asked="box")
    numbers = run(Args(task="polygon", data=photos.spec, polygon=options, out=str(tmp_path / "run")), quiet=True)
    assert diagnosis.text(numbers) == "first to fail: none"
    assert numbers["decomposed"] == RunFolder(tmp_path / "run").load_json("metrics.json")["decomposed"]
    page = (tmp_path / "run/report.html").read_text()
    assert "Where answers fail" in page and "IoU of boxes on the object" in page and "By kind of task" in page
    assert "decomposed" in numbers["protocol"]
