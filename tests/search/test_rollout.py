"""Rollouts: the same episodes whatever the batch, and nothing in them that cannot be worked out again."""

import json
from concurrent.futures import Future, wait
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import disc_task
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
import search.rollout as rollout_module
from agents.backends.base import Reply
from agents.base import Agent
from search.episode import Episode, clicks_of
from search.executors import Player, Setup, play
from search.rollout import rollout
from segenv import codec, data, metrics, tools
from segenv.geometry.rle import decode_mask, encode_mask
from segenv.mdp import SegMDP
from segenv.tools.disc import DiscTool
from segenv.types import Box, Click, Stop, ToolError, Undo

TASKS = [disc_task(40 + 3 * i, 60 - 2 * i, 20 + i, 15 + 2 * i, 7 + i, f"disc {i}") for i in range(6)]


class Script(Agent):
    """Plays given texts, one a step; task ids may have scripts of their own."""

    spec = "script"

    def __init__(self, *texts, **by_task):
        super().__init__(codec.make("pixels"))
        self.texts, self.by_task = texts, by_task

    def _act(self, observations, seeds):
        return [self.by_task.get(seen.task_id, self.texts)[seen.step] for seen in observations]


class ManyAtATime(Script):
    """A script that has four questions under way; its replies say, or do not say, how long they took."""

    in_flight = 4

    def __init__(self, seconds, *texts):
        super().__init__(*texts)
        self.taken = seconds

    def submit(self, observation, seed, sample=0):
        future = Future()
        future.set_result(Reply(self.texts[observation.step], seconds=self.taken))
        return future


