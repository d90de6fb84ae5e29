"""Searches by name: what a spec means, what it refuses, and `--search` of an evaluation; and the value functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import disc_task

import agents
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate import __main__
from experiments.evaluate.config import Args
from experiments.evaluate.episodes import clicks
from search import executors, spec, values
from search.budget import Limits
from search.episode import Episode
from search.planner import SearchConfig
from search.prm import IouReader
from segenv import data, metrics, tools
from segenv.mdp import SegMDP
from segenv.types import Click

TASKS = [disc_task(20 + 3 * i, 30 - 2 * i, 12 + i, 9 + i, 5 + i, f"disc {i}") for i in range(3)]
WEIGHTS = Path(agents.__file__).parent / "weights" / values.EMBEDDED


def test_a_spec_says_algorithm_value_budget_and_config() -> None:
    assert spec.parse("none") is None
    one = spec.parse("mcts:k=5, simulations=9,c=0.5,value=tool,tokens=900,seconds=1.5,near=0.02,patience=3")
    assert one is not None and one.algorithm == "mcts" and one.value == "tool"
    assert one.options == {"simulations": 9, "k": 5, "c": 0.5}
    assert one.config == SearchConfig(Limits(tokens=900, seconds=1.5), near=0.02, patience=3)
    assert str(one) == "mcts:simulations=9,k=5,c=0.5,value=tool,near=0.02,patience=3,tokens=900,seconds=1.5"
    for name in spec.ALGORITHMS:
        parsed = spec.parse(name)
        assert parsed is not None and parsed.value == "prm" and spec.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("astar", "unknown search 'astar'; expected none, or one of greedy, best-of-n, beam"),
        ("none:k=3", "unknown search 'none:k=3'"),
        ("greedy:width=3", "'width=3' is no option of greedy; expected KEY=VALUE of k, near"),
        ("greedy:k", "'k' is no option of greedy"),
        ("greedy:k=three", "k is 'three'; expected a whole number"),
        ("mcts:c=low", "c is 'low'; expected a number"),
        ("greedy:k=0", "k is 0; expected 1 or more"),
        ("mcts:c=-1", "c is -1.0; expected 0 or more"),
        ("greedy:k=3,value=sam", "value is 'sam'; expected one of prm, prm-mean, self, tool, oracle or none"),
        ("greedy:k=3,value=none", "it chooses by value; take value=prm, tool or oracle, or greedy:k=1"),
        ("mcts:k=1,value=none", "it chooses by value"),
        ("greedy:tokens=-1", "tokens is -1; expected 0 or more"),
        ("greedy:patience=-1", "patience is -1"),
        ("greedy:tolerance=7", "tolerance is 7.0"),
        ("greedy:near=-0.1", "near is -0.1; expected 0 or more and at most 1"),
        ("greedy:near=nan", "near is 'nan'; expected a number"),
        ("mcts:c=inf", "c is 'inf'; expected a number"),
        ("greedy:k=1e30", "k is '1e30'; expected a whole number"),
        ("greedy:seconds=inf", "seconds is 'inf'; expected a number"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, words) -> None:
    with pytest.raises(ValueError) as error:
        spec.parse(text)
    assert words in str(error.value)


def test_the_tool_values_what_it_made(task) -> None:
    pytest.importorskip("torch")
    mdp = SegMDP(tools.make("sam"))
    start = mdp.initial(task)
    (clicked,) = mdp.transition([start], [Click(40, 20)])
    assert values.make("tool", mdp, agents.make("random")).values([start, clicked]).tolist() == [0.0, clicked.score]


def test_values_that_are_not_to_be_had_are_refused(task, no_weights) -> None:
    mdp, agent = SegMDP(tools.make("disc")), agents.make("random")
    states = mdp.transition([mdp.initial(task)], [Click(40, 20)])
    with pytest.raises(ValueError, match="disc predicts no IoU of its masks; take value=prm, or oracle"):
        values.make("tool", mdp, agent).values(states)
    with pytest.raises(ValueError, match="agent 'random' is none; take agent mllm"):
        values.make("prm", mdp, agent)
    with pytest.raises(ValueError, match="unknown value 'human'"):
        values.make("human", mdp, agent)
    oracle = values.make("oracle", mdp, agent)
    assert oracle.privileged and oracle.settings == {"value": "oracle", "privileged": True}
    assert oracle.values(states).tolist() == [metrics.iou(task.target, states[0].mask)]


@pytest.fixture
def no_weights(monkeypatch, tmp_path) -> None:
    """No process reward model is embedded."""
    monkeypatch.setattr(pytest.importorskip("agents.mllm"), "WEIGHTS", tmp_path)


@pytest.fixture(scope="module")
def writer():
    pytest.importorskip("torch")
    return agents.make("mllm:untrained", max_new_tokens=5, image_size=32)


def test_the_stated_iou_is_the_value(writer) -> None:
    """The likeliest number, or the expected one."""
    mdp = SegMDP(tools.make("disc:radius=3"))
    states = [mdp.initial(task) for task in TASKS]
    seen = [mdp.observation(state) for state in states]
    source, mean = (values.make(name, mdp, writer) for name in ("prm", "prm-mean"))
    assert source.values(states).tolist() == IouReader(writer).greedy(seen).tolist()
    shares = IouReader(writer).distribution(seen)
    assert mean.values(states) == pytest.approx([sum(p * n / 100 for n, p in enumerate(row)) for row in shares])
    for one in (source, mean):
        assert len(one.tokens) == 3 and 0 < max(one.tokens) <= one.max_tokens and not one.privileged
        assert one.settings["weights"] == writer.backend.fingerprint
    other = values.make("prm:untrained", mdp, agents.make("random"))
    assert other.name == "prm:untrained" and other.values(states).shape == (3,)


def test_prm_is_the_embedded_model_or_else_the_policy_itself(writer, monkeypatch, tmp_path) -> None:
    from agents import mllm, tiny

    mdp, small = SegMDP(tools.make("disc:radius=3")), {"image_size": 32, "width": 32, "text_layers": 1}
    folders = {name: tiny.save(tmp_path / name, k, **small) for k, name in enumerate(("tiny-mllm", "tiny-prm", "own"))}
    monkeypatch.setattr(mllm, "WEIGHTS", tmp_path)
    monkeypatch.setattr(mllm, "EMBEDDED", folders["tiny-mllm"])
    policy, own = agents.make("mllm"), agents.make(f"mllm:{folders['own']}")

    def reads(spec: str, agent: agents.Agent) -> tuple[str, str]:
        settings = values.make(spec, mdp, agent).settings
        return settings["agent"], settings["weights"]

    embedded = ("mllm:tiny-prm", agents.make(f"mllm:{folders['tiny-prm']}").backend.fingerprint)
    assert reads("prm", policy) == reads("prm-mean", policy) == reads("prm", agents.make("random")) == embedded
    assert reads("prm:tiny-mllm", policy) == ("mllm:tiny-mllm", policy.backend.fingerprint)
    assert reads("prm", own) == (own.spec, own.backend.fingerprint) and reads("prm", writer)[0] == "mllm:untrained"
    assert reads("self", policy) == ("mllm", policy.backend.fingerprint), "whatever is embedded"
    assert reads("self", own) == (own.spec, own.backend.fingerprint)
    with pytest.raises(ValueError, match="agent 'random' is none.*value=prm:NAME_OR_PATH"):
        values.make("self", mdp, agents.make("random"))
    with pytest.raises(ValueError, match="self takes nothing after a colon"):
        values.make("self:tiny-prm", mdp, policy)
    folders["tiny-prm"].rename(tmp_path / "gone")
    assert reads("prm", policy) == ("mllm", policy.backend.fingerprint)


@pytest.mark.skipif(not (WEIGHTS / "config.json").is_file(), reason="no process reward model is embedded")
def test_the_embedded_judge_tells_good_masks_from_bad_ones() -> None:
    assert (WEIGHTS / "README.md").is_file() and sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 10_000_000
    mdp, tasks = SegMDP(tools.make("disc")), list(data.make("synthetic:test")[:30])
    source = values.make("prm", mdp, agents.make("random"))
    kinds = ([task.target for task in tasks], [task.target & False for task in tasks], [~task.target for task in tasks])
    good, empty, wrong = (
        source.values([mdp.initial(replace(task, initial_mask=mask)) for task, mask in zip(tasks, masks, strict=True)])
        for masks in kinds
    )
    assert good.mean() > 0.4 + max(empty.mean(), wrong.mean())


def test_a_language_model_searches_within_its_tokens_in_any_batch(writer) -> None:
    mdp = SegMDP(tools.make("disc:radius=3"), 9)
    parsed = spec.parse("beam:width=2,k=2,value=prm,tokens=24")
    source = parsed.value_function(mdp, writer)
    before = writer.backend.tokens["reply"]
    found = []
    for batch_size in (1, 3):
        trees = list(parsed.search(mdp, writer, TASKS, source, batch_size=batch_size))
        found.append([[(node.order, node.text, node.value) for node in tree.nodes] for tree in trees])
        for tree in trees:  # it ends when what is left may not do for another reply of 5 with its value of up to 3
            assert 24 - 5 - source.max_tokens < tree.budget.spent.tokens <= 24
    assert found[0] == found[1]
    assert writer.backend.tokens["reply"] > before


def test_an_evaluation_searches_in_every_executor(tmp_path) -> None:
    common = {"data": "synthetic:val", "tool": "disc", "agent": "random", "limit": 5, "max_steps": 3, "batch_size": 2}
    search = "greedy:k=4,value=oracle"
    plain = clicks.run(Args(**common, out=str(tmp_path / "plain")), quiet=True)
    serial = clicks.run(Args(**common, search=search, out=str(tmp_path / "serial")), quiet=True)
    process = clicks.run(Args(**common, search=search, executor="process", out=str(tmp_path / "process")), quiet=True)
    assert {**serial, "seconds": 0} == {**process, "seconds": 0} and serial["miou"] > plain["miou"]
    assert serial["protocol"]["search"] == search and serial["protocol"]["privileged"]
    assert plain["protocol"]["search"] == "none" and not plain["protocol"]["privileged"]
    for record in RunFolder(tmp_path / "serial").records("episodes.jsonl"):
        episode = Episode.from_json(record)
        assert episode.final_iou == episode.best_iou, "the oracle ends where its episode was best"


def test_an_evaluation_with_a_bad_search_ends_before_it_begins(tmp_path, capsys, no_weights) -> None:
    flags = ["--data", "synthetic:val", "--tool", "disc", "--agent", "random", "--out", str(tmp_path / "run")]
    assert __main__.main([*flags, "--search", "greedy:value=prm"]) == 1
    assert "is what a language model states" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="unknown search 'nonsense'"):
        clicks.run(Args(tool="disc", agent="random", search="nonsense", out=str(tmp_path / "run")))


def test_samples_of_a_task_are_searches_of_their_own() -> None:
    search = "greedy:k=2,value=oracle"
    setup = executors.Setup("synthetic:val", "disc", "annotator:depth", max_steps=3, samples=3, search=search)
    episodes = list(executors.Player(setup).play(range(2)))
    assert [episode.sample for episode in episodes] == [0, 1, 2] * 2
    assert len({tuple(step.text for step in episode.steps) for episode in episodes}) == 6
    assert all(np.isfinite(episode.final_iou) for episode in episodes)


def test_the_estimate_of_a_tool_that_has_none_is_refused_before_a_search():
    mdp, agent = SegMDP(tools.make("disc")), agents.make("random")
    with pytest.raises(ValueError, match="value 'tool': disc predicts no IoU of its masks; take value=prm"):
        values.make("tool", mdp, agent)
