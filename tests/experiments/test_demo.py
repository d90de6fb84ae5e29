"""The demo without its page: sessions, pictures and exported files."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from conftest import disc_task
from made_tools import BrokenTool
from PIL import Image
from pycocotools.coco import COCO

from agents.random import RandomAgent
from experiments.demo import __main__ as command
from experiments.demo import exports
from experiments.demo.config import Args
from experiments.demo.session import Demo
from search.executors import Player, Setup
from search.rollout import rollout
from segenv import codec, data
from segenv.tools.disc import DiscTool
from segenv.types import AgentError, BadItem, Box, Click, Invalid, RunError, Stop, ToolError

PIXELS = codec.make("pixels")


class Says(RandomAgent):
    """Says its texts one after the other, by the number of the step."""

    def __init__(self, *texts: str) -> None:
        super().__init__(PIXELS)
        self.spec, self.texts = "says", texts

    def _answer(self, observation, rng) -> str:
        if self.texts[observation.step] == "fail":
            raise AgentError("the server is gone")
        return self.texts[observation.step]


class Scored(DiscTool):
    """A tool that is always sure of its mask."""

    predicts_iou = True

    def _predict(self, encodings, prompts):
        return [replace(one, score=0.75) for one in super()._predict(encodings, prompts)]


def demo_of(tmp_path, agent="annotator", tool=None, max_steps=5, **given) -> Demo:
    """A demo on two small pictures with masks."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(exist_ok=True)
    for k in range(2):
        task = disc_task(60, 80, 30, 30, 12 + k)
        Image.fromarray(task.image).save(tmp_path / f"images/photo-{k}.png")
        Image.fromarray(task.target.astype(np.uint8) * 255).save(tmp_path / f"masks/photo-{k}.png")
    setup = Setup(f"folder:{tmp_path}", tool or DiscTool(radius=8), agent, max_steps=max_steps)
    return Demo(Player(setup), **given)


def test_clicks_boxes_undo_and_reset_are_states_of_the_decision_process(tmp_path):
    demo = demo_of(tmp_path, tool=Scored(radius=8), value="tool")
    start = demo.open_task(1)
    one = demo.click(start, 30, 30)
    two = demo.click(one, 33, 30, positive=False)
    assert two.state.clicks == (Click(30, 30), Click(33, 30, False)) and two.state.step == 2
    assert one.state.mask[30, 38] and one.moments[-1].area == one.state.mask.sum() == 197
    assert one.moments[-1].iou == pytest.approx(197 / start.task.target.astype(bool).sum())
    assert one.moments[-1].value == one.moments[-1].score == 0.75 and one.moments[-1].by == "you"
    assert start.moments[0].value == 0 and start.moments[0].score is None
    assert two.undo().state is one.state and two.reset().state is start.state and len(start.moments) == 1
    boxed = demo.corner(demo.corner(two, 50, 40), 20, 59)
    assert boxed.state.box == Box(20, 40, 51, 60) and boxed.corner is None and boxed.state.step == 3
    half = demo.corner(two, 50, 40)
    assert half.corner == Click(50, 40) and half.state is two.state and half.undo().corner is None
    assert demo.click(half, 1, 1).corner is None
    with pytest.raises(RunError, match="nothing to undo"):
        start.undo()
    for index in (-1, 2):
        with pytest.raises(RunError, match=f"no task {index}; expected 0 to 1"):
            demo.open_task(index)


@pytest.mark.parametrize("agent", ["annotator", "random"])
def test_an_agent_that_plays_to_the_end_plays_as_in_a_rollout(tmp_path, agent):
    demo = demo_of(tmp_path, agent)
    *_, last = demo.play(demo.open_task(0))
    (episode,) = rollout(demo.mdp, demo.agent, [demo.dataset[0]])
    assert [one.reply for one in last.moments[1:]] == [step.text for step in episode.steps]
    assert [one.iou for one in last.moments[1:]] == episode.ious
    assert (last.state.mask == episode.mask(len(episode.steps))).all()


