"""A server that speaks OpenAI's chat completions, and behaves as a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Act = Callable[["Handler"], None]  # answers a request, well or badly


class ChatServer:
    """`act(body, times)` chooses what a request gets: `body` is its JSON, `times` how often its prompt came before.
    `asked` holds the prompts in the order of their coming, `bodies` and `headers` what came with them."""

    def __init__(self, act: Callable[[dict[str, Any], int], Act]) -> None:
        self.act, self.lock = act, threading.Lock()
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0  # requests under way


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        """Read a request, and answer as the test says."""
        chat: ChatServer = self.server.chat  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")
        with chat.lock:
            times = chat.asked.count(prompt)
            chat.asked.append(prompt)
            chat.bodies.append(body)
            chat.headers.append(dict(self.headers))
            chat.now += 1
            chat.most = max(chat.most, chat.now)
        try:
            chat.act(body, times)(self)
        except OSError:  # the client went away
            pass
        finally:
            with chat.lock:
                chat.now -= 1

    def send(self, status: int, content: bytes, kind: str = "application/json", **headers: str) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def completion(text: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "made", "choices": [choice], "usage": usage}


def replies(text: str | None, finish_reason: str = "stop", delay: float = 0.0, **message: Any) -> Act:
    """A good answer."""
    content = json.dumps(completion(text, finish_reason, **message)).encode()

    def act(handler: Handler) -> None:
        time.sleep(delay)
        handler.send(200, content)

    return act


def sends(status: int, content: bytes, kind: str = "application/json", **headers: str) -> Act:
    """Whatever content."""
    return lambda handler: handler.send(status, content, kind, **headers)


def hangs(seconds: float) -> Act:
    """No answer for some seconds, and then none."""
    return lambda handler: time.sleep(seconds)


def drips(seconds: float) -> Act:
    """A byte now and then, which no limit on a silence ends."""

    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(int(10 * seconds)):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    return act


def cuts(handler: Handler) -> None:
    """An answer that ends in the middle."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.wfile.flush()
    handler.connection.close()


@contextmanager
def serving(act: Callable[[dict[str, Any], int], Act]) -> Iterator[tuple[str, ChatServer]]:
    """Serve in a thread: the base URL, and the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.chat = chat = ChatServer(act)  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", chat
    finally:
        server.shutdown()
        server.server_close()


def named_discs(folder: Path, count: int) -> str:
    """Write a dataset of `count` small pictures, whose instructions are `object 0`, `object 1` and so on; its spec."""
    listed = []
    for k in range(count):
        rows, columns = np.ogrid[:32, :40]
        mask = (rows - 16) ** 2 + (columns - 20) ** 2 <= 64
        image = np.random.default_rng(k).integers(0, 255, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{k}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{k}-mask.png")
        listed.append(
            {"name": f"item-{k}", "image": f"{k}.png", "mask": f"{k}-mask.png", "instruction": f"object {k};"}
        )
    (folder / "index.json").write_text(json.dumps(listed), encoding="utf-8")
    return f"index:{folder}"
