"""Polygon codecs: what every dialect keeps, replies that break off, hostile text, and the published contours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segenv import codec, metrics
from segenv.codec import polygons
from segenv.codec.polygons import PolygonCodec
from segenv.geometry import polygon_iou, polygons_to_mask
from segenv.types import Box, Click, Invalid, Polygons, Stop, Undo


@dataclass(frozen=True)
class Scene:
    height: int = 480
    width: int = 640
    instruction: str = "the left cat"
    error: str | None = None


SCENE = Scene()
sides = st.integers(1, 3000) | st.sampled_from([1, 3, 2160, 3840, 5000])
scenes = st.builds(Scene, height=sides, width=sides)
sizes = st.integers(2, 30)
masks = st.tuples(sizes, sizes).flatmap(lambda shape: arrays.arrays(bool, shape))
units = st.lists(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6), max_size=4)
pieces = ["[", "]", "[[", "[[[", "]]", "]]]", "[0.1, 0.2]", "[1,2]", ", ", ",", "0.5", "-1", "12", "Vertices: ", "[]",
          "\n", " ", "[0, 0, 1, 1]", "Current IOU: 50", "nan", "1e9", "٣", "\ud800", "\0"]  # fmt: skip
replies = st.lists(st.sampled_from(pieces) | st.text(max_size=4), max_size=20).map("".join)

LENGTH = 100_000
HOSTILE = [text * (LENGTH // len(text)) for text in (
    "(", "[", "[[", "[[[", "[[[[", "[ ", "]", "[]", "[[]]", "[[[]]]", "[0,0]", "[0,0],", "[[0,0]],", "[[0,0]] ",
    "[[0,0]],[", "[[[0,0]]],", "[[[0,0", "[[[0,", "[9", "[[9", "[[[9", "9", "-", "1.", "1,", "\n", "[\n", "[0,0,0,0]",
    "[[1,1,", "\0", "vertices", "vertices:", "Vertices: 1\n", "[" + " " * 99, "[[" + " " * 99, "[[[0,0]" + " " * 99,
    "\ud800", "٣",
)] + [head + run * (LENGTH // len(run)) + tail for head, run, tail in (
    ("[", " ", ""), ("[[", " ", "x"), ("[[[", " ", "0"), ("[0", " ", "x"), ("[0,0", " ", "x"), ("[[[0,0", " ", "x"),
    ("[[[0,0]", " ", "x"), ("[[[0,0],", " ", "x"), ("[[[0,0]]", " ", "x"), ("[[[", "9", ""), ("[[[0,", "9", "]]]"),
    ("[[[0.", "9", ",1]]]"), ("[[[", "[0,0],", ""), ("[[[", "[0,0],", "]]"), ("[[", "[0,0]],[", ""),
    ("vertices", " ", "x"), ("[[", "[0,0] ", "x"), ("[", "9,", ""),
)]  # fmt: skip


def drawn(spoken: PolygonCodec, scene: Scene, rings) -> Polygons:
    """Polygons with vertices in 0..1 of the image."""
    scaled = (np.asarray(ring, float).reshape(-1, 2) * (scene.width, scene.height) for ring in rings)
    return Polygons(tuple(scaled), spoken.union)


@pytest.fixture(params=list(polygons.DIALECTS))
def spoken(request: pytest.FixtureRequest) -> PolygonCodec:
    found = codec.make(request.param)
    assert isinstance(found, PolygonCodec) and found.name == request.param
    return found


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(polygons.DIALECTS))
class TestPolygonCodecContract:
    @given(scene=scenes, rings=units, iou=st.none() | st.floats(0, 1))
    def test_polygons_come_back_within_half_a_grid_step(self, name, scene, rings, iou):
        spoken = polygons.make(name)
        given_ = drawn(spoken, scene, rings)
        text = spoken.format(given_, scene, iou)
        back = spoken.parse(text, scene)
        assert isinstance(back, Polygons) and (back.union, back.truncated) == (spoken.union, False)
        assert len(back.rings) == len(given_.rings)
        step = np.array([scene.width, scene.height]) / (999 if name == "rings" else 1000)
        for old, new in zip(given_.rings, back.rings, strict=True):
            apart = np.abs(old[:, None] - new[None]) / step  # repeats on the grid are dropped
            assert (apart.max(axis=2).min(axis=1) <= 0.5 + 1e-6).all()
        assert spoken.format(back, scene, iou) == text, "what was written once is written again"

    @settings(max_examples=25)
    @given(scene=scenes, rings=units.filter(bool))
    def test_a_reply_that_breaks_off_gives_its_whole_vertices(self, name, scene, rings):
        """Every beginning is invalid, or the first vertices of the whole reply and marked: so nothing is made up."""
        spoken = polygons.make(name)
        text = spoken.format(drawn(spoken, scene, rings), scene)
        whole = spoken.parse(text, scene)
        assert isinstance(whole, Polygons)
        vertices, seen = np.concatenate(whole.rings), 0
        for end in range(len(text)):
            begun = spoken.parse(text[:end], scene)
            if isinstance(begun, Invalid):
                assert seen == 0
                continue
            assert isinstance(begun, Polygons) and begun.truncated
            found = np.concatenate(begun.rings)
            assert np.array_equal(found, vertices[: len(found)]) and len(found) >= seen
            assert [len(ring) for ring in begun.rings[:-1]] == [
                len(ring) for ring in whole.rings[: len(begun.rings) - 1]
            ]
            seen = len(found)
        assert seen == len(vertices)

    @given(text=st.text(max_size=200) | replies, scene=scenes)
    def test_any_text_is_an_action_on_the_image_or_says_why_not(self, name, text, scene):
        spoken = polygons.make(name)
        action = spoken.parse(text, scene)
        size = np.array([scene.width, scene.height])
        match action:
            case Polygons():
                assert all(((ring >= 0) & (ring <= size * (1 + 1e-12))).all() for ring in action.rings)
                assert 0 <= polygon_iou(action.rings, np.ones((8, 8), bool), action.union) <= 1
            case Click():
                assert 0 <= action.x < scene.width and 0 <= action.y < scene.height and action.positive
            case Box():
                assert 0 <= action.x0 < action.x1 <= scene.width and 0 <= action.y0 < action.y1 <= scene.height
            case _:
                assert isinstance(action, Invalid) and action.text == text
                assert action.reason.isprintable() and len(action.reason) < 300
                assert spoken.format(action, scene) == text
        planned = spoken.planned(text)
        assert planned is None or planned >= 0

    @pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
    def test_hostile_text_is_read_or_refused_with_a_reason(self, name, text):
        action = polygons.make(name).parse(text, SCENE)
        assert isinstance(action, (Polygons, Box, Click, Stop, Undo)) or action.reason

    @settings(max_examples=50)
    @given(thought=replies, rings=units.filter(bool))
    def test_the_last_list_of_polygons_counts_after_any_thought(self, name, thought, rings):
        spoken = polygons.make(name)
        reply = spoken.format(drawn(spoken, SCENE, rings), SCENE)
        expected = spoken.parse(reply, SCENE)
        assert spoken.parse(f"{thought}.\n{reply}", SCENE) == expected
        assert spoken.parse(f"```json\n{reply}\n``` It is at (0.5, 0.5).<|im_end|>", SCENE) == expected

    @settings(max_examples=50)
    @given(scene=scenes, data=st.data())
    def test_points_and_boxes_come_back(self, name, scene, data):
        """As in the click codecs: exactly where the grid is as fine as the pixels, within a grid step elsewhere."""
        spoken = polygons.make(name)
        click = Click(data.draw(st.integers(0, scene.width - 1)), data.draw(st.integers(0, scene.height - 1)))
        back = spoken.parse(spoken.format(click, scene), scene)
        assert isinstance(back, Click)
        for got, put, size in ((back.x, click.x, scene.width), (back.y, click.y, scene.height)):
            assert abs(got - put) <= (size / 999 if size > 999 else 0)
        box = Box(0, 0, scene.width, scene.height)
        assert spoken.parse(spoken.format(box, scene), scene) == box

    def test_nothing_is_an_empty_list(self, name):
        spoken = polygons.make(name)
        nothing = Polygons((), spoken.union)
        assert spoken.format(nothing, SCENE).endswith("[]")
        for text in (spoken.format(nothing, SCENE), "[]", "[ ]", "[[]]", "The answer is `[]`."):
            assert spoken.parse(text, SCENE) == nothing
        assert spoken.outline(np.zeros((9, 9), bool)) == nothing

    def test_what_cannot_be_written_says_so(self, name):
        spoken = polygons.make(name)
        for ring in ([(641, 0)], [(0, -1)], [(float("nan"), 0)]):
            with pytest.raises(ValueError, match="lies outside the image of 640 x 480"):
                spoken.format(Polygons((np.array(ring, float),)), SCENE)
        with pytest.raises(ValueError, match="no word for a negative click"):
            spoken.format(Click(1, 1, False), SCENE)
        for action in (Stop(), Undo()):
            with pytest.raises(TypeError, match="expected Polygons, Click, Box, Absent or Invalid"):
                spoken.format(action, SCENE)

    def test_the_prompt_names_the_object_the_grammar_and_the_last_error(self, name):
        spoken = polygons.make(name)
        text = spoken.prompt(SCENE)
        assert "the left cat" in text and spoken.dialect.comma.join(("[[[x", "y]")) in text and "`" in text
        assert "a {0} {cat}" in spoken.prompt(replace(SCENE, instruction="a {0} {cat}"))
        assert "vertex (2, 1) lies outside" in spoken.prompt(replace(SCENE, error="vertex (2, 1) lies outside 0..1"))

    @settings(max_examples=20)
    @given(mask=masks.filter(np.any), budget=st.integers(90, 400))
    def test_a_reply_keeps_to_its_budget(self, name, mask, budget):
        spoken = polygons.make(name)
        scene = Scene(*mask.shape)
        text = spoken.reply(mask, scene, budget)
        assert len(text) <= budget and isinstance(spoken.parse(text, scene), Polygons)
        commas = spoken.reply(mask, scene, 7, length=lambda reply: reply.count(","))
        assert commas.count(",") <= 7, "four vertices, whatever is counted"


# --- what is drawn ----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(mask=masks)
def test_rings_give_a_mask_back_and_edges_give_it_without_its_holes(mask):
    for name, expected in (("rings", mask), ("simpleseg:contour=edges", filled(mask))):
        scene, spoken = Scene(*mask.shape), polygons.make(name)
        back = spoken.parse(spoken.format(spoken.outline(mask, ratio=0), scene), scene)
        assert isinstance(back, Polygons)
        assert np.array_equal(polygons_to_mask(back.rings, *mask.shape, union=back.union), expected)


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask without its holes: all pixels but those that a path from outside reaches, also around corners."""
    _, labels = cv2.connectedComponents(np.pad(~mask, 1, constant_values=True).view(np.uint8), connectivity=8)
    return labels[1:-1, 1:-1] != labels[0, 0]


