"""A recorded decoder answers as the model does, bit by bit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)} (the extra `sam`)", allow_module_level=True)

import torch

from segenv import data, tools
from segenv.tools import recorded
from segenv.tools.recorded import Recorded
from segenv.tools.sam import SamTool
from segenv.types import Click, Prompt

KINDS = [  # points, box, logits, multimask: all that a tool asks for
    (True, False, False, True),
    (True, False, False, False),
    (True, False, True, False),
    (False, True, False, False),
    (False, True, True, False),
    (True, True, False, False),
    (True, True, True, False),
]


@pytest.fixture(scope="module")
def tool() -> SamTool:
    return SamTool(refine="none")


@pytest.fixture(scope="module")
def known(tool: SamTool) -> Iterator[Recorded]:
    """The tool's decoder, recorded kind by kind, each at other numbers of images and points."""
    decoder = Recorded(tool.model, after=0)
    with torch.inference_mode():
        for k, kind in enumerate(KINDS):
            decoder(inputs(tool, kind, 1 + k % 3, 1 + k % 4, 0), kind[3])
    assert all(decoder._recordings.values()) and len(decoder._recordings) == len(KINDS)
    yield decoder


def inputs(tool: SamTool, kind: tuple[bool, ...], batch: int, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Random inputs of a kind."""
    rng = torch.Generator().manual_seed(seed)
    side, grid = tool.side, tool.grid
    made = {"image_embeddings": torch.randn((batch, 64, grid // 4, grid // 4), generator=rng)}
    if kind[0]:
        made["input_points"] = side * torch.rand((batch, 1, count, 2), generator=rng)
        made["input_labels"] = torch.randint(0, 2, (batch, 1, count), generator=rng, dtype=torch.int32)
    if kind[1]:
        made["input_boxes"] = side * torch.rand((batch, 1, 4), generator=rng)
    if kind[2]:
        made["input_masks"] = 8 * torch.randn((batch, 1, grid, grid), generator=rng)
    return made


@settings(max_examples=15)
@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_equals_the_model_for_any_batch_and_any_points(
    tool: SamTool, known: Recorded, kind: tuple[bool, ...], batch: int, count: int, seed: int
) -> None:
    given = inputs(tool, kind, batch, count, seed)
    with torch.inference_mode():
        output = tool.model(**given, multimask_output=kind[3])
        logits, scores = known(given, kind[3])
    assert torch.equal(logits, output.pred_masks[:, 0]) and torch.equal(scores, output.iou_scores[:, 0])


def test_only_many_calls_are_recorded_and_only_equal_ones(tool: SamTool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, decoder = KINDS[1], Recorded(tool.model, after=2)
    given = inputs(tool, kind, 1, 1, 3)
    with torch.inference_mode():
        answers = [decoder(given, False) for _ in range(2)]
        assert not decoder._recordings
        answers += [decoder(given, False) for _ in range(2)]
        assert list(map(bool, decoder._recordings.values())) == [True]
        assert all(map(torch.equal, answers[0], answers[-1]))
        other = Recorded(tool.model, after=0)
        trace = torch.jit.trace

        def off_by_one(*arguments: Any, **options: Any) -> Any:
            recording = trace(*arguments, **options)
            return lambda *given: [part + 1 for part in recording(*given)]

        monkeypatch.setattr(recorded.torch.jit, "trace", off_by_one)
        assert all(map(torch.equal, other(given, False), answers[0]))
        assert all(map(torch.equal, other(given, False), answers[0])) and list(other._recordings.values()) == [None]


def test_a_tool_answers_as_before_and_crosses_to_another_process() -> None:
    tool, eager = SamTool(), SamTool()
    assert tool.recorded is not None
    tool.recorded.after, eager.recorded = 0, None
    task = data.make("synthetic:val#easy")[0]
    prompts = [Prompt((Click(40, 40),))] * 3

    def answers(one: SamTool) -> list[bytes]:
        found = one.predict(one.encode([task.image]) * 3, prompts)
        return [prediction.mask.tobytes() for prediction in found]

    assert answers(tool) == answers(tool) == answers(eager)
    copy = pickle.loads(pickle.dumps(tool))
    assert copy.recorded.after == 0 and not copy.recorded._recordings
    assert answers(copy) == answers(eager)
    assert SamTool(tool.model).recorded is None, "a model in memory may be in training"
    assert tools.make("sam:refine=none").recorded is not None
