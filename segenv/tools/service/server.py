"""The HTTP service of a tool, on FastAPI; `experiments.serve_tool` starts it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from segenv.data.images import MAX_PIXELS
from segenv.ranges import Count, NotNegative, check
from segenv.tools.base import SegTool
from segenv.tools.cache import EncodingCache
from segenv.tools.service import wire
from segenv.tools.service.batches import Batches, Job
from segenv.types import Prediction, ToolError, image_hash

try:
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as missing:
    raise ImportError("a tool service needs its server: pip install 'segenv[serve]'") from missing

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MARGIN = 1 << 20  # bytes of a body beside those of one image
SLOWEST = 60.0  # seconds that a body may take to arrive
Read = TypeVar("Read")


class Refused(Exception):
    """A request that is not answered; `facts` are the JSON that its client gets."""

    def __init__(self, status: int, **facts: Any) -> None:
        super().__init__(status, facts)
        self.status, self.facts = status, facts


@dataclass(frozen=True)
class Limits:
    """Bounds of a service. Memory is at most about twice `memory`, beside the tool and its cache of encodings."""

    max_pixels: Count = MAX_PIXELS
    """of an image; larger ones are refused before they are read"""
    memory: Count = 1 << 30
    """bytes of images, masks and logits that are kept, the least recently used going first; as much again may be
    under way in requests, and further ones are told to come again"""
    batch_size: Count = 1
    """images of several requests that are worked on together; above 1 the last bits of a learned model may depend on
    who asks at the same time"""
    window: NotNegative = 0.002
    """seconds in which requests are collected for a batch"""
    threads: Count = 1
    """threads that the tool was given; sums of floats may depend on them, so the fingerprint names them"""

    def __post_init__(self) -> None:
        check(self)
        if self.max_body > self.memory:
            raise ValueError(
                f"memory is {self.memory} bytes; an image of {self.max_pixels} pixels needs {self.max_body}"
            )

    @property
    def max_body(self) -> int:
        """Bytes of one request."""
        return 3 * self.max_pixels + MARGIN


class ToolService:
    """Content by its hash, bytes under way, and the batches of a tool."""

    def __init__(self, tool: SegTool, limits: Limits) -> None:
        self.tool, self.limits = tool, limits
        facts = (tool.spec, tool.fingerprint, f"threads={limits.threads}")  # the spec has what no encoding depends on
        self.fingerprint = "|".join(facts) + "|batched" * (limits.batch_size > 1)
        self.blobs = EncodingCache(limits.memory)
        self.batches = Batches(tool, limits.batch_size, limits.window)
        self.under_way = 0

    @property
    def about(self) -> dict[str, Any]:
        """Facts for clients."""
        facts = {"spec": self.tool.spec, "fingerprint": self.fingerprint, "predicts_iou": self.tool.predicts_iou}
        return {**facts, "max_pixels": self.limits.max_pixels, "max_body": self.limits.max_body}

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count bytes that a request holds. Raises Refused where there are too many."""
        if self.under_way and self.under_way + size > self.limits.memory:
            raise Refused(503, error=f"{self.under_way >> 20} MiB of requests are under way; come again")
        self.under_way += size
        try:
            yield
        finally:
            self.under_way -= size

    def keep(self, arrays: Sequence[np.ndarray]) -> list[str]:
        """Keep arrays, and return their keys."""
        keys = [image_hash(array) for array in arrays]
        for key, array in zip(keys, arrays, strict=True):
            self.blobs.put(key, {"content": array})
        return keys

    def find(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays by keys. Raises Refused where some are unknown."""
        found = {key: self.blobs.get(key) for key in dict.fromkeys(keys)}
        if unknown := [key for key, blob in found.items() if blob is None]:
            raise Refused(404, unknown=unknown)
        return {key: blob["content"] for key, blob in found.items() if blob is not None}

    async def encode(self, keys: Sequence[str]) -> None:
        """Encode images."""
        found = self.find(keys)
        with _refusing():
            images = [wire.kind_of(one, "image") for one in found.values()]
        with self.holding(sum(one.nbytes for one in images)):
            await self._answer(Job(images, list(dict.fromkeys(keys))))

    async def predict(self, items: Sequence[wire.Item]) -> bytes:
        """Answer items."""
        arrays = self.find([key for item in items for key in item.keys])
        with _refusing():
            shapes = [wire.kind_of(arrays[item.image], "image").shape for item in items]
        masks = sum(
            shape[0] * shape[1] * (1 if item.mask is None else 2) for item, shape in zip(items, shapes, strict=True)
        )
        if masks > self.limits.memory:
            raise Refused(
                413,
                error=f"masks and answers of the request have {masks >> 20} MiB; expected {self.limits.memory >> 20} "
                "at most: give the service more --memory, or use a smaller batch",
            )
        with self.holding(masks + sum(one.nbytes for one in arrays.values())):
            with _refusing():
                prompts = await asyncio.to_thread(lambda: [wire.prompt_of(item, arrays) for item in items])
            hashes = [item.image for item in items]
            predictions = await self._answer(Job([arrays[key] for key in hashes], hashes, prompts))
            return await asyncio.to_thread(self._pack, predictions)

    async def _answer(self, job: Job) -> list[Prediction]:
        try:
            return await self.batches.answer(job)
        except ToolError as error:
            raise Refused(500, error=str(error)) from error

    def _pack(self, predictions: Sequence[Prediction]) -> bytes:
        answer, states = wire.pack_answer(predictions, {"fingerprint": self.fingerprint})
        self.keep(states)
        return answer

    async def read(self, request: Request, read: Callable[[Any], Read]) -> tuple[Read, list[np.ndarray]]:
        """Facts and arrays of a request's body. Raises Refused where it is too large, too slow or no such thing."""
        told = request.headers.get("content-length", "")
        if request.headers.get("content-type") != wire.CONTENT_TYPE:
            raise Refused(415, error=f"expected the content type {wire.CONTENT_TYPE}")
        if not told.isascii() or not told.isdigit() or "transfer-encoding" in request.headers:
            raise Refused(411, error="expected a Content-Length, and no Transfer-Encoding")
        if len(told) > 15 or int(told) > self.limits.max_body:
            raise Refused(413, error=f"the body has {told[:15]} bytes; expected {self.limits.max_body} at most")
        with self.holding(2 * int(told)):  # the body, and its arrays
            try:
                body = await asyncio.wait_for(_body(request, int(told)), SLOWEST)
            except asyncio.TimeoutError:
                raise Refused(408, error=f"the body did not arrive within {SLOWEST:g} seconds") from None
            with _refusing():
                return await asyncio.to_thread(self._read, body, read)

    def _read(self, body: bytes, read: Callable[[Any], Read]) -> tuple[Read, list[np.ndarray]]:
        facts, arrays = wire.unpack(body)
        for array in arrays.values():
            wire.check_blob(array, self.limits.max_pixels)
        return read(facts), list(arrays.values())


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuse what is no request: a ValueError is told to the client."""
    try:
        yield
    except ValueError as error:
        raise Refused(400, error=str(error)) from error


async def _body(request: Request, size: int) -> bytes:
    """The body of a request. Raises Refused as soon as it has more than `size` bytes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > size:
            raise Refused(413, error=f"the body has more than the {size} bytes of its Content-Length")
    return bytes(body)


def make_app(tool: SegTool, limits: Limits, token: str | None, host: str) -> FastAPI:
    """The application that answers for `tool`. Without a token it answers any client on this machine alone: `host` has
    to be a loopback address, else ValueError."""
    wire.check_token(token)
    if token is None and host not in LOOPBACK:
        raise ValueError(
            f"host {host} can be reached by others, so clients need a token: set {wire.TOKEN} to a long random text, "
            "for the service and for its clients; or serve on 127.0.0.1"
        )
    service = ToolService(tool, limits)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(service.batches.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if token is not None and not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise Refused(401, error="the token is missing or wrong")

    hidden: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(lifespan=working, dependencies=[Depends(authorised)], **hidden)
    app.state.service = service
    if host in LOOPBACK:  # a page in a browser on this machine may know the address, but not send this name
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
        return JSONResponse(error.facts, error.status, headers.get(error.status))

    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: ToolService) -> None:
    def answer(facts: dict[str, Any]) -> Response:
        return Response(wire.pack({**facts, "fingerprint": service.fingerprint}), media_type=wire.CONTENT_TYPE)

    @app.get("/tool")
    async def tell() -> dict[str, Any]:
        return service.about

    @app.post("/blobs")
    async def blobs(request: Request) -> Response:
        _, arrays = await service.read(request, dict)
        return answer({"keys": await asyncio.to_thread(service.keep, arrays)})

    @app.post("/encode")
    async def encode(request: Request) -> Response:
        facts, _ = await service.read(request, _keys)
        await service.encode(facts)
        return answer({})

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        facts, _ = await service.read(request, _items)
        return Response(await service.predict(facts), media_type=wire.CONTENT_TYPE)


def _keys(facts: Any) -> list[str]:
    keys = wire.READ_KEYS(facts).get("images", [])
    wire.check_keys(keys)
    return _bounded(keys)


def _items(facts: Any) -> list[wire.Item]:
    return _bounded(wire.READ_ITEMS(facts).get("items", []))


def _bounded(items: list[Any]) -> list[Any]:
    if not 0 < len(items) <= wire.MOST_ITEMS:
        raise ValueError(f"the request has {len(items)} items; expected 1 to {wire.MOST_ITEMS}")
    return items
