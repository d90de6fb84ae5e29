"""Codecs: the contract that each one keeps, the traps of single ones, and replies as models write them."""

import re
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segenv import codec
from segenv.codec import statements
from segenv.codec.frames import Frame, qwen_size
from segenv.types import Absent, Box, Click, Invalid, Stop, Undo


@dataclass(frozen=True)
class Scene:
    height: int = 480
    width: int = 640
    instruction: str = "the left cat"
    error: str | None = None


SCENE = Scene()
sides = st.integers(1, 1000) | st.integers(1001, 5000) | st.sampled_from([1, 3, 2160, 3840, 5000])
scenes = st.builds(Scene, height=sides, width=sides)
clicks = scenes.flatmap(
    lambda scene: st.tuples(
        st.just(scene),
        st.builds(Click, st.integers(0, scene.width - 1), st.integers(0, scene.height - 1), st.booleans()),
    )
)


def corners(size: int) -> st.SearchStrategy[tuple[float, float]]:
    """Two different places in 0..size, in order."""
    place = st.integers(0, size) | st.floats(0, size, allow_subnormal=False)
    return st.tuples(place, place).map(sorted).filter(lambda pair: pair[0] < pair[1])


boxes = scenes.flatmap(
    lambda scene: st.tuples(
        st.just(scene),
        st.builds(lambda xs, ys: Box(xs[0], ys[0], xs[1], ys[1]), corners(scene.width), corners(scene.height)),
    )
)


def grid(frame: Frame, scene: Scene) -> tuple[float, float]:
    """One step of a frame's grid across and down, in pixels of the image."""
    across, down = frame.extents(scene)
    return scene.width / across / 10**frame.decimals, scene.height / down / 10**frame.decimals


# Texts that look like replies, to meet the parser more often than noise does.
pieces = [
    "Positive point: (", "negative point [", "12", "1204", ", ", "-3", "0.5", ")", "]", "<box>", "</box>",
    "(1,2),(3,4)", "[[1, 2, 3, 4]]", "Box: (", "Finish", "Undo", "\n", "Current IOU: ", "74", '{"point_2d": [',
    '{"bbox_2d": [', '"label": "negative", ', '"point": [', '"box_2d": [', '<point x="',
    '" y="', '" alt="positive">', "nan", "1e999", "٣", "９", "\ud800", "\0", "\x85", "İ", "…",
]  # fmt: skip
replies = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=14).map("".join)

LENGTH = 100_000
HOSTILE = {
    **{f"repeated {text!r}": text * (LENGTH // len(text)) for text in (
        "(", "[", '"', "`", '{"a":', "9", "-", "1.", "\n", " ", "*_` ", "\0", "\ud800", "positive ", "positive point",
        "Positive point: (", "Positive point: (1, ",
        "Positive point: (1, 2)\n",
        "[9", "Positive point: [9[9[9[9", "<box>9 9 9 9 9 9", '{"x": 1, ', "'point': [[1, 2], ",
        "Positive point: (nan, NaN) ", "Positive point: (1e999, inf)",
        "Positive point: (١٢, ٣)", "finish ", "Finish\n",
        "1 finish", " " * 60 + "finish x", "undo", "box", "box_", "box:", "Box: (1,2,3,", "<box>", "<box>(1,2),(",
        "<box>[[", "<point ",
        '<point x="1" y="2" alt="', '<points x1="1" y1="2">', '{"point":[1,2],', "location: [",
        '"point_2d": [1, 2]', '"point_2d"', '"bbox_2d": [', '"point"',
        '"label": "positive", ', '"label":', "current iou",
        "Current IOU: ", "The mask misses 3 points of the cat's positively long tail. ",
    )},
    **{f"{head!r} and {run!r} without end": head + run * (LENGTH // len(run)) + tail for head, run, tail in (
        ("Positive point: (", "9", ", 1)"), ("Positive point: (1.", "1", ", 2)"), ("Positive point: (", "1.", ""),
        ("Positive point: (1", " ", "x"),
        ("positive point", " ", "x"), ("positive", "* ", "x"), ("finish", " ", "x"), ("current iou", " ", "x"),
        ("Current IOU: ", "9", ""),
        ("<box>", " ", "x"), ('"point_2d"', " ", "x"), ('"point_2d": [1, 2]', " ", '"'), ('<point x="1"', " ", "z"),
        ("box", "_", ":"),
    )},
}  # fmt: skip


