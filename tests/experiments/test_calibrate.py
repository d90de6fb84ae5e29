"""Calibration finds the frame of scripted agents of every family, and says "unsure" where it cannot know."""

import json
from contextlib import suppress

import numpy as np
import pytest

import agents
from experiments.calibrate import __main__ as command
from experiments.calibrate import calibrate, fit
from experiments.calibrate.config import Args
from experiments.calibrate.probes import draw, numbers_in
from experiments.common.config import RunError
from segenv import codec as codecs
from segenv.codec.base import Codec
from segenv.codec.values import Number
from segenv.types import Click

SIZES = [(640, 400), (700, 1100), (2600, 1500)]
PROBES = [draw(size, k) for size in SIZES for k in range(8)]
SHRUNK = 1344  # the long edge at which scripted servers shrink images


def shrunk(width, height):
    part = min(1, SHRUNK / max(width, height))
    return round(width * part), round(height * part)


def replies(codec: Codec, rng: np.random.Generator, noise: float = 0.01, slips: float = 0.04) -> list[dict]:
    """What an agent of the codec's family writes, whose clicks are `noise` of the image off; a few are anywhere."""
    records = []
    for probe in PROBES:
        task = probe.task
        size = np.array([task.width, task.height])
        place = np.array(probe.middle) + rng.normal(0, noise, 2) * size
        if rng.random() < slips:
            place = rng.uniform(0, size)
        x, y = np.clip(place.astype(int), 0, size - 1)
        text = codec.format(Click(int(x), int(y), True), task)
        sent = codec.points.extents(task) if codec.points.resized else size
        record = {"task": task.id, "size": size.tolist(), "sent": [float(side) for side in sent]}
        records.append(record | {"target": list(probe.middle), "reply": text, "numbers": numbers_in(text)})
    return records


def misread(frame: fit.FittedFrame, codec: Codec) -> float:
    """How far apart a frame and the codec read the middles of the targets, in parts of the image."""
    off = []
    for record in replies(codec, np.random.default_rng(0), noise=0.0, slips=0.0):
        columns = (np.array([record[name]], float) for name in ("numbers", "size", "sent"))
        off.append(np.abs(frame.read(*columns)[0] - record["target"]) / record["size"])
    return float(np.max(off))


def test_targets_lie_away_from_the_middle_and_are_told_apart_by_their_axes():
    for probe in PROBES:
        task = probe.task
        u, v = probe.middle[0] / task.width, probe.middle[1] / task.height
        assert min(abs(u - 0.5), abs(v - 0.5)) > 0.09 and task.target[int(probe.middle[1]), int(probe.middle[0])]
        rows, columns = np.nonzero(task.target)
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(probe.middle)
    corners = {tuple(np.array(probe.middle) * 2 > (probe.task.width, probe.task.height)) for probe in PROBES}
    assert len(corners) == 4


@pytest.mark.parametrize("name", codecs.CODECS)
def test_the_frame_of_every_family_is_found(name):
    codec = codecs.make(name).seen_at(shrunk)
    result = calibrate.evaluate(replies(codec, np.random.default_rng(7)))
    assert result.frame is not None, result.why
    assert result.frame.order == ("yx" if codec.points.order == "yx" else "xy") or name == "molmo"
    assert misread(result.frame, codec) < 0.02


def misread_by_file(result: calibrate.Result, tmp_path) -> float:
    """The median distance at which the written codec reads the replies' numbers, in parts of the image."""
    path = tmp_path / "codec.yaml"
    path.write_text(calibrate.codec_text(result.frame, agents.make("random"), result.records))
    codec, off = codecs.make(str(path)), []
    for record, probe in zip(result.records, PROBES, strict=True):
        numbers = [Number(f"{number:.6f}") for number in record["numbers"]]
        with suppress(ValueError):  # a click beyond the edge
            pixel = np.array([float(side) for side in codec.points.read(numbers, probe.task)])
            off.append(np.linalg.norm((pixel - probe.middle) / record["size"]))
    return float(np.median(off))


@pytest.mark.slow
@pytest.mark.parametrize("name", codecs.CODECS)
def test_the_frame_of_every_family_is_found_in_95_of_100_trials(name):
    codec = codecs.make(name).seen_at(shrunk)
    found = [calibrate.evaluate(replies(codec, np.random.default_rng([3, k]))).frame for k in range(100)]
    assert sum(frame is not None and misread(frame, codec) < 0.02 for frame in found) >= 95


