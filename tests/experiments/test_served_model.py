"""A real server, `transformers serve` of the embedded model, gives the same episodes as in this process."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from agents.backends.server import ServerOptions
from experiments.common.run_folder import RunFolder
from experiments.evaluate import evaluate
from experiments.evaluate.config import Args

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
MODEL = "agents/weights/tiny-mllm"
COUNT = 40


@pytest.fixture
def server(tmp_path):
    """The base URL of the embedded model's server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "agents.backends.serve", MODEL, "--dtype", "float32", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "log", "wb") as log:
        command += ["--host", "127.0.0.1", "--port", port]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            assert process.poll() is None, (tmp_path / "log").read_text("utf-8", "replace")[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def played(out):
    """What was said and done in each episode of a run."""
    return {
        one["task"]: [(step["text"], step["action"], step["iou"], step["mask"]) for step in one["steps"]]
        for one in RunFolder(out).records("episodes.jsonl")
    }


def test_a_served_model_gives_the_episodes_of_the_model_in_this_process(server, tmp_path):
    common = {"data": "synthetic:val", "limit": COUNT, "tool": "disc", "max_steps": 3, "batch_size": 1}
    own, served = str(tmp_path / "own"), str(tmp_path / "served")
    evaluate.run(Args(**common, agent="mllm", out=own), quiet=True)
    spec = f"openai:{MODEL}@{server}#256x256"
    asked = {"codec": "segagent", "prompt": "instruction", "server": ServerOptions(in_flight=3)}
    numbers = evaluate.run(Args(**common, **asked, agent=spec, out=served), quiet=True)
    one, other = played(own), played(served)
    assert len(one) == COUNT and sum(one[task] == other[task] for task in one) == COUNT
    assert numbers["protocol"]["prompt_hash"] and not numbers["skipped"]
