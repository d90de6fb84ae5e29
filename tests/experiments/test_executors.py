"""Tree searches and trajectories on several workers: the results of one process, also where a worker is lost."""

import os
from dataclasses import replace

import pytest
from test_kills import differences, results

from experiments import trajectories
from experiments.common.config import RunError
from experiments.trajectories import Generate
from experiments.tree_search import Args, play
from search.executors import spread
from tests.made_actors import actors, kill_one

COMMON = {"data": "synthetic:val#easy", "tool": "disc:radius=8", "limit": 8}
SEARCHES = Args(
    **COMMON,
    **{"agent": "random", "search": ("best-of-n",), "k": (1, 2), "depths": (2,), "steps": (1, 2), "batch_size": 3},
    **{"values": ("oracle",), "budgets": ("policy_calls=4",), "report_tasks": 2},
)
PLAYS = Generate(**COMMON, starts=("empty", "points"), samples=2, annotator="uniform", max_clicks=3, batch_size=5)
COMMANDS = {
    "tree_search": (SEARCHES, play, lambda args: play.run(args, quiet=True), "Searcher"),
    "trajectories": (PLAYS, trajectories, trajectories.generate, "ExpertPlayer"),
}


@pytest.fixture(scope="module", params=COMMANDS)
def serial(request, tmp_path_factory):
    """A command's settings and parts, and the results of a run in one process."""
    args, module, run, kind = COMMANDS[request.param]
    out = tmp_path_factory.mktemp(request.param) / "serial"
    run(replace(args, out=str(out)))
    return args, module, run, kind, results(out)


def test_processes_give_the_results_of_one(serial, tmp_path):
    args, _, run, _, expected = serial
    run(replace(args, out=str(tmp_path / "run"), executor="process", workers=2))
    assert len(expected) > 1 and differences(expected, results(tmp_path / "run")) == []


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_with_another_executor(serial, tmp_path, monkeypatch):
    """The first process is cut within its second group."""
    args, module, run, _, expected = serial

    def cutting(*given):
        for k, result in enumerate(spread(*given)):
            if k == 7:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(module, "spread", cutting)
    with pytest.raises(KeyboardInterrupt):
        run(replace(args, out=str(tmp_path / "run")))
    monkeypatch.setattr(module, "spread", spread)
    run(replace(args, resume=str(tmp_path / "run"), executor="process", workers=1))
    assert differences(expected, results(tmp_path / "run")) == []


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the actors in /proc")
def test_an_actor_that_is_killed_is_replaced_and_nothing_is_lost_or_counted_twice(
    serial, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("ray")
    args, module, run, kind, expected = serial
    run(replace(args, out=str(tmp_path / "undisturbed"), executor="ray", workers=1))
    assert differences(expected, results(tmp_path / "undisturbed")) == []
    before = actors(kind)

    def deadly(*given):
        for k, result in enumerate(spread(*given)):
            yield result
            if k in (0, 9):
                kill_one(actors(kind) - before)

    monkeypatch.setattr(module, "spread", deadly)
    run(replace(args, out=str(tmp_path / "disturbed"), executor="ray", workers=2))
    assert differences(expected, results(tmp_path / "disturbed")) == []
    assert "a Ray worker was lost" in capsys.readouterr().err


def test_a_server_is_asked_by_one_process(tmp_path):
    pytest.importorskip("openai")
    args = replace(SEARCHES, agent="openai:made@http://127.0.0.1:1/v1", codec="pixels", executor="process")
    with pytest.raises(RunError, match="many things at a time as it is: leave out --executor"):
        play.run(replace(args, out=str(tmp_path / "run")), quiet=True)
