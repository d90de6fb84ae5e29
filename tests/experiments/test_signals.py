"""SIGTERM and SIGHUP end a command as Ctrl-C does: nothing is lost, no process stays, and the way on is said."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.common import cli
from experiments.common.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def usual_handlers():
    """Python's own handlers, also where the tests run in the background of a shell, which ignores Ctrl-C there."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Args:
    out: str | None = None
    resume: str | None = None


def break_off(number, broken, args):
    """Begin a run, and get a signal within it, after which something else breaks where `broken`."""
    with cli.open_run(args) as folder, folder.appending("episodes.jsonl") as file:
        file.add({"task": "a"})
        try:
            os.kill(os.getpid(), number)
            time.sleep(30)
        finally:
            os.kill(os.getpid(), number) if number != signal.SIGINT else None  # `timeout` sends two
            if broken:
                raise OSError("a worker is lost")


@pytest.mark.parametrize(
    ("number", "broken"), [*((one, False) for one in ENDS), (signal.SIGTERM, True), (signal.SIGHUP, True)]
)
def test_a_signal_ends_a_command_and_the_way_on_is_said(tmp_path, capsys, number, broken):
    before, out = [signal.getsignal(one) for one in ENDS], tmp_path / "run"

    def show(args):
        break_off(number, broken, args)

    assert cli.main("evaluate", Args, show, "", ["--out", str(out)]) == ENDS[number]
    assert f"interrupted; go on with: python -m experiments.evaluate --resume {out}" in capsys.readouterr().err
    assert list(RunFolder(out).records("episodes.jsonl")) == [{"task": "a"}]
    assert [signal.getsignal(one) for one in ENDS] == before
    RunFolder.resume(out, Args()).close()  # no lock stays


def test_before_a_folder_is_begun_the_flags_are_the_way_on(tmp_path, capsys):
    def show(args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    assert cli.main("evaluate", Args, show, "", ["--out", str(tmp_path / "run")]) == 143
    assert "experiments.evaluate the same flags" in capsys.readouterr().err


def test_a_command_without_a_run_ends_plainly(capsys):
    @dataclass(frozen=True)
    class Service:
        port: int = 0

    assert (
        cli.main("serve_tool", Service, lambda _: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(30), "", []) == 143
    )
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_signal_that_is_ignored_from_the_start_stays_so(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        assert cli.main("evaluate", Args, lambda args: os.kill(os.getpid(), signal.SIGHUP), "", []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def in_group(group):
    """Processes of a process group that run."""
    found = set()
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", one, "stat").read_text("utf-8").rpartition(")")[2].split()
            if int(stat[2]) == group and stat[0] != "Z":
                found.add(int(one))
        except OSError:
            continue
    return found


def of_ray(session):
    """Processes that have files of a Ray session open."""
    found = set()
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            names = [os.readlink(f"/proc/{one}/fd/{k}") for k in os.listdir(f"/proc/{one}/fd")]
        except OSError:
            continue
        if any(name.startswith(session) for name in names):
            found.add(int(one))
    return found


def session_of(pid):
    names = [os.readlink(f"/proc/{pid}/fd/{k}") for k in os.listdir(f"/proc/{pid}/fd")]
    found = [match[0] for name in names if (match := re.match(r".*/ray/session_[^/]+", name))]
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("executor", ["serial", "process", "ray"])
def test_no_process_outlives_an_evaluation(tmp_path, executor, number):
    if executor == "ray":
        pytest.importorskip("ray")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.evaluate", "--data", "synthetic:val", "--tool", "disc"]
    command += ["--agent", "annotator", "--max-steps", "2", "--batch-size", "4", "--executor", executor]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--out", str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(RunFolder(out).records("episodes.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    session = session_of(process.pid) if executor == "ray" else None
    assert executor != "ray" or len(of_ray(session)) > 3
    process.send_signal(number)
    assert process.wait(60) == ENDS.get(number, -number)
    if number != signal.SIGKILL:
        assert f"--resume {out}" in process.stderr.read()
    for _ in range(300):
        if not in_group(process.pid) and not (session and of_ray(session)):
            break
        time.sleep(0.1)
    assert not in_group(process.pid) and not (session and of_ray(session))
    assert list(RunFolder(out).records("episodes.jsonl"))
