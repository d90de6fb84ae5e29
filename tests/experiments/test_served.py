"""Evaluations of models behind a server: bad items are listed, nothing is asked or counted twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")

from agents.backends.server import BudgetOptions, ServerOptions
from experiments.common.config import RunError
from experiments.evaluate import evaluate
from experiments.evaluate.config import Args
from segenv.types import AgentError
from tests.made_servers import cuts, hangs, named_discs, replies, sends, serving

ROOT = Path(__file__).resolve().parents[2]
MIDDLE = "Current IOU: 0\nPositive point: (500, 500)"
FAST = ServerOptions(in_flight=4, retries=1, timeout=5.0, read_timeout=4.0)
BAD = {  # by number of the item: what the server does about it, and the reason that is listed
    1: (hangs(6), "no whole reply|Timeout"),
    3: (cuts, "."),
    4: (sends(200, b"<html></html>", "text/html"), "no chat completion"),
    6: (sends(200, b" " * 10_000_000), "more than"),
    7: (replies("no", "content_filter"), "content filter"),
    9: (sends(200, b'{"choices": []}'), "no chat completion"),
}


def number_of(body):
    return int(re.search(r"object (\d+);", body["messages"][0]["content"][1]["text"])[1])


def hostile(body, times):
    """Faults for the items in `BAD`; the others are answered at the second try, item 2 with numbers that are none."""
    number = number_of(body)
    if number in BAD:
        return BAD[number][0]
    if number == 5 and times == 0:
        return sends(429, b"{}", Retry_After="0.1")
    if number == 8 and times == 0:
        return sends(503, b"{}")
    return replies("Positive point: (NaN, 500)" if number == 2 else MIDDLE)


def settings(url, data, out, **given):
    common = {"tool": "disc:radius=8", "codec": "grid1000-xy", "max_steps": 1, "skip_bad": True, "server": FAST}
    return Args(data=data, agent=f"openai:made@{url}", out=str(out), **{**common, **given})


def lines(out, name):
    return [json.loads(line) for line in (Path(out) / name).read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_hostile_server_spoils_no_good_item_and_every_bad_one_is_listed(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 12)
    with serving(hostile) as (url, _):
        numbers = evaluate.run(settings(url, data, tmp_path / "run"), quiet=True)
    skipped = numbers["skipped"]
    assert sorted(skipped) == [f"item-{k}" for k in sorted(BAD)] and numbers["episodes"] == 6
    for k, (_, reason) in BAD.items():
        assert re.search(reason, skipped[f"item-{k}"]), skipped[f"item-{k}"]
    assert numbers["parse_rate"] == 5 / 6 and 0.5 < numbers["miou"] < 1
    played = lines(tmp_path / "run", "episodes.jsonl")
    assert sorted(one["task"] for one in played) == sorted({f"item-{k}" for k in range(12)} - set(skipped))
    kept = lines(tmp_path / "run", "replies.jsonl")
    assert len(kept) == 6 and {one["finish_reason"] for one in kept} == {"stop"}
    assert all(one["sent"] == one["frame"] == one["image"] == [40, 32] for one in kept)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "6 ended by stop" in page and "content filter" in page


def test_without_skipping_the_first_fault_ends_the_run_and_what_was_paid_for_is_kept(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 6)

    def act(body, times):
        return sends(500, b"{}") if number_of(body) == 3 and not mended else replies(MIDDLE, delay=0.05)

    mended = False
    given = {"skip_bad": False, "server": ServerOptions(in_flight=3, retries=0)}
    with serving(act) as (url, chat):
        with pytest.raises(Exception, match="status 500"):
            evaluate.run(settings(url, data, tmp_path / "run", **given), quiet=True)
        kept = [one["task"] for one in lines(tmp_path / "run", "replies.jsonl")]
        assert len(kept) == len(set(kept)) and "item-3" not in kept and {"item-0", "item-1", "item-2"} <= set(kept)
        mended, before = True, len(chat.asked)
        again = settings(url, data, tmp_path / "run", **given)
        numbers = evaluate.run(Args(**{**vars(again), "out": None, "resume": again.out}), quiet=True)
    assert numbers["episodes"] == 6 and not numbers["skipped"]
    assert len(chat.asked) - before == 6 - len(kept)


def test_a_budget_is_of_the_whole_run_with_what_was_spent_before_it_was_resumed(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 6)
    limited = {"server": ServerOptions(in_flight=2), "budget": BudgetOptions(max_requests=4)}
    with serving(lambda body, times: replies(MIDDLE)) as (url, chat):
        first = settings(url, data, tmp_path / "run", skip_bad=False, **limited)
        again = Args(**{**vars(first), "out": None, "resume": first.out})
        for args in (first, again):
            with pytest.raises(RunError, match="4 requests are sent"):
                evaluate.run(args, quiet=True)
            assert len(chat.asked) == 4
        more = BudgetOptions(max_requests=6)
        numbers = evaluate.run(Args(**{**vars(again), "budget": more}), quiet=True)
    assert numbers["episodes"] == len(chat.asked) == 6


@pytest.mark.slow
def test_episodes_advance_on_their_own(tmp_path):
    """One slow item holds no other: all others end while it is asked about its first step."""
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 5)

    def act(body, times):
        return replies(MIDDLE, delay=2.0 if number_of(body) == 0 and times == 0 else 0.0)

    with serving(act) as (url, _):
        evaluate.run(settings(url, data, tmp_path / "run", max_steps=3, server=ServerOptions(in_flight=2)), quiet=True)
    assert [one["task"] for one in lines(tmp_path / "run", "episodes.jsonl")][-1] == "item-0"


def test_thoughts_are_kept_apart_and_a_cut_reply_is_invalid(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 3)
    says = [
        replies(MIDDLE, reasoning_content="Negative point: (1, 1)"),
        replies("<think>Positive point: (1, 1)", "length"),
        replies("<think>Negative point: (1, 1)</think>" + MIDDLE),
    ]
    with serving(lambda body, times: says[number_of(body)]) as (url, _):
        numbers = evaluate.run(settings(url, data, tmp_path / "run"), quiet=True)
    steps = {one["task"]: one["steps"][0] for one in lines(tmp_path / "run", "episodes.jsonl")}
    assert steps["item-0"]["action"] == steps["item-2"]["action"] and steps["item-0"]["action"]["positive"]
    assert steps["item-1"]["action"]["type"] == "invalid" and "cut after 10 tokens" in steps["item-1"]["error"]
    assert steps["item-1"]["finish_reason"] == "length" and numbers["parse_rate"] == 2 / 3
    assert numbers["finish_reasons"] == {"length": 1, "stop": 2}
    assert "1 ended by length, 2 ended by stop" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_server_takes_no_executor_and_a_missing_key_or_price_is_said_before_a_folder_is_made(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 1)
    for given, reason in (
        ({"executor": "process"}, "--executor"),
        ({"budget": BudgetOptions(max_cost=1.0)}, "--prices"),
        ({"own_sampling": True, "top_p": 0.5}, "--top-p"),
        ({"prompt": "nothing"}, "a file with a prompt"),
    ):
        with pytest.raises(RunError, match=reason):
            evaluate.run(settings("http://localhost:1/v1", data, tmp_path / "run", **given), quiet=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_asks_for_no_reply_twice(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 24)
    words = ["--data", data, "--tool", "disc", "--codec", "grid1000-xy", "--max-steps", "2"]
    with serving(lambda body, times: replies(MIDDLE, delay=0.4)) as (url, chat):
        words += ["--agent", f"openai:made@{url}", "--server.in-flight", "2"]
        command = [sys.executable, "-m", "experiments.evaluate"]
        process = subprocess.Popen([*command, *words, "--out", str(tmp_path / "run")], cwd=ROOT)
        file = tmp_path / "run" / "replies.jsonl"
        while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 7):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = file.read_bytes().count(b"\n")
        before = len(chat.asked)
        subprocess.run([*command, "--resume", str(tmp_path / "run")], cwd=ROOT, check=True)
    assert len(lines(tmp_path / "run", "episodes.jsonl")) == 24
    records = lines(tmp_path / "run", "replies.jsonl")
    items = [(one["task"], one["step"]) for one in records]
    assert len(items) == len(set(items)) == 48 and len(chat.asked) - before == 48 - kept


def test_an_agent_of_ones_own_is_kept_and_resumed_like_any_other(tmp_path):
    (tmp_path / "data").mkdir()
    data, spec = named_discs(tmp_path / "data", 4), "tests.agents.test_openai:Clicker"
    common = {"data": data, "agent": spec, "tool": "disc:radius=8", "codec": "grid1000-xy", "max_steps": 2}
    whole = evaluate.run(Args(**common, out=str(tmp_path / "run")), quiet=True)
    kept = lines(tmp_path / "run", "replies.jsonl")
    assert [(one["task"], one["step"]) for one in kept[:4]] == [(f"item-{k}", 0) for k in range(4)] and len(kept) == 8
    assert whole["protocol"]["agent"] == spec and whole["protocol"]["source"]
    (tmp_path / "run" / "episodes.jsonl").write_bytes(b"")  # a kill before the first episode's end
    again = evaluate.run(Args(**common, resume=str(tmp_path / "run")), quiet=True)
    assert lines(tmp_path / "run", "replies.jsonl") == kept
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


def test_polygons_of_a_served_model_are_scored_and_what_fails_is_listed(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 3)

    def act(body, times):
        said = replies("[[[300,250],[700,250],[700,750],[300,750]]]")
        return sends(400, b'{"error": {"message": "no"}}') if number_of(body) == 1 else said

    with serving(act) as (url, _):
        given = {"task": "polygon", "codec": "rings", "max_steps": 20}
        numbers = evaluate.run(settings(url, data, tmp_path / "run", **given), quiet=True)
    assert list(numbers["skipped"]) == ["item-1"] and numbers["skipped"]["item-1"].endswith("status 400: no")
    assert numbers["replies"] == 2 and numbers["giou"] > 0.3 and numbers["finish_reasons"] == {"stop": 2}
    assert sorted(one["task"] for one in lines(tmp_path / "run", "replies.jsonl")) == ["item-0", "item-2"]


def test_masks_that_a_served_model_gives_no_reply_to_are_listed_and_no_other_is_asked_twice(tmp_path):
    (tmp_path / "data").mkdir()
    data = named_discs(tmp_path / "data", 3)

    def act(body, times):
        failing = number_of(body) == 1 and not mended
        return sends(400, b'{"error": {"message": "no"}}') if failing else replies(MIDDLE.replace("0", "50", 1))

    mended = False
    given = {"task": "filter", "codec": "segagent", "max_steps": 20, "batch_size": 2}
    with serving(act) as (url, chat):
        with pytest.raises(AgentError, match="status 400: no"):
            evaluate.run(settings(url, data, tmp_path / "ended", **given, skip_bad=False), quiet=True)
        chat.asked.clear()
        args = settings(url, data, tmp_path / "run", **given)
        numbers = evaluate.run(args, quiet=True)
        assert list(numbers["skipped"]) == ["item-1"] and numbers["skipped"]["item-1"].endswith("status 400: no")
        assert numbers["tasks"] == 2 and numbers["masks"] == 8 and numbers["silent"] == 0
        kept = lines(tmp_path / "run", "replies.jsonl")
        assert {one["task"] for one in kept} == {"item-0", "item-2"} and numbers["spent"]["requests"] == len(chat.asked)
        assert len(kept) == sum("object 1;" not in prompt for prompt in chat.asked)
        assert "1 bad items were passed over" in (tmp_path / "run" / "report.html").read_text("utf-8")
        mended, before = True, len(chat.asked)
        again = evaluate.run(Args(**{**vars(args), "out": None, "resume": args.out}), quiet=True)
    assert again["tasks"] == 3 and not again["skipped"] and len(chat.asked) - before <= 4