@pytest.mark.parametrize("spec", [*codec.CODECS, "segagent:prompt=short"])
class TestCodecContract:
    """What every codec keeps, whatever its frame and grammar."""

    @settings(max_examples=30)
    @given(pair=clicks, iou=st.none() | st.floats(0, 1))
    def test_a_click_comes_back(self, spec, pair, iou):
        """Exactly, where the grid is as fine as the pixels; within one grid step elsewhere."""
        scene, click = pair
        spoken = codec.make(spec)
        read = spoken.read(spoken.format(click, scene, iou), scene)
        back = read.action
        assert isinstance(back, Click) and back.positive == click.positive
        assert (read.exact, read.extra, read.unsigned) == (True, 0, False)
        for got, given_, step in zip((back.x, back.y), (click.x, click.y), grid(spoken.points, scene), strict=True):
            assert abs(got - given_) <= (step if step > 1 else 0)

    @settings(max_examples=30)
    @given(pair=boxes)
    def test_a_box_comes_back_within_a_grid_step(self, spec, pair):
        scene, box = pair
        spoken = codec.make(spec)
        read = spoken.read(spoken.format(box, scene), scene)
        back = read.action
        assert (read.exact, read.extra, read.unsigned) == (True, 0, False)
        across, down = grid(spoken.boxes, scene)
        assert isinstance(back, Box)
        assert 0 <= back.x0 < back.x1 <= scene.width and 0 <= back.y0 < back.y1 <= scene.height
        assert max(abs(back.x0 - box.x0), abs(back.x1 - box.x1)) <= across * (1 + 1e-9)
        assert max(abs(back.y0 - box.y0), abs(back.y1 - box.y1)) <= down * (1 + 1e-9)

    @pytest.mark.parametrize("action", [Stop(), Undo(), Absent()])
    @pytest.mark.parametrize("iou", [None, 0.0, 0.92])
    def test_stop_absent_and_undo_come_back(self, spec, action, iou):
        spoken = codec.make(spec)
        read = spoken.read(spoken.format(action, SCENE, iou), SCENE)
        assert (read.action, read.exact, read.extra, read.stated_iou) == (action, True, 0, iou)

    @settings(max_examples=40)
    @given(text=st.text(max_size=200) | replies, scene=scenes)
    def test_any_text_is_an_action_on_the_image_or_says_why_not(self, spec, text, scene):
        spoken = codec.make(spec)
        action = spoken.parse(text, scene)
        match action:
            case Invalid():
                assert action.text == text and action.reason.isprintable() and len(action.reason) < 500
                assert spoken.format(action, scene) == text
            case Click():
                assert 0 <= action.x < scene.width and 0 <= action.y < scene.height
                assert all(type(number) is int for number in (action.x, action.y))
            case Box():
                assert 0 <= action.x0 < action.x1 <= scene.width and 0 <= action.y0 < action.y1 <= scene.height
            case _:
                assert action in (Stop(), Undo(), Absent())
        stated = spoken.stated_iou(text)
        assert stated is None or 0 <= stated <= 1

    def test_no_100_kb_of_text_takes_long(self, spec):
        """The benchmark holds it to 20 ms; here it is told apart from seconds, also on a busy machine."""
        spoken = codec.make(spec)
        for name, text in HOSTILE.items():
            best = float("inf")
            for _ in range(8):  # the machine may be busy: time of this thread alone, and the best of eight
                began = time.thread_time()
                spoken.parse(text, SCENE), spoken.stated_iou(text)
                best = min(best, time.thread_time() - began)
                if best < 0.1:
                    break
            assert best < 0.1, f"{name} took {1000 * best:.0f} ms"

    @settings(max_examples=15)
    @given(pair=clicks, thought=replies, iou=st.floats(0, 1))
    def test_the_last_block_counts_after_any_thought(self, spec, pair, thought, iou):
        scene, click = pair
        spoken = codec.make(spec)
        reply = spoken.format(click, scene, iou)
        thought += "\nso this is my answer:"
        assert spoken.parse(f"{thought}\n{reply}", scene) == spoken.parse(reply, scene)
        assert spoken.stated_iou(f"{thought}\n{reply}") == round(100 * iou) / 100
        assert spoken.parse(f"{'A long thought. ' * 10_000}{reply}", scene) == spoken.parse(reply, scene)

    def test_a_reply_that_breaks_off_is_no_action(self, spec):
        """Every proper beginning of a click or box is invalid, also behind a whole one; what ends it may be missing
        only where no number is."""
        spoken = codec.make(spec)
        for action in (Click(320, 240), Box(10, 20, 300, 400)):
            text = spoken.format(action, SCENE)
            last_digit = max(i for i, character in enumerate(text) if character.isdigit())
            for end in range(last_digit + 1):
                assert isinstance(spoken.parse(text[: end + 1], SCENE), Invalid), text[: end + 1]
        whole, broken = (spoken.format(click, SCENE) for click in (Click(1, 2), Click(3, 4)))
        assert isinstance(spoken.parse(f"{whole} {broken[: max(map(broken.rfind, '0123456789'))]}", SCENE), Invalid)

    def test_what_is_not_on_the_image_is_not_written(self, spec):
        spoken = codec.make(spec)
        for action in (Click(640, 0), Click(0, -1), Box(5, 5, 5, 9), Box(0, 0, 641, 9), Box(float("nan"), 0, 1, 1)):
            with pytest.raises(ValueError, match="outside the image|is empty or leaves"):
                spoken.format(action, SCENE)
        with pytest.raises(ValueError, match="iou is 74"):
            spoken.format(Stop(), SCENE, iou=74)

    def test_the_prompt_names_the_object_and_the_last_error(self, spec):
        spoken = codec.make(spec)
        assert "the left cat" in spoken.prompt(SCENE) and not re.search(r"\{[a-z0-9_]+\}", spoken.prompt(SCENE))
        assert "the {0} main {braces}" in spoken.prompt(replace(SCENE, instruction="the {0} main {braces}"))
        assert "point (9999, 1) lies outside" in spoken.prompt(replace(SCENE, error="point (9999, 1) lies outside"))
        assert spoken.name == spec

    def test_the_prompt_shows_both_points_in_the_codec_s_own_grammar(self, spec):
        spoken = codec.make(spec)
        template, names = spoken.grammar.point, spoken.points.names(point=True)
        for sign, positive in ((spoken.grammar.positive, True), (spoken.grammar.negative, False)):
            assert template.format(*names, sign=sign) in codec.make(spec.split(":")[0]).prompt(SCENE)
            assert spoken.parse(spoken.format(Click(0, 0, positive), SCENE), SCENE) == Click(0, 0, positive)


