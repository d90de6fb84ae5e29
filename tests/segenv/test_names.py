"""Texts and file names of datasets, as programs and people write them."""

import json
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from made_data import make_coco, photo, save, square

from segenv import data
from segenv.data.base import same_name, within
from segenv.files import write_atomic
from segenv.types import BadItem, Task

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
EMOJI = "\N{SLICE OF PIZZA}"
HIGH, LOW = "\ud83c", "\udf55"  # its halves


def of(instruction: object) -> Task:
    return Task("t", np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool), instruction)  # type: ignore[arg-type]


def indexed(root: Path, **item: object) -> data.Dataset:
    """A dataset of two items: the first with `item`, the second plain."""
    for name in ("a", "b"):
        save(root / f"{name}.jpg", photo(0))
        save(root / f"{name}.png", square())
    items = [{"name": name, "image": f"{name}.jpg", "mask": f"{name}.png", "instruction": "it"} for name in "ab"]
    (root / "index.json").write_text(json.dumps([items[0] | item, items[1]]))
    return data.make(f"index:{root}", skip_bad=True)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, ""),
        ("", ""),
        ("the cup", "the cup"),
        (" the  cup ", " the  cup "),
        ("the\r\ncup\n", "the cup"),
        ("a\0b\tc\u2028d\x85e", "a b c d e"),
        (f"a {HIGH}{LOW}", f"a {EMOJI}"),
        (EMOJI, EMOJI),
    ],
)
def test_an_instruction_is_one_line(given: str | None, read: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of(given).instruction == read


@pytest.mark.parametrize("given", [f"the happy {HIGH}", f"{LOW} cup", f"{LOW}{HIGH}", f"a{HIGH}b"])
def test_half_an_emoji_is_replaced_with_a_warning(given: str) -> None:
    with pytest.warns(UserWarning, match="half surrogate"):
        text = of(given).instruction
    assert text == given.replace(HIGH, "\ufffd").replace(LOW, "\ufffd")
    text.encode()


@pytest.mark.parametrize("given", [["the", "cup"], {"en": "cup"}, 7, True, False, 0, 1.5, b"cup", []])
def test_what_is_no_text_is_the_items_error(tmp_path: Path, given: object) -> None:
    with pytest.raises(BadItem, match="task t: instruction is .* expected a text"):
        of(given)
    if not isinstance(given, bytes):
        found = indexed(tmp_path, instruction=given)
        assert [task.id for task in found] == ["b"]
        assert [name for name, _ in found.skipped] == ["a"]


def test_a_name_is_text_as_well(tmp_path: Path) -> None:
    assert indexed(tmp_path, name=f"x{HIGH}\n").ids == ("x\ufffd", "b")
    found = indexed(tmp_path, name=["a"])
    assert [task.id for task in found] == ["b"]
    assert found.skipped[0][0] == "item-0"
    assert "expected a text" in found.skipped[0][1]


def test_any_text_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", f"{HIGH}{LOW} {HIGH}")
    assert (tmp_path / "a.txt").read_text("utf-8") == f"{EMOJI} \ufffd"


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (f"{NFD}.jpg", f"{NFC}.jpg"),
        (f"{NFC}.jpg", f"{NFD}.jpg"),
        (f"{NFD}/{NFC}.jpg", f"{NFC}/{NFD}.jpg"),
        ("images/a.jpg", "images\\a.jpg"),
        ("images/a.jpg", ".\\images\\a.jpg"),
        ("images/a.jpg", "./images/a.jpg"),
        ("images/a.jpg", "images/../images/a.jpg"),
        (f"images/{NFD}.jpg", f"images\\{NFC}.jpg"),
        ("images\\a.jpg", "images\\a.jpg"),
    ],
)
def test_a_file_is_found_by_any_spelling_of_its_name(tmp_path: Path, there: str, named: str) -> None:
    save(tmp_path / there, photo(1))
    assert within(tmp_path, named, "x").samefile(tmp_path / there)
    found = indexed(tmp_path, image=named)
    assert [task.id for task in found] == ["a", "b"]
    assert same_name(there) == same_name(named)


