"""The published clicker's clicks on real photos, end to end through `experiments.evaluate`."""

import json
from pathlib import Path

import pytest

from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__

THRESHOLDS = {"noc50": "50", "noc70": "70", "noc85": "85", "noc90": "90"}


@pytest.fixture(scope="module")
def golden() -> tuple[Path, dict]:
    shared = Path(__file__).resolve().parents[3] / "shared"
    path = shared / "golden" / "ritm_disc_clicks.json"
    if not path.exists():
        pytest.skip(f"no golden clicks at {path}: this test needs them and the photos beside them")
    return shared / "data" / "click", json.loads(path.read_text())


def test_every_click_and_every_iou_and_the_summary_are_those_of_the_published_clicker(golden, tmp_path):
    photos, wanted = golden
    out = tmp_path / "golden"
    command = f"--data index:{photos} --tool disc --agent annotator --max-steps 20 --report-episodes 0 --out {out}"
    assert __main__.main(command.split()) == 0
    episodes = {record["task"]: record["steps"] for record in RunFolder(out).records("episodes.jsonl")}
    assert list(episodes) == [episode["name"] for episode in wanted["episodes"]]
    for expected in wanted["episodes"]:
        steps = [step for step in episodes[expected["name"]] if step["action"]["type"] == "click"]
        clicks = [[step["action"]["y"], step["action"]["x"], int(step["action"]["positive"])] for step in steps]
        assert clicks == expected["clicks"]
        assert [round(step["iou"], 6) for step in steps] == expected["iou"]
    numbers = json.loads((out / "metrics.json").read_text())
    for name, (clicks, failures) in wanted["summary"].items():
        assert numbers["noc"][THRESHOLDS[name]] == pytest.approx(clicks, abs=1e-12)
        assert numbers["nof"][THRESHOLDS[name]] == failures
