"""The published clicker's clicks on real photos, end to end through `experiments.evaluate`."""

import json
from pathlib import Path

import pytest

from experiments import evaluate
from experiments.runs import RunFolder

THRESHOLDS = {"noc50": "50", "noc70": "70", "noc85": "85", "noc90": "90"}


@pytest.fixture(scope="module")
def golden() -> tuple[Path, dict]:
    shared = Path(__file__).resolve().parents[2] / "shared"
    path = shared / "golden" / "ritm_disc_clicks.json"
    if not path.exists():
        pytest.skip(f"no golden clicks at {path}: this test needs them and the photos beside them")
    return shared / "data" / "click", json.loads(path.read_text())


def check_episodes(out: Path, golden: dict, count: int) -> None:
    """Every click and every IoU of the run in `out` are those of the published clicker."""
    episodes = list(RunFolder(out).records("episodes.jsonl"))
    assert len(episodes) == count
    wanted = {episode["name"]: episode for episode in golden["episodes"]}
    for episode in episodes:
        clicks = [step["action"] for step in episode["steps"] if step["action"]["type"] == "click"]
        expected = wanted[episode["task"]]
        assert [[click["y"], click["x"], int(click["positive"])] for click in clicks] == expected["clicks"]
        ious = [step["iou"] for step in episode["steps"] if step["action"]["type"] == "click"]
        assert ious == pytest.approx(expected["iou"], abs=6e-7)  # written with six decimals


def test_a_subset_is_equal(golden, tmp_path):
    photos, wanted = golden
    out = tmp_path / "run"
    assert evaluate.main(f"--data index:{photos}#GrabCut --limit 12 --tool disc --out {out}".split()) == 0
    check_episodes(out, wanted, 12)


@pytest.mark.slow
def test_all_clicks_and_the_summary_are_equal(golden, tmp_path):
    photos, wanted = golden
    out = tmp_path / "golden"
    command = f"--data index:{photos} --tool disc --agent annotator --max-steps 20 --out {out}"
    assert evaluate.main(command.split()) == 0
    check_episodes(out, wanted, 204)
    numbers = json.loads((out / "metrics.json").read_text())
    for name, (clicks, failures) in wanted["summary"].items():
        assert numbers["noc"][THRESHOLDS[name]] == pytest.approx(clicks, abs=1e-9)
        assert numbers["nof"][THRESHOLDS[name]] == failures
