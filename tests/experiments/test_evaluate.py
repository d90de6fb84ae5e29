"""`python -m experiments.evaluate`: the same numbers however it is run, also across a kill."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.common import episode_viewer, html
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__, evaluate
from experiments.evaluate.config import Args
from experiments.evaluate.episodes import metrics, report
from experiments.evaluate.episodes.metrics import Outcome
from search import executors
from search.episode import Episode, Step
from segenv.geometry.rle import encode_mask
from segenv.types import Task

ROOT = Path(__file__).resolve().parents[2]
KEYS = [
    "episodes",
    *metrics.MEASURES,
    "finish_reasons",
    "decomposed",
    "seconds",
    "intervals",
    "protocol",
    "unsolved",
    "skipped",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of twelve small pictures with their masks."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(12):
        height, width, radius = 60 + 4 * i, 90 - 3 * i, 8 + i
        rows, columns = np.ogrid[:height, :width]
        mask = (rows - height // 2) ** 2 + (columns - 20 - i) ** 2 <= radius**2
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i:02}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{i:02}.png")
    return folder


def told(numbers: dict) -> dict:
    """Metrics without timings."""
    return {key: value for key, value in numbers.items() if key != "seconds"}


def test_metrics_do_not_depend_on_the_executor(photos, tmp_path):
    common = {"data": f"folder:{photos}", "tool": "disc:radius=6", "agent": "random", "max_steps": 5, "seed": 4}
    serial = evaluate.run(Args(**common, out=str(tmp_path / "serial"), batch_size=3), quiet=True)
    process = evaluate.run(
        Args(**common, out=str(tmp_path / "process"), executor="process", workers=2, batch_size=3), quiet=True
    )
    assert list(serial) == KEYS and serial["episodes"] == 12
    assert told(serial) == told(process)
    assert (
        list(serial["iou_at"]) == ["1", "2", "3", "4", "5"] and serial["parse_rate"] == 1 and serial["stop_rate"] == 0
    )
    low, high = serial["intervals"]["miou"]
    assert low <= serial["miou"] <= high and serial["iou_at"]["5"] == serial["miou"]
    assert serial["seconds"]["clicks"] == 60 and set(serial["seconds"]["per_click"]) == set(metrics.PARTS)
    for name in ("config.yaml", "manifest.json", "plots/iou_over_clicks.png", "report.html", "evaluate.DONE"):
        assert (tmp_path / "process" / name).stat().st_size > 0


@pytest.mark.parametrize("start", ["empty", "box", "points:k=2", "distort:low=0.5,high=0.8"])
def test_every_agent_and_executor_starts_from_the_same_masks(photos, tmp_path, start):
    common = {"data": f"folder:{photos}", "tool": "disc:radius=6", "max_steps": 2, "limit": 4, "start": start}
    runs = {
        "random": {"agent": "random", "executor": "process", "batch_size": 1},
        "annotator": {},
        "greedy": {"search": "greedy:k=2,value=oracle"},
        "other": {"seed": 1},
    }
    begun = {}
    for name, more in runs.items():
        numbers = evaluate.run(Args(**common, **more, out=str(tmp_path / name)), quiet=True)
        assert numbers["protocol"]["start"] == start
        records = sorted(RunFolder(tmp_path / name).records("episodes.jsonl"), key=lambda one: one["task"])
        begun[name] = [(one["start_mask"], one["start_iou"]) for one in records]
    assert begun["random"] == begun["annotator"] == begun["greedy"]
    assert (begun["other"] == begun["random"]) == (start in ("empty", "box"))
    ious = [iou for _, iou in begun["random"]]
    assert all(0.4 < iou < 0.9 for iou in ious) if "distort" in start else (max(ious) > 0) == (start != "empty")


def test_a_start_that_cannot_be_made_is_refused(photos, tmp_path, capsys):
    flags = ["--data", f"folder:{photos}", "--tool", "disc", "--limit", "2", "--out", str(tmp_path / "run")]
    for more, told_so in (
        (["--start", "nothing"], "start 'nothing'"),
        (["--start", "given"], "has no initial_mask"),
        (["--start", "box", "--task", "filter"], "--start box is of episodes of clicks"),
    ):
        assert __main__.main([*flags, *more]) == 1
        assert told_so in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_and_ends_with_the_same_metrics(photos, tmp_path):
    flags = ["--data", f"folder:{photos}", "--tool", "grabcut", "--agent", "annotator:depth", "--max-steps", "8"]
    flags += ["--batch-size", "2", "--report-episodes", "0"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert __main__.main([*flags, "--out", str(whole)]) == 0
    command = [sys.executable, "-m", "experiments.evaluate"]
    process = subprocess.Popen([*command, *flags, "--out", str(killed)], cwd=ROOT, stderr=subprocess.DEVNULL)
    episodes = killed / "episodes.jsonl"
    while process.poll() is None and not (episodes.exists() and episodes.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    with open(episodes, "ab") as file:
        file.write(b'{"task": "0')  # as a kill in the middle of a write leaves it
    done = [record["task"] for record in RunFolder(killed).records("episodes.jsonl")]
    assert 2 <= len(done) < 12
    assert __main__.main(["--resume", str(killed), "--executor", "process"]) == 0
    tasks = [record["task"] for record in RunFolder(killed).records("episodes.jsonl")]
    assert tasks[: len(done)] == done and len(tasks) == len(set(tasks)) == 12
    assert told(RunFolder(killed).read_json("metrics.json")) == told(RunFolder(whole).read_json("metrics.json"))


def test_a_run_is_never_mixed_with_another(photos, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--data", f"folder:{photos}", "--tool", "disc", "--max-steps", "2", "--limit", "3"]
    assert __main__.main([*flags, "--out", str(out)]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert __main__.main([*flags, "--out", str(out)]) == 1
    assert f"--resume {out}" in capsys.readouterr().err
    assert __main__.main(["--resume", str(out), "--tool", "grabcut"]) == 1
    assert "tool: was 'disc', now 'grabcut'" in capsys.readouterr().err
    assert __main__.main(["--resume", str(out)]) == 0
    about = RunFolder(out).read_json("manifest.json")
    RunFolder(out).write_json("manifest.json", about | {"hashes": about["hashes"] | {"data": "another"}})
    assert __main__.main(["--resume", str(out)]) == 1
    assert "data: was 'another'" in capsys.readouterr().err
    assert __main__.main(["--data", "nonsense:x", "--out", str(tmp_path / "new")]) == 1
    assert "nonsense:x" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_bad_items_end_the_run_or_are_counted(photos, tmp_path, capsys):
    bad = tmp_path / "photos"
    for name in ("images", "masks"):
        (bad / name).mkdir(parents=True)
        for i in range(3):
            os.link(photos / name / f"{i:02}.png", bad / name / f"{i:02}.png")
    (bad / "images" / "01.png").unlink()
    (bad / "images" / "01.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    flags = ["--data", f"folder:{bad}", "--tool", "disc", "--max-steps", "2"]
    assert __main__.main([*flags, "--out", str(tmp_path / "strict")]) == 1
    assert "01" in capsys.readouterr().err
    for executor in ("serial", "process"):
        args = Args(data=f"folder:{bad}", tool="disc", max_steps=2, skip_bad=True, executor=executor)  # type: ignore[arg-type]
        numbers = evaluate.run(replace(args, out=str(tmp_path / executor)), quiet=True)
        assert numbers["episodes"] == 2 and list(numbers["skipped"]) == ["01"]


def test_a_dead_worker_is_told_and_what_came_back_is_kept(photos):
    player = executors.Player(executors.Setup(f"folder:{photos}", "disc", "annotator", max_steps=2, batch_size=1))
    episodes = executors.play(player, range(12), "process", 1, {})
    assert next(episodes).task == "00"
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(executors.WorkerError, match="died.*--resume"):
        list(episodes)


def test_jobs_side_by_side_end_with_the_first_that_fails():
    began, other = time.monotonic(), multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        with pytest.raises(ValueError, match="non-negative"):
            executors.run_parallel(time.sleep, [600, -1, 600], 2)
        with pytest.raises(executors.WorkerError, match="died.*--resume"):
            executors.run_parallel(os._exit, [3, 3], 2)
        assert time.monotonic() - began < 500 and other.is_alive()
    finally:
        other.kill()
    executors.run_parallel(time.sleep, [0, 0, 0], 2)


def test_ray_gives_the_same_or_says_how_to_get_it(photos):
    player = executors.Player(executors.Setup(f"folder:{photos}", "disc", "random", max_steps=2))
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(executors.WorkerError, match=r"pip install 'segenv\[ray\]'"):
            list(executors.play(player, range(4), "ray", 2, {}))
        return
    serial = list(executors.play(player, range(4), "serial", 1, {}))
    there = sorted(executors.play(player, range(4), "ray", 2, {}), key=lambda episode: episode.task)
    assert [episode.steps for episode in there] == [episode.steps for episode in serial]


def outcome(
    name: str, *ious: float, stopped: bool = False, invalid: int = 0, areas: tuple[int, int] = (1, 2), start: float = 0
) -> Outcome:
    best, seconds, clicks = max(ious), dict.fromkeys(metrics.PARTS, 1.5), len(ious) - stopped
    return Outcome(name, 0, start, np.array(ious), best, *areas, 0.5, 0.5, stopped, invalid, clicks, seconds)


def test_the_numbers_are_those_worked_out_by_hand():
    outcomes = [
        outcome("a", 0.2, 0.86, 0.86, stopped=True, areas=(86, 100)),  # stopped: keeps 0.86
        outcome("b", 0.5, 0.92, 0.4, 0.91, areas=(910, 1000), start=0.3),
        outcome("c", 0.1, 0.1, 0.1, 0.88, invalid=3, areas=(0, 900)),  # reaches 0.85 at the last action
    ]
    numbers = metrics.summarise(outcomes, 4, {"tool": "disc"})
    assert numbers["miou"] == pytest.approx((0.86 + 0.91 + 0.88) / 3)
    assert numbers["ciou"] == pytest.approx(996 / 2000)
    assert numbers["iou_at"] == pytest.approx({"1": 0.8 / 3, "2": 1.88 / 3, "3": 1.36 / 3, "4": 2.65 / 3})
    assert numbers["noc"]["85"] == pytest.approx((2 + 2 + 4) / 3) and numbers["noc"]["90"] == pytest.approx(10 / 3)
    assert (numbers["nof"]["85"], numbers["nof_never"]["85"]) == (1, 0)
    assert (numbers["nof"]["90"], numbers["nof_never"]["90"]) == (2, 2)
    assert numbers["best_iou"] == pytest.approx((0.86 + 0.92 + 0.88) / 3)
    assert numbers["regret"] == pytest.approx(0.01 / 3)
    assert numbers["start_gain"] == pytest.approx(numbers["miou"] - 0.1)
    assert numbers["parse_rate"] == pytest.approx(8 / 11) and numbers["stop_rate"] == pytest.approx(1 / 3)
    assert numbers["acc_at_50"] == 1 and numbers["boundary_iou"] == 0.5
    assert numbers["seconds"]["agent"] == 4.5 and numbers["seconds"]["per_click"]["agent"] == pytest.approx(0.45)
    assert set(numbers["intervals"]) == set(metrics.MEASURES) - {"nof", "nof_never", "no_target", "click_counts"}


def test_no_word_of_a_reply_becomes_part_of_the_page(task, tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 \ud800"
    empty = encode_mask(np.zeros(task.target.shape, bool))
    step = Step(hostile, {"type": "invalid", "reason": hostile}, 0.0, 0.0, None, hostile, None, empty)
    size = task.target.shape
    episode = Episode(hostile, 0, *size, hostile, 0.0, empty, (step,), False, 0, 9, 0.0, 0.0, {})
    shown = episode_viewer.payload(Task(hostile, task.image, task.target, hostile), episode, "worst")
    outcomes = [outcome("a", 0.5)]
    numbers = metrics.summarise(outcomes, 1, {"agent": hostile, "tool": "disc", "data": "x", "max_steps": 1, "seed": 0})
    numbers["protocol"]["privileged"], numbers["skipped"] = False, {hostile: hostile}
    page = tmp_path / "report.html"
    html.write_html(
        page,
        "evaluate.html",
        title=hostile,
        numbers=numbers,
        table=report.table(numbers),
        plots={},
        manifest={"command": [hostile]},
        episodes=episode_viewer.write_episodes(tmp_path, [shown], 1),
    )
    text = page.read_text()
    assert "<script>alert" not in text and "<img src=x" not in text
    assert text.count("<script") == 2 and "http" not in text.replace("http-equiv", "").replace(
        "http://www.w3.org/2000/svg", ""
    )
    held = text.split('<script type="application/json" id="episodes">')[1].split("</script>")[0]
    assert json.loads(held)["episodes"][0]["steps"][0]["text"] == hostile


def test_the_report_shows_worst_best_and_others():
    scores = {(f"{i:02}", 0): i / 20 for i in range(20)}
    chosen = episode_viewer.choose(scores, 6)
    assert [name for (name, _), group in chosen.items() if group == "worst"] == ["00", "01"]
    assert [name for (name, _), group in chosen.items() if group == "best"] == ["19", "18"]
    assert len(chosen) == 6 and chosen == episode_viewer.choose(dict(reversed(scores.items())), 6)
    two = dict(list(scores.items())[:2])
    assert len(episode_viewer.choose(two, 6)) == 2 and episode_viewer.choose(scores, 0) == {}


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(RunError, match="--max-steps is 0; expected 1 or more"):
        evaluate.run(Args(data="synthetic:val", tool="disc", max_steps=0, out=str(tmp_path / "run")))


def test_a_run_with_a_learned_tool_that_goes_on_repeats_every_bit():
    """Batches change the last bits of a model's sums, so what is cut goes on in the same groups."""
    pytest.importorskip("torch")
    setup = executors.Setup("synthetic:val", "sam", "annotator", max_steps=4, batch_size=4)

    def records(wanted):
        played = executors.play(executors.Player(setup), range(10), "serial", 1, {}, wanted)
        return {episode.task: {**episode.to_json(), "seconds": None} for episode in played}

    whole, rest = records(None), records({6, 9})
    assert len(whole) == 10 and list(rest) == list(whole)[4:]
    assert all(whole[name] == record for name, record in rest.items())