def test_what_is_searched_in_a_reply_has_a_limit(monkeypatch):
    """So time grows as the length of a reply does, whatever the search costs: all else takes one pass."""
    searched = []
    monkeypatch.setattr(statements, "find", lambda text, asked: searched.append(text) or [])
    for text in HOSTILE.values():
        codec.make("segagent").read(text + text, SCENE)
    assert len(searched) == len(HOSTILE) and max(map(len, searched)) == statements.TAIL
    for pattern, most in ((statements._HEAD, statements.HEADS), (statements._NUMBERS, statements.NUMBERS)):
        assert max(len(pattern.findall(text)) for text in searched) == most


# ------------------------------------------------------------------------------------------------------------- segagent


def segagent(text: str, scene: Scene = SCENE):
    return codec.make("segagent").parse(text, scene)


def test_the_axis_trap_points_are_row_column_and_boxes_x_y():
    """One reply of the released checkpoint has both orders and both scales."""
    scene = Scene(height=1000, width=2000)
    assert segagent("Current IOU: 74\nPositive point: (175, 483)", scene) == Click(x=966, y=175)
    assert segagent("<ref>cat</ref><box>(0,0),(999,999)</box>", scene) == Box(0, 0, 2000, 1000)
    assert segagent("<box>(333,0),(666,999)</box>", Scene(99, 999)) == Box(333, 0, 666, 99)
    assert codec.make("segagent").format(Click(966, 175), scene, 0.74) == "Current IOU: 74\nPositive point: (175, 483)"
    assert segagent("<ref>cat</ref><box>(1,2),(3,4)</box>Negative point: (0, 1000)", scene) == Click(1999, 0, False)


