"""What requests cost that bring no reply, equal questions under way, and proxies."""

import json
from concurrent.futures import wait

import numpy as np
import pytest

pytest.importorskip("openai")

import agents
from agents.backends.openai import OpenAIBackend, proxy_of
from agents.backends.server import Budget, BudgetOptions, ServerOptions
from agents.replies import ReplyLog
from segenv.mdp import Observation
from segenv.types import AgentError, RunError
from tests.made_servers import completion, cuts, hangs, replies, sends, serving

PICTURE = np.zeros((14, 28, 3), np.uint8)  # two patches
FAST = ServerOptions(retries=0, timeout=0.4, read_timeout=0.3)
SAID = "Positive point: (500, 500)"
MOST = {"prompt_tokens": 6, "tokens": 10}  # of a prompt of three letters, before a reply is known: 1 + 3 + 2


def asks(url, **given):
    return OpenAIBackend("made", url, max_new_tokens=10, **{"options": FAST, **given})


@pytest.mark.parametrize(
    ("act", "counted"),
    [
        (hangs(1), MOST),
        (cuts, MOST),
        (sends(200, b"<html></html>", "text/html"), MOST),
        (sends(504, b"{}"), MOST),
        (sends(429, b"{}"), {"prompt_tokens": 0, "tokens": 0}),
        (sends(400, b"{}"), {"prompt_tokens": 0, "tokens": 0}),
        (replies("half", "content_filter"), {"prompt_tokens": 100, "tokens": 10}),
    ],
)
def test_a_request_without_a_reply_is_counted_at_the_most_that_it_may_cost(act, counted):
    kept = []
    with serving(lambda body, times: act) as (url, _):
        backend = asks(url)
        backend.budget.keep = kept.append
        with pytest.raises(AgentError):
            backend.ask([PICTURE], ["abc"], [0])
    assert [{name: one[name] for name in counted} for one in kept] == [counted] and kept[0]["requests"] == 1
    assert backend.budget.spent == backend.budget.lost == {"requests": 1, **counted}
    again = Budget(BudgetOptions(), "made", 10)
    again.restore({"requests": 0, "prompt_tokens": 0, "tokens": 0}, json.loads(json.dumps(kept)))
    assert again.spent == again.lost == backend.budget.spent


def test_requests_that_are_sent_again_pass_no_budget():
    with serving(lambda body, times: cuts) as (url, chat):
        options = ServerOptions(retries=9, timeout=4, read_timeout=4)
        backend = asks(url, options=options, budget=BudgetOptions(max_total_tokens=40))
        with pytest.raises(RunError, match=r"is 40, 32 of it is spent \(with 2 requests without a reply"):
            backend.ask([PICTURE], ["abc"], [0])
    assert len(chat.asked) == 2 and backend.budget.reserved == backend.budget.under_way == 0


def test_larger_prompts_are_expected_to_cost_more():
    budget = Budget(BudgetOptions(max_total_tokens=1000), "made", 10)
    budget.end(budget.begin(5.0))
    budget.told(5.0, 100, 10)
    assert budget.begin(10.0) == 200
    with pytest.raises(RunError, match="1000"):
        budget.begin(40.0)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_equal_questions_under_way_are_asked_once(in_flight):
    kept = []
    with serving(lambda body, times: replies(SAID, delay=0.3)) as (url, chat):
        options = ServerOptions(in_flight=in_flight)
        agent = agents.make(f"openai:made@{url}", "grid1000-xy", server=options)
        agent.log = ReplyLog(keep=kept.append)
        view = Observation("a", PICTURE, np.zeros((14, 28), bool), "it", 0, 1)
        futures = [agent.submit(view, k) for k in range(3)]  # greedy: the seed is no matter
        assert len(set(map(id, futures))) == 3 and not any(one.done() for one in futures)
        wait(futures)
        assert [one.result().text for one in futures] == [SAID] * 3 and len(chat.asked) == len(kept) == 1
        assert agent.act([view, view], [8, 9]) == [SAID] * 2
        sampled = agents.make(f"openai:made@{url}", "grid1000-xy", server=options, temperature=1.0)
        sampled.log = agent.log
        assert [one.text for one in sampled.answer([view] * 3, [1, 2, 1])] == [SAID] * 3
    assert len(chat.asked) == len(kept) == 3


def test_a_fault_is_told_to_all_who_wait_for_it_and_asked_about_anew_later():
    acts = [sends(500, b"{}"), replies(SAID)]
    with serving(lambda body, times: acts[times]) as (url, chat):
        agent = agents.make(f"openai:made@{url}", "grid1000-xy", server=ServerOptions(retries=0, in_flight=4))
        agent.log = ReplyLog()
        view = Observation("a", PICTURE, np.zeros((14, 28), bool), "it", 0, 1)
        futures = [agent.submit(view, k) for k in range(2)]
        for one in futures:
            with pytest.raises(AgentError, match="500"):
                one.result()
        assert agent.submit(view, 0).result().text == SAID and len(chat.asked) == 2


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with serving(lambda body, times: sends(200, json.dumps(completion(SAID)).encode())) as (url, chat):
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        assert asks("http://nowhere.invalid/v1").ask([PICTURE], ["which"], [0])[0].text == SAID
        assert chat.headers[0]["Host"] == "nowhere.invalid"
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert asks(url).ask([PICTURE], ["which"], [0])[0].text == SAID
    assert proxy_of("https://here.invalid/v1") is None
    monkeypatch.setenv("https_proxy", "proxy.invalid:3128")
    assert proxy_of("https://here.invalid/v1") == "http://proxy.invalid:3128"
