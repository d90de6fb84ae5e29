"""Lessons in drawing say the truth, the tiny model learns the tokens of polygons, and trainings and ablations go on
where they were cut."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import make, tiny
from agents.training.auxiliary_heads import Collator, Heads
from agents.training.click_examples import Mixture
from agents.training.polygon_examples import ORDERS, TOKENS, PolygonExamples, absent_instructions, format_rings
from experiments import polygon_ablation
from experiments.common.ablation import arm_folder
from experiments.common.config import RunError
from experiments.evaluate.answers.polygon_metrics import TOPOLOGIES, Record
from experiments.polygon_ablation import ARMS
from experiments.sft import __main__, config
from experiments.sft import polygons as sft_polygon
from segenv.codec import polygons
from segenv.data.synthetic.scenes import Synthetic
from segenv.geometry import canonical, polygon_iou, polygons_to_mask
from segenv.types import Box, Polygons, Task

torch.set_num_threads(1)
SMALL = {"image_size": 64, "width": 32, "vision_layers": 1, "text_layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("base") / "tiny", seed=1, **SMALL))


@pytest.mark.parametrize("codec", ["rings", "simpleseg"])
@pytest.mark.parametrize("order", ORDERS)
def test_drawn_replies_give_the_object_back_in_any_order_but_the_shuffled_one(codec, order):
    dialect, rng = polygons.make(codec), np.random.default_rng(0)
    for i in range(12):
        task = Synthetic("val")[i]
        read = dialect.parse(format_rings(task, dialect, 40, 0, order, rng), task)
        assert isinstance(read, Polygons) and not read.truncated and sum(map(len, read.rings)) <= 40
        iou = polygon_iou(read.rings, task.target, read.union)
        assert iou > 0.7 or order == "random"
        right = dialect.parse(format_rings(task, dialect, 40, 0), task)
        if order == "random":
            assert [set(map(tuple, ring)) for ring in read.rings] == [set(map(tuple, ring)) for ring in right.rings]
        else:
            rings = zip(canonical(read.rings), canonical(right.rings), strict=True)
            assert all(np.array_equal(a, b) for a, b in rings)
        if order == "reversed":
            assert all(np.array_equal(a[0], b[0]) for a, b in zip(read.rings, right.rings, strict=True))


def test_outlines_have_the_corners_that_they_need_and_no_more():
    """A slanted triangle has three vertices, a thin bar four; and all that they may have without a ratio."""
    rings, shape = polygons.make("rings"), (96, 128)

    def counts(*corners):
        task = Task("t", np.zeros((*shape, 3), np.uint8), polygons_to_mask([np.array(corners)], *shape), "it")
        found = [rings.parse(format_rings(task, rings, 12, ratio), task).rings for ratio in (0.0, 0.015)]
        assert polygon_iou(found[1], task.target) > 0.7
        return [len(ring) for (ring,) in found]

    assert counts((10.3, 12.1), (40.7, 90.2), (88.4, 30.9)) == [12, 3]
    assert counts((10, 12), (88, 60), (83, 68), (5, 20)) == [10, 4]
    nothing = Task("n", np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool), "it")
    assert rings.parse(format_rings(nothing, rings), nothing).rings == ()


def test_vertices_on_rows_are_where_the_outline_crosses_them():
    rings, likeness, on_rows = polygons.make("rings"), [], []
    for i in range(12):
        task = Synthetic("val")[i]
        reply = format_rings(task, rings, 32, rows=True)
        numbers = np.array(re.findall(r"[0-9]{3}", reply.split("\n")[1]), int).reshape(-1, 2)
        assert len(numbers) <= 32
        on_rows += (numbers[:, 1] % 50 == 25).tolist()
        likeness.append(polygon_iou(rings.parse(reply, task).rings, task.target))
        few = rings.parse(format_rings(task, rings, 12, rows=True), task).rings
        assert sum(map(len, few)) <= 12
    assert np.mean(likeness) > 0.85 and np.mean(on_rows) > 0.6, "the others are at the ends of the object's parts"
    dot = np.zeros((100, 100), bool)
    dot[41:44, 12:14] = True
    task = Task("dot", np.zeros((100, 100, 3), np.uint8), dot, "it")
    assert polygon_iou(rings.parse(format_rings(task, rings, rows=True), task).rings, dot) > 0.5, "between the rows"


def test_a_patch_is_told_the_vertex_on_its_middle_row():
    lessons = PolygonExamples(Mixture(first=3), vertices=40, rows=True, image_size=320, grid=20, seed=3)
    middle = [y for i in range(4) for y in _rows_told(lessons[i].vertices)]
    assert len(middle) > 100 and np.mean([y % 5 == 2 for y in middle]) > 0.7


def _rows_told(places):
    """Leading two digits of y of the vertices of patches; `places` are [N, 5]."""
    return [10 * y + more for there, _, _, y, more in places.tolist() if there]


def test_lessons_depend_on_their_number_and_every_answer_is_right():
    lessons = PolygonExamples(Mixture(first=6), vertices=30, image_size=64, grid=4, seed=3)
    again = PolygonExamples(Mixture(first=6), vertices=30, image_size=64, grid=4, seed=3)
    kinds = {"box": 0, "mask": 0, "absent": 0}
    for i in range(40):
        lesson = lessons[i]
        assert [q.reply for q in again[i].questions] == [q.reply for q in lesson.questions]
        frame = Synthetic("val")[0]
        for question in lesson.questions:
            answer = lessons.polygon_codec.parse(question.reply, frame)
            covered = question.shares[0].reshape(4, 4)
            if isinstance(answer, Box):
                kinds["box"] += 1
                assert question.instruction.startswith("box ")
                for low, high, side, axis in (
                    (answer.x0, answer.x1, frame.width, 0),
                    (answer.y0, answer.y1, frame.height, 1),
                ):
                    places = np.flatnonzero(covered.any(axis))
                    assert np.floor(4 * low / side + 0.02) <= places[0] <= np.ceil(4 * low / side)
                    assert np.floor(4 * high / side) <= places[-1] + 1 <= np.ceil(4 * high / side + 0.02)
            elif answer.rings:
                kinds["mask"] += 1
                assert covered.sum() > 0 and covered.ravel()[question.click] > 0
            else:
                kinds["absent"] += 1
                assert covered.sum() == 0 and question.click == -1
    assert min(kinds.values()) > 0


@pytest.mark.parametrize("codec", ["rings", "simpleseg"])
def test_patches_are_told_the_digits_of_the_vertices_in_them(codec):
    grid, lessons = 8, PolygonExamples(Mixture(first=3), codec, 12, image_size=64, grid=8, seed=3)
    vertices = 0
    for i in range(12):
        for question in lessons[i].questions:
            numbers = re.findall(r"[0-9.]+", question.reply.split("\n")[-1])
            digits = [(9, 9) if text == "1.000" else (int(text[-3]), int(text[-2])) for text in numbers]
            pairs = zip(digits[::2], digits[1::2], strict=True)
            written = {(*x, *y) for x, y in pairs if "[[" in question.reply}
            held = question.places[question.places[:, 0] == 1]
            assert {tuple(row[1:]) for row in held.tolist()} <= written and bool(written) == (len(held) > 0)
            for k, (_, x, xx, y, yy) in enumerate(question.places.tolist()):
                assert abs(x * 100 + xx * 10 + 5 - 1000 * (k % grid + 0.5) / grid) <= 500 / grid + 10
                assert abs(y * 100 + yy * 10 + 5 - 1000 * (k // grid + 0.5) / grid) <= 500 / grid + 10
            vertices += len(held)
    assert vertices > 50


def test_outlines_that_begin_anywhere_have_a_loss_too():
    lessons = PolygonExamples(Mixture(first=2), "rings", 8, order="random", image_size=32, grid=2, seed=1)
    _, processor = tiny.build(seed=1, image_size=32, width=32, vision_layers=1, text_layers=1, heads=2)
    batch = Collator(processor)([lessons[0], lessons[1]])
    assert (batch["clicks"] == -1).all()
    heads, tokens = Heads(32), torch.randn(4, 4, 32, requires_grad=True)
    loss, measured = heads.grounding_loss(tokens, batch)
    loss.backward()
    assert loss.isfinite() and tokens.grad is not None and tokens.grad.isfinite().all()
    assert all(np.isfinite(value) for value in measured.values()) and measured["click_patch"] == 0


def test_what_is_missing_is_nowhere_in_the_scene():
    for i in range(20):
        scene = Synthetic("train").scene(i)
        there = {f"the {thing.colour} {thing.shape}" for thing in (*scene.objects, *scene.clutter)}
        assert there and not there & set(absent_instructions(scene))


def test_new_tokens_shorten_polygons_and_leave_other_texts_alone():
    model, processor = tiny.build(seed=1, **SMALL)
    words = processor.tokenizer
    reply, other = "Vertices: 3\n[[[123,456],[234,567],[345,678]]]", "Current IOU: 37\nPositive point: (175, 483)"
    before = {text: words(text)["input_ids"] for text in (reply, other)}
    old = model.get_input_embeddings().weight.detach().clone()
    tiny.extend(model, processor, TOKENS)
    after = {text: words(text)["input_ids"] for text in (reply, other)}
    assert after[other] == before[other]
    assert len(after[reply]) == 4 + 3 * 8 + 1 and words.decode(after[reply]) == reply
    new = model.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old) and len(new) == len(words) == model.config.text_config.vocab_size
    assert model.lm_head.weight is new


def _args(base, out, **changes):
    few = {"draw_steps": 4, "cooldown": 2, "lessons": 2, "questions": 2, "vertices": 5, "probe": 2, "workers": 0}
    return config.PolygonArgs(base=base, out=str(out), measure_every=4, save_every=2, **{**few, **changes})


@pytest.mark.parametrize("changes", [{}, {"rows": True, "vertices": 12}], ids=["corners", "rows"])
def test_a_training_that_was_cut_ends_as_one_that_was_not(base, tmp_path, changes):
    whole = sft_polygon.run(_args(base, tmp_path / "whole", **changes))
    sft_polygon.run(_args(base, tmp_path / "cut", draw_steps=2, cooldown=3, **changes))
    # a run of two steps has another fall of the rate: go on from its state with the settings of the whole one
    (tmp_path / "cut" / "config.yaml").write_text((tmp_path / "whole" / "config.yaml").read_text())
    first = sft_polygon.PolygonTrainer(_args(base, tmp_path / "first", **changes))
    for k in range(2):
        first.train_step([first.open_stage("draw")[2 * k + j] for j in range(2)])
    first.save(tmp_path / "cut")
    cut = sft_polygon.run(_args(base, None, resume=str(tmp_path / "cut"), **changes))
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"val_giou", "val_valid"} <= rows[-1].keys()
    agent = make(f"mllm:{whole}")
    assert agent.codec.name == "rings" and agent.backend.max_new_tokens == 8 * (8 + changes.get("vertices", 5))


def test_a_base_is_refined_for_long_polygons_or_is_taken_as_it_is(base, tmp_path):
    args = _args(base, tmp_path / "finer", tokens=8, vertices=100, probe=1)
    finer = sft_polygon.run(args)
    agent = make(f"mllm:{finer}")
    settings = agent.backend.model.config
    assert (settings.image_seq_length, agent.backend.max_new_tokens) == (64, 8 * 108)
    assert settings.text_config.max_position_embeddings >= 1024 > 64 + 8 * 108
    again = sft_polygon.PolygonTrainer(_args(str(finer), tmp_path / "again", tokens=8, vertices=130))
    assert again.model.config.image_seq_length == 64 and again.processor.patch_size == 8, "it has them"
    assert again.model.config.text_config.max_position_embeddings >= 64 + 8 * 138 > 1024
    [question, *_] = again.open_stage("draw")[0].questions
    assert question.shares.shape == (3, 64) and question.fine.shape == (64, 25)
    with pytest.raises(RunError, match="cannot be refined to 65 tokens a side: .* give fewer"):
        sft_polygon.run(_args(base, tmp_path / "x", tokens=65))
    with pytest.raises(RunError, match="cannot be resized to images of 70 pixels: side is 70; expected a multiple"):
        sft_polygon.run(_args(base, tmp_path / "x", image_size=70))
    assert not (tmp_path / "x").exists()


def test_the_command_knows_its_modes_and_refuses_what_cannot_be(base, tmp_path, capsys):
    assert __main__.mode(["--mode", "polygon"]) == __main__.mode(["--mode=polygon"]) == "polygon"
    assert __main__.mode(["--out", "x"]) == "clicks"
    assert __main__.main(["--mode", "polygon", "--out", str(tmp_path / "a"), "--vertices", "2"]) == 1
    assert "expected 4 or more" in capsys.readouterr().err
    with pytest.raises(RunError, match="writes no polygons"):
        sft_polygon.run(_args(base, tmp_path / "b", codec="segagent"))
    with pytest.raises(RunError, match="ratio is 2"):
        polygon_ablation.run(polygon_ablation.Args(out=str(tmp_path / "c"), base=base, ratio=2))
    for wrong in ("nothing-of-that-name", f"{base}#y"):
        with pytest.raises(RunError, match="cannot start from --base"):
            polygon_ablation.run(polygon_ablation.Args(out=str(tmp_path / "d"), base=wrong))
    assert not list(tmp_path.iterdir())


def _ablate(base, out, vary, **changes):
    few = {"steps": 2, "lessons": 2, "tasks": 4, "workers": 1, "lesson_workers": 0}
    return polygon_ablation.Args(vary=vary, out=str(out), base=base, **{**few, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("vary", ["order", "codec"])
def test_an_ablation_compares_arms_on_the_same_tasks_and_goes_on(base, tmp_path, vary):
    out = tmp_path / "run"
    args = _ablate(base, out, vary)
    numbers = polygon_ablation.run(args)
    assert list(numbers["arms"]) == list(ARMS[vary])
    assert numbers["arms"][next(iter(ARMS[vary]))]["gain"]["all"] == [0, 0, 0]
    for arm in numbers["arms"].values():
        assert arm["tasks"] == 4 and 0 <= arm["giou"] <= 1
    folder = arm_folder(out, 0, list(ARMS[vary])[-1])
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    lines = (folder / "replies.jsonl").read_bytes().splitlines(keepends=True)
    for left in (lines[0] + lines[1] + lines[2][:20], lines[0] + b"".join(lines[2:])):  # cut while it replied, mended
        (folder / "replies.jsonl").write_bytes(left)
        (folder / "replies.DONE").unlink()
        again = polygon_ablation.run(replace(args, out=None, resume=str(out)))
        assert again == numbers and (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert sorted((folder / "replies.jsonl").read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert {"ablation.csv", "ablation.md", "report.html"} <= {path.name for path in out.iterdir()}
    assert 'alt="ablation"' in (out / "report.html").read_text() and (out / "plots" / "ablation.png").is_file()


def _records(ious):
    """One reply to a task of each topology."""
    blank = {"sample": 0, "text": "[]", "tokens": 2, "error": None, "truncated": False, "vertices": 0, "drawn": True}
    blank |= {"intersection": 1, "union": 2, "box_iou": 0.5, "boundary_f": 0.5, "share": 0.1, "size": "small"}
    return [Record(task=kind, iou=iou, topology=kind, **blank) for kind, iou in zip(TOPOLOGIES, ious, strict=True)]


def test_an_ablation_averages_each_task_over_seeds_and_tells_objects_of_several_rings():
    args = polygon_ablation.Args("codec", tasks=3, seeds=(0, 7))
    found = {
        "simpleseg": [_records((0.1, 0.2, 0.3)), _records((0.2, 0.2, 0.4))],
        "rings": [_records((0.1, 0.4, 0.5)), _records((0.4, 0.4, 0.8))],
    }
    numbers = polygon_ablation.results(args, found)
    rings = numbers["arms"]["rings"]
    expected = {"all": 0.2, "one part": 0.1, "several parts": 0.2, "holes": 0.3, "several parts or holes": 0.25}
    assert {kind: gain[0] for kind, gain in rings["gain"].items()} == pytest.approx(expected)
    assert [gain[0] for gain in rings["gain_by_seed"]["several parts or holes"]] == pytest.approx([0.2, 0.3])
    assert rings["by_topology"]["several parts or holes"]["tasks"] == 2
    table = polygon_ablation.table(numbers)
    rows = table.rows
    assert table.header[3:5] == ["gain, seed 0", "gain, seed 7"]
    assert [row[0] for row in rows[5:]] == [
        *("rings", "  one part (1)", "  several parts (1)", "  holes (1)", "  several parts or holes (2)")
    ]
    assert rows[-1][1] == "0.5250" and rows[-1][3].startswith("+0.2000 [") and {len(row) for row in rows} == {9}


def test_seeds_that_contradict_each_other_leave_a_wide_interval():
    even, better, worse = (_records(ious) for ious in ((0.5, 0.5, 0.5), (0.7, 0.75, 0.5), (0.3, 0.25, 0.5)))
    args = polygon_ablation.Args("codec", tasks=3, seeds=(0, 1))
    rings = polygon_ablation.results(args, {"simpleseg": [even, even], "rings": [better, worse]})["arms"]["rings"]
    mean, low, high = rings["gain"]["all"]
    assert mean == pytest.approx(0) and low < -0.15 < 0.15 < high
    assert [gain[0] for gain in rings["gain_by_seed"]["all"]] == pytest.approx([0.15, -0.15])


@pytest.mark.slow
def test_arms_trained_at_once_are_as_those_trained_one_after_the_other(base, tmp_path):
    args = _ablate(base, tmp_path / "alone", "codec", seeds=(1, 2))
    numbers = polygon_ablation.run(args)
    out = tmp_path / "together"
    together = replace(args, out=str(out), workers=2, lesson_workers=1)
    assert polygon_ablation.run(together) == numbers
    weights = {
        arm: [(arm_folder(out, seed, arm) / "model/model.safetensors").read_bytes() for seed in (1, 2)]
        for arm in ARMS["codec"]
    }
    for arm, (first, second) in weights.items():
        alone = arm_folder(tmp_path / "alone", 1, arm) / "model/model.safetensors"
        assert first == alone.read_bytes() and first != second
    for seed, arm in ((1, "rings"), (2, "simpleseg")):
        for path in arm_folder(out, seed, arm).glob("replies.*"):  # two that were trained, and cut
            path.unlink()
    assert polygon_ablation.run(replace(together, out=None, resume=str(out))) == numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "--seeds names none; give one or more"),
        ({"seeds": (1, 1)}, "--seeds is .*; expected different ones"),
        ({"seeds": (0, -1)}, "--seeds holds -1; expected 0 or more"),
        ({"workers": -1}, "^--workers is -1"),
        ({"lesson_workers": -1}, "^--lesson-workers is -1"),
        ({"tasks": 0}, "--tasks is 0"),
    ],
)
def test_an_ablation_refuses_what_it_cannot_run_with(base, tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        polygon_ablation.run(_ablate(base, tmp_path / "run", "order", **changes))
    assert not list(tmp_path.iterdir())
