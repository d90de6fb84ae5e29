"""The server that plays the policies of a StaR run: one after the other, each under the name of its folder."""

import http.client
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from experiments.common.config import RunError

WAIT = 1800.0  # seconds until a server answers; a large model takes minutes
# Starts a server, and ends it with all that it started as soon as the one who holds our stdin ends, however it does.
_KEEPER = """
import os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
def kill(number):
    try:
        os.killpg(server.pid, number)
    except OSError:
        pass
def follow():
    while os.read(0, 1 << 10):
        pass
    kill(signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        kill(signal.SIGKILL)
threading.Thread(target=follow, daemon=True).start()
code = server.wait()
kill(signal.SIGKILL)  # what it left
os._exit(code if code >= 0 else 128 - code)
"""


class PolicyServer:
    """Serves policies at the address in `spec`, `openai:MODEL@BASE_URL`, where `{folder}` stands for a policy's folder.

    `command` starts a server of `{folder}`; its output is appended to `log`. Without one a person serves each policy.
    """

    def __init__(self, spec: str, command: str | None, log: Path) -> None:
        model, at, address = spec.removeprefix("openai:").partition("#")[0].rpartition("@")
        if not spec.startswith("openai:") or not at or "{folder}" not in model:
            raise RunError(
                f"--policy-server is {spec!r}; expected openai:{{folder}}@BASE_URL: the name of the model tells the "
                "server which weights are asked, and one that holds others refuses"
            )
        if command is not None and "{folder}" not in command:
            raise RunError(f"--serve is {command!r}; expected a command with {{folder}}, where the weights are")
        where = urlsplit(address)
        self.health = f"{where.scheme}://{where.netloc}/health"
        self.spec, self.command, self.log = spec, command, log
        self.folder: str | None = None  # that is served
        self._process: subprocess.Popen | None = None

    def serve(self, folder: str, resume: str, wait: float = WAIT) -> str:
        """Have the weights in `folder` served, and return the spec of their agent. Raises RunError where nothing
        answers; `resume` says how the run goes on after that."""
        spec = self.spec.replace("{folder}", folder)
        if self._process is not None and self.folder == folder and self._process.poll() is None:
            return spec
        self.close()
        if self.command is None:
            print(f"asks {spec}, which is to serve {folder}", file=sys.stderr)
            if not self._answers():
                raise RunError(f"nothing answers at {self.health}; serve {folder} there, and go on with {resume}")
            return spec
        if self._answers():
            raise RunError(f"something answers at {self.health} already; end it, or leave out --serve")
        self._start([word.replace("{folder}", folder) for word in shlex.split(self.command)], wait)
        self.folder = folder
        return spec

    def _start(self, words: list[str], wait: float) -> None:
        """Start a server, and return when it answers."""
        began = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            log.write(f"$ {shlex.join(words)}\n".encode())
            log.flush()
            keeper = [sys.executable, "-I", "-c", _KEEPER, *words]
            self._process = subprocess.Popen(
                keeper, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        while not self._answers():
            if self._process.poll() is not None:
                status = self._process.returncode
                self.close()
                raise RunError(f"the server ended with status {status} before it answered; see {self.log}: {words}")
            if time.monotonic() - began > wait:
                self.close()
                raise RunError(f"the server did not answer at {self.health} within {wait:g} s; see {self.log}")
            time.sleep(0.5)

    def _answers(self) -> bool:
        """Whether a server is ready, or has another answer than that it is not."""
        try:
            urllib.request.urlopen(self.health, timeout=5).close()
        except urllib.error.HTTPError as error:
            return error.code < 500
        except (OSError, http.client.HTTPException):
            return False
        return True

    def close(self) -> None:
        """End the server that `serve` started, so that its memory is free."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self._process = self.folder = None
