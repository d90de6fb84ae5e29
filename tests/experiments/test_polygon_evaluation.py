"""Whole outlines in one reply: `python -m experiments.evaluate --task polygon`, and what codecs can say at best."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_data import photo, save

from experiments import polygons_ceiling
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.compare import compare
from experiments.evaluate import __main__, config, evaluate
from experiments.evaluate.answers import polygon_answers, polygons
from experiments.evaluate.answers.polygon_metrics import record, size_of, topology_of
from segenv import codec, data
from segenv.codec.polygons import DIALECTS
from segenv.types import IGNORE, Task

SIZE = (96, 128)
RINGS = codec.make("rings")


def mask(*boxes: tuple[int, int, int, int], less: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Boxes (x0, y0, x1, y1) as a mask, one of them cut out."""
    drawn = np.zeros(SIZE, bool)
    for x0, y0, x1, y1 in boxes:
        drawn[y0:y1, x0:x1] = True
    if less:
        drawn[less[1] : less[3], less[0] : less[2]] = False
    return drawn


ONE, TWO = mask((10, 10, 90, 80)), mask((10, 10, 40, 60), (60, 20, 110, 80))
HOLE = mask((10, 10, 90, 80), less=(40, 30, 60, 50))


def task(target: np.ndarray, name: str = "t") -> Task:
    return Task(name, np.zeros((*target.shape, 3), np.uint8), target, "the thing")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("shapes")
    for name, target in {"one": ONE, "two": TWO, "hole": HOLE}.items():
        save(root / "images" / f"{name}.png", photo(len(name), SIZE))
        save(root / "masks" / f"{name}.png", target.astype(np.uint8) * 255)
    return f"folder:{root}"


# --------------------------------------------------------------------------------------------------------- the measures


def test_measures_are_what_they_say() -> None:
    """A square of 40 x 40 on 100 x 100 pixels: drawn, half drawn, cut off, missed and not answered; and nothing."""
    square = np.zeros((100, 100), bool)
    square[20:60, 20:60] = True
    there, absent = task(square, "there"), task(np.zeros((100, 100), bool), "absent")
    unit = codec.make("simpleseg")

    def text(x1: float) -> str:
        return f"[[[0.2, 0.2], [0.2, 0.6], [{x1}, 0.6], [{x1}, 0.2]]]"

    replies = [text(0.6), text(0.4), text(0.6)[:-9], "[]", "what?"]
    scored = [record(there, unit, reply, len(reply)) for reply in replies]
    assert [one.iou for one in scored] == pytest.approx([1, 0.5, 0.5, 0, 0], abs=0.03)
    assert [one.truncated for one in scored] == [False, False, True, False, False]
    assert [one.vertices for one in scored] == [4, 4, 3, 0, 0]
    empty = [record(absent, unit, reply, 7) for reply in ("[]", text(0.6), "what?")]
    assert [one.iou for one in empty] == [1, 0, 0]

    numbers = polygons.measures([record(task(square, str(k)), unit, reply, 10 * k) for k, reply in enumerate(replies)])
    assert numbers["giou"] == pytest.approx(np.mean([one.iou for one in scored]))
    assert numbers["ciou"] == sum(one.intersection for one in scored) / sum(one.union for one in scored)
    assert (numbers["valid"], numbers["truncated"], numbers["missed"]) == (0.8, 0.2, 0.2)
    assert numbers["tokens"] == 20 and numbers["token_quantiles"]["50"] == 20 and numbers["no_target"] is None
    assert numbers["by_topology"]["one part"]["giou"] == numbers["giou"]
    low, high = numbers["intervals"]["giou"]
    assert 0 <= low < numbers["giou"] < high <= 1

    several = polygons.measures([*scored, *empty])  # replies to one task make one mean
    assert (several["replies"], several["tasks"]) == (8, 2)
    assert several["giou"] == pytest.approx((np.mean([one.iou for one in scored]) + 1 / 3) / 2)
    assert several["no_target"]["accuracy"] == pytest.approx(1 / 3) and several["missed"] == 0.2
    assert several["n_acc"] == several["no_target"]["accuracy"] and numbers["n_acc"] is None
    assert several["t_acc"] == numbers["t_acc"] == pytest.approx(0.6)  # neither the empty reply nor the invalid one
    assert len(several["intervals"]["n_acc"]) == len(several["intervals"]["t_acc"]) == 2