@settings(max_examples=50)
@given(mask=masks)
def test_the_published_contours_are_opencvs_pixel_indices(mask):
    """In its order, simplified by 0.001 of their length, over width and height; of three vertices and more."""
    scene, spoken = Scene(*mask.shape), polygons.make("simpleseg")
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(contour, 0.001 * cv2.arcLength(contour, True), True)[:, 0] for contour in contours]
    texts = [
        ", ".join(f"[{np.floor(1000 * x / scene.width + 0.5) / 1000:.3f}, "
                  f"{np.floor(1000 * y / scene.height + 0.5) / 1000:.3f}]" for x, y in contour)
        for contour in simple
        if len(contour) > 2
    ]  # fmt: skip
    if texts:
        assert spoken.format(spoken.outline(mask), scene) == "[" + ", ".join(f"[{text}]" for text in texts) + "]"


def test_the_published_order_and_what_its_contours_lose():
    """Counterclockwise on the screen. Filled by COCO's rule, a contour through pixel middles loses one column and one
    row in all; along pixel edges it loses nothing."""
    mask = np.zeros((100, 200), bool)
    mask[20:40, 50:90] = True
    scene, published = Scene(*mask.shape), polygons.make("simpleseg")
    text = published.format(published.outline(mask), scene)
    assert text == "[[[0.250, 0.200], [0.250, 0.390], [0.445, 0.390], [0.445, 0.200]]]"
    read = published.parse(text, scene)
    assert metrics.iou(mask, polygons_to_mask(read.rings, 100, 200, union=True)) == (39 * 19) / (40 * 20)
    edges = polygons.make("simpleseg:contour=edges")
    text = edges.format(edges.outline(mask), scene)
    assert text == "[[[0.250, 0.200], [0.250, 0.400], [0.450, 0.400], [0.450, 0.200]]]"
    assert polygon_iou(edges.parse(text, scene).rings, mask, union=True) == 1