@pytest.mark.parametrize("seconds", [None, 8.0, 2.0])
@pytest.mark.parametrize("tasks", [1, 3, 4, 6])
def test_the_time_of_replies_that_are_under_way_together_is_counted_once(seconds, tasks, monkeypatch):
    """Each wait for replies takes 8 s of a clock of our own, in which all that are under way come; of those that were
    kept in a file, and took 2 s once, 2 s are counted."""
    now, waits = [0.0], []

    def waited(futures, return_when):
        now[0] += 8.0
        waits.append(len(futures))
        return wait(futures, return_when=return_when)

    monkeypatch.setattr(rollout_module, "wait", waited)
    monkeypatch.setattr(rollout_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    agent, mdp = ManyAtATime(seconds, "8,8,+", "stop"), SegMDP(DiscTool(5), 3)
    episodes = list(rollout(mdp, agent, TASKS[:tasks]))
    assert sum(waits) == 2 * tasks and max(waits) == min(4, tasks)
    assert sum(one.seconds["agent"] for one in episodes) == pytest.approx(len(waits) * (seconds or 8.0))


def told(episode: Episode) -> dict:
    """An episode without its timings."""
    return {key: value for key, value in episode.to_json().items() if key != "seconds"}


@given(batch_size=st.integers(1, 9), order=st.permutations(TASKS), spec=st.sampled_from(["random", "annotator:depth"]))
@settings(max_examples=15)
def test_an_episode_depends_on_its_task_alone(batch_size, order, spec):
    mdp = SegMDP(tools.make("disc:radius=5"), max_steps=4)
    alone = {}
    for task in TASKS:
        (alone[task.id],) = rollout(mdp, agents.make(spec), [task], seed=3)
    together = list(rollout(mdp, agents.make(spec), order, seed=3, batch_size=batch_size))
    assert [episode.task for episode in together] == [task.id for task in order]
    assert all(told(episode) == told(alone[episode.task]) for episode in together)


def test_seeds_tell_samples_rounds_and_runs_apart():
    mdp, agent = SegMDP(tools.make("disc"), max_steps=3), agents.make("random")

    def texts(**keys):
        return [tuple(step.text for step in episode.steps) for episode in rollout(mdp, agent, TASKS[:1], **keys)]

    first = texts(samples=3, seed=1)
    assert len(set(first)) == 3 and first == texts(samples=3, seed=1) and first[:1] == texts(seed=1)
    assert not {*texts(samples=3, seed=2), *texts(samples=3, seed=1, round_index=1)} & set(first)


def test_tasks_are_read_when_needed_and_episodes_given_when_ready():
    read = []

    def tasks():
        for task in TASKS:
            read.append(task.id)
            yield task

    one = codec.make("pixels").format(Click(3, 3), TASKS[0])
    stop = codec.make("pixels").format(Stop(), TASKS[0])
    agent = Script(one, stop, **{"disc 0": [one, one, one, stop]})
    episodes = rollout(SegMDP(tools.make("disc"), max_steps=9), agent, tasks(), batch_size=2)
    assert next(episodes).task == "disc 0"
    assert len(read) == 3  # while the first took four steps, the place beside it was taken twice
    rest = list(episodes)
    assert [episode.task for episode in rest] == [task.id for task in TASKS[1:]]
    assert [len(episode.steps) for episode in rest] == [2] * 5 and all(episode.stopped for episode in rest)


def test_every_kind_of_action_is_recorded_as_it_went(task):
    speak = codec.make("pixels")
    actions = [Click(40, 20), Click(0, 0), Undo(), Click(5, 5, False), Stop()]
    texts = [speak.format(action, task) for action in actions]
    texts.insert(1, "I would rather not <script>")
    mdp = SegMDP(tools.make("disc:radius=12"), max_steps=9, reward_name="iou_gain")
    (episode,) = rollout(mdp, Script(*texts), [task])
    kinds = [step.action["type"] for step in episode.steps]
    assert kinds == ["click", "invalid", "click", "undo", "click", "stop"]
    assert episode.ious[0] == 1.0 and episode.start_iou == 0.0 and episode.best_iou == 1.0 and episode.stopped
    assert episode.steps[1].error == episode.steps[1].action["reason"] and episode.steps[1].text == texts[1]
    assert clicks_of(episode.steps) == [Click(40, 20), Click(5, 5, False)]
    assert (episode.intersection, episode.union) == (task.target.sum(), task.target.sum())
    for k, step in enumerate(episode.steps, 1):
        assert step.iou == metrics.iou(task.target, episode.mask(k))
    assert sum(step.reward for step in episode.steps) == pytest.approx(episode.final_iou - episode.start_iou)
    assert Episode.from_json(json.loads(json.dumps(episode.to_json()))) == episode
    assert set(episode.seconds) == {"encode", "decode", "agent", "annotator", "other"}
    assert episode.seconds["agent"] > 0 and episode.seconds["annotator"] == 0


def test_a_box_can_be_taken_back_too(task):
    speak = codec.make("segagent")
    texts = [speak.format(action, task) for action in (Box(28, 8, 53, 33), Undo(), Click(40, 20))]
    agent = Script(*texts)
    agent.codec = speak
    (episode,) = rollout(SegMDP(tools.make("disc"), max_steps=3), agent, [task])
    assert len(clicks_of(episode.steps)) == 1 and not episode.mask(2).any() and episode.mask(1).any()


def test_a_broken_tool_stops_the_run_and_names_the_tasks():
    class Broken(DiscTool):
        def _predict(self, encodings, prompts):
            raise ToolError("out of memory")

    with pytest.raises(ToolError, match="out of memory.*disc 0, disc 1"):
        list(rollout(SegMDP(Broken()), agents.make("annotator"), TASKS, batch_size=2))


@given(data=st.data(), height=st.integers(1, 20), width=st.integers(1, 20))
def test_masks_survive_their_encoding(data, height, width):
    bits = data.draw(st.binary(min_size=height * width, max_size=height * width))
    mask = (np.frombuffer(bits, np.uint8) & 1).astype(bool).reshape(height, width)
    assert np.array_equal(decode_mask(encode_mask(mask), height, width), mask)
    assert encode_mask(mask).isascii()


def test_workers_take_objects_as_well_as_specs():
    """Episodes of a tool, an agent and a dataset made here equal those of their specs, in processes of their own."""
    specs = {"data": "synthetic:val#easy", "tool": "disc:radius=5", "agent": "annotator:depth"}
    objects = {name: make(specs[name]) for name, make in (("data", data.make), ("tool", tools.make))}
    objects["agent"] = agents.make(specs["agent"])
    played = [
        [told(episode) for episode in play(Player(setup), range(5), executor, 2, {})]
        for executor in ("serial", "process")
        for setup in (Setup(**specs, max_steps=3, batch_size=2), Setup(**objects, max_steps=3, batch_size=2))
    ]
    assert sorted(played[2], key=str) == sorted(played[3], key=str) == sorted(played[0], key=str)
    assert played[0] == played[1]
