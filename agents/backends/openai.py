"""Models behind a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, LM Studio, Ollama,
`transformers serve` and hosted ones.

The official client sends the requests, and sends them again; `WholeReplies` beneath it bounds what comes back, in time
and size. They run in an event loop of their own, so that many are under way at a time.
"""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from agents.backends.base import Backend, Reply, Size, padded
from agents.backends.server import (
    COSTLY,
    Budget,
    BudgetOptions,
    ServerOptions,
    kept_size,
    key_of,
    plain,
    size_of_prompt,
)
from segenv import render
from segenv.records import parse_json
from segenv.types import AgentError, RunError

try:
    import openai
except ImportError as missing:
    raise ImportError("agent 'openai:…' needs the client: pip install 'segenv[openai]'") from missing
try:
    import httpx2 as httpx  # of newer clients
except ImportError:
    import httpx  # type: ignore[no-redef]

OFFICIAL = "https://api.openai.com/v1"
DETAILS = ("auto", "low", "high", "original")
FORMATS = ("png", "jpeg")
LARGEST = 4 << 20  # bytes of a server's answer
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
RESERVED: ContextVar[int] = ContextVar("RESERVED", default=0)  # prompt tokens of the question that a task asks
FEWEST_FAULTS = 20  # questions in a row without a reply, after which a server counts as broken


