"""`python -m experiments.plan`: costs of many episodes from those of a few."""

import json

import pytest
from test_merge import discs, evaluate

from experiments import plan
from experiments.common.run_folder import RunFolder


def test_costs_are_those_of_the_small_run_times_the_episodes(tmp_path, capsys):
    run = tmp_path / "small"
    data = discs(tmp_path / "data", 6, 3)
    assert evaluate("--data", data, "--report-episodes", "0", "--out", str(run)) == 0
    numbers = RunFolder(run).load_json("metrics.json")
    found = plan.plan(plan.Args(run, (1_000, 10**8), workers=10, part=300))
    spent = sum(numbers["seconds"][name] for name in found["seconds"])
    assert found["measured"] == 6 and found["clicks"] == numbers["seconds"]["clicks"] / 6
    few, many = found["episodes"].values()
    assert few["worker_hours"] == pytest.approx(1000 * spent / 6 / 3600) == pytest.approx(10 * few["hours"])
    assert few["gigabytes"] == pytest.approx(1000 * (run / "episodes.jsonl").stat().st_size / 6 / 1e9)
    assert (few["parts"], many["parts"]) == (4, 333_334)
    assert many["hours"] == pytest.approx(10**5 * few["hours"])
    assert plan.main([str(run), "--episodes", "1000000", "--json", str(tmp_path / "plan.json")]) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["episodes"]["1000000"]["parts"] == 10
    assert "1,000,000" in capsys.readouterr().out
    (run / "evaluate.DONE").unlink()
    assert plan.main([str(run)]) == 1
    assert "is no finished run" in capsys.readouterr().err
