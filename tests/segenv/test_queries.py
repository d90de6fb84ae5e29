"""Questions: every pair of kinds, prompts that say all that is needed, and answers that are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segenv import codec, metrics, queries
from segenv.codec import polygons
from segenv.codec.polygons import PolygonCodec
from segenv.geometry import polygons_to_mask
from segenv.types import Absent, Box, Click, Invalid, Polygons, Task, object_of

masks = st.tuples(st.integers(2, 24), st.integers(2, 24)).flatmap(lambda shape: arrays(bool, shape))
PAIRS = [pytest.param(*pair, id="-".join(pair)) for pair in queries.PAIRS]


@pytest.fixture(params=list(polygons.DIALECTS))
def spoken(request: pytest.FixtureRequest) -> PolygonCodec:
    return polygons.make(request.param)


def task_of(mask: np.ndarray) -> Task:
    return Task("a", np.zeros((*mask.shape, 3), np.uint8), mask, "the cat")


@pytest.mark.parametrize(("given", "asked"), PAIRS)
def test_each_question_shows_what_is_given_and_says_how_to_answer(
    given: str, asked: str, spoken: PolygonCodec, task: Task
) -> None:
    long, short = (queries.query(task, spoken, given, asked, style) for style in queries.STYLES)
    assert (long.id, long.answer) == (f"disc:{given}-{asked}", short.answer)
    shown = {"text": task.instruction, "mask": "green mask"}.get(given)
    if given in ("point", "box"):
        shown = spoken.format(queries.answer(task, spoken, given), task)  # type: ignore[arg-type]
        assert shown in short.prompt
    assert shown and shown in long.prompt and len(short.prompt) < len(long.prompt)
    assert short.prompt.split()[0] == asked or asked == "mask"
    assert spoken.ask(asked, task) in long.prompt
    assert (spoken.numbers(task) in long.prompt) == ({given, asked} != {"text", "mask"} or asked == "mask")
    assert np.array_equal(long.picture, task.image) == (given != "mask")


@pytest.mark.parametrize("asked", queries.KINDS)
@pytest.mark.parametrize("name", list(polygons.DIALECTS))
@drawn(mask=masks.filter(np.any))
def test_the_right_reply_is_read_as_the_right_answer(name: str, asked: str, mask: np.ndarray) -> None:
    spoken, task = polygons.make(name), task_of(mask)
    question = queries.query(task, spoken, next(kind for kind in queries.KINDS if kind != asked), asked)
    found = queries.read(queries.reply(question, spoken), task, spoken, asked)
    match question.answer:
        case str() | Click():
            assert found == question.answer
            assert not isinstance(found, Click) or mask[found.y, found.x]
        case Box() as box:
            tight = metrics.box_of(mask)
            assert (box.x0, box.y0, box.x1, box.y1) == (tight.x0, tight.y0, tight.x1, tight.y1)  # type: ignore[union-attr]
            assert isinstance(found, Box) and abs(found.x1 - box.x1) <= task.width / 999
        case Polygons():
            assert isinstance(found, Polygons) and not found.truncated
            if name == "rings":
                covered = polygons_to_mask(spoken.outline(mask, ratio=0).rings, *mask.shape)
                assert np.array_equal(covered, mask)


def test_a_budget_holds(task: Task) -> None:
    rings = polygons.make("rings")
    for budget in (60, 120, 400):
        text = queries.reply(queries.query(task, rings), rings, budget)
        assert len(text) <= budget and isinstance(queries.read(text, task, rings), Polygons)


def test_without_a_seed_it_is_the_codecs_own_prompt_and_seeds_vary_it(spoken: PolygonCodec, task: Task) -> None:
    assert queries.query(task, spoken).prompt == spoken.prompt(task)
    found = {queries.query(task, spoken, "box", "mask", seed=seed).prompt for seed in range(60)}
    assert len(found) == len(queries.GIVEN["box"]) * len(queries.ASKED["mask"])
    assert queries.query(task, spoken, seed=4).prompt == queries.query(task, spoken, seed=4).prompt


def test_braces_in_an_instruction_are_only_braces(spoken: PolygonCodec, task: Task) -> None:
    odd = replace(task, instruction="a {0} {cat} {}")
    for style in queries.STYLES:
        assert "a {0} {cat} {}" in queries.query(odd, spoken, style=style).prompt


def test_an_object_that_is_not_there_has_an_empty_mask_and_is_absent(spoken: PolygonCodec) -> None:
    task = task_of(np.zeros((8, 9), bool))
    question = queries.query(task, spoken)
    found = queries.read(queries.reply(question, spoken), task, spoken)
    assert question.answer == found == Polygons((), spoken.union)
    for asked in ("point", "box"):
        question = queries.query(task, spoken, asked=asked)
        assert question.answer == Absent()
        for text in (queries.reply(question, spoken), "There is no cat in the image."):
            assert queries.read(text, task, spoken, asked) == Absent()
    assert queries.query(task, spoken, "text", "point").answer == Absent()
    for given, asked in queries.PAIRS:
        if given != "text":
            with pytest.raises(ValueError, match="task a has no object, and so no"):
                queries.query(task, spoken, given, asked)


def test_a_task_without_words_is_asked_for_the_main_object(spoken: PolygonCodec, task: Task) -> None:
    mute = replace(task, instruction="")
    assert "the main object" in queries.query(mute, spoken).prompt
    with pytest.raises(ValueError, match="task disc has no instruction"):
        queries.query(mute, spoken, "mask", "text")


@drawn(text=st.text(), asked=st.sampled_from(queries.KINDS))
def test_any_reply_is_an_answer_of_the_kind_asked_or_says_why_not(text: str, asked: str) -> None:
    found = queries.read(text, task_of(np.ones((8, 9), bool)), polygons.make("rings"), asked)
    kinds = {"mask": (Polygons,), "box": (Box, Absent), "point": (Click, Absent), "text": (str,)}
    assert isinstance(found, (Invalid, *kinds[asked]))
    assert not isinstance(found, Invalid) or (found.text == text and found.reason)


def test_another_kind_of_answer_is_none(task: Task) -> None:
    rings = polygons.make("rings")
    for asked, text, reason in (
        ("mask", "[000,000,500,500]", "the reply is a box; expected a mask"),
        ("point", "[[[000,000],[000,500],[500,500]]]", "the reply is a mask; expected a point"),
        ("box", "[100,100]", "the reply is a point; expected a box"),
        ("text", " \n", "the reply is empty"),
    ):
        found = queries.read(text, task, rings, asked)
        assert isinstance(found, Invalid) and reason in found.reason


def test_what_it_refuses(spoken: PolygonCodec, task: Task) -> None:
    for given, asked, style in (("text", "text", "codec"), ("text", "pixels", "codec"), ("text", "mask", "loud")):
        with pytest.raises(ValueError, match="expected two different ones of text, point, box, mask, and a style of"):
            queries.query(task, spoken, given, asked, style)
    with pytest.raises(ValueError, match="asked is 'line'; expected one of text, point, box, mask"):
        spoken.ask("line", task)
    with pytest.raises(ValueError, match="asked is 'line'"):
        queries.read("x", task, spoken, "line")
    assert codec.make(spoken.name).prompt(task) and object_of(task.target).any()
