"""Codecs in files: what they write they read, and files that are none are told."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segenv import codec as codecs
from segenv.codec.file import UNITS, CodecFile
from segenv.types import Click

sides = st.integers(1, 700) | st.sampled_from([1, 3, 2160, 3840, 5000])
PLAIN = CodecFile("qwen3-vl", "image", "yx", (1000.0, 1000.0))


def made(path, found: CodecFile):
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}
    path.write_text(yaml.safe_dump(values))
    return codecs.make(str(path))


@given(
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(["xy", "yx"]),
    st.tuples(*[st.floats(800, 2000)] * 2),
    st.tuples(*[st.floats(-50, 50)] * 2),
    st.tuples(sides, sides, st.floats(0, 0.999), st.floats(0, 0.999)),
)
@settings(max_examples=60, deadline=None)
def test_a_click_comes_back(tmp_path_factory, unit, order, scale, offset, where):
    width, height, u, v = where
    if unit in ("sent", "long-edge", "pixels"):
        scale, offset = (1.0, 1.0), (0.0, 0.0)
    cap = 900.0 if unit == "long-edge" else None
    found = CodecFile("gpt", unit, order, scale, offset, cap, decimals=2)
    codec = made(tmp_path_factory.getbasetemp() / "codec.yaml", found)
    task = SimpleNamespace(width=width, height=height, instruction="")
    click = Click(int(u * width), int(v * height), True)
    back = codec.parse(codec.format(click, task), task)
    assert isinstance(back, Click) and max(abs(back.x - click.x), abs(back.y - click.y)) <= 1


def test_the_file_says_what_the_numbers_mean(tmp_path):
    task = SimpleNamespace(width=200, height=100, instruction="the cup")
    codec = made(tmp_path / "codec.yaml", replace(PLAIN, offset=(10.0, 20.0)))
    assert codec.parse('{"point_2d": [520, 260], "label": "positive"}', task) == Click(50, 50, True)
    assert "the cup" in codec.prompt(task) and codec.content_hash and codec.boxes == codec.points
    padded = made(tmp_path / "padded.yaml", CodecFile("llava-1.5", "padded", "xy", (1000.0, 1000.0)))
    assert padded.parse("Positive point: [500, 500]", task) == Click(100, 50, True)
    assert padded.parse("Positive point: [500, 250]", task) == Click(100, 0, True)
    sent = made(tmp_path / "sent.yaml", CodecFile("gpt", "sent", "xy")).seen_at(lambda width, height: (50, 25))
    assert sent.parse("Positive point: (25, 5)", task) == Click(100, 20, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected"),
        ("[1, 2]", "expected"),
        ("writes: qwen3-vl\nunit: inch\norder: xy\n", "unit"),
        ("writes: nobody\nunit: image\norder: xy\n", "nobody"),
        ("writes: gpt\nunit: image\norder: xy\nscale: [0, 1]\n", "scale"),
        ("writes: gpt\nunit: image\norder: xy\nscale: [.nan, 1]\n", "scale"),
        ("writes: gpt\nunit: image\norder: xy\noffset: [.inf, 1]\n", "offset"),
        ("writes: gpt\nunit: long-edge\norder: xy\n", "cap"),
        ("writes: gpt\nunit: sent\norder: xy\nscale: [2, 2]\n", "sent"),
        ("writes: gpt\nunit: image\norder: xy\nprompt: nothing\n", "prompt"),
        ("writes: molmo\nunit: image\norder: yx\n", "names its axes"),
        ("!!python/object/apply:os.system ['true']", "none"),
        ("a: &a [*a]", "none"),
        ("x" * 70_000, "bytes"),
    ],
)
def test_another_file_is_told(tmp_path, text, told):
    path = tmp_path / "codec.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        codecs.make(str(path))
    assert "codec.yaml" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_missing_is_told(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        codecs.make(str(tmp_path / "none.yaml"))
