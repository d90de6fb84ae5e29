"""A damaged file of boxes or phrases is read, or is one line that says what is wrong: whatever the damage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_data import photo, save
from mutations import mutated, mutated_table

from experiments.annotate.inputs import read_inputs, read_phrases
from segenv.types import SegenvError

BOXES = "image,x0,y0,x1,y1,phrase,score\na.jpg,1,1,9,9,cup,0.5\nb.jpg,2,2,8,8,the red cup,\na.jpg,1.5,2,7,8,,1\n"
PHRASES = "image,phrase\na.jpg,cup\nb.jpg,the red cup\n"
FILES: dict[str, Callable[[int], bytes]] = {
    "boxes.csv": lambda seed: mutated_table(BOXES, seed),
    "phrases.csv": lambda seed: mutated_table(PHRASES, seed),
    "boxes.json": lambda seed: mutated(
        {"a.jpg": [{"box": [1, 1, 9, 9], "phrase": "cup"}], "b.jpg": [[2, 2, 8, 8]]}, seed
    ),
    "phrases.json": lambda seed: mutated({"a.jpg": ["cup", "lid"], "b.jpg": "the red cup"}, seed),
}


def try_files(name: str, count: int, root: Path) -> int:
    """Read `count` damaged files, and return how many were read; each other one is one line."""
    read = 0
    for image in "ab":
        save(root / "images" / f"{image}.jpg", photo(0))
    for seed in range(count):
        (root / name).write_bytes(FILES[name](seed))
        given = [None, str(root / name)] if name.startswith("boxes") else [str(root / name), None]
        try:
            found = read_inputs(str(root / "images"), (), *given, None)
        except (SegenvError, ValueError) as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 3000, (seed, str(error)[:500])
            continue
        read += 1
        assert found.fingerprint
        for phrase in found.every_phrase:
            assert phrase.encode() and len(phrase.splitlines()) == 1, seed
    return read


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_inputs_is_read_or_is_one_line(name: str, tmp_path: Path) -> None:
    assert 0 < try_files(name, 100, tmp_path) < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files_of_inputs_are_read_or_are_one_line(name: str, tmp_path: Path) -> None:
    assert 0 < try_files(name, 1000, tmp_path) < 1000


def test_a_line_break_in_a_field_is_a_space(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text('image,phrase\r\na.jpg,"red\r\ncup"\r\nb.jpg,"blue\ncup"\n')
    assert read_phrases(file)[1] == {"a.jpg": ["red cup"], "b.jpg": ["blue cup"]}


def test_half_an_emoji_in_a_phrase_is_repaired(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(["cup \ud83c\udf55", "lid \ud83c"]))
    assert read_phrases(tmp_path / "p.json")[0] == ["cup \N{SLICE OF PIZZA}", "lid \ufffd"]
