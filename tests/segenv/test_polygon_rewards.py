"""Rewards of outlines: within 0..1, 1 for the right answer, 0 for none; and the same through TRL's interface."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segenv import metrics, queries, rewards
from segenv.codec import polygons
from segenv.geometry import mask_to_polygons, polygons_to_mask
from segenv.geometry.rle import polygons_to_rle
from segenv.rewards.polygons import PARTS
from segenv.types import Click, Invalid, Polygons, Task, object_of

RINGS = polygons.make("rings")
ALL = rewards.polygon("+".join(PARTS))
EDGES = rewards.polygon("+".join(PARTS), "simpleseg:contour=edges")
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
masks = sizes.flatmap(lambda shape: arrays(bool, shape))
pairs = sizes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
targets = sizes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 128, 255])))
pieces = ["[", "]", "[[[", "]]]", "[000,000]", "[999,999]", "[500,100]", ",", "12", "Vertices: 3\n", "[]", " "]
replies = st.text(max_size=60) | st.lists(st.sampled_from(pieces), max_size=14).map("".join)


def task_of(target: np.ndarray) -> Task:
    return Task("a", np.zeros((*target.shape, 3), np.uint8), target, "the cat")


def drawn(mask: np.ndarray) -> Polygons:
    return Polygons(tuple(mask_to_polygons(mask)))


def square(at: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[at : at + size, at : at + size] = True
    return mask


# --------------------------------------------------------------------------------------------------------------- laws


@given(target=targets, text=replies, asked=st.sampled_from(queries.KINDS))
def test_any_text_has_parts_from_0_to_1(target: np.ndarray, text: str, asked: str) -> None:
    task = task_of(target)
    score = ALL.score(text, task, asked)
    assert list(score) == [*PARTS, "total"] and all(0 <= score[name] <= 1 for name in PARTS)
    assert score["total"] == pytest.approx(sum(score[name] for name in PARTS))
    if isinstance(queries.read(text, task, RINGS, asked), Invalid):
        assert set(score.values()) == {0.0}


@given(target=targets)
def test_the_right_mask_has_1_of_every_part_even_where_there_is_none(target: np.ndarray) -> None:
    """What it draws on ignored pixels counts in nothing."""
    for mask in (target == 255, target > 0):
        score = ALL.of(drawn(mask), task_of(target))
        assert score == {**dict.fromkeys(PARTS, 1.0), "total": len(PARTS)}


@given(pair=pairs)
def test_parts_agree_with_rasters(pair: tuple[np.ndarray, np.ndarray]) -> None:
    target, mask = pair
    score = ALL.of(drawn(mask), task_of(target))
    assert score["iou"] == metrics.iou(target, mask) and score["format"] == float(mask.any() or not target.any())
    if target.any() and mask.any():
        centres = [np.argwhere(region).mean(axis=0) for region in pair]
        away = np.linalg.norm(centres[0] - centres[1]) / np.hypot(*target.shape)
        assert score["centroid"] == pytest.approx(1 - away)
        swapped = ALL.of(drawn(target), task_of(mask))
        assert swapped == pytest.approx(score), "every part is symmetric"
    else:
        assert score["centroid"] == score["boundary_f"] == score["chamfer"] == float(target.any() == mask.any())


@given(target=targets, asked=st.sampled_from(["box", "point", "text"]))
def test_the_right_answer_to_another_question_has_1_too(target: np.ndarray, asked: str) -> None:
    task = task_of(target)
    if object_of(target).any():
        assert ALL.of(queries.answer(task, RINGS, asked), task, asked)["total"] == len(PARTS)
    elif asked != "text":
        assert ALL.of(queries.answer(task, RINGS, asked), task, asked)["total"] == len(PARTS)
        assert ALL.of(Click(0, 0), task, "point")["iou"] == 0


# ------------------------------------------------------------------------------------------------------------ by hand


def test_a_shifted_square_by_hand() -> None:
    """40 x 40 pixels on 100 x 100, moved by 10 down and right."""
    score = ALL.of(drawn(square(30)), task_of(square(20)))
    assert score["iou"] == pytest.approx(900 / 2300)
    assert score["centroid"] == pytest.approx(1 - 10 / 100)
    # The tolerance is ceil(0.008 * 141.4) = 2 px. On each edge of 156 pixels, those within 2 px of the other lie on
    # two of its sides, from 2 px before a crossing to 2 px behind it.
    assert score["boundary_f"] == pytest.approx(10 / 156)
    near = ALL.of(drawn(square(22)), task_of(square(20)))
    assert near["boundary_f"] > 0.98 and near["chamfer"] > score["chamfer"] > 0.2


def test_farther_is_less() -> None:
    task = task_of(square(0))
    found = [ALL.of(drawn(square(at)), task) for at in (0, 2, 8, 30, 60)]
    for name in ("iou", "centroid", "boundary_f", "chamfer"):
        values = [score[name] for score in found]
        assert values == sorted(values, reverse=True) and values[0] == 1 and values[-1] < values[1], name


def test_a_reply_that_breaks_off_has_what_it_drew_and_no_format() -> None:
    task = task_of(square(20))
    text = queries.reply(queries.query(task, RINGS), RINGS)
    whole, broken = ALL.score(text, task), ALL.score(text[: text.rindex("[") - 1], task)
    part = RINGS.parse(text[: text.rindex("[") - 1], task)
    assert isinstance(part, Polygons) and part.truncated
    covered = polygons_to_mask(part.rings, 100, 100)
    assert broken["iou"] == metrics.iou(task.target, covered) and 0.4 < broken["iou"] < whole["iou"]
    assert (whole["format"], broken["format"]) == (1, 0)


def test_no_object_is_answered_by_nothing() -> None:
    task = task_of(np.zeros((50, 50), bool))
    assert ALL.score("Vertices: 0\n[]", task)["total"] == len(PARTS)
    for text in ("[]", "There is no cat in the image."):
        for asked in ("mask", "box", "point"):
            assert ALL.score(text, task, asked)["total"] == len(PARTS)
            assert ALL.score(text, task_of(square(20)), asked)["total"] == 0, "it has no form that could be right"
    made_up = ALL.score("Vertices: 3\n[[[000,000],[000,500],[500,500]]]", task)
    assert made_up["total"] == made_up["format"] == 1
    assert ALL.score("I would rather not say", task)["total"] == 0


def test_a_dialect_fills_as_it_says() -> None:
    """Two nested squares are a hole in `rings`, and none where each polygon is filled by itself."""
    outer, inner = square(10, 80), square(30)
    hole = task_of(outer & ~inner)
    text = EDGES.codec.format(Polygons((*mask_to_polygons(outer), *mask_to_polygons(inner)), True), hole)
    assert EDGES.score(text, hole)["iou"] == pytest.approx(4800 / 6400)
    assert EDGES.score(text, task_of(outer))["iou"] == 1
    assert ALL.of(drawn(outer & ~inner), hole)["iou"] == 1


def test_a_text_is_compared_without_case_blanks_and_full_stop() -> None:
    task = replace(task_of(square(0)), instruction="the left cat")
    assert ALL.score(" The left  cat.\n", task, "text")["total"] == len(PARTS)
    wrong = ALL.score("the right cat", task, "text")
    assert wrong["total"] == wrong["format"] == 1


def test_weights_add_up_and_wrong_specs_say_what_is_wrong() -> None:
    task = task_of(square(20))
    plain = rewards.polygon()
    score = plain.of(drawn(square(22)), task)
    assert list(score) == ["iou", "centroid", "format", "total"] == [*plain.weights, "total"]
    assert score["total"] == pytest.approx(score["iou"] + 0.1 * score["centroid"] + 0.1 * score["format"])
    with pytest.raises(ValueError, match=r"reward 'iou\+size' is not understood at '\+size'.*boundary_f, chamfer"):
        rewards.polygon("iou+size")
    with pytest.raises(ValueError, match="codec 'segagent' draws no polygons; expected one such as 'rings'"):
        rewards.polygon(codec="segagent")


# ------------------------------------------------------------------------------------------------------------ with TRL


def row(task: Task, asked: str = "mask") -> dict:
    """A line of a dataset for TRL, as anyone would make it."""
    question = queries.query(task, RINGS, "text" if asked != "text" else "mask", asked)
    return {
        "prompt": [{"role": "user", "content": question.prompt}],
        "target": polygons_to_rle(mask_to_polygons(task.target), task.height, task.width),
        "asked": asked,
        "instruction": task.instruction,
    }


def test_it_is_a_reward_function_of_trl(tasks: list[Task]) -> None:
    """A dataset is written and read by `datasets`; completions come as texts and as conversations."""
    datasets = pytest.importorskip("datasets")
    known = tasks[:2]  # run lengths have no word for ignored pixels
    data = datasets.Dataset.from_list([row(task, asked) for task in known for asked in queries.KINDS])
    columns = {name: data[:][name] for name in ("target", "asked", "instruction")}
    texts, expected = [], []
    for task in known:
        for asked in queries.KINDS:
            given = "mask" if asked != "mask" else "text"
            texts.append(queries.reply(queries.query(task, RINGS, given, asked), RINGS, 120))
            expected.append(ALL.score(texts[-1], task, asked)["total"])
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    logged: dict[str, float] = {}
    for completions in (texts, chats, parts):
        found = ALL(
            prompts=data["prompt"], completions=completions, completion_ids=[], log_metric=logged.__setitem__, **columns
        )
        assert found == expected and min(found) > 4.5
    assert list(logged) == [f"reward/{name}" for name in PARTS] and logged["reward/format"] == 1
    assert sum(logged.values()) == pytest.approx(sum(expected) / len(expected))


def test_a_mask_is_what_is_asked_where_there_is_no_such_column(task: Task) -> None:
    lines = [row(task)] * 3
    good = queries.reply(queries.query(task, RINGS), RINGS)
    found = ALL([good, "no", []], target=[line["target"] for line in lines])
    assert found[0] > 4.9 and found[1:] == [0, 0]
    assert ALL([], target=[]) == []


def test_a_dataset_without_targets_is_told(task: Task) -> None:
    with pytest.raises(ValueError, match="has the columns masks; expected also `target`, with COCO run lengths"):
        ALL(["[]"], masks=[row(task)["target"]])


def test_trl_names_it_by_its_spec() -> None:
    assert rewards.polygon().__name__ == "iou+0.1*centroid+0.1*format"


def test_ignored_pixels_count_in_a_column_as_in_a_task() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[5:25, 5:25] = 255
    labels[25:30, 5:25] = 128
    task = Task("ignored", np.zeros((40, 40, 3), np.uint8), labels, "it")
    reward = rewards.polygon("iou")
    drawn = np.zeros((40, 40), bool)
    drawn[5:30, 5:20] = True
    text = reward.codec.format(reward.codec.outline(drawn, ratio=0), task)
    columns = {"target": [polygons_to_rle(mask_to_polygons(labels == 255), 40, 40)]}
    left = polygons_to_rle(mask_to_polygons(labels == 128), 40, 40)["counts"]
    [told] = reward([text], **columns, ignored=[left])
    [untold] = reward([text], **columns)
    assert told == pytest.approx(reward.score(text, task)["iou"])
    assert told > untold