def test_a_person_goes_on_after_the_agents_end_and_not_beyond_the_last_step(tmp_path):
    demo = demo_of(tmp_path, Says("Current IOU: 12\nFinish", PIXELS.grammar.absent, "Finish"), max_steps=3)
    ended = demo.ask(demo.open_task(0))
    assert ended.state.stopped and ended.moments[-1].action == Stop() and ended.moments[-1].stated_iou == 0.12
    with pytest.raises(RunError, match="ended the episode"):
        demo.ask(ended)
    clicked = demo.click(ended, 30, 30)
    assert clicked.state.step == 1 and len(clicked.moments) == 2  # the end is taken back
    full = demo.click(demo.click(clicked, 31, 31), 32, 32)
    for act in (demo.ask, lambda session: demo.click(session, 1, 1)):
        with pytest.raises(RunError, match="all 3 steps are taken"):
            act(full)
    gone = demo.ask(clicked)
    assert not gone.state.mask.any()
    assert demo.click(gone, 50, 50).state.mask[30, 30]  # the mask before the agent said that nothing is there


def test_an_invalid_reply_is_shown_and_the_mask_stays(tmp_path):
    demo = demo_of(tmp_path, Says("", "I <b>cannot</b> see it"))
    before = demo.click(demo.open_task(0), 30, 30)
    after = demo.ask(before)
    now = after.moments[-1]
    assert isinstance(now.action, Invalid) and not now.valid and now.reply == "I <b>cannot</b> see it"
    assert now.words.startswith("invalid reply: no action in") and now.by == "says"
    assert (after.state.mask == before.state.mask).all() and after.state.mask.any()
    assert after.undo().state is before.state


def test_a_broken_tool_or_server_raises_and_makes_no_mask(tmp_path):
    demo = demo_of(tmp_path, tool=BrokenTool())
    start = demo.open_task(0)
    for act in (demo.click, demo.corner):
        with pytest.raises(ToolError, match="the tool is gone"):
            act(replace(start, corner=Click(3, 3)), 30, 30)
    with pytest.raises(AgentError, match="the server is gone"):
        demo = demo_of(tmp_path, Says("fail"))
        demo.ask(demo.open_task(0))
    (tmp_path / "images" / "photo-0.png").write_text("no image")
    with pytest.raises(BadItem, match="'photo-0'.*save it as PNG$"):
        demo.open_task(0)


def test_an_own_image_is_capped_before_it_is_decoded_and_has_no_iou(tmp_path):
    demo = demo_of(tmp_path, max_pixels=80 * 60)
    path = tmp_path / "images" / "photo-0.png"
    own = demo.open_image(path, "my photo.png")
    assert not own.target_known and own.moments[0].iou is None
    assert demo.click(own, 30, 30).moments[-1].iou is None
    with pytest.raises(RunError, match="nobody knows"):
        demo.ask(own)
    large = tmp_path / "large.png"
    Image.new("L", (81, 60)).save(large)
    large.write_bytes(large.read_bytes()[:60])  # the header alone: it cannot be decoded
    with pytest.raises(BadItem, match="81 x 60 pixels.*more than the 4,800 pixels") as refusal:
        demo.open_image(large, "large.png")
    assert str(tmp_path) not in str(refusal.value)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(BadItem, match="'text.png'.*cannot be decoded"):
        demo.open_image(tmp_path / "text.png", "text.png")


def test_the_agent_is_told_the_instruction_of_the_page(tmp_path):
    seen = []

    class Hears(Says):
        def _answer(self, observation, rng) -> str:
            seen.append(observation.instruction)
            return "Positive point: (30, 30)"

    demo = demo_of(tmp_path, Hears())
    session = demo.instruct(demo.open_task(0), "the left\nhandle")
    assert demo.instruct(session, "the left handle") is session
    demo.ask(session)
    assert seen == ["the left handle"] and demo.ask(session).task.instruction == "the left handle"


