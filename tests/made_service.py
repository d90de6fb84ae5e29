"""A tool service in a thread of the test."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from segenv.tools import SegTool

for needed in ("fastapi", "tenacity", "urllib3"):
    pytest.importorskip(needed)
uvicorn = pytest.importorskip("uvicorn")

from segenv.tools.service.server import Limits, ToolService, make_app  # noqa: E402


@contextmanager
def serving(tool: SegTool, token: str | None = None, port: int = 0, **limits) -> Iterator[tuple[str, ToolService]]:
    """Serve `tool` on loopback: the address, and the service."""
    app = make_app(tool, Limits(**limits), token, "127.0.0.1")
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", backlog=1024, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service
        finally:
            server.should_exit = True
            thread.join(30)