def test_coco_finds_a_file_by_any_spelling_of_its_name(tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    file = Path(spec.removeprefix("coco:").partition("@")[0])
    listed = json.loads(file.read_text())
    name = listed["images"][0]["file_name"]
    listed["images"][0]["file_name"] = f"{NFC}\\{name}"
    file.write_text(json.dumps(listed))
    folder = Path(spec.partition("@")[2])
    (folder / NFD).mkdir()
    (folder / name).rename(folder / NFD / name)
    found = data.make(spec)
    first = next(i for i, entry in enumerate(listed["annotations"]) if entry["image_id"] == listed["images"][0]["id"])
    assert found[first].image.shape


def test_stems_pair_in_any_spelling(tmp_path: Path) -> None:
    save(tmp_path / "images" / f"{NFC}.jpg", photo(0))
    save(tmp_path / "masks" / f"{NFD}.png", square())
    assert [task.id for task in data.make(f"folder:{tmp_path}")] == [NFC]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    "name",
    ["../out.jpg", "..\\out.jpg", "{out}", "here/../../out.jpg", "here\\..\\..\\out.jpg", "deep/link/../../../out.jpg"],
)
def test_no_name_leaves_the_folder(tmp_path: Path, name: str, follow: bool) -> None:
    out, root = save(tmp_path / "out.jpg", photo(1)), tmp_path / "root"
    (root / "here").mkdir(parents=True)
    (root / "deep").mkdir()
    (tmp_path / "x/y").mkdir(parents=True)
    (root / "deep/link").symlink_to(tmp_path / "x/y", target_is_directory=True)
    with pytest.raises(BadItem, match="leaves"):
        within(root, name.format(out=out), "x", follow)


@pytest.mark.parametrize("name", ["", "\0", "a\nb.jpg", "\ud83d.jpg", None, [], 1, "a" * 5000, "a/" * 3000])
def test_a_name_that_no_file_has_is_the_items_error(tmp_path: Path, name: object) -> None:
    found = indexed(tmp_path, image=name)
    assert [task.id for task in found] == ["b"]
    assert [len(reason.splitlines()) for _, reason in found.skipped] == [1]


def test_links_are_followed_when_asked(tmp_path: Path) -> None:
    out, root = save(tmp_path / "out.jpg", photo(1)), tmp_path / "root"
    indexed(root, image="link.jpg")
    (root / "link.jpg").symlink_to(out)
    found = data.make(f"index:{root}", skip_bad=True)
    assert [task.id for task in found] == ["b"]
    assert "--follow-links" in found.skipped[0][1]
    followed = data.make(f"index:{root}", follow_links=True)
    assert followed[0].image.shape == (20, 30, 3)
    assert followed[:1].follow_links
    (root / "link.jpg").unlink()
    (root / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(BadItem, match="leaves|missing"):
        data.make(f"index:{root}", follow_links=True)[0]
    (root / "link.jpg").unlink()
    (root / "link.jpg").symlink_to(root / "link.jpg")
    with pytest.raises(BadItem, match="'a'"):
        data.make(f"index:{root}", follow_links=True)[0]


def test_a_snapshot_of_the_hub_is_a_folder(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--me--cups"
    root = repository / "snapshots" / "0f3a"
    indexed(root, image="images/a.jpg")
    save(repository / "blobs" / "abc.jpg", photo(2)).rename(repository / "blobs" / "abc")
    (root / "images").mkdir()
    (root / "images/a.jpg").symlink_to("../../../blobs/abc")
    (root / "index.json").rename(repository / "blobs" / "def")
    (root / "index.json").symlink_to("../../blobs/def")
    assert [task.id for task in data.make(f"index:{root}")] == ["a", "b"]
    (root / "images/a.jpg").unlink()
    (root / "images/a.jpg").symlink_to(save(tmp_path / "out.jpg", photo(1)))
    with pytest.raises(BadItem, match="--follow-links"):
        data.make(f"index:{root}")[0]