class WholeReplies(httpx.AsyncBaseTransport):
    """Reads each answer to its end, within `timeout` seconds and `LARGEST` bytes, and refuses one with status 200 that
    is no JSON object with choices. What is refused is a fault of the connection, after which the client asks again.
    `budget` counts each request, and `key` is shown in no error."""

    def __init__(self, inner: Any, timeout: float, budget: Budget, key: str | None = None) -> None:
        self.inner, self.timeout, self.budget, self.key = inner, timeout, budget, key

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, and return its whole answer."""
        self.budget.request()
        try:
            response = await asyncio.wait_for(self._answer(request), self.timeout)
        except asyncio.TimeoutError:
            self._lose("timeout")
            raise httpx.ReadTimeout(f"no whole reply within {self.timeout:g} s", request=request) from None
        except BaseException as error:  # or cancelled
            self._lose(type(error).__name__, not isinstance(error, UNSENT))
            raise
        if response.status_code != 200:
            self._lose(f"status {response.status_code}", response.status_code in COSTLY)
        return response

    def _lose(self, reason: str, costly: bool = True) -> None:
        self.budget.lose(reason, RESERVED.get() if costly else 0, None if costly else 0)

    async def _answer(self, request: Any) -> Any:
        response = await self.inner.handle_async_request(request)
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise httpx.RemoteProtocolError("the reply is compressed, though asked for as it is", request=request)
            body = bytearray()
            async for part in response.stream:
                body += part
                if len(body) > LARGEST:
                    raise httpx.RemoteProtocolError(f"the reply has more than {LARGEST} bytes", request=request)
        finally:
            await response.aclose()
        if response.status_code == 200 and (fault := fault_of(bytes(body), self.key)):
            raise httpx.RemoteProtocolError(fault, request=request)
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(body), request=request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.inner.aclose()


def fault_of(body: bytes, key: str | None = None) -> str | None:
    """Say why the body of an answer is no chat completion, without the key; None where it is one."""
    try:
        choices = parse_json(body)["choices"]
        message = choices[0]["message"]
        texts = [message.get(name) for name in ("content", "reasoning_content", "reasoning", "refusal")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        start = plain(body.decode("utf-8", "replace"), key, 60)  # of all, as a cut could halve the key
        return f"the reply is no chat completion ({type(error).__name__}: {plain(error, key, 80)}): {start!r}"
    if not all(text is None or isinstance(text, str) for text in texts):
        return "the reply's message holds no text"
    return None


class OpenAIBackend(Backend):
    """The model `model` at `base_url`. Images are sent at `image_size`, else as `kept_size` says for `codec`; `detail`
    is OpenAI's setting of that name, and `image_format` png or jpeg. `options` say how the server is asked, and
    `budget` what may be spent."""

    takes_one = True

    def __init__(
        self,
        model: str,
        base_url: str = OFFICIAL,
        codec: str = "",
        options: ServerOptions = ServerOptions(),  # noqa: B008  # frozen
        detail: str | None = None,
        image_format: str = "png",
        budget: BudgetOptions = BudgetOptions(),  # noqa: B008  # frozen
        **sampling: Any,
    ) -> None:
        super().__init__(**sampling)
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"base URL is {base_url!r}; expected one such as http://localhost:8000/v1")
        if address.username or address.password or address.query:
            raise ValueError("the base URL holds a password or a query; give the key by the environment alone")
        if (detail, image_format) not in [(one, kind) for one in (None, *DETAILS) for kind in FORMATS]:
            raise ValueError(f"detail {detail!r}, image format {image_format!r}; expected {DETAILS} and {FORMATS}")
        self.model, self.base_url, self.codec, self.options = model, base_url, codec, options
        self.detail, self.image_format, self.in_flight = detail, image_format, options.in_flight
        self.hosted = address.hostname.endswith("openai.com")
        self.key = key_of(options.key_env)
        self.budget = Budget(budget, model, self.max_new_tokens)
        self.proxy = proxy_of(base_url)
        self.faults = 0  # since the last reply
        self._gate: asyncio.Semaphore | None = None
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes replies."""
        rule = self.image_size or f"as servers of {self.codec or 'any model'} keep it"
        own = {"image_size": rule, "image_format": self.image_format, "detail": self.detail}
        return {**super().settings, **own}

    def sent(self, image: np.ndarray) -> np.ndarray:
        """The image, uint8 [H, W, 3], as it is sent."""
        image = padded(image) if self.squared else image
        width, height = self.seen_size(image.shape[1], image.shape[0])
        return render.resized(image, (height, width))

    def seen_size(self, width: int, height: int) -> Size:
        """Width and height, in pixels, of an image of `width` x `height` as it is sent: the server keeps that size."""
        return kept_size(self.codec, width, height, self.image_size)

    def submit(
        self, image: np.ndarray, prompt: str, seed: int, temperature: float, done: Callable[[Reply], None]
    ) -> Future[Reply]:
        """Ask for one reply without waiting for it. The future raises AgentError where the server gives none, and
        RunError where asking on has no use."""
        return self._run(self._one(self.sent(image), prompt, seed, temperature, done))

    def _ask(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float
    ) -> list[Reply]:
        questions = zip(pictures, prompts, seeds, strict=True)
        futures = [self._run(self._one(*one, temperature, lambda reply: None)) for one in questions]
        return [future.result() for future in futures]

    def _run(self, work: Coroutine[Any, Any, Reply]) -> Future[Reply]:
        """Start work in the event loop of this backend, which ends with the process."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _open(self) -> tuple[Any, asyncio.Semaphore]:
        """The client, and the gate that as many requests pass at a time as may be under way."""
        if self._client is None or self._gate is None:
            options = self.options
            limits = httpx.Limits(max_connections=options.in_flight, max_keepalive_connections=options.in_flight)
            inner = httpx.AsyncHTTPTransport(limits=limits, proxy=self.proxy)
            bounds = httpx.Timeout(options.read_timeout, connect=options.connect_timeout, pool=None)
            self._client = openai.AsyncOpenAI(
                api_key=self.key or "none",
                base_url=self.base_url,
                max_retries=options.retries,
                timeout=bounds,
                default_headers={"Accept-Encoding": "identity"},
                http_client=httpx.AsyncClient(
                    transport=WholeReplies(inner, options.timeout, self.budget, self.key), timeout=bounds
                ),
            )
            self._gate = asyncio.Semaphore(options.in_flight)
        return self._client, self._gate

    async def _one(
        self, picture: np.ndarray, prompt: str, seed: int, temperature: float, done: Callable[[Reply], None]
    ) -> Reply:
        client, gate = self._open()
        async with gate:
            body = await asyncio.to_thread(self._body, picture, prompt, seed, temperature)
            size = size_of_prompt(prompt, picture.shape[1], picture.shape[0])
            reserved, began = self.budget.begin(size), time.perf_counter()
            RESERVED.set(reserved)
            try:
                answer = parse_json(await self._send(client, body))
            finally:
                self.budget.end(reserved)
            self.faults = 0
        counts = [_count(answer.get("usage"), name) for name in ("prompt_tokens", "completion_tokens")]
        self.budget.told(size, *counts)
        seconds, shown = time.perf_counter() - began, (picture.shape[1], picture.shape[0])
        try:
            reply = reply_of(answer, counts, seconds, shown, self.key)
        except AgentError as error:
            self.budget.discard(str(error), *counts)
            raise
        self.tokens["prompt"] += counts[0] or 0
        self.tokens["reply"] += counts[1] or 0
        done(reply)
        return reply

    def _body(self, picture: np.ndarray, prompt: str, seed: int, temperature: float) -> dict[str, Any]:
        """The request for a reply."""
        image = {"url": render.data_url(picture, self.image_format, effort=1)}
        image |= {"detail": self.detail} if self.detail else {}
        content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": prompt}]
        limit = "max_completion_tokens" if self.hosted else "max_tokens"
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], limit: self.max_new_tokens}
        if not self.own_sampling:
            body |= {"temperature": temperature, "seed": seed & 0x7FFFFFFF}
            body |= {"top_p": self.top_p} if self.top_p < 1 else {}
        return body

    async def _send(self, client: Any, body: dict[str, Any]) -> bytes:
        """The bytes of the answer to a request; errors of the client as ours."""
        try:
            return (await client.chat.completions.with_raw_response.create(**body)).http_response.content
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, RunError):
                raise cause from None
            if isinstance(cause, httpx.ConnectError):
                raise RunError(
                    f"nothing answers at {self.base_url} ({plain(cause, self.key)}); start it, go on"
                ) from None
            reason = plain(cause, self.key) or type(cause).__name__
        except openai.APIStatusError as error:
            said = error.message.removeprefix(f"Error code: {error.status_code}").lstrip(" -") or error.response.text
            reason = f"status {error.status_code}: {plain(said, self.key)}"
            if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
                raise RunError(f"{self.base_url} refuses to answer for {self.model!r} ({reason})") from None
        self.faults += 1
        if self.faults >= max(FEWEST_FAULTS, 2 * self.in_flight):
            raise RunError(f"{self.base_url} gave no reply {self.faults} times in a row, the last time: {reason}")
        raise AgentError(f"{self.base_url} gave no reply: {reason}")


def proxy_of(base_url: str) -> str | None:
    """The proxy that the environment names for a server (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), or None."""
    address = urlsplit(base_url)
    if urllib.request.proxy_bypass(address.netloc):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(address.scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"


def reply_of(answer: Any, counts: Sequence[int | None], seconds: float, size: Size, key: str | None) -> Reply:
    """The reply in a chat completion. Raises AgentError where a filter of the server took it."""
    choice = answer["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    if reason == "content_filter":
        raise AgentError("the server's content filter ended the reply")
    text = message.get("content") or message.get("refusal") or ""
    thinking = message.get("reasoning_content") or message.get("reasoning")
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        text += "".join(map(_call, calls))
    told = [text, thinking, reason, answer.get("model")]
    if key:  # a server that sends it back
        told = [one.replace(key, "***") if isinstance(one, str) else one for one in told]
    text, thinking, reason, name = told
    return Reply(
        text,
        thinking=thinking or None,
        finish_reason=reason if isinstance(reason, str) else None,
        prompt_tokens=counts[0],
        tokens=counts[1],
        seconds=seconds,
        sent=size,
        frame=size,
        model=name if isinstance(name, str) else None,
    )


def _call(call: Any) -> str:
    """A tool call as models write it."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return ""
    arguments = function.get("arguments")
    return f'<tool_call>{{"name": "{function.get("name")}", "arguments": {arguments}}}</tool_call>'


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens that a server tells; None where it tells none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 40 else None