@pytest.mark.parametrize("empty", [False, True])
def test_exported_files_hold_the_mask(tmp_path, empty):
    demo = demo_of(tmp_path)
    session = demo.open_image(tmp_path / "images" / "photo-0.png", "photo-0.png", "a <cup>")
    session = session if empty else demo.click(demo.click(session, 20, 20), 70, 40)
    files = {path.name.removeprefix("photo-0-"): path for path in exports.write(session, tmp_path / "out")}
    mask = session.state.mask
    assert set(files) == {"overlay.png", "mask.png", "coco.json", "rings.txt", "simpleseg.txt"}
    assert (np.asarray(Image.open(files["mask.png"])) == mask * 255).all() and mask.any() != empty
    blue = (np.asarray(Image.open(files["overlay.png"])) != session.task.image).any(axis=2)
    assert (blue <= mask).all() and (empty or (blue & mask).any())
    instances = COCO(str(files["coco.json"]))
    found = [instances.annToMask(one).astype(bool) for one in instances.loadAnns(instances.getAnnIds())]
    assert len(found) == (not empty) and all((one == mask).all() for one in found)
    assert [one["name"] for one in instances.loadCats(1)] == ["a <cup>"]
    if not empty:
        (task,) = data.make(f"coco:{files['coco.json']}@{tmp_path / 'images'}")
        assert ((task.target == 255) == mask).all()
    drawn = codec.make("rings").parse(files["rings.txt"].read_text(), session.task)
    assert (demo.mdp.transition([demo.open_task(0).state], [drawn])[0].mask == mask).all()
    assert json.loads(files["simpleseg.txt"].read_text()) != [] or empty


def test_names_of_files_are_no_paths(tmp_path):
    demo = demo_of(tmp_path)
    session = demo.open_image(tmp_path / "images" / "photo-0.png", "../..\\x/.y\n.png")
    for path in exports.write(session, tmp_path / "out"):
        assert path.parent == tmp_path / "out" and path.name.startswith("x-.y-") and path.exists()


@pytest.mark.parametrize("size", [128, 768, 37])
def test_a_point_of_the_picture_is_the_pixel_under_it(tmp_path, size):
    demo = demo_of(tmp_path)
    session = demo.click(demo.open_task(0), 63, 21)
    drawn = exports.picture(demo.corner(session, 5, 7), size, show_target=True)
    assert drawn.shape == (round(60 * size / 80), size, 3)
    scale = size / 80
    assert exports.pixel_at(session, size, 63.5 * scale, 21.5 * scale) == (63, 21)
    assert exports.pixel_at(session, size, size, drawn.shape[0] + 3) == (79, 59)
    assert exports.pixel_at(session, size, -1, 0) == (0, 0)
    changed = (drawn != exports.picture(session, size)).any(axis=2)
    assert changed[int(7.5 * scale), int(5.5 * scale)]  # the corner of a box
    assert changed.any(axis=0).sum() > 20 * scale  # the target's outline


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--share"], "--share lets others in; set SEGENV_DEMO_PASSWORD"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in; set SEGENV_DEMO_PASSWORD"),
        (["--size", "100"], "--size is 100; expected 128 or more"),
    ],
)
def test_what_would_let_others_in_is_refused(flags, words, capsys, monkeypatch):
    monkeypatch.delenv("SEGENV_DEMO_PASSWORD", raising=False)
    assert command.main(flags) == 1
    assert words in capsys.readouterr().err
    assert not Args().share and Args().host == "127.0.0.1"


@pytest.mark.slow
def test_the_page_names_no_place_on_the_machine(tmp_path):
    pytest.importorskip("gradio", reason="segenv[demo] is not installed")
    from experiments.demo import page

    agent = Says("I cannot see it", "fail")
    agent.spec = f"mllm:{tmp_path}/policy"
    demo = demo_of(tmp_path, agent)
    with closing(page.build(demo, 128)) as blocks:
        shown = repr(blocks.get_config_file())
    view = page.View(demo, 128)
    ((session, _, told, *_),) = view.ask(demo.open_task(0), "", False)
    (tmp_path / "images" / "photo-1.png").write_text("no image")
    ((_, _, refused, *_),) = view.open_task(session, "", False, 1)
    assert "task of folder:DIR, 0 to 1" in shown and "mllm:DIR: next step" in shown
    assert "<td>mllm:DIR</td>" in told and "photo-1.png" in refused
    assert not any(str(tmp_path) in text for text in (shown, told, refused))


def test_without_gradio_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "experiments.demo.page", raising=False)
    monkeypatch.delattr("experiments.demo.page", raising=False)
    assert command.main([]) == 1
    assert capsys.readouterr().err == (
        "error: cannot set up the demo: the page needs gradio: pip install 'segenv[demo]'\n"
    )


def test_a_value_that_reads_the_target_is_none_to_show(tmp_path):
    with pytest.raises(ValueError, match="'oracle' reads the target; expected prm"):
        demo_of(tmp_path, value="oracle")
