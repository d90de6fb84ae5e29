"""The contract that every agent inherits, and what each of them promises beside it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agents
from agents.base import derive
from segenv import codec as codecs
from segenv import render
from segenv.mdp import SegMDP
from segenv.tools import make as make_tool
from segenv.types import Click, Invalid, Stop, Task

SPECS = ["annotator", "annotator:depth", "annotator:jitter:sigma=3", "random", "random:p=0.9", "mllm:untrained"]
SPEAKS_ITS_CODEC = [spec for spec in SPECS if not spec.startswith("mllm")]
OPTIONS = {"mllm:untrained": {"max_new_tokens": 6, "temperature": 1.0}}
KNOWN: dict = {}


def agent_of(spec: str) -> agents.Agent:
    """The agent of a spec, built once: agents keep nothing between calls."""
    if spec not in KNOWN:
        KNOWN[spec] = agents.make(spec, **OPTIONS.get(spec, {}))
    return KNOWN[spec]


@pytest.fixture
def mdp() -> SegMDP:
    return SegMDP(make_tool("disc"))


@pytest.fixture
def states(mdp, tasks):
    """Empty masks, and masks after a click."""
    empty = [mdp.initial(task) for task in tasks]
    return empty + mdp.transition(empty, [Click(5, 5), Click(10, 50), Click(16, 16)])


def ask(agent: agents.Agent, mdp: SegMDP, states: list, seeds: list[int]) -> list[str]:
    """The agent's texts, through the call that it is made for."""
    if agent.privileged:
        return agent.act_on(states, seeds)
    return agent.act([mdp.observation(state) for state in states], seeds)


@pytest.mark.parametrize("spec", SPECS)
class TestContract:
    def test_its_spec_makes_it_again_and_its_settings_can_be_recorded(self, spec):
        agent = agent_of(spec)
        again = agents.make(agent.spec, **OPTIONS.get(spec, {}))
        assert again.settings == agent.settings
        assert agent.settings["agent"] == agent.spec
        assert agents.make(agent) is agent

    def test_the_same_seeds_give_the_same_texts(self, spec, mdp, states):
        agent = agent_of(spec)
        seeds = list(range(len(states)))
        texts = ask(agent, mdp, states, seeds)
        assert len(texts) == len(states)
        assert all(isinstance(text, str) for text in texts)
        assert ask(agent, mdp, states, seeds) == texts

    def test_an_item_does_not_depend_on_the_batch_around_it(self, spec, mdp, states):
        agent = agent_of(spec)
        seeds = [11 * i for i in range(len(states))]
        together = ask(agent, mdp, states, seeds)
        assert [ask(agent, mdp, [state], [seed])[0] for state, seed in zip(states, seeds, strict=True)] == together
        assert ask(agent, mdp, states[::-1], seeds[::-1]) == together[::-1]

    def test_nothing_asked_is_nothing_answered(self, spec, mdp):
        assert ask(agent_of(spec), mdp, [], []) == []
        assert agent_of(spec).propose([], 3, []) == []

    def test_one_seed_an_item(self, spec, mdp, states):
        with pytest.raises(ValueError, match="6 items and 1 seeds"):
            ask(agent_of(spec), mdp, states, [0])
        with pytest.raises(ValueError, match="6 items and 1 seeds"):
            agent_of(spec).propose(states, 2, [0])

    def test_proposals_of_an_item_are_its_own(self, spec, mdp, states):
        agent = agent_of(spec)
        items = states if agent.privileged else [mdp.observation(state) for state in states]
        seeds = [3 * i for i in range(len(items))]
        together = agent.propose(items, 3, seeds)
        assert [len(texts) for texts in together] == [3] * len(items)
        assert [agent.propose([item], 3, [seed])[0] for item, seed in zip(items, seeds, strict=True)] == together
        assert [texts[:2] for texts in together] == agent.propose(items, 2, seeds)

    def test_it_is_blind_to_the_target_or_says_that_it_is_not(self, spec, mdp, task):
        agent = agent_of(spec)
        if agent.privileged:
            with pytest.raises(TypeError, match="reads the target"):
                agent.act([mdp.observation(mdp.initial(task))], [0])
        else:
            with pytest.raises(TypeError, match="not privileged"):
                agent.act_on([mdp.initial(task)], [0])
            swapped = Task(task.id, task.image, ~task.target, task.instruction)
            assert ask(agent, mdp, [mdp.initial(task)], [0]) == ask(agent, mdp, [mdp.initial(swapped)], [0])

    def test_it_counts_its_time(self, spec, mdp, states):
        agent = agent_of(spec)
        before = agent.seconds
        ask(agent, mdp, states, [0] * len(states))
        assert agent.seconds > before


@pytest.mark.parametrize("codec", ["pixels", "segagent", "unit-xy", "grid1000-xy"])
@pytest.mark.parametrize("spec", SPEAKS_ITS_CODEC)
def test_what_it_says_is_an_action_in_its_codec(spec, codec, mdp, states):
    agent = agents.make(spec, codec=codec)
    assert agent.codec.name == codec
    for state, text in zip(states, ask(agent, mdp, states, [0] * len(states)), strict=True):
        assert isinstance(agent.codec.parse(text, state.task), Click | Stop)


