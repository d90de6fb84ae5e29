"""Files that people give to `experiments.annotate`: images of many formats, and tables with quoted cells."""

import json
import warnings
from pathlib import Path

import pytest
from made_data import photo, save
from PIL import features

from experiments.annotate import Args, run
from experiments.annotate.__main__ import main
from experiments.annotate.inputs import LeftOut, image_names, read_boxes, read_phrases
from experiments.common.config import RunError

READ = ["avif", "bmp", "gif", "jp2", "jpeg", "png", "ppm", "tif", "tiff", "webp", "TIFF"]
UNREAD = ["heic", "heif", "svg", "psd", "jxl", "raw", "cr2", "dng", "nef", "tga", "ico", "exr"]


def boxed(folder: Path) -> str:
    """Boxes of every image of a folder."""
    file = folder.with_suffix(".json")
    file.write_text(json.dumps({name: [{"box": [5, 5, 30, 20], "phrase": "cup"}] for name in image_names(folder)}))
    return str(file)


def annotated(folder: Path) -> dict:
    args = Args(images=str(folder), boxes=boxed(folder), tool="disc", out=f"{folder}-out", show=2)
    return run(args, quiet=True)


def test_every_file_that_looks_like_an_image_is_read_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    lacking = {"avif": "avif", "jp2": "jpg_2000", "webp": "webp"}
    written = [one for one in READ if one not in lacking or features.check(lacking[one])]
    for one in written:
        save(folder / f"a.{one}", photo(0))
    for one in UNREAD:
        (folder / f"b.{one}").write_bytes(b"\0\0\0\x18ftyp" + one.encode() + bytes(99))
    for other in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (folder / other).write_bytes(b"x")
    found = annotated(folder)
    assert found["images"] == len(written)
    assert set(found["skipped"]) == {f"b.{one}" for one in UNREAD}


def test_a_folder_of_which_all_is_skipped_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.heic", "b.svg"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic")
    argv = ["--images", str(folder), "--boxes", boxed(folder), "--tool", "disc", "--out", str(tmp_path / "out")]
    assert main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: all 2 images were skipped, the first because: item 'a.heic'")
    assert "save it as PNG" in last


def table(folder: Path, text: str | bytes) -> Path:
    file = folder / "table.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize(("cell", "phrase"), [('"red\ncup"', "red cup"), ('"red\r\ncup"', "red cup"),
                                              ('"a ""red"" cup"', 'a "red" cup'), ("red\0cup", "red cup"),
                                              ('"red, cup"', "red, cup")])  # fmt: skip
def test_a_quoted_cell_is_one_phrase(tmp_path: Path, cell: str, phrase: str) -> None:
    _, each = read_phrases(table(tmp_path, f"image,phrase\r\na.png,{cell}\r\nb.png,dog\r\n"))
    assert each == {"a.png": [phrase], "b.png": ["dog"]}
    boxes = read_boxes(table(tmp_path, f"image,x0,y0,x1,y1,phrase\na.png,1,1,5,5,{cell}\n"))
    assert [one.phrase for one in boxes["a.png"]] == [phrase]


@pytest.mark.parametrize("text", ['image,phrase\na.png,"red cup\nb.png,dog\n', 'image,phrase\na.png,"red"cup\n'])
def test_a_quote_that_is_not_closed_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(RunError, match=r"table.csv, line \d is no CSV .* correct the quotes"):
        read_phrases(table(tmp_path, text))


@pytest.mark.parametrize("row", ["a.png,1,1,5", ",1,1,5,5,cup", "a.png,,1,5,5,cup", "a.png,1,1,x,5", "a.png,1,1,nan,5"])
def test_one_bad_row_of_boxes_is_left_out(tmp_path: Path, row: str) -> None:
    left_out = LeftOut()
    lines = f"image,x0,y0,x1,y1,phrase\n{row}\nb.png,1,1,5,5,cup\n"
    assert list(read_boxes(table(tmp_path, lines), left_out=left_out)) == ["b.png"]
    assert left_out.listed == 2
    assert "line 2" in left_out.bad[0]


@pytest.mark.parametrize("phrase", [["red", "cup"], 7, 0, [], False, {"en": "cup"}])
def test_a_phrase_that_is_no_text_is_the_boxs_error(tmp_path: Path, phrase: object) -> None:
    file, left_out = tmp_path / "boxes.json", LeftOut()
    file.write_text(json.dumps({"a.png": [{"box": [1, 1, 5, 5], "phrase": one} for one in (phrase, "cup", None)]}))
    found = read_boxes(file, left_out=left_out)
    assert [one.phrase for one in found["a.png"]] == ["cup", "object"]
    assert "box 0: phrase is" in left_out.bad[0]


def test_half_an_emoji_in_a_phrase_ends_no_command(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    save(folder / "a.png", photo(0))
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"a.png": [{"box": [5, 5, 30, 20], "phrase": "cup \ud83d"}], "\ud83d.png": []}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(Args(images=str(folder), boxes=str(file), tool="disc", out=str(tmp_path / "out"), show=1), quiet=True)
    assert "cup \ufffd" in json.dumps(json.loads((tmp_path / "out/annotations.json").read_text()), ensure_ascii=False)
    (tmp_path / "out/report.html").read_text(encoding="utf-8")