def test_rings_beat_simpleseg_where_there_are_holes():
    mask = np.zeros((200, 200), np.uint8)
    cv2.circle(mask, (100, 100), 80, 1, -1)
    cv2.circle(mask, (100, 100), 50, 0, -1)
    scene, ious = Scene(200, 200), {}
    for name in polygons.DIALECTS:
        spoken = polygons.make(name)
        read = spoken.parse(spoken.format(spoken.outline(mask.astype(bool)), scene), scene)
        ious[name] = polygon_iou(read.rings, mask, read.union)
    assert ious["rings"] > 0.97 > 0.65 > max(ious["simpleseg"], ious["simpleseg:contour=edges"])


def test_polygons_that_overlap_are_joined_in_simpleseg_and_cut_in_rings():
    square = "[[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]"
    joined = polygons.make("simpleseg").parse(f"[{square}, {square}]", SCENE)
    cut = polygons.make("rings").parse(f"[{square}, {square}]".replace("1.0", "999"), SCENE)
    full = np.ones((480, 640), bool)
    assert polygon_iou(joined.rings, full, joined.union) == 1
    assert polygon_iou(cut.rings, full, cut.union) == 0


# --- replies as models write them -------------------------------------------------------------------------------------


def test_small_departures_are_read():
    spoken = polygons.make("simpleseg")
    expected = spoken.parse("[[[0.1, 0.2], [0.3, 0.4], [0.5, 0.1]]]", SCENE)
    for text in (
        "[[[0.1,0.2],[0.3,0.4],[0.5,0.1]]]",
        "[\n  [\n    [0.1, 0.2],\n    [0.3, 0.4],\n    [0.5, 0.1]\n  ]\n]",
        "[[[0.10, 0.2000], [0.3, 0.4], [0.5, 0.1],],]",
        "[[0.1, 0.2], [0.3, 0.4], [0.5, 0.1]]",
        "[[[.1, 2e-1], [+0.3, 4.E-1], [0.5, .10]]]",
        "[[(0.1, 0.2), (0.3, 0.4), (0.5, 0.1)]]",
        '{"polygons": [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.1]]], "label": "cat"}',
        "[[[0, 0], [1, 1], [1, 0]]] no: [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.1]]]",
    ):
        assert spoken.parse(text, SCENE) == expected, text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no list in ``; expected `[[[x, y], …], …]`"),
        ("The cat is on the left.", "no list in `The cat is on the left.`; expected"),
        ("[[[0.5,", "`[[[0.5,` has no whole vertex; expected"),
        ("[[[0.1, 0.2], [1.204, 0.088], [0.5, 0.1]]]", "vertex (1.204, 0.088) lies outside 0..1"),
        ("[[[0.1, -0.2], [1, 0], [0.5, 0.1]]]", "vertex (0.1, -0.2) lies outside 0..1"),
        (f"[[[{'9' * 9999}, 1]]]", "vertex (999999999999…, 1) lies outside 0..1"),
        ("[[[0.1, 0.2], [1e1, 0], [0.5, 0.1]]]", "vertex (1e1, 0) lies outside 0..1"),
        ("[1.5, 0.5]", "point (1.5, 0.5) lies outside 0..1"),
        ("[0.5, 0.5, 0.4, 0.6]", "box (0.5, 0.5, 0.4, 0.6) is empty"),
    ],
)
def test_reasons_say_what_arrived_and_what_was_expected(text, reason):
    action = polygons.make("simpleseg").parse(text, SCENE)
    assert isinstance(action, Invalid) and action.reason.startswith(reason)