def test_finish_is_a_stop_and_a_bad_reply_is_invalid():
    for text in (
        "Finish",
        "finish.",
        "Current IOU: 92\nFinish",
        "Current IOU: 92 Finish",
        "Action: **Finish**",
        "<think>x</think>Finish\r\n",
        "Finish<|im_end|>",
    ):
        assert segagent(text) == Stop(), text
    for text in (
        "",
        "I will finish soon",
        "finishing",
        "Finish the cat",
        "unfinish",
        "Stop it",
        "Positive point",
        "The cup is at (175, 483), I think",
    ):
        assert isinstance(segagent(text), Invalid), text
    assert segagent("Undo") == Undo()
    assert segagent("Undo\nPositive point: (0, 0)\nFinish\n") == Undo(), "the first of the last block"
    assert segagent("Finish?\nNo: Positive point: (0, 0). I will finish after it.") == Click(0, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Positive point: (1204, 88)", "point (1204, 88) lies outside 0..1000"),
        ("Positive point: (-1, 88)", "point (-1, 88) lies outside 0..1000"),
        ("Positive point: (1000.5, 88)", "point (1000.5, 88) lies outside 0..1000"),
        (f"Positive point: ({'9' * 9999}, 1)", "point (999999999999…, 1) lies outside 0..1000"),
        ("<box>(0,0),(1000,5)</box>", "box (0, 0, 1000, 5) lies outside 0..999"),
        ("<box>(9,9),(9,12)</box>", "box (9, 9, 9, 12) is empty; expected its second corner right of"),
        ("Negative point: (12,", "`Negative point: (12,` breaks off; expected `Positive point: (row, column)`"),
        ("Negative point: (nan, 3)", "point (nan, 3) holds nan, which is no number"),
        ("Hello\nthere", "no action in `Hello there`; expected `Positive point: (row, column)`"),
    ],
)
def test_reasons_say_what_arrived_and_what_was_expected(text, reason):
    action = segagent(text)
    assert isinstance(action, Invalid) and action.reason.startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        "positive point:(500,500)",
        "**Positive point:** ( 500 , 500 )",
        "Positive  Point [500, 500]",
        "positive point: (500.0, 0500)",
        "x Positive point: (500, 500).",
    ],
)
def test_small_departures_are_read(text):
    assert segagent(text) == Click(320, 240)


def test_stated_iou_is_a_percentage_and_the_last_one():
    stated = codec.make("segagent").stated_iou
    assert stated("Current IOU: 74\nFinish") == 0.74
    assert stated("current iou 0") == 0.0 and stated("**Current IOU:** 99.5%") == 0.995
    assert stated("Current IOU: 0.74") == 0.0074, "never guessed from the number's size"
    assert stated("Current IOU: 12, then Current IOU: 30") == 0.30
    assert stated("Current IOU: 101") is None is stated("IOU?")


# --------------------------------------------------------------------------------------------------------- other codecs


