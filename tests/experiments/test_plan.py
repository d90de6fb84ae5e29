"""`python -m experiments.plan`: costs of many episodes from those of a few."""

import json
import time

import pytest
from test_merge import discs, evaluate

from agents.backends.server import ServerOptions
from experiments import plan
from experiments.common.run_folder import RunFolder
from experiments.evaluate import Args
from experiments.evaluate import run as run_evaluation
from tests.made_servers import named_discs, replies, serving


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


def test_of_replies_under_way_together_a_plan_has_no_more_than_the_time_that_passed(tmp_path):
    pytest.importorskip("openai")
    (tmp_path / "data").mkdir()
    given = {"tool": "disc:radius=8", "codec": "grid1000-xy", "max_steps": 1, "report_episodes": 0}
    data, out, server = named_discs(tmp_path / "data", 12), tmp_path / "run", ServerOptions(in_flight=6)
    with serving(lambda body, times: replies("Positive point: (500, 500)", delay=0.3)) as (url, _):
        began = time.perf_counter()
        run_evaluation(Args(data=data, agent=f"openai:made@{url}", out=str(out), server=server, **given), quiet=True)
        passed = time.perf_counter() - began
    kept = [record["seconds"] for record in RunFolder(out).records("replies.jsonl")]
    found = plan.plan(plan.Args(out, (12,)))
    assert 0.3 <= found["seconds"]["agent"] * 12 <= min(passed, sum(kept))
    assert found["episodes"][12]["worker_hours"] <= passed / 3600