def test_the_annotator_clicks_the_middle_of_a_disc_and_stops_at_a_perfect_mask(mdp, task):
    agent = agents.make("annotator")
    text = agent.act_on([mdp.initial(task)], [0])[0]
    assert agent.codec.parse(text, task) == Click(40, 20, True)
    perfect = Task(task.id, task.image, task.target, task.instruction, initial_mask=task.target.copy())
    assert isinstance(agent.codec.parse(agent.act_on([mdp.initial(perfect)], [0])[0], task), Stop)


@given(st.integers(0, 2**63 - 1), st.integers(1, 9), st.integers(1, 9))
def test_random_clicks_stay_on_the_smallest_image(seed, height, width):
    task = Task("dot", np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool))
    mdp, agent = SegMDP(make_tool("disc")), agent_of("random")
    click = agent.codec.parse(agent.act([mdp.observation(mdp.initial(task))], [seed])[0], task)
    assert isinstance(click, Click)
    assert 0 <= click.x < width
    assert 0 <= click.y < height


def test_random_clicks_are_uniform_and_positive_with_p(mdp, task):
    agent = agents.make("random:p=0.9")
    n = 2000
    clicks = [agent.codec.parse(text, task) for text in agent.act([mdp.observation(mdp.initial(task))] * n, range(n))]
    assert abs(np.mean([click.positive for click in clicks]) - 0.9) < 0.03
    assert abs(np.mean([click.x for click in clicks]) - 31.5) < 2
    assert abs(np.mean([click.y for click in clicks]) - 23.5) < 1.5


@given(st.integers(0, 2**64 - 1), st.integers(0, 8))
def test_derived_seeds_differ_and_a_longer_list_begins_with_the_shorter(seed, k):
    seeds = derive(seed, k)
    assert len(set(seeds)) == k
    assert derive(seed, k + 1)[:k] == seeds


class TestMllm:
    def test_it_asks_with_the_instruction_and_shows_the_mask(self, mdp, states):
        agent = agent_of("mllm:untrained")
        observation = mdp.observation(states[-1])
        assert agent.codec.name == "segagent"
        assert agent.prompt(observation) == observation.instruction
        assert agent.picture(observation).shape == (128, 128, 3)
        unmasked = mdp.observation(mdp.initial(states[-1].task))
        assert not np.array_equal(agent.picture(observation), agent.picture(unmasked))

    def test_what_is_given_wins_over_what_the_checkpoint_declares(self, mdp, task):
        agent = agents.make("mllm:untrained", codec="unit-xy", prompt="codec", image_size=40)
        observation = mdp.observation(mdp.initial(task))
        assert agent.prompt(observation) == codecs.make("unit-xy").prompt(observation)
        assert agent.picture(observation).shape == (30, 40, 3)
        assert agent.settings["image_size"] == 40
        full = agents.make("mllm:untrained", image_size=(48, 64))
        assert np.array_equal(full.picture(observation), render.overlay(observation.image, observation.mask))

    def test_its_bad_replies_come_back_as_they_are(self, mdp, task):
        agent = agents.make("mllm:untrained", max_new_tokens=3)
        text = agent.act([mdp.observation(mdp.initial(task))], [0])[0]
        assert text
        assert agent.codec.parse(text, task) == Invalid(text, agent.codec.parse(text, task).reason)

    def test_greedy_replies_ignore_the_seed_and_proposals_do_not(self, mdp, task):
        agent = agents.make("mllm:untrained", max_new_tokens=6)
        observation = mdp.observation(mdp.initial(task))
        assert len(set(agent.act([observation] * 3, [0, 1, 2]))) == 1
        assert len(set(agent.propose([observation], 3, [0])[0])) > 1

    def test_the_seed_of_make_sets_the_weights_of_an_untrained_model(self):
        one, two = agents.make("mllm:untrained", seed=1), agents.make("mllm:untrained", seed=2)
        assert one.settings["weights"] != two.settings["weights"]
        assert one.settings["weights"] == agents.make("mllm:untrained", seed=1).settings["weights"]

    def test_without_embedded_weights_it_says_so(self, monkeypatch, tmp_path):
        from agents import mllm, tiny

        monkeypatch.setattr(mllm, "EMBEDDED", tmp_path)
        with pytest.warns(UserWarning, match="untrained tiny model"):
            assert agents.make("mllm").spec == "mllm:untrained"
        tiny.save(tmp_path, width=32, vision_layers=1, text_layers=1)
        assert agents.make("mllm").spec == "mllm"


def test_unknown_names_and_options_say_what_was_expected():
    with pytest.raises(ValueError, match="unknown agent 'expert'; expected one of annotator"):
        agents.make("expert")
    with pytest.raises(ValueError, match="'p' is no option of random; expected KEY=VALUE of p"):
        agents.make("random:p")
    with pytest.raises(ValueError, match="p is 2.0; expected 0 or more and at most 1"):
        agents.make("random:p=2")
    with pytest.raises(ValueError, match="prompt is 'long'; expected one of codec, short, instruction"):
        agents.make("mllm:untrained", prompt="long")


def test_agents_without_a_model_load_neither_torch_nor_transformers():
    made = "agents.make('annotator'); agents.make('random')"
    code = f"import sys, agents; {made}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
