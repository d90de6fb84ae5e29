"""Models behind a server: what is sent, what comes back, and what is spent."""

import json
import os
import re
import time

import numpy as np
import pytest

pytest.importorskip("openai")

import agents
from agents.backends.openai import LARGEST, OpenAIBackend
from agents.backends.server import BudgetOptions, ServerOptions, kept_size
from agents.base import Agent
from agents.replies import ReplyLog
from segenv import codec, render
from segenv.mdp import Observation
from segenv.types import AgentError, RunError
from tests.made_servers import completion, cuts, drips, hangs, replies, sends, serving

PICTURE = np.zeros((8, 12, 3), np.uint8)
FAST = ServerOptions(retries=0, timeout=0.4, read_timeout=0.3)
SAID = "Positive point: (500, 500)"


def ask(url, options=FAST, prompt="which", **given):
    return OpenAIBackend("made", url, options=options, **given).ask([PICTURE], [prompt], [7])[0]


def test_a_request_holds_the_picture_and_the_settings_and_the_reply_all_that_is_known():
    with serving(lambda body, times: replies(SAID, reasoning_content="hm")) as (url, chat):
        reply = ask(url, max_new_tokens=33, top_p=0.5, detail="high")
    [body] = chat.bodies
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"] == render.data_url(PICTURE, effort=1) and image["image_url"]["detail"] == "high"
    assert text == {"type": "text", "text": "which"}
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (33, 0.0, 0.5, 7)
    assert (reply.text, reply.thinking, reply.finish_reason, reply.model) == (SAID, "hm", "stop", "made")
    assert (reply.prompt_tokens, reply.tokens, reply.sent, reply.frame) == (100, 10, (12, 8), (12, 8))


def test_its_own_sampling_sends_none():
    with serving(lambda body, times: replies(SAID)) as (url, chat):
        ask(url, own_sampling=True)
    assert not {"temperature", "top_p", "seed"} & set(chat.bodies[0])


