"""StaR with policies that play through a server: each is served before it plays, and the training has the machine."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("openai")

from experiments.common.config import RunError
from experiments.star.config import Args, check
from experiments.star.serving import PolicyServer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups")


@pytest.fixture
def port():
    """A port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def files_server(port, tmp_path):
    """A server of a folder's files, in place of one of its weights."""
    command = f"{shlex.quote(sys.executable)} -m http.server {port} --bind 127.0.0.1 --directory {{folder}}"
    return PolicyServer(f"openai:{{folder}}@http://127.0.0.1:{port}/v1#64", command, tmp_path / "log")


def content(port, name):
    """A file that the server has, or None where there is no such file, or no server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return None


def test_each_policy_is_served_before_it_plays_and_no_server_outlives_the_run(port, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    server = files_server(port, tmp_path)
    try:
        spec = server.serve(str(tmp_path / "one"), "--resume x")
        assert spec == f"openai:{tmp_path / 'one'}@http://127.0.0.1:{port}/v1#64" and content(port, "weights") == "one"
        server.serve(str(tmp_path / "one"), "--resume x")
        server.serve(str(tmp_path / "two"), "--resume x")
        assert content(port, "weights") == "two"
        with pytest.raises(RunError, match="answers at .* already"):
            files_server(port, tmp_path).serve(str(tmp_path / "one"), "--resume x")
    finally:
        server.close()
    assert content(port, "weights") is None and (tmp_path / "log").read_text().count("$ ") == 2


def test_a_killed_run_leaves_no_server(port, tmp_path):
    (tmp_path / "weights").write_text("here")
    server = files_server(port, tmp_path)
    program = (
        f"import sys, time\nfrom pathlib import Path\nfrom experiments.star.serving import PolicyServer\n"
        f"PolicyServer({server.spec!r}, {server.command!r}, Path({str(server.log)!r})).serve({str(tmp_path)!r}, '')\n"
        "print('serving', flush=True)\ntime.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"serving\n" and content(port, "weights") == "here"
    run.kill()
    run.wait()
    run.stdout.close()
    for _ in range(100):
        if content(port, "weights") is None:
            break
        time.sleep(0.1)
    assert content(port, "weights") is None


def test_a_server_that_ends_or_that_nobody_starts_is_told(port, tmp_path):
    spec = f"openai:{{folder}}@http://127.0.0.1:{port}/v1"
    failing = f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)' {{folder}}"
    with pytest.raises(RunError, match="ended with status 3"):
        PolicyServer(spec, failing, tmp_path / "log").serve("here", "--resume x")
    with pytest.raises(RunError, match="serve runs/a there, and go on with --resume x"):
        PolicyServer(spec, None, tmp_path / "log").serve("runs/a", "--resume x")
    for wrong in ("openai:made@http://here/v1", "mllm:{folder}@http://here/v1", "openai:{folder}"):
        with pytest.raises(RunError, match="--policy-server is"):
            PolicyServer(wrong, None, tmp_path / "log")
    with pytest.raises(RunError, match="--serve is"):
        PolicyServer(spec, "vllm serve", tmp_path / "log")
    with pytest.raises(RunError, match="--serve needs --policy-server"):
        check(Args(serve="vllm serve {folder}", out="x"))
    with pytest.raises(RunError, match="--executor and --ablation"):
        check(Args(policy_server=spec, ablation=True, out="x"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rollouts_of_a_served_policy_training_by_accelerate_and_the_new_weights_served_again(port, tmp_path):
    """Killed within the rollouts and resumed, no reply is asked for twice, and S_1 plays from its own weights."""
    for name in ("trl", "fastapi", "uvicorn"):
        pytest.importorskip(name)
    python, out = shlex.quote(sys.executable), tmp_path / "run"
    flags = ["--tool", "disc", "--limit", "6", "--rollout-tasks", "3", "--samples", "2", "--eval-limit", "2"]
    flags += ["--round-steps", "2", "--max-steps", "2", "--batch-rows", "4", "--report-episodes", "1"]
    flags += ["--min-gain", "-1", "--policy-server", f"openai:{{folder}}@http://127.0.0.1:{port}/v1"]
    serve = f"{python} -m agents.backends.serve {{folder}} --dtype float32 --device cpu"
    flags += ["--serve", f"{serve} --host 127.0.0.1 --port {port}", "--server.in-flight", "2"]
    flags += ["--launch", f"{python} -m accelerate.commands.launch --cpu --num_processes 1 --main_process_port 0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def star(*words):
        return subprocess.Popen([sys.executable, "-m", "experiments.star", *words], cwd=ROOT, env=environment)

    def lines(name):
        file = out / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    killed = star(*flags, "--out", str(out))
    while len(lines("round1/rollout.replies.jsonl")) < 3:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = lines("round1/rollout.replies.jsonl")
    assert star("--resume", str(out)).wait() == 0
    replies = lines("round1/rollout.replies.jsonl")
    asked = [(one["task"], one["sample"], one["step"]) for one in replies]
    assert replies[: len(before)] == before and len(asked) == len(set(asked)) >= 6
    policies = [lines(f"round{n}/evaluate.replies.jsonl") for n in (0, 1)]
    assert {one["model"] for one in policies[1]} == {str(out / "round1" / "policy")}
    assert not {one["model"] for one in policies[0]} & {one["model"] for one in policies[1]}
    numbers = json.loads((out / "metrics.json").read_text())
    assert [one["episodes"] for one in numbers["policies"]] == [2, 2] and not numbers["skipped"]
    assert (out / "server.log").read_text().count("$ ") >= 3 and content(port, "health") is None
