"""A tool that a service answers for: `--tool http://HOST:PORT`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
from urllib.parse import urlsplit

import numpy as np

from segenv.ranges import Count, NotNegative, Positive, require
from segenv.records import parse_json, reader
from segenv.texts import one_line
from segenv.tools.base import SegTool
from segenv.tools.cache import Encoding, EncodingCache
from segenv.tools.service import wire
from segenv.types import Prediction, Prompt, ToolError, image_hash

try:
    import tenacity
    import urllib3
except ImportError as missing:
    raise ImportError("tool 'http:…' needs a client: pip install 'segenv[http]'") from missing

LONGEST = 1 << 30  # bytes of an answer
BUSY = (429, 502, 503, 504)  # states of a service that pass
ROUNDS = 8  # times that content is sent again in one request, where the service forgot it meanwhile


class About(TypedDict):
    """Facts that a service tells of its tool."""

    spec: str
    fingerprint: str
    predicts_iou: bool
    max_pixels: int
    max_body: int


class _Passing(Exception):
    """A fault after which a request is sent again."""


class _Unknown(Exception):
    """Keys whose content the service lacks."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(keys)
        self.keys = keys


class HttpTool(SegTool):
    """The tool of the service at `url` (`python -m experiments.serve_tool`), with equal masks, logits and scores.

    An image is sent once, and again where the service has forgotten it; masks and logits that the service made are
    named by their hash. A request that the connection or a busy service fails is sent again, at growing intervals, for
    `patience` seconds; `timeout` is of one answer, in seconds. After that, and for all other faults, `ToolError`.
    The token stands in the environment variable SEGENV_TOOL_TOKEN, and is kept nowhere else.
    """

    def __init__(
        self, url: str = "", timeout: float = 300.0, patience: float = 60.0, cache: EncodingCache | None = None
    ) -> None:
        super().__init__(cache)
        require(Positive, timeout=timeout)
        require(NotNegative, patience=patience)
        self.url = ("http:" + url if url.startswith("//") else url).rstrip("/")
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.username:
            raise ValueError(f"tool 'http:{url}': expected http://HOST:PORT, without a password or a query")
        self.timeout, self.patience = timeout, patience
        self._connections: Any = None
        wire.check_token(_token())
        about = self._told()
        self.spec = self.url if address.scheme == "http" else f"http:{self.url}"
        self.fingerprint, self.predicts_iou = f"http|{about['fingerprint']}", about["predicts_iou"]
        self.served, self.max_body, self.max_pixels = about["fingerprint"], about["max_body"], about["max_pixels"]

    def __getstate__(self) -> dict[str, Any]:
        """State that crosses to another process: no connection."""
        return super().__getstate__() | {"_connections": None}

    def _told(self) -> About:
        try:
            about = reader(About)(parse_json(self._send("GET", "/tool", b"")))
            require(Count, max_body=about["max_body"], max_pixels=about["max_pixels"])
        except ValueError as error:
            raise ToolError(
                f"{self.url} is no tool service ({error}); give the address that serve_tool shows"
            ) from None
        return about

    def _encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        for image in images:
            if (pixels := image.shape[0] * image.shape[1]) > self.max_pixels:
                raise ToolError(f"{self.url}: image has {pixels} pixels; the service takes {self.max_pixels} at most")
        keys = [image_hash(image) for image in images]
        for start in range(0, len(keys), wire.MOST_ITEMS):
            part = slice(start, start + wire.MOST_ITEMS)
            self._ask("/encode", {"images": keys[part]}, dict(zip(keys[part], images[part], strict=True)))
        return [
            {"image": image, "key": np.frombuffer(bytes.fromhex(key), np.uint8)}
            for key, image in zip(keys, images, strict=True)
        ]

    def _predict(self, encodings: Sequence[Encoding], prompts: Sequence[Prompt]) -> list[Prediction]:
        found: list[Prediction] = []
        for start in range(0, len(prompts), wire.MOST_ITEMS):
            part = slice(start, start + wire.MOST_ITEMS)
            items, arrays, sizes = [], dict[str, np.ndarray](), []
            for encoding, prompt in zip(encodings[part], prompts[part], strict=True):
                key = encoding["key"].tobytes().hex()
                facts, states = wire.item_of(key, prompt)
                items.append(facts)
                arrays |= {key: encoding["image"], **states}
                sizes.append(encoding["image"].shape[:2])
            answer = self._ask("/predict", {"items": items}, arrays)
            try:
                found += wire.read_answer(answer, sizes)
            except ValueError as error:
                raise ToolError(f"{self.url}: {error}; update client and service to one version") from error
        return found

    def _ask(self, path: str, facts: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of the answer; content that the service lacks is sent from `arrays`."""
        body = wire.pack(facts)
        for _ in range(ROUNDS):
            try:
                return self._answer(path, body)
            except _Unknown as unknown:
                self._give({key: arrays[key] for key in unknown.keys if key in arrays})
        raise ToolError(
            f"{self.url}: the service forgets content before it is used; give it more --memory, or use a smaller batch"
        )

    def _give(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Send content, in as few requests as the service's limit allows."""
        part, size = dict[str, np.ndarray](), 0
        for key, array in arrays.items():
            if part and size + array.nbytes > self.max_body - (1 << 16):
                self._answer("/blobs", wire.pack({}, part))
                part, size = {}, 0
            part[key], size = array, size + array.nbytes + 256
        if part:
            self._answer("/blobs", wire.pack({}, part))

    def _answer(self, path: str, body: bytes) -> dict[str, np.ndarray]:
        facts, arrays = self._send("POST", path, body, wire.unpack)
        if facts.get("fingerprint") != self.served:
            raise ToolError(
                f"{self.url} now serves another tool than at the start, so its masks would be mixed; serve the one "
                "that the run began with"
            )
        return arrays

    def _send(self, method: str, path: str, body: bytes, read: Any = bytes) -> Any:
        """The answer to one request, as `read` makes it; sent again after faults that pass."""
        wait = tenacity.wait_random_exponential(multiplier=0.1, max=5)
        stop, again = tenacity.stop_after_delay(self.patience), tenacity.retry_if_exception_type(_Passing)
        try:
            return tenacity.Retrying(stop=stop, wait=wait, retry=again, reraise=True)(
                self._send_once, method, path, body, read
            )
        except _Passing as fault:
            raise ToolError(
                f"{self.url} gave no answer for {self.patience:g} s ({fault}); start the service again with "
                "python -m experiments.serve_tool, then go on with --resume DIR"
            ) from fault

    def _send_once(self, method: str, path: str, body: bytes, read: Any) -> Any:
        if self._connections is None:
            self._connections = urllib3.PoolManager(maxsize=16, block=False, retries=False)
        headers = {"Content-Type": wire.CONTENT_TYPE, "Accept-Encoding": "identity"}
        if token := _token():
            headers["Authorization"] = f"Bearer {token}"
        limits = urllib3.Timeout(connect=min(10.0, self.timeout), read=self.timeout)
        try:
            response = self._connections.request(
                method,
                self.url + path,
                body=body or None,
                headers=headers,
                timeout=limits,
                redirect=False,
                preload_content=False,
            )
            content = response.read(LONGEST + 1)
            response.release_conn() if len(content) <= LONGEST else response.close()
        except urllib3.exceptions.HTTPError as error:
            raise _Passing(" ".join(str(error).split())[-200:]) from error
        if len(content) > LONGEST:
            raise ToolError(f"{self.url}: an answer has more than {LONGEST} bytes")
        if response.status != 200:
            raise self._fault(response.status, content)
        try:
            return read(content)
        except ValueError as error:
            raise _Passing(f"a damaged answer: {error}") from error

    def _fault(self, status: int, content: bytes) -> Exception:
        """The error that an answer other than 200 stands for."""
        try:
            told = reader(dict)(parse_json(content))
        except ValueError:
            told = {}
        if status == 404 and told.get("unknown"):
            return _Unknown(READ_UNKNOWN(told["unknown"]))
        text = one_line(str(told.get("error", "no reason given")))[:500]
        if status in BUSY:
            return _Passing(f"status {status}: {text}")
        if status == 401:
            text = f"it wants a token: set {wire.TOKEN} to the one that the service was started with"
        return ToolError(f"{self.url}: status {status}: {text}")


def _token() -> str | None:
    return os.environ.get(wire.TOKEN, "").strip() or None


READ_UNKNOWN = reader(list[str])