@pytest.mark.parametrize(
    ("spec", "click", "box"),
    [
        ("unit-xy", "Negative point: [0.500, 0.250]", "Box: [0.000, 0.000, 0.500, 1.000]"),
        ("grid1000-xy", "Negative point: (500, 250)", "Box: (0, 0, 500, 1000)"),
        ("grid1000-yx", "Negative point: (250, 500)", "Box: (0, 0, 1000, 500)"),
        ("pixels", "Negative point: (500, 250)", "Box: (0.000, 0.000, 500.000, 1000.000)"),
        ("qwen2.5-vl", '{"point_2d": [505, 253], "label": "negative"}', '{"bbox_2d": [0, 0, 504, 1008]}'),
        ("qwen3-vl", '{"point_2d": [500, 250], "label": "negative"}', '{"bbox_2d": [0, 0, 500, 1000]}'),
        ("internvl", "Negative point: (500, 250)", "<box>[[0, 0, 500, 1000]]</box>"),
        ("molmo", '<point x="50.0" y="25.0" alt="negative">negative</point>', "Box: (0.0, 0.0, 50.0, 100.0)"),
        ("gemini", '{"point": [250, 500], "label": "negative"}', '{"box_2d": [0, 0, 1000, 500]}'),
    ],
)
def test_what_each_family_writes_on_an_image_of_1000_pixels(spec, click, box):
    scene, spoken = Scene(1000, 1000), codec.make(spec)
    assert spoken.format(Click(500, 250, False), scene) == click
    assert spoken.format(Box(0, 0, 500, 1000), scene) == box
    assert spoken.parse(f"```json\n[{click}]\n```", scene) == Click(500, 250, False)


def test_a_label_may_stand_before_its_point_and_is_never_guessed():
    spoken = codec.make("qwen3-vl")
    assert spoken.parse('[{"label": "negative", "point_2d": [0, 0]}]', SCENE) == Click(0, 0, False)
    read = spoken.read('{"point_2d": [0, 0], "label": "cat"}', SCENE)
    assert read.action == Click(0, 0) and read.unsigned and not read.exact


def test_pixels_are_exact_and_end_before_the_image_does():
    spoken = codec.make("pixels")
    assert spoken.parse("Positive point: (639, 479)", SCENE) == Click(639, 479)
    action = spoken.parse("Positive point: (640, 479)", SCENE)
    assert isinstance(action, Invalid) and action.reason == "point (640, 479) lies outside 0..639, 0..479"
    assert spoken.parse(spoken.format(Box(1.5, 2, 640, 480), SCENE), SCENE) == Box(1.5, 2, 640, 480)


def test_halves_round_down_so_that_a_pixel_of_the_finest_grid_stays():
    """With 1,000 pixels on 0..1000, middles lie on halves: rounding them up would move every click by one."""
    spoken, scene = codec.make("grid1000-xy"), Scene(1000, 1000)
    assert all(spoken.parse(spoken.format(Click(i, i), scene), scene) == Click(i, i) for i in range(1000))


@pytest.mark.parametrize(
    ("size", "sent"),
    [((640, 480), (644, 476)), ((28, 28), (56, 56)), ((8000, 6000), (4116, 3080)), ((10, 1000), (28, 560))],
)
def test_qwen_resizes_as_its_processor_does(size, sent):
    """Worked out with the published `smart_resize`."""
    assert qwen_size(*size) == sent


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("segagents", "unknown codec 'segagents'.* segagent, unit-xy, grid1000-xy.*did you mean 'segagent'"),
        ("", "unknown codec ''.* segagent, unit-xy, grid1000-xy"),
        ("segagent:short", "'short' is no option of segagent; expected KEY=VALUE of prompt"),
        ("segagent:prompt=long", "prompt is 'long'; expected one of annotator, short"),
        ("pixels:iou=1", "'iou=1' is no option of pixels"),
    ],
)
def test_a_wrong_codec_says_what_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        codec.make(spec)
