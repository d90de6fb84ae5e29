"""The page of a run: every episode can be opened, from the page or from files beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import made_browser
import numpy as np
import pytest
from conftest import disc_task
from PIL import Image

from experiments.common import episode_viewer, html
from experiments.common.run_folder import RunFolder
from experiments.evaluate import config, evaluate
from search.episode import Episode
from segenv.geometry.rle import decode_mask, encode_mask
from segenv.types import Task

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> \u2028"
PAGE = """{% extends "base.html" %}{% import "_episodes.html" as browser %}
{% block style %}{{ browser.style() }}{% endblock %}{% block body %}{{ browser.browser(view) }}{% endblock %}"""


def content_of(page: Path) -> dict:
    """The data of a page's episode browser."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="episodes">')[1].split("</script>")[0])


def file_of(path: Path) -> list[dict]:
    """The episodes of a file beside a page."""
    text = path.read_text(encoding="ascii")
    number, rest = text.removeprefix("segenvEpisodes(").split(", ", 1)
    assert number == path.stem and rest.endswith(");\n")
    return json.loads(rest.removesuffix(");\n"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of 53 small pictures with their masks."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for k in range(53):
        task = disc_task(60, 80 + k, 30, 30, 6 + k % 20)
        Image.fromarray(task.image).save(folder / "images" / f"photo-{k:02}.png")
        Image.fromarray(task.target.astype(np.uint8) * 255).save(folder / "masks" / f"photo-{k:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    """A run of more episodes than a page holds itself."""
    out = tmp_path_factory.mktemp("runs") / "run"
    play(photos, out=str(out))
    return out


def play(photos: Path, **given) -> None:
    """Evaluate random clicks on the pictures."""
    fixed = {"data": f"folder:{photos}", "tool": "disc", "agent": "random", "max_steps": 2}
    evaluate.run(config.Args(**fixed, **given), quiet=True)


def test_every_episode_is_in_a_file_beside_the_page_with_its_own_masks(run):
    view = content_of(run / "report.html")
    records = {record["task"]: record for record in RunFolder(run).records("episodes.jsonl")}
    assert view["episodes"] is None and [row["id"] for row in view["rows"]] == list(records) and len(records) == 53
    files = {k: file_of(run / "report" / f"{k}.js") for k in range(7)}
    assert len(list((run / "report").glob("*.js"))) == 7
    for row in view["rows"]:
        one, record = files[row["at"] // view["in_file"]][row["at"] % view["in_file"]], records[row["id"]]
        assert one["id"] == row["id"] and one["image"] == row["image"]
        assert [step["mask"] for step in one["steps"]] == [step["mask"] for step in record["steps"]]
        assert row["iou"] == record["steps"][-1]["iou"] and row["object"] in ("small", "medium", "large")
        assert (run / "report" / "images" / f"{row['image']}.jpg").stat().st_size > 500


def test_a_page_of_fewer_episodes_takes_the_files_away(photos, run):
    play(photos, resume=str(run), report_episodes=6)
    view = content_of(run / "report.html")
    assert [row["group"] for row in view["rows"]] == ["worst"] * 2 + ["best"] * 2 + ["random"] * 2
    assert len(view["episodes"]) == 6 and set(view["images"]) == {row["image"] for row in view["rows"]}
    assert list((run / "report").rglob("*.*")) == []
    play(photos, resume=str(run))
    assert len(list((run / "report").glob("*.js"))) == 7


def test_large_pictures_are_shown_small_with_masks_of_their_size():
    target = np.zeros((300, 1000), bool)
    target[100:200, 250:750] = True
    task, full = Task("wide", np.zeros((300, 1000, 3), np.uint8), target, "it"), encode_mask(target)
    episode = Episode("wide", 0, 300, 1000, "it", 1.0, full, (), False, 1, 1, 1.0, 1.0, {})
    shown = episode_viewer.payload(task, episode)
    assert shown["shown"] == [640, 192] and shown["start"]["mask"] == shown["target"]
    small = decode_mask(shown["target"], 192, 640)
    assert small.mean() == pytest.approx(target.mean(), abs=0.005) and small[96, 320] and not small[10, 10]


def test_one_image_of_many_tasks_is_kept_once(task, tmp_path):
    empty = encode_mask(np.zeros(task.target.shape, bool))
    episode = Episode("x", 0, *task.target.shape, "", 0.0, empty, (), False, 0, 9, 0.0, 0.0, {})
    many = [replace(task, id=str(k)) for k in range(60)]
    shown = (episode_viewer.payload(one, episode) for one in many)
    view = episode_viewer.write_episodes(tmp_path, shown, 60)
    assert len({row["image"] for row in view["rows"]}) == len(list((tmp_path / "report/images").iterdir())) == 1


@pytest.mark.skipif(made_browser.BROWSER is None, reason="Chromium is not installed; these pages are seen in a browser")
def test_a_browser_opens_finds_and_steps_through_episodes_and_runs_no_word_of_them(run, task, tmp_path):
    rows = content_of(run / "report.html")["rows"]
    shown = "document.getElementById('browser')?.dataset.shown"
    with made_browser.Browser() as browser:
        browser.open(run / "report.html", f"{shown} === '0 2'")
        assert browser.run("document.querySelectorAll('.episodes a').length") < 40  # of 53: those in sight
        browser.press("ArrowLeft")  # the episodes are below what is in sight: the key is the page's
        browser.run("document.getElementById('browser').scrollIntoView()")
        assert browser.run(shown) == "0 2"
        browser.press("ArrowLeft")
        browser.wait(f"{shown} === '0 1'")
        browser.press("ArrowDown")
        browser.wait(f"{shown} === '1 2'")
        browser.run(f"location.hash = '#task={rows[50]['id']}&step=1'")
        browser.wait(f"{shown} === '50 1'")
        assert browser.run("document.querySelector('[data-at=title]').textContent") == "photo-50"
        browser.run("(s => { s.value = 'worst first'; s.dispatchEvent(new Event('change')) })"
                    "(document.querySelector('[data-at=order]'))")  # fmt: skip
        worst = min(rows, key=lambda row: (row["iou"], row["at"]))
        assert browser.run("document.querySelector('.episodes a .name').firstChild.data") == worst["id"]
        browser.run("(s => { s.value = 'photo 7'; s.dispatchEvent(new Event('input')) })"
                    "(document.querySelector('[data-at=search]'))")  # fmt: skip
        assert browser.run("document.querySelector('[data-at=found]').textContent") == "5 of 53 episodes"  # 07 … 47
        assert browser.errors == []

        empty = encode_mask(np.zeros(task.target.shape, bool))
        bad = {"type": "invalid", "reason": HOSTILE}
        step = episode_viewer.Step(HOSTILE, bad, 0.0, 0.0, None, HOSTILE, None, empty)
        episode = Episode(HOSTILE, 0, *task.target.shape, HOSTILE, 0.0, empty, (step,), False, 0, 9, 0.0, 0.0, {})
        named = replace(task, id=HOSTILE, instruction=HOSTILE)
        for count in (50, 1):
            shown_ones = (
                episode_viewer.payload(named, episode, HOSTILE, "", [HOSTILE], [64, 48, 0]) for _ in range(count)
            )
            view = episode_viewer.write_episodes(tmp_path, shown_ones, count)
            page = html._environment().from_string(PAGE).render(title=HOSTILE, view=view)
            (tmp_path / "page.html").write_text(page, encoding="utf-8")
            browser.open(tmp_path / "page.html", f"{shown} === '0 1'")
            browser.run("document.querySelector('[data-at=asked]').open = true")
            browser.wait("document.querySelector('[data-at=prompt]').textContent.includes('hacked')")
            assert "hacked" in browser.run("document.querySelector('[data-at=reply]').textContent")
            assert browser.run("window.hacked === undefined") and browser.errors == []
        centre = "document.querySelector('[data-view=scene]').getContext('2d').getImageData(400, 200, 1, 1).data"
        seen = browser.run(f"[...{centre}]")  # of the missed object, which is shown in blue
        browser.press("e")
        assert seen[2] > 1.3 * seen[0] and browser.run(f"[...{centre}]") != seen
