"""Searches of models that fail: the item is listed and skipped, nothing is asked or counted twice."""

import json
from collections import Counter

import pytest

pytest.importorskip("openai")

from agents.backends.server import ServerOptions
from experiments.evaluate import evaluate
from experiments.tree_search import play
from experiments.tree_search.config import Args as TreeArgs
from search import spec
from segenv import tools
from segenv.mdp import SegMDP
from segenv.types import AgentError
from tests.experiments.test_served import lines, number_of, settings
from tests.made_servers import named_discs, replies, sends, serving
from tests.search.test_search_laws import TASKS, Judge, Wanderer, contents, grow

SAID = ["Positive point: (500, 500)", "Positive point: (200, 200)", "Negative point: (900, 100)"]


def failing(bad):
    """A server that clicks by the seed, and has no reply about items in `bad`."""

    def act(body, times):
        return sends(500, b"{}") if number_of(body) in bad else replies(SAID[body["seed"] % 3])

    return act


@pytest.mark.parametrize("in_flight", [1, 4])
def test_an_item_without_a_reply_is_skipped_within_a_search_as_without_one(in_flight, tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 5)
    given = {"search": "greedy:k=3,value=oracle", "max_steps": 2}
    given["server"] = ServerOptions(in_flight=in_flight, retries=0)
    with serving(failing({1, 3})) as (url, chat), pytest.raises(AgentError, match="500"):
        evaluate.run(settings(url, data, tmp_path / "stops", **given, skip_bad=False), quiet=True)
    with serving(failing({1, 3})) as (url, chat):
        numbers = evaluate.run(settings(url, data, tmp_path / "run", **given), quiet=True)
    assert sorted(numbers["skipped"]) == ["item-1", "item-3"] and numbers["episodes"] == 3
    assert all("status 500" in reason for reason in numbers["skipped"].values())
    asked = Counter(
        (one, body["seed"], len(body["messages"][0]["content"][0]["image_url"]["url"]))
        for one, body in zip(chat.asked, chat.bodies, strict=True)
    )
    assert set(asked.values()) == {1}
    assert (
        len(lines(tmp_path / "run", "replies.jsonl"))
        == numbers["spent"]["requests"] - numbers["spent"]["without_reply"]["requests"]
    )
    with serving(failing(())) as (url, _):
        whole = evaluate.run(settings(url, data, tmp_path / "whole", **given), quiet=True)
    ends = {one["task"]: one["intersection"] for one in lines(tmp_path / "whole", "episodes.jsonl")}
    assert whole["episodes"] == 5 and not whole["skipped"]
    assert {one["task"]: one["intersection"] for one in lines(tmp_path / "run", "episodes.jsonl")} == {
        name: ends[name] for name in ("item-0", "item-2", "item-4")
    }


def test_all_searches_of_a_comparison_are_of_the_same_tasks(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 4)
    common = {"data": data, "tool": "disc:radius=8", "codec": "grid1000-xy", "values": ("oracle",), "steps": (2,)}
    common |= {"search": ("best-of-n",), "k": (2,), "depths": (2,), "budgets": ("policy_calls=4",), "skip_bad": True}
    with serving(failing({2})) as (url, _):
        server = ServerOptions(in_flight=4, retries=0)
        args = TreeArgs(**common, agent=f"openai:made@{url}", server=server, out=str(tmp_path / "run"))
        numbers = play.run(args, quiet=True)
    assert list(numbers["skipped"]) == ["item-2"]
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "item-2" not in json.dumps(told["protocol"]) and numbers["spent"]["without_reply"]["requests"] >= 1


class Faulty(Wanderer):
    """Fails about one task at its second step, without telling which it was."""

    asked = 0

    def say(self, seen, rng):
        if seen.task_id == "disc 2" and seen.step == 1:
            raise AgentError("away")
        return super().say(seen, rng)


@pytest.mark.parametrize("search", ["greedy:k=3", "beam:width=2,k=3", "mcts:simulations=8,k=3"])
def test_trees_beside_a_lost_one_are_as_without_it(search):
    lost = []
    parsed = spec.parse(search)
    mdp = SegMDP(tools.make("disc:radius=3"), 4)
    found = list(parsed.search(mdp, Faulty(), TASKS, Judge(), skip=lambda task, error: lost.append((task, str(error)))))
    assert lost == [("disc 2", "away")] and [tree.task.id for tree in found] == ["disc 0", "disc 1", "disc 3"]
    for tree in found:
        (alone,) = grow(search, [tree.task])
        assert contents(tree) == contents(alone) and tree.budget.spent.policy_calls == alone.budget.spent.policy_calls
    with pytest.raises(AgentError, match="away"):
        list(parsed.search(mdp, Faulty(), TASKS, Judge()))