def test_a_plan_that_is_not_kept_is_a_truncated_reply():
    spoken = polygons.make("rings")
    triangle = "[[[000,000],[000,999],[999,999]]]"
    assert spoken.format(spoken.parse(triangle, SCENE), SCENE) == f"Vertices: 3\n{triangle}"
    for plan, truncated in (("", False), ("Vertices: 3\n", False), ("Vertices: 2\n", False), ("Vertices: 7\n", True)):
        assert spoken.parse(plan + triangle, SCENE).truncated == truncated
    assert not polygons.make("simpleseg").parse("Vertices: 7\n[[[0, 0], [0, 1], [1, 1]]]", SCENE).truncated
    assert spoken.planned("Vertices: 12, no, vertices: 5\n[[[") == 5 and spoken.planned("5 vertices") is None


def test_numbers_are_rounded_and_not_cut():
    scene, spoken = Scene(1000, 1000), polygons.make("simpleseg")
    ring = np.array([[0.6, 999.6], [0.4, 0.4], [1000, 1000]])
    assert spoken.format(Polygons((ring,)), scene) == "[[[0.001, 1.000], [0.000, 0.000], [1.000, 1.000]]]"


def test_one_and_two_vertices_are_read_and_cover_nothing(spoken):
    for ring in ([(0.5, 0.5)], [(0.1, 0.1), (0.9, 0.9)]):
        read = spoken.parse(spoken.format(drawn(spoken, SCENE, [ring]), SCENE), SCENE)
        assert isinstance(read, Polygons) and [len(one) for one in read.rings] == [len(ring)] and not read.truncated
        assert polygon_iou(read.rings, np.ones((480, 640), bool), read.union) == 0


def test_polygons_are_equal_where_they_say_the_same_and_cannot_be_changed():
    ring = [(0, 0), (0, 1), (1, 1)]
    first = Polygons((np.array(ring),))
    assert first == Polygons((np.array(ring, float),)) and first != Polygons((np.array(ring),), union=True)
    assert first != Polygons((np.array(ring), np.array(ring))) and first != Stop()
    with pytest.raises(ValueError, match="read-only"):
        first.rings[0][0] = 5


def test_an_unknown_dialect_names_the_known_ones():
    with pytest.raises(ValueError, match="expected one of simpleseg, simpleseg:contour=edges, rings"):
        polygons.make("simpleseg:contour=round")
    with pytest.raises(ValueError, match="expected one of simpleseg, simpleseg:contour=edges, rings"):
        codec.make("simpleseg:contour=round")
