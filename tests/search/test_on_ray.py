"""The executor on Ray: groups stay with the actor that knows their images, and a lost actor costs nothing."""

import os
from collections import Counter
from pathlib import Path

import pytest

from search import executors
from search.on_ray import RayOptions, WorkerError, _placed, _Waiting
from segenv.ranges import check
from tests.made_actors import actors, kill_one


def test_groups_of_one_image_come_to_one_actor_and_none_is_idle():
    """Images a, b and c have three groups each; two actors are free in turns."""
    groups = [[k] for k in range(9)]
    waiting = _Waiting(groups, lambda position: "abc"[position % 3])
    played = {0: [], 1: []}
    for turn in range(9):
        played[turn % 2].append("abc"[waiting.next(turn % 2).group[0] % 3])
    assert played == {0: ["a", "a", "a", "c", "c"], 1: ["b", "b", "b", "c"]}
    assert waiting.next(0) is None and waiting.next(1) is None


def test_a_group_whose_actor_is_lost_is_the_next_one():
    waiting = _Waiting([[0, 1], [2, 3], [4, 5]], lambda position: position)
    first = waiting.next(0)
    assert (first.group, first.begun) == ([0, 1], 1)
    waiting.put_back(first, 0)
    again = waiting.next(1)
    assert again is first and again.begun == 2
    assert [waiting.next(1).group, waiting.next(0).group] == [[2, 3], [4, 5]]


def test_no_more_workers_than_there_is_room_for():
    there = {"CPU": 16.0, "GPU": 8.0}
    assert _placed(there, 32, RayOptions()) == 16
    assert _placed(there, 32, RayOptions(num_gpus=0.5)) == 16
    assert _placed(there, 32, RayOptions(num_gpus=1)) == 8
    assert _placed(there, 2, RayOptions(num_cpus=4, num_gpus=1)) == 2
    with pytest.raises(WorkerError, match=r"--ray\.num-gpus is 1, and Ray has 0 GPUs in all; ask for less"):
        _placed({"CPU": 16.0}, 2, RayOptions(num_gpus=1))
    with pytest.raises(ValueError, match="num_cpus"):
        check(RayOptions(num_cpus=0))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the actors in /proc")
def test_an_actor_that_is_killed_is_replaced_and_nothing_is_lost_or_counted_twice(workers, capsys):
    pytest.importorskip("ray")
    before = actors()
    player = executors.Player(executors.Setup("synthetic:val#easy", "disc", "random", max_steps=3, batch_size=2))
    serial = list(executors.play(player, range(24), "serial", 1, {}))
    undisturbed = list(executors.play(player, range(24), "ray", workers, {}))
    assert sorted((e.task, e.steps) for e in undisturbed) == sorted((e.task, e.steps) for e in serial)
    found = []
    for episode in executors.play(player, range(24), "ray", workers, {}):
        found.append(episode)
        if len(found) in (1, 9):
            kill_one(actors() - before)
    assert set(Counter(episode.task for episode in found).values()) == {1}
    assert sorted((e.task, e.steps) for e in found) == sorted((e.task, e.steps) for e in serial)
    assert "a Ray worker was lost; its 2 tasks are begun again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_group_that_ends_each_worker_stops_the_run(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    setup = executors.Setup("synthetic:val#easy", "disc", "made_fatal:Fatal", max_steps=2, batch_size=1)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    player = executors.Player(setup)
    with pytest.raises(WorkerError, match=r"lost the worker of the tasks at \[0\] 2 times.*--resume"):
        list(executors.play(player, range(1), "ray", 1, {}, None, RayOptions(retries=2)))


@pytest.mark.slow
def test_weights_travel_by_the_object_store():
    pytest.importorskip("ray")
    setup = executors.Setup("synthetic:val#easy", "sam:refine=none", "mllm", max_steps=2, batch_size=4)
    player = executors.Player(setup)
    sent = executors._with_weights(player, RayOptions())
    assert sent.tool is player.tool and not isinstance(sent.agent, str)
    assert executors._with_weights(player, RayOptions(num_gpus=1)) is setup, "workers load theirs onto their GPU"
    serial = list(executors.play(player, range(8), "serial", 1, {}))
    there = list(executors.play(player, range(8), "ray", 2, {}))
    assert sorted((e.task, e.steps) for e in there) == sorted((e.task, e.steps) for e in serial)