@pytest.mark.parametrize(
    ("write", "unit"),
    [
        (lambda x, y, w, h: ((x + (max(w, h) - w) / 2) / max(w, h), (y + (max(w, h) - h) / 2) / max(w, h)), "padded"),
        (lambda x, y, w, h: (1000 * x / max(w, h), 1000 * y / max(w, h)), "cornered"),
        (lambda x, y, w, h: (x * min(1, 1568 / max(w, h)), y * min(1, 1568 / max(w, h))), "long-edge"),
        (lambda x, y, w, h: (x * 1.1 + 20, y * 1.1 + 20), "pixels"),
    ],
)
def test_paddings_caps_and_offsets_are_found(write, unit, tmp_path):
    rng = np.random.default_rng(1)
    records = replies(codecs.make("pixels"), rng)
    for record in records:
        record["numbers"] = write(*record["numbers"], *record["size"])
    result = calibrate.evaluate(records)
    assert result.frame is not None and result.frame.unit == unit and result.frame.error < 0.015
    assert misread_by_file(result, tmp_path) < 0.03
    assert result.frame.cap == (1568 if unit == "long-edge" else None)
    assert result.frame.free == (unit == "pixels")


@pytest.mark.parametrize("numbers", [(500.0, 500.0), (0.5, 0.5), (320.0, 200.0)])
def test_an_agent_that_answers_the_middle_leaves_it_unsure(numbers):
    rng = np.random.default_rng(2)
    records = replies(codecs.make("pixels"), rng)
    for record in records:
        record["numbers"] = tuple(np.array(numbers) * (1 + rng.normal(0, 0.01, 2)))
    result = calibrate.evaluate(records)
    assert result.frame is None and "no frame explains" in result.why


def test_two_frames_that_both_fit_leave_it_unsure():
    """Targets along the diagonals of squares: x and y can be swapped, and no number says so."""
    rng = np.random.default_rng(3)
    records = replies(codecs.make("grid1000-xy"), rng)
    for k, record in enumerate(records):
        size, part = 300 + 10 * (k % 3), 0.1 + 0.8 * k / len(records)
        record |= {"size": [size, size], "sent": [size, size], "target": [part * size, part * size]}
        record["numbers"] = tuple(1000 * part + rng.normal(0, 5, 2))
    result = calibrate.evaluate(records)
    assert result.frame is None and "two frames explain" in result.why


def test_replies_without_a_place_leave_it_unsure():
    records = replies(codecs.make("pixels"), np.random.default_rng(4))
    for record in records[:12]:
        record["numbers"] = numbers_in("I cannot see it.")
    result = calibrate.evaluate(records)
    assert result.frame is None and "12 of 24 replies state a place" in result.why


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Positive point: (12, 34)", (12, 34)),
        ("<think>maybe (9, 9)</think>[0.25, 0.5]", (0.25, 0.5)),
        ('{"bbox_2d": [10, 20, 30, 60]}', (20, 40)),
        ('{"y": 5, "x": 7}', (7, 5)),
        ("nothing here", None),
        ("(nan, 3)", None),
    ],
)
def test_numbers_are_taken_from_any_way_of_writing(text, numbers):
    assert numbers_in(text) == numbers


@pytest.mark.slow
def test_the_embedded_model_is_found_to_write_rows_first(tmp_path, capsys):
    out = tmp_path / "run"
    assert command.main(["--agent", "mllm", "--out", str(out)]) == 0
    found = json.loads((out / "calibration.json").read_text())
    assert found["sure"] and found["frame"]["order"] == "yx"
    assert found["frame"]["scale"] == pytest.approx([1000.0, 1000.0], rel=0.01)  # it clicks a little above the middle
    before = (out / "probes.jsonl").read_bytes()
    (out / "probes.jsonl").write_bytes(before[: len(before) // 2])
    assert command.main(["--resume", str(out)]) == 0
    assert (out / "probes.jsonl").read_bytes() == before and (out / "report.html").stat().st_size > 10_000
    assert "report" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", [("640x400", "64"), ("640x400", "400x400", "300x200"), ("9000x100",)])
def test_sizes_that_say_nothing_are_refused(sizes, tmp_path):
    with pytest.raises(RunError, match="--sizes"):
        calibrate.run(Args(sizes=sizes, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_an_agent_that_reads_the_target_is_refused(tmp_path):
    with pytest.raises(RunError, match="reads the target"):
        calibrate.run(Args(agent="annotator", out=str(tmp_path / "run")))
