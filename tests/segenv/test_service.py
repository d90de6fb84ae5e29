"""The tool service: equal to the tool itself, also in searches and from many clients, and closed to all else."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import socket
import threading
import time
from dataclasses import fields

import numpy as np
import pytest
from conftest import disc_task
from made_service import serving
from test_tools import IMAGES, PROMPTS, ToolContract, same

import agents
from search import spec
from search.rollout import rollout
from segenv.mdp import SegMDP
from segenv.tools import SegTool, make
from segenv.tools.service import wire
from segenv.tools.service.client import HttpTool
from segenv.tools.service.server import Limits, Refused, Request, _body, make_app
from segenv.types import Click, Prediction, Prompt, ToolError, image_hash

urllib3 = pytest.importorskip("urllib3")


@pytest.fixture(scope="module")
def grabcut():
    with serving(make("grabcut")) as (url, service):
        yield url, service


class TestServed(ToolContract):
    """Laws of every tool hold for a served one."""

    @pytest.fixture(autouse=True)
    def address(self, grabcut):
        self.url = grabcut[0]

    def make_tool(self, cache=None) -> SegTool:
        return make(self.url, cache=cache)


@pytest.mark.parametrize(
    "tool", ["disc:radius=6", "grabcut", "sam:refine=none", pytest.param("sam", marks=pytest.mark.slow)]
)
def test_masks_logits_and_scores_are_those_of_the_tool_itself(tool):
    """Bit by bit, click by click, in batches of unequal images, in an episode and in a branching search."""
    local = make(tool)
    with serving(make(tool)) as (url, _):
        served = make(url)
        assert served.predicts_iou == local.predicts_iou and local.fingerprint in served.fingerprint
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(IMAGES))]
        for _ in range(3):
            found = [one.predict(one.encode(IMAGES), prompts) for one in (local, served)]
            for ours, theirs in zip(*found, strict=True):
                same(ours, theirs)
            prompts = [
                Prompt((*p.clicks, Click(7, 7)), None, a.mask, a.logits) for p, a in zip(prompts, found[1], strict=True)
            ]
        tasks = [disc_task(48, 64, 20 + 6 * i, 20, 12, str(i)) for i in range(3)]
        for name in ("none", "beam:k=2,value=oracle"):
            told = [_episodes(SegMDP(one, 3), name, tasks) for one in (local, served)]
            assert told[0] == told[1], name


def _episodes(mdp: SegMDP, name: str, tasks: list) -> list:
    agent, search = agents.make("annotator:jitter:sigma=0.2"), spec.parse(name)
    if search is None:
        return [{**e.to_json(), "seconds": None} for e in rollout(mdp, agent, tasks)]
    trees = search.search(mdp, agent, tasks, search.value_function(mdp, agent), batch_size=2)
    return [(tree.best.state.mask.tobytes(), tree.best.state.clicks, repr(tree.best.state.score)) for tree in trees]


def test_an_image_is_sent_once_and_again_where_it_was_forgotten(grabcut):
    url, service = grabcut
    sent: list[int] = []

    class Counting(HttpTool):
        def _give(self, arrays):
            sent.append(sum(one.ndim == 3 for one in arrays.values()))
            super()._give(arrays)

    image = np.random.default_rng(5).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    tool, other = Counting(url), Counting(url)
    [encoding] = tool.encode([image])
    first = tool.predict([encoding], [Prompt((Click(9, 9),))])[0]
    state = Prompt((Click(9, 9), Click(20, 20)), None, first.mask, first.logits)
    [second] = tool.predict([encoding], [state])
    other.encode([image])
    assert sent == [1], "masks that the service made are named, and another client's image is known"
    service.blobs.clear()
    same(tool.predict([encoding], [state])[0], second)  # any state can be gone on with
    assert sent == [1, 1]


def test_a_service_that_is_down_is_a_fault_and_one_that_comes_back_goes_on():
    with serving(make("disc")) as (url, _):
        tool, impatient = make(url, patience=20.0), make(url, patience=0.3)
        encodings = tool.encode(IMAGES[:1])
        [before] = tool.predict(encodings, [PROMPTS[0]])
    with pytest.raises(ToolError, match=r"no answer for 0\.3 s.*serve_tool.*--resume"):
        impatient.predict(impatient.encode(IMAGES[:1]), [PROMPTS[0]])
    with pytest.raises(ToolError, match="no answer"):
        make(url, patience=0.1)
    back, port = threading.Event(), int(url.rpartition(":")[2])

    def come_back() -> None:
        time.sleep(0.5)
        with serving(make("disc"), port=port):
            back.wait(60)

    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        same(tool.predict(encodings, [PROMPTS[0]])[0], before)  # it has forgotten the image, and is sent it
    finally:
        back.set()
        thread.join()
    with serving(make("disc:radius=3"), port=port), pytest.raises(ToolError, match="serves another tool"):
        tool.predict(encodings, [PROMPTS[0]])


@pytest.mark.parametrize("spec, limits", [("grabcut:iterations=2", {}), ("grabcut", {"threads": 2})])
def test_what_no_encoding_depends_on_makes_another_service_too(spec, limits):
    assert make("grabcut").fingerprint == make(spec).fingerprint
    with serving(make("grabcut")) as (url, _):
        tool = make(url)
        tool.encode(IMAGES[:1])
    with serving(make(spec), port=int(url.rpartition(":")[2]), **limits):
        with pytest.raises(ToolError, match="serves another tool"):
            tool.encode(IMAGES[1:2])
        assert make(url).fingerprint != tool.fingerprint, "no run goes on with it"


class Short(type(make("disc"))):
    """Gives no prediction for three clicks."""

    def _predict(self, encodings, prompts):
        return [one for one in super()._predict(encodings, prompts) if len(prompts[0].clicks) != 3]


class Ending(type(make("disc"))):
    """Raises what ends a generator, for three clicks."""

    def predict(self, encodings, prompts):
        return next(iter(())) if len(prompts[0].clicks) == 3 else super().predict(encodings, prompts)


@pytest.mark.parametrize("kind, reason", [(Short, "gave 0 predictions for 1 prompts"), (Ending, "StopIteration")])
def test_no_fault_of_a_tool_ends_its_service(kind, reason):
    with serving(kind()) as (url, _):
        tool = make(url, timeout=20.0, patience=0.0)
        encodings = tool.encode(IMAGES[:1])
        with pytest.raises(ToolError, match=f"status 500: disc.*{reason}"):
            tool.predict(encodings, [Prompt((Click(1, 1), Click(2, 2), Click(3, 3)))])
        assert tool.predict(encodings, [Prompt((Click(1, 1),))])[0].mask[1, 1]


def test_a_fault_of_the_tool_is_told_and_is_that_of_one_client_alone():
    class Broken(type(make("disc"))):
        def _predict(self, encodings, prompts):
            if any(len(prompt.clicks) == 3 for prompt in prompts):
                raise RuntimeError("out of memory")
            return super()._predict(encodings, prompts)

    with serving(Broken(), batch_size=8, window=0.2) as (url, service):
        assert service.fingerprint.endswith("|batched"), "a run is not mixed with one whose batches are its own"
        found: dict[int, object] = {}

        def ask(clicks: int) -> None:
            tool = make(url)
            try:
                prompt = Prompt(tuple(Click(i, i) for i in range(clicks)))
                found[clicks] = tool.predict(tool.encode(IMAGES[:1]), [prompt])[0]
            except ToolError as error:
                found[clicks] = error

        threads = [threading.Thread(target=ask, args=(clicks,)) for clicks in range(1, 6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert service.batches.calls < service.batches.jobs, "clients were answered together"
    assert "status 500" in str(found[3]) and "disc: predict failed: RuntimeError: out of memory" in str(found.pop(3))
    for clicks, prediction in found.items():
        local = make("disc")
        prompt = Prompt(tuple(Click(i, i) for i in range(clicks)))
        same(prediction, local.predict(local.encode(IMAGES[:1]), [prompt])[0])


def test_a_token_is_asked_for_and_is_kept_nowhere(monkeypatch):
    monkeypatch.delenv(wire.TOKEN, raising=False)
    with serving(make("disc"), token="a long secret") as (url, _):
        for given in (None, "another", "a long secret and more"):
            if given:
                monkeypatch.setenv(wire.TOKEN, given)
            with pytest.raises(ToolError, match=f"status 401: it wants a token: set {wire.TOKEN}"):
                make(url)
        monkeypatch.setenv(wire.TOKEN, "a long secret")
        tool = make(url)
        assert len(tool.encode(IMAGES)) == len(IMAGES)
        assert b"secret" not in pickle.dumps(tool)
    with pytest.raises(ValueError, match=r"host 0\.0\.0\.0 can be reached by others.*set SEGENV_TOOL_TOKEN"):
        make_app(make("disc"), Limits(), None, "0.0.0.0")
    for token in ("schlüssel", "two\nlines"):
        monkeypatch.setenv(wire.TOKEN, token)
        for start in (lambda token: make_app(make("disc"), Limits(), token, "127.0.0.1"), lambda _: make(url)):
            with pytest.raises(ValueError, match=f"{wire.TOKEN} has a character") as told:
                start(token)
            assert token not in str(told.value)


KEY = image_hash(IMAGES[0])
BITS = np.ones(9, np.uint8)
ITEM = {"image": KEY, "clicks": [[20, 10, True]], "box": None, "mask": None, "logits": None}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def _packed(**facts) -> bytes:
    return wire.pack(facts)


@pytest.mark.parametrize(
    "path, body, status, reason",
    [
        ("/predict", b"", 400, "hash"),
        ("/predict", PNG, 400, "hash"),
        ("/predict", b"\x80\x04\x95" + bytes(99), 400, "hash"),
        ("/predict", _packed(items=[ITEM])[:-1], 400, "hash"),
        ("/predict", wire.content_hash(PNG).encode() + PNG, 400, "no safetensors"),
        ("/predict", _packed(), 400, "0 items"),
        ("/predict", _packed(items=[ITEM] * 1025), 400, "1025 items"),
        ("/predict", _packed(items=[{**ITEM, "image": "../../etc/passwd"}]), 400, "no key"),
        ("/predict", _packed(items=[{**ITEM, "mask": "/etc/passwd"}]), 400, "no key"),
        ("/predict", _packed(items=[{**ITEM, "file": "x"}]), 400, "'file'"),
        ("/predict", _packed(items=[{**ITEM, "clicks": [[20, 10]]}]), 400, "clicks"),
        ("/predict", _packed(items=[{**ITEM, "clicks": [[64, 10, True]]}]), 400, "outside the image"),
        ("/predict", _packed(items=[{**ITEM, "clicks": [[-1, 10, True]]}]), 400, "outside the image"),
        ("/predict", _packed(items=[{**ITEM, "box": [5, 5, 5, 9]}]), 400, "box"),
        ("/predict", _packed(items=[{**ITEM, "mask": KEY}]), 400, "a key is of image"),
        ("/predict", _packed(items=[{**ITEM, "logits": KEY}]), 400, "a key is of image"),
        ("/predict", _packed(items=[ITEM] * 1024), 413, "masks and answers of the request have 3 MiB"),
        ("/predict", _packed(items=[{**ITEM, "mask": KEY}] * 400), 413, "masks and answers of the request have 2 MiB"),
        ("/predict", _packed(items=[ITEM] * 400), 200, ""),
        ("/encode", _packed(images=["0" * 31]), 400, "no key"),
        ("/encode", _packed(images=[image_hash(BITS)]), 400, "a key is of mask; expected one of image"),
        ("/encode", _packed(images=["0" * 32]), 404, "unknown"),
        ("/encode", _packed(images=7), 400, "images"),
        ("/encode", wire.pack([]), 400, "values by name"),
        ("/blobs", wire.pack({}, {"a": np.zeros((4, 4, 4), np.uint8)}), 400, r"\[4, 4, 4\]"),
        ("/blobs", wire.pack({}, {"a": np.zeros((200, 200, 3), np.uint8)}), 400, "10000 pixels at most"),
        ("/blobs", wire.pack({}, {"a": np.zeros((0, 4, 3), np.uint8)}), 400, r"\[0, 4, 3\]"),
        ("/blobs", wire.pack({}, {"a": np.full((4, 4), np.nan, np.float32)}), 400, "finite"),
        ("/blobs", wire.pack({}, {"a": np.zeros((4, 4), np.float64)}), 400, "float64"),
        ("/blobs", bytes(2 << 20), 413, "bytes"),
        ("/../../etc/passwd", b"", 404, ""),
        ("/blobs/..%2f..%2fetc%2fpasswd", b"", 404, ""),
        ("/docs", b"", 404, ""),
    ],
)
def test_what_is_no_request_is_refused(small, path, body, status, reason):
    response = small[1].request("POST", small[0] + path, body=body, headers={"Content-Type": wire.CONTENT_TYPE})
    assert response.status == status, response.data
    assert re.search(reason, response.data.decode("utf-8", "replace")), response.data


@pytest.fixture(scope="module")
def small():
    """A service of small images, and a pool of connections; one image is known."""
    with serving(make("disc"), max_pixels=10_000, memory=2 << 20) as (url, service):
        service.keep([BITS])
        make(url).encode(IMAGES[:1])
        yield url, urllib3.PoolManager(retries=False)
        assert service.under_way == 0, "what was refused holds no memory"


def test_other_ways_in_are_closed(small):
    url, pool = small
    body = _packed(images=[KEY])
    assert pool.request("POST", f"{url}/encode", body=body, headers={"Content-Type": "text/plain"}).status == 415
    headers = {"Content-Type": wire.CONTENT_TYPE, "Host": "evil.example"}
    assert pool.request("POST", f"{url}/encode", body=body, headers=headers).status == 400
    headers = {"Content-Type": wire.CONTENT_TYPE, "Transfer-Encoding": "chunked"}
    assert pool.request("POST", f"{url}/encode", body=iter([body]), headers=headers).status == 411
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as line:
        head = f"POST /blobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {wire.CONTENT_TYPE}\r\n"
        line.sendall(f"{head}Content-Length: 99999999999999999999\r\n\r\n".encode())
        assert b" 413 " in line.recv(4096) or b" 400 " in line.recv(4096)
    with socket.create_connection((host, int(port)), 30) as line:
        line.sendall(f"{head}Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert b" 411 " in line.recv(4096)
    with pytest.raises(ToolError, match="image has 40000 pixels; the service takes 10000 at most"):
        make(url).encode([np.zeros((200, 200, 3), np.uint8)])
    assert json.loads(pool.request("GET", f"{url}/tool").data)["max_pixels"] == 10_000


def test_a_body_is_read_no_further_than_it_may_be():
    parts = iter([{"type": "http.request", "body": bytes(6), "more_body": True}] * 100)

    async def receive():
        return next(parts)

    with pytest.raises(Refused) as told:
        asyncio.run(_body(Request({"type": "http"}, receive), 10))
    assert told.value.status == 413 and len(list(parts)) == 98


def test_memory_is_bounded_and_a_batch_that_does_not_fit_says_so(small):
    url, _ = small
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (99, 99, 3), dtype=np.uint8) for _ in range(120)]  # 3.5 MB; 2 MiB are kept
    tool = make(url)
    for start in range(0, 120, 20):
        part = images[start : start + 20]
        masks = tool.predict(tool.encode(part), [Prompt((Click(50, 50),))] * 20)
        assert all(one.mask[50, 50] for one in masks)
    with pytest.raises(ToolError, match="--memory"):
        tool.predict(tool.encode(images), [Prompt((Click(50, 50),))] * 120)


@pytest.mark.parametrize("url", ["http:", "http:ftp://host", "http://user:key@host:1", "http://host:1/?key=1"])
def test_a_wrong_address_is_explained(url):
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        make(url)


def test_all_that_a_prompt_and_a_prediction_hold_is_sent():
    """A field that is added to them has to be added to the format too, or a service would answer something else."""
    assert [field.name for field in fields(Prompt)] == ["clicks", "box", "mask", "logits"]
    assert [field.name for field in fields(Prediction)] == ["mask", "logits", "score"]