FAULTS = {
    "hangs": (hangs(1), "no whole reply|Timeout"),
    "drips": (drips(1), "no whole reply within 0.4 s"),
    "cut": (cuts, "."),
    "html": (sends(200, b"<html>hello</html>", "text/html"), "no chat completion"),
    "wrong json": (sends(200, b'{"choices": [{"message"'), "no chat completion"),
    "other json": (sends(200, b'["choices"]'), "no chat completion"),
    "NaN": (sends(200, b'{"choices": [{"message": {"content": "a"}}], "usage": NaN}'), "NaN"),
    "empty choices": (sends(200, json.dumps(completion("a") | {"choices": []}).encode()), "no chat completion"),
    "no text": (sends(200, json.dumps(completion(7)).encode()), "no text"),
    "large": (sends(200, b" " * (LARGEST + 1)), "more than"),
    "compressed": (sends(200, b"a", Content_Encoding="gzip"), "compressed"),
    "500": (sends(500, b"{}"), "status 500"),
    "400": (sends(400, b'{"error": {"message": "too long"}}'), "too long"),
    "detail": (sends(400, b'{"detail": "pinned to another"}'), "status 400: .*pinned to another"),
    "filter": (replies("half a", "content_filter"), "content filter"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_no_reply(fault):
    act, reason = FAULTS[fault]
    began = time.perf_counter()
    with serving(lambda body, times: act) as (url, _), pytest.raises(AgentError, match=reason):
        ask(url)
    assert time.perf_counter() - began < 3


def test_a_request_is_sent_again_after_a_fault_as_late_as_the_server_says():
    acts = [cuts, sends(429, b"{}", Retry_After="1"), replies(SAID)]
    came = []
    with serving(lambda body, times: came.append(time.perf_counter()) or acts[times]) as (url, _):
        assert ask(url, ServerOptions(retries=2)).text == SAID
    assert 0.3 < came[1] - came[0] < 5 and came[2] - came[1] >= 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_to_answer_at_all_ends_the_run(status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    told = json.dumps({"error": {"message": "key sk-very-secret is wrong"}}).encode()
    with serving(lambda body, times: sends(status, told)) as (url, chat), pytest.raises(RunError) as refused:
        ask(url)
    assert "sk-very-secret" not in str(refused.value) and "***" in str(refused.value)
    sent = {name.lower(): value for name, value in chat.headers[0].items()}
    assert sent["authorization"] == "Bearer sk-very-secret" and len(chat.asked) == 1


def test_a_key_that_a_server_sends_back_stands_in_no_reply(monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-very-secret")
    with serving(lambda body, times: replies("sk-very-secret")) as (url, _):
        assert ask(url, ServerOptions(key_env="OTHER_KEY")).text == "***"
    named = json.dumps(completion(SAID, "sk-very-secret") | {"model": "of sk-very-secret"}).encode()
    with serving(lambda body, times: sends(200, named)) as (url, _):
        reply = ask(url, ServerOptions(key_env="OTHER_KEY"))
    assert (reply.model, reply.finish_reason) == ("of ***", "***")


def test_a_key_stands_in_no_error_also_where_that_is_cut_short(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    page = b"<html>" + b"x" * 48 + b" sk-very-secret</html>"
    with serving(lambda body, times: sends(200, page, "text/html")) as (url, _), pytest.raises(AgentError) as refused:
        ask(url)
    assert "no chat completion" in str(refused.value) and "sk-" not in str(refused.value)


def test_where_nothing_answers_the_run_ends():
    with serving(lambda body, times: cuts) as (url, _):
        pass
    with pytest.raises(RunError, match="nothing answers at"):
        ask(url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://here/v1", "http://me:word@here/v1", "http://here/v1?key=1"])
def test_a_base_url_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ValueError, match="base URL") as refused:
        OpenAIBackend("made", url)
    assert "word" not in str(refused.value).replace("password", "")


def test_many_requests_are_under_way_at_a_time():
    with serving(lambda body, times: replies(SAID, delay=0.3)) as (url, chat):
        backend = OpenAIBackend("made", url, options=ServerOptions(in_flight=8))
        backend.ask([PICTURE] * 16, [str(k) for k in range(16)], [0] * 16)
    assert 1 < chat.most <= 8


@pytest.mark.slow
def test_32_requests_under_way_have_20_times_the_throughput_of_one():
    """The best of three tries, as other programs may have the processor; not where they have all of it."""
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip("a busy machine measures itself")

    def seconds(in_flight, count):
        with serving(lambda body, times: replies(SAID, delay=0.5)) as (url, _):
            backend = OpenAIBackend("made", url, options=ServerOptions(in_flight=in_flight))
            backend.ask([PICTURE], ["first"], [0])  # the client is made
            began = time.perf_counter()
            backend.ask([PICTURE] * count, [str(k) for k in range(count)], [0] * count)
            return (time.perf_counter() - began) / count

    alone = seconds(1, 6)
    assert max(alone / seconds(32, 192) for _ in range(3)) >= 20


def test_a_budget_ends_the_run_before_it_is_passed(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("made: {input: 10000, output: 100000}\n", encoding="utf-8")  # 1 and 1 a reply
    for limits, most in (
        ({"max_requests": 3}, 3),
        ({"max_total_tokens": 340}, 3),
        ({"max_cost": 6.5, "prices": prices}, 3),
    ):
        with serving(lambda body, times: replies(SAID)) as (url, chat):
            backend = OpenAIBackend("made", url, budget=BudgetOptions(**limits), max_new_tokens=10)
            with pytest.raises(RunError, match="go on with --resume DIR and a larger limit"):
                for k in range(9):
                    backend.ask([PICTURE], [str(k)], [0])
        assert len(chat.asked) == most, limits
    untold = json.dumps({**completion(SAID), "usage": None}).encode()
    with serving(lambda body, times: sends(200, untold)) as (url, chat):
        backend = OpenAIBackend("made", url, budget=BudgetOptions(max_total_tokens=10_000))
        assert backend.ask([PICTURE], ["0"], [0])[0].text == SAID
        with pytest.raises(RunError, match="does not tell how many tokens"):
            backend.ask([PICTURE], ["1"], [0])
    with pytest.raises(ValueError, match="expected other: {input"):
        OpenAIBackend("other", url, budget=BudgetOptions(max_cost=1.0, prices=prices))


@pytest.mark.parametrize(
    ("name", "width", "height", "size"),
    [
        ("qwen2.5-vl", 640, 480, (644, 476)),
        ("qwen2.5-vl", 4000, 3000, None),
        ("qwen2.5-vl", 30, 2000, None),
        ("qwen2.5-vl", 1, 1, None),
        ("qwen2.5-vl", 3, 5000, None),
        ("qwen2.5-vl", 7368, 2, None),
        ("claude", 4000, 3000, None),
        ("claude", 640, 480, (640, 480)),
        ("gpt", 4000, 2000, (1536, 768)),
        ("gpt", 4000, 500, (2048, 256)),
        ("qwen3-vl", 4096, 100, (2048, 50)),
        ("pixels", 4096, 3000, (4096, 3000)),
    ],
)
def test_pictures_are_sent_at_a_size_that_servers_of_the_family_keep(name, width, height, size):
    w, h = kept_size(name, width, height)
    assert size is None or (w, h) == size
    if name == "qwen2.5-vl":
        assert w % 28 == h % 28 == 0 and 256 <= w * h // 784 <= 1280 and max(w, h) <= 200 * min(w, h)
    if name == "claude":
        assert max(w, h) <= 1568 and w * h <= 1_150_000 and abs(w / h - width / height) < 0.01
    if name in ("claude", "gpt"):
        return
    agent = agents.make("openai:made@http://localhost:1/v1", codec=name)
    view = Observation("a", np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool), "it", 0, 1)
    assert agent.picture(view).shape == (h, w, 3) and agent.backend.seen_size(width, height) == (w, h)


def test_the_size_of_a_spec_is_the_one_that_the_codec_reads_in():
    agent = agents.make("openai:made@http://localhost:1/v1#320", codec="qwen2.5-vl")
    view = Observation("a", np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), bool), "it", 0, 1)
    height, width = agent.picture(view).shape[:2]
    assert (width, height) == (308, 252) or (width % 28 == 0 and height % 28 == 0 and width <= 336)
    assert re.search(rf"0\.\.{width}\b", agent.prompt(view))


def test_a_log_answers_what_was_asked_before_and_a_log_keeps_before_the_caller_has_it():
    kept = []
    with serving(lambda body, times: replies(SAID)) as (url, chat):
        agent = agents.make(f"openai:made@{url}", "grid1000-xy")
        agent.log = ReplyLog(keep=kept.append)
        view = Observation("a", PICTURE, np.zeros((8, 12), bool), "it", 0, 1)
        first = agent.submit(view, 3, sample=2).result()
        assert [one["text"] for one in kept] == [SAID] and kept[0]["task"] == "a" and kept[0]["sample"] == 2
        agent.log = ReplyLog(json.loads(json.dumps(kept)))
        again = [agent.submit(view, 4).result(), *agent.answer([view, view], [5, 6])]  # greedy: the seed is no matter
    assert len(chat.asked) == 1 and all(one.text == first.text for one in again) and again[0].tokens == 10
    assert agent.log.usage == {"requests": 1, "prompt_tokens": 100, "tokens": 10}


class Clicker(Agent):
    """An agent of one's own: it clicks the middle, and fails at a step."""

    spec = "anything"

    def __init__(self, codec, fails: int = -1):
        super().__init__(codec)
        self.fails, self.calls = fails, 0

    def _answer(self, observation, rng):
        self.calls += 1
        if observation.step == self.fails:
            raise OSError("away")
        return SAID


def test_an_agent_of_ones_own_is_named_by_module_and_class():
    agent = agents.make("tests.agents.test_openai:Clicker", codec.make("grid1000-xy"))
    view = Observation("a", PICTURE, np.zeros((8, 12), bool), "it", 0, 1)
    kept = []
    agent.log = ReplyLog(keep=kept.append)
    assert [one.text for one in agent.answer([view], [0])] == [SAID] and agent.act([view], [0]) == [SAID]
    assert len(kept) == 1 and agent.settings["agent"] == "tests.agents.test_openai:Clicker"
    assert agents.make("tests.agents.test_openai:Clicker").codec.name == "pixels"
    failing = agents.make("tests.agents.test_openai:Clicker", fails=0)
    with pytest.raises(AgentError, match="OSError: away"):
        failing.answer([view], [0])
    with pytest.raises(TypeError, match="takes no prompt"):
        agents.make("tests.agents.test_openai:Clicker", prompt="codec")


@pytest.mark.parametrize(
    "spec", ["tests.agents.test_openai:SAID", "tests.agents.test_openai:Nothing", "no_module:Name"]
)
def test_a_class_that_is_none_is_refused(spec):
    with pytest.raises(ValueError, match="no subclass|unknown agent"):
        agents.make(spec)


def test_a_size_beside_a_codec_that_counts_in_another_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    agent = agents.make("openai:some@http://127.0.0.1:9/v1", "seg-zero")
    assert agent.backend.seen_size(640, 480) == (840, 840)
    with pytest.raises(ValueError, match="840x840; leave out #SIZE"):
        agents.make("openai:some@http://127.0.0.1:9/v1#400", "seg-zero")
