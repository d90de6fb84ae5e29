"""The page of the demo in a browser: a person clicks on the image, and takes home what the page shows."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import made_browser
import numpy as np
import pytest
from made_tools import BrokenTool
from PIL import Image
from pycocotools import mask as pycoco
from test_demo import PIXELS, Says, demo_of

from experiments.common.config import RunError
from experiments.demo.config import LOOPBACK, Args
from segenv import codec, data
from segenv.geometry import polygons_to_mask
from segenv.types import object_of

ROOT = Path(__file__).resolve().parents[2]
FACTS = "document.querySelector('[data-at=moments]')"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(made_browser.BROWSER is None, reason="Chromium is not installed; the page is seen in a browser"),
]
pytest.importorskip("gradio", reason="segenv[demo] is not installed")


class Page(made_browser.Browser):
    """The page of a demo."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.call("Network.enable")
        self.foreign: list[str] = []
        self.home = url
        self.open(url, f"{FACTS}?.dataset.count === '1' && document.querySelector('#scene img')?.complete")

    def _next(self, end: float) -> dict[str, Any]:
        message = super()._next(end)
        if message.get("method") == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if not address.startswith((getattr(self, "home", ""), "data:", "blob:", "about:", "chrome")):
                self.foreign.append(address)
        return message

    def point(self, x: float, y: float) -> None:
        """Click with the mouse at a point of the picture, in fractions of its shown width and height."""
        self.run("window.scrollTo(0, 0)")
        sides = "i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight"
        box = f"(i => [i.getBoundingClientRect().x, i.getBoundingClientRect().y, {sides}])"
        left, top, *shown, wide, high = self.run(f"{box}(document.querySelector('#scene img'))")
        scale = min(shown[0] / wide, shown[1] / high)  # it is shown whole, in the middle
        width, height = scale * wide, scale * high
        left, top = left + (shown[0] - width) / 2, top + (shown[1] - height) / 2
        at = {"x": left + x * width, "y": top + y * height, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press_button(self, name: str) -> None:
        """Press a button."""
        self.run(
            f"(e => e.matches('button') ? e : e.querySelector('button'))(document.getElementById('{name}')).click()"
        )

    def choose(self, words: str) -> None:
        """Choose what a click on the picture means."""
        self.run(f"[...document.querySelectorAll('#mode label')].find(l => l.innerText.includes('{words}')).click()")

    def count(self, moments: int) -> None:
        """Wait for a number of moments."""
        self.wait(f"{FACTS}?.dataset.count === '{moments}'")

    def now(self) -> dict[str, str]:
        """The last moment's row, by the table's heads."""
        cells = f"{FACTS}.querySelectorAll('thead th, tbody tr:first-child td')"
        texts = self.run(f"[...{cells}].map(cell => cell.innerText)")
        return dict(zip(texts[: len(texts) // 2], texts[len(texts) // 2 :], strict=True))

    def files(self) -> dict[str, bytes]:
        """Export, and fetch what the links lead to."""
        self.press_button("export")
        self.wait("document.querySelectorAll('#files a[href]').length >= 5")
        load = "async a => [a.href, [...new Uint8Array(await (await fetch(a.href)).arrayBuffer())]]"
        found = self.run(f"Promise.all([...document.querySelectorAll('#files a[href]')].map({load}))")
        return {re.sub(r".*-", "", address): bytes(content) for address, content in found}


@pytest.fixture(autouse=True)
def _at_home(tmp_path, monkeypatch):
    """Keep uploads in the test's folder, and see to it that the server asks no other host."""
    asked, look_up = set(), socket.getaddrinfo

    def noted(host, *args, **given):
        asked.add(host.decode() if isinstance(host, bytes) else host)
        return look_up(host, *args, **given)

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(socket, "getaddrinfo", noted)
    yield
    assert asked <= {*LOOPBACK, None}


@contextmanager
def served(demo: Any) -> Iterator[Page]:
    """A page on a demo in this process."""
    from experiments.demo import page

    with closing(page.build(demo, 512)) as blocks, Page(page.launch(blocks, Args(port=0))) as browser:
        yield browser


def test_a_person_clicks_undoes_lets_the_agent_click_and_exports(tmp_path):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    flags = ["--data", "from:7:synthetic:test", "--port", "0"]
    command = [sys.executable, "-m", "experiments.demo", *flags]
    (task,) = data.make("from:7:synthetic:test").select([0])
    target = object_of(task.target)
    row, column = np.argwhere(target).mean(axis=0)
    with subprocess.Popen(command, env=settings, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[-1]
            assert url.startswith("http://127.0.0.1:")
            with Page(url) as page:
                page.point((column + 0.5) / task.width, (row + 0.5) / task.height)
                page.count(2)
                first = page.now()
                x, y = map(int, re.findall(r"\d+", first["action"]))
                assert first["by"] == "you" and abs(x - column) <= 1 and abs(y - row) <= 1
                assert int(first["area, px"]) > 0 and 0 < float(first["tool"]) <= 1 and 0 <= float(first["prm"]) <= 1
                page.choose("negative")
                page.point(0.02, 0.02)
                page.count(3)
                assert page.now()["action"].startswith("negative click")
                page.press_button("undo")
                page.count(2)
                assert page.now() == first
                page.press_button("reset")
                page.count(1)
                page.press_button("ask")
                page.count(2)
                asked = page.now()
                assert asked["by"] == "mllm" and "Current IOU: 0" in asked["reply"] and float(asked["stated"]) == 0
                page.press_button("play")
                page.wait("/ended the episode|Step 20 of 20/.test(document.querySelector('.told').innerText)")
                last, files = page.now(), page.files()
                assert page.errors == [] and page.foreign == []
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM and not list(tmp_path.glob("segenv-demo-*"))
    mask = np.asarray(Image.open(io.BytesIO(files["mask.png"]))) == 255
    (annotation,) = json.loads(files["coco.json"])["annotations"]
    assert (pycoco.decode(annotation["segmentation"]) == mask).all() and mask.sum() == int(last["area, px"])
    union = (mask | target).sum()
    assert float(last["IoU"]) == pytest.approx((mask & target).sum() / union, abs=0.001)
    drawn = codec.make("rings").parse(files["rings.txt"].decode(), task)
    assert (polygons_to_mask(drawn.rings, *mask.shape) == mask).all()
    assert np.asarray(Image.open(io.BytesIO(files["overlay.png"]))).shape == task.image.shape
    assert json.loads(files["simpleseg.txt"])


def test_boxes_own_images_and_refused_ones(tmp_path):
    wide = tmp_path / "my wide photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 1000, 3), np.uint8)).save(wide)
    large = tmp_path / "large.png"
    Image.new("L", (2000, 1000)).save(large)
    with served(demo_of(tmp_path, max_pixels=1_000_000)) as page:

        def upload(path: Path) -> None:
            page.call("DOM.enable")
            root = page.call("DOM.getDocument")["root"]["nodeId"]
            found = page.call("DOM.querySelector", nodeId=root, selector="input[type=file]")
            page.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])

        page.choose("box")
        page.point(0.25, 0.5)
        page.wait("document.querySelector('.told').innerText.includes('opposite corner')")
        page.point(0.75, 0.75)
        page.count(2)
        corners = list(map(int, re.findall(r"\d+", page.now()["action"])))
        assert np.abs(np.subtract(corners, (20, 30, 61, 46))).max() <= 1
        upload(large)
        page.wait("document.querySelector('[data-at=error]')?.innerText.includes('more than the 1,000,000 pixels')")
        assert str(tmp_path) not in page.run("document.querySelector('[data-at=error]').innerText")
        page.count(2)  # what was open stays
        upload(wide)
        page.count(1)
        assert page.now()["IoU"] == "–"
        page.choose("positive")
        page.point(0.9, 0.5)
        page.count(2)
        x, y = map(int, re.findall(r"\d+", page.now()["action"]))
        assert abs(x - 900) <= 2 and abs(y - 50) <= 2
        page.press_button("ask")
        page.wait("document.querySelector('[data-at=error]')?.innerText.includes('nobody knows')")
        assert page.errors == [] and page.foreign == []


def test_a_broken_tool_is_an_error_and_an_invalid_reply_runs_nothing(tmp_path):
    hostile = "</code><img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
    with served(demo_of(tmp_path, Says(hostile, hostile), tool=BrokenTool())) as page:
        page.point(0.5, 0.5)
        page.wait("document.querySelector('[data-at=error]')?.innerText === 'the tool is gone'")
        page.count(1)
        page.press_button("ask")
        page.count(2)
        page.wait("document.querySelector('[data-at=invalid]')")
        assert page.now()["reply"] == hostile and page.now()["area, px"] == "0"
        assert page.run("window.hacked === undefined") and page.errors == []


def test_others_need_the_password_and_other_names_get_nothing(tmp_path, monkeypatch):
    import httpx

    from experiments.demo import page

    demo = demo_of(tmp_path, Says(PIXELS.grammar.finish))
    with closing(page.build(demo, 512)) as blocks:
        url = page.launch(blocks, Args(port=0))
        assert httpx.get(url).headers["Content-Security-Policy"] == page.OWN
        assert httpx.get(url, headers={"Host": "elsewhere.example"}).status_code == 400
        port = int(url.rstrip("/").rpartition(":")[2])
        with closing(page.build(demo, 512)) as second, pytest.raises(RunError, match=f":{port} .*another --port"):
            page.launch(second, Args(port=port))
    monkeypatch.setenv("SEGENV_DEMO_PASSWORD", "long and random")
    with closing(page.build(demo, 512)) as blocks:
        url = page.launch(blocks, Args(port=0))
        assert httpx.get(f"{url}config").status_code == 401
        login = {"username": "segenv", "password": "long and random"}
        assert httpx.post(f"{url}login", data={**login, "password": "guess"}).status_code == 400
        assert httpx.post(f"{url}login", data=login).status_code == 200

    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("no way out")

    monkeypatch.setattr("gradio.networking.setup_tunnel", unreachable)
    with closing(page.build(demo, 512)) as blocks, pytest.raises(RunError, match="no public address"):
        page.launch(blocks, Args(port=0, share=True))