def test_ignored_pixels_count_in_nothing() -> None:
    target = np.where(ONE, 255, 0).astype(np.uint8)
    target[:, 80:] = IGNORE
    exact, over = (
        record(task(target), RINGS, RINGS.reply(drawn, task(target), 10**6), 1)
        for drawn in (mask((10, 10, 80, 80)), mask((10, 10, 128, 80)))
    )
    assert exact.iou == over.iou > 0.97 and exact.intersection == over.intersection
    assert exact.boundary_f == over.boundary_f == 1


@pytest.mark.parametrize(
    ("asked", "reply", "iou"),
    [
        ("box", "[0.1, 0.1, 0.5, 0.9]", 1.0),
        ("box", "[]", 0.0),
        ("point", "[0.2, 0.5]", 1.0),
        ("point", "[0.9, 0.5]", 0.0),
    ],
)
def test_boxes_and_points_are_answers_too(asked: str, reply: str, iou: float) -> None:
    ring = np.zeros((100, 100), bool)
    ring[10:90, 10:50], ring[30:60, 25:45] = True, False
    found = record(task(ring), codec.make("simpleseg"), reply, 5, output_type=asked)  # type: ignore[arg-type]
    assert found.iou == found.box_iou == iou and found.error is None


def test_sizes_are_cocos_and_those_of_small_images_relative() -> None:
    for side, name in ((31, "small"), (32, "medium"), (95, "medium"), (96, "large")):
        big, small = np.zeros((2, 480, 640), bool)
        big[:side, :side] = True
        assert size_of(task(big)) == name
        small = np.zeros((120, 160), bool)  # a quarter as long
        small[: side // 4, : side // 4] = True
        assert size_of(task(small)) == {31: "small", 32: "medium", 95: "medium", 96: "large"}[side]
    assert size_of(task(small & False)) == topology_of(small & False) == "no object"


def test_topology_is_of_what_matters() -> None:
    assert [topology_of(one) for one in (ONE, TWO, HOLE)] == ["one part", "several parts", "holes"]
    speck = ONE.copy()
    speck[90, 120], speck[40, 40] = True, False
    assert topology_of(speck) == "one part"
    assert topology_of(~mask((0, 0, 64, 96))) == "one part"  # at the image's border
    bay = mask((10, 10, 90, 80), less=(40, 5, 60, 50))
    assert topology_of(bay) == "one part"


# -------------------------------------------------------------------------------------------------------- what is asked


def test_the_annotator_reaches_what_a_codec_can_say(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("transformers")
    flags = ["--task", "polygon", "--data", shapes, "--agent", "annotator", "--polygon.budget", "400"]
    for name in ("rings", "simpleseg"):
        assert __main__.main([*flags, "--codec", name, "--out", str(tmp_path / name)]) == 0
    numbers = RunFolder(tmp_path / "rings").read_json("metrics.json")
    assert numbers["giou"] > 0.98 and numbers["valid"] == 1 and numbers["protocol"]["privileged"] is True
    assert {name: found["tasks"] for name, found in numbers["by_topology"].items()} == {
        "one part": 1,
        "several parts": 1,
        "holes": 1,
    }
    page = (tmp_path / "rings" / "report.html").read_text()
    held = json.loads(page.split('<script type="application/json" id="episodes">')[1].split("</script>")[0])
    records = {one.task: one for one in polygon_answers.read(RunFolder(tmp_path / "rings"))}
    assert "reads the target" in page and {row["id"]: row["iou"] for row in held["rows"]} == {
        name: one.iou for name, one in records.items()
    }
    assert all(len(one["steps"][0]["rings"]) and one["steps"][0]["kind"] == "polygons" for one in held["episodes"])
    assert "gIoU" in capsys.readouterr().out

    result = compare.compare(tmp_path / "rings", tmp_path / "simpleseg")
    rows = result["measures"]
    assert rows["giou"]["values"][0] == numbers["giou"] and rows["giou"]["tasks"] == result["episodes"] == 3
    ious = [
        {one.task: one.iou for one in polygon_answers.read(RunFolder(tmp_path / name))}
        for name in ("rings", "simpleseg")
    ]
    by = {name: row["differences"][0]["difference"] for name, row in rows.items()}
    assert by["giou"] == pytest.approx(np.mean([ious[0][k] - ious[1][k] for k in ious[0]]))
    assert by["giou, holes"] > 0.05 > by["giou, one part"]
    assert "giou, holes" in compare.text(result)
    evaluate.run(config.Args(data=shapes, tool="disc", max_steps=2, out=str(tmp_path / "clicks")), quiet=True)
    with pytest.raises(RunError, match="differ in task"):
        compare.compare(tmp_path / "rings", tmp_path / "clicks")


def test_budgets_are_kept_and_too_small_ones_are_no_answer() -> None:
    pytest.importorskip("transformers")
    for unit, budget in (("tokens", 60), ("vertices", 8), ("characters", 90)):
        agent = polygon_answers.OracleAgent(RINGS, budget, unit)  # type: ignore[arg-type]
        for found in polygon_answers.answers(agent, [data.make("synthetic:val")[k] for k in range(3)], [0] * 3):
            spent = {"tokens": found.tokens, "vertices": found.vertices, "characters": len(found.text)}[unit]
            assert budget / 2 < spent <= budget and found.iou > 0.4
    found = polygon_answers.answers(polygon_answers.OracleAgent(RINGS, 5), [task(ONE)], [0])[0]  # type: ignore[arg-type]
    assert (found.text, found.iou) == ("", 0) and found.error


def test_eight_tokens_a_vertex_in_both_grammars() -> None:
    pytest.importorskip("transformers")
    count = polygon_answers.token_counter()
    scene = task(ONE)
    for name in DIALECTS:
        spoken = codec.make(name)
        lengths = [count(spoken.reply(target, scene, 10**6)) for target in (ONE, HOLE)]  # type: ignore[attr-defined]
        assert lengths[1] - lengths[0] == (4 * 8 if name == "rings" else 0)


def test_a_model_is_asked_and_a_killed_run_ends_the_same(shapes: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    flags = ["--task", "polygon", "--data", shapes, "--agent", "mllm:untrained", "--codec", "simpleseg"]
    flags += ["--polygon.given", "box", "--polygon.max-new-tokens", "9", "--batch-size", "2"]
    flags += ["--polygon.temperature", "1", "--polygon.samples", "2"]
    out = tmp_path / "run"
    assert __main__.main([*flags, "--out", str(out)]) == 0
    numbers, before = RunFolder(out).read_json("metrics.json"), (out / "metrics.json").read_bytes()
    assert (numbers["replies"], numbers["sampled"]["replies"], numbers["sampled"]["tasks"]) == (3, 6, 3)
    assert numbers["token_quantiles"]["100"] <= 9 == numbers["protocol"]["max_new_tokens"]
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 9 and len(set(texts)) > 3  # drawn ones differ

    (out / "answers.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])  # a kill, in the middle of a write
    (out / "metrics.json").unlink()
    assert __main__.main(["--resume", str(out)]) == 0
    assert (out / "answers.jsonl").read_bytes() == b"".join(lines)
    assert (out / "metrics.json").read_bytes() == before
    shutil.copytree(out, tmp_path / "same")
    same = compare.compare(out, tmp_path / "same")["measures"]
    assert "sampled giou" in same and all(
        row["differences"][0]["difference"] == 0 or np.isnan(row["differences"][0]["difference"])
        for row in same.values()
    )


@pytest.mark.parametrize("task", ["box", "point"])
def test_a_box_or_a_point_is_a_task_of_its_own(task: str, shapes: str, tmp_path: Path) -> None:
    """In any codec, also one that has no numbers for vertices; and short for what `--polygon.asked` says."""
    pytest.importorskip("torch")
    flags = ["--data", shapes, "--agent", "annotator", "--codec"]
    for name in ("segagent", "gemini", "rings"):
        assert __main__.main(["--task", task, *flags, name, "--out", str(tmp_path / name)]) == 0
        numbers = RunFolder(tmp_path / name).read_json("metrics.json")
        assert numbers["valid"] == 1 and numbers["giou"] > 0.98 and numbers["protocol"]["asked"] == task
    long = ["--task", "polygon", "--polygon.asked", task, *flags, "gemini", "--out", str(tmp_path / "long")]
    assert __main__.main(long) == 0
    assert (
        compare.compare(tmp_path / "gemini", tmp_path / "long")["measures"]["giou"]["differences"][0]["difference"] == 0
    )
    assert __main__.main(["--resume", str(tmp_path / "gemini")]) == 0
    model = ["--data", shapes, "--agent", "mllm:untrained", "--polygon.max-new-tokens", "3", "--limit", "1"]
    assert __main__.main(["--task", task, *model, "--out", str(tmp_path / "model")]) == 0


def test_what_it_refuses(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("torch")
    model = ["--agent", "mllm:untrained", "--codec", "rings", "--polygon.max-new-tokens", "3"]
    for flags, message in (
        (["--agent", "random"], "writes no polygons"),
        (["--agent", "mllm:untrained"], "speaks 'segagent'; give it a --codec of simpleseg"),
        ([*model, "--polygon.given", "mask", "--polygon.asked", "text"], "has no instruction"),
        (["--agent", "annotator", "--codec", "pixel"], "did you mean"),
        (["--agent", "annotator", "--polygon.temperature", "1"], "the same ones each time"),
        (["--agent", "annotator", "--polygon.given", "mask"], "ask for another thing"),
        (["--agent", "annotator", "--task", "box", "--polygon.asked", "point"], "leave out one of them"),
        (["--agent", "annotator", "--task", "point", "--polygon.given", "point"], "ask for another thing"),
        (["--agent", "annotator", "--executor", "process"], "leave out --executor"),
    ):
        given = ["--task", "polygon", "--data", shapes, *flags, "--out", str(tmp_path / "x" / str(len(message)))]
        assert __main__.main(given) == 1
        assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- the rest


def test_ceilings_are_compared_in_pairs(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("transformers")
    flags = ["--data", shapes, "--codecs", "rings", "simpleseg", "--budgets", "6", "40", "--unit", "vertices"]
    assert polygons_ceiling.main([*flags, "--json", str(tmp_path / "x.json")]) == 0
    assert "rings less it" in capsys.readouterr().out
    rows = {
        (row["budget"], row["topology"], row["codec"]): row for row in json.loads((tmp_path / "x.json").read_text())
    }
    assert len(rows) == 2 * 4 * 2
    row = rows[40, "holes", "simpleseg"]
    assert row["difference"] == pytest.approx(rows[40, "holes", "rings"]["iou"] - row["iou"])
    assert row["interval"][0] > 0.05 and rows[40, "holes", "rings"]["difference"] is None
    assert polygons_ceiling.main(["--data", shapes, "--codecs", "pixel"]) == 1


def test_a_checkpoint_declares_how_long_its_replies_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import agents
    from agents import mllm, tiny

    model, processor = tiny.build(image_size=32, width=16, vision_layers=1, text_layers=1, heads=2)
    made = mllm.MllmAgent((model, processor))
    assert (made.backend.max_new_tokens, made.codec.name) == (64, "segagent")
    assert mllm.MllmAgent((model, processor), codec.make("rings")).backend.max_new_tokens == 512
    model.config.segenv = {"codec": "rings", "prompt": "instruction", "image_size": [32, 32], "max_new_tokens": 77}
    model.save_pretrained(tmp_path / "tiny-drawing")
    processor.save_pretrained(tmp_path / "tiny-drawing")
    monkeypatch.setattr(mllm, "WEIGHTS", tmp_path)
    made = agents.make("mllm:tiny-drawing")
    assert (made.spec, made.settings["max_new_tokens"], made.codec.name) == ("mllm:tiny-drawing", 77, "rings")
    assert agents.make("mllm:tiny-drawing", max_new_tokens=5).settings["max_new_tokens"] == 5
    assert mllm.checkpoint("mllm:tiny-drawing") == str(tmp_path / "tiny-drawing")
    assert mllm.parse("no/tiny-drawing#448") == ("no/tiny-drawing", 448)
