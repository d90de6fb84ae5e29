"""Files are read as published, and no item is left out in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_data import SIZE, make_berkeley, make_folder, make_index, photo, save, square
from PIL import Image

from segenv import data
from segenv.data.images import read_image
from segenv.types import BadItem


def test_labels_are_read_as_published(tmp_path: Path) -> None:
    """One mask file of 0, 64, 128, 200 and 255 under each rule."""
    values = np.repeat(np.array([0, 64, 128, 200, 255], np.uint8), 4)[:, None].repeat(30, 1)
    for images, masks in (("data_GT", "boundary_GT"), ("images", "masks"), ("img", "gt")):
        save(tmp_path / images / "a.jpg", photo(0))
        save(tmp_path / masks / "a.png", values)
    for spec, expected in (
        ("grabcut", [0, 0, 128, 255, 255]),
        ("berkeley", [0, 0, 128, 255, 255]),
        ("davis", [0, 255, 255, 255, 255]),
    ):
        target = data.make(f"{spec}:{tmp_path}")[0].target
        assert target[::4, 0].tolist() == expected, spec
    with pytest.raises(BadItem, match=r"item 'a': .*masks/a.png has labels are 0, 64, 128, 200, 255; expected"):
        data.make(f"folder:{tmp_path}")[0]


def test_a_coloured_davis_mask_is_object_where_any_channel_is_not_black(tmp_path: Path) -> None:
    palette = Image.fromarray(square(ring=2, inside=1))
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 1, 0])  # two objects: dark red, and nearly black green
    save(tmp_path / "img" / "a.jpg", photo(0))
    save(tmp_path / "gt" / "a.png", palette)
    assert np.array_equal(data.make(f"davis:{tmp_path}")[0].target == 255, square() > 0)


def test_berkeley_has_a_task_for_each_mask(tmp_path: Path) -> None:
    dataset = data.make(make_berkeley(tmp_path))
    assert list(dataset.ids) == ["a#001", "a#002", "b", "c#1"]
    first, second, third, _ = dataset
    assert first.image_hash == second.image_hash != third.image_hash


def test_png_images_and_capital_suffixes_count(tmp_path: Path) -> None:
    dataset = data.make(make_folder(tmp_path))
    (tmp_path / "images" / ".DS_Store").touch()
    (tmp_path / "images" / "Thumbs.db").touch()
    assert list(data.make(dataset.spec).ids) == ["a", "b", "c"]
    assert np.array_equal(dataset[1].image, np.array(photo(1))), "a PNG is read exactly, in RGB order"


def test_index_keeps_texts_and_licences_and_selects_subsets(tmp_path: Path) -> None:
    spec = make_index(tmp_path)
    first = data.make(spec)[0]
    assert (first.id, first.instruction, first.meta["licence"]) == ("one/0", "the square", "mine")
    assert np.array_equal(first.target, square())
    subset = data.make(f"{spec}#P")
    assert list(subset.ids) == ["one/0", "one/2"] and subset.spec == f"{spec}#P"
    with pytest.raises(data.DataError, match="no subset 'R'; it has P, Q"):
        data.make(f"{spec}#R")


def test_the_shared_photos_are_all_there(shared_data: Path) -> None:
    """204 pairs, .png images too; in 42 of GrabCut's 50, a border around the object is ignored."""
    whole = data.make(f"index:{shared_data}/click")
    assert len(whole) == 204
    subsets = {name: data.make(f"index:{shared_data}/click#{name}") for name in ("GrabCut", "VGG_iseg", "DAVIS345")}
    assert {name: len(subset) for name, subset in subsets.items()} == {"GrabCut": 50, "VGG_iseg": 102, "DAVIS345": 52}
    assert sum((task.target == 128).any() for task in subsets["GrabCut"]) == 42


def test_published_grabcut_files_read_the_same_through_both_layouts(shared_data: Path, tmp_path: Path) -> None:
    listed = data.make(f"index:{shared_data}/click#GrabCut")
    (tmp_path / "data_GT").symlink_to(shared_data / "click" / "images")
    (tmp_path / "boundary_GT").symlink_to(shared_data / "click" / "masks")
    published = data.make(f"grabcut:{tmp_path}")
    place = {name: i for i, name in enumerate(published.ids)}
    for task in listed[:8]:
        again = published[place[task.id]]
        assert again.image_hash == task.image_hash and np.array_equal(again.target, task.target)


def broken(problem: str, root: Path) -> None:
    """Spoil item b of a folder."""
    image, mask = root / "images" / "b.png", root / "masks" / "b.bmp"
    match problem:
        case "truncated image":
            image.write_bytes(image.read_bytes()[:-400])
        case "truncated mask":
            mask.write_bytes(mask.read_bytes()[:-200])
        case "no image at all":
            image.write_text("<html>404</html>")
        case "empty file":
            image.write_bytes(b"")
        case "postscript":
            image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\nshowpage\n")
        case "dead link":
            image.unlink()
            image.symlink_to(root / "nowhere.png")
        case "missing mask":
            mask.unlink()
        case "two images of a stem":
            save(root / "images" / "b.jpg", photo(9))
        case "other size":
            save(mask, square((20, 31)))
        case "turned":
            save(mask, square((30, 20)))
        case "empty mask":
            save(mask, square(inside=0, ring=0))
        case "only ignored":
            save(mask, square(inside=128))
        case "void of PASCAL VOC":
            save(mask, square(ring=255, inside=1))
        case "void in a palette of PASCAL VOC":
            save(root / "masks" / "b.png", palette_mask(square(ring=0), [0, 0, 0, 128, 0, 0] + 254 * [224, 224, 192]))
            mask.unlink()
        case "colours":
            save(mask, Image.fromarray(np.stack([square(), square() * 0, square()], 2)))
        case "transparent mask":
            save(root / "masks" / "b.png", Image.fromarray(np.stack([square() * 0 + 255] * 3 + [square()], 2)))
            mask.unlink()
        case "16 bits":
            Image.fromarray(square().astype(np.uint16) * 257).save(image)
        case "transparent image":
            save(image, Image.fromarray(np.dstack([np.array(photo(1)), square()])))
        case "film":
            photo(1).save(image, save_all=True, append_images=[photo(2)], duration=100)


PROBLEMS = {
    "truncated image": r"b.png cannot be decoded",
    "truncated mask": r"b.bmp cannot be decoded",
    "no image at all": r"b.png cannot be decoded",
    "empty file": r"b.png cannot be decoded",
    "postscript": r"b.png cannot be decoded",
    "dead link": r"b.png is missing",
    "missing mask": r"b.png has no partner with an equal stem in .*masks",
    "two images of a stem": r"b.jpg and .*b.png share a stem",
    "other size": r"b.bmp is 31 x 20 pixels \(width x height\) but .*b.png is 30 x 20",
    "turned": r"b.bmp is 20 x 30 pixels",
    "empty mask": r"b.bmp has no object pixel",
    "only ignored": r"b.bmp has no object pixel",
    "void of PASCAL VOC": r"b.bmp has labels are 0, 1, 255; expected",
    "void in a palette of PASCAL VOC": r"b.png has a coloured palette with indices up to 255; save",
    "colours": r"b.bmp has coloured pixels in a RGB mask; save",
    "transparent mask": r"b.png has transparent pixels in a RGBA mask",
    "16 bits": r"b.png has pixels of mode I;16",
    "transparent image": r"b.png has transparent pixels; flatten",
    "film": r"b.png has several frames",
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_bad_item_is_named_or_counted(problem: str, tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    broken(problem, tmp_path)
    strict = data.make(spec)
    with pytest.raises(BadItem, match=rf"^item 'b': .*{PROBLEMS[problem]}.*; .*--skip-bad"):
        list(strict)
    assert strict[0].id == "a" and strict.skipped == []
    patient = data.make(spec, skip_bad=True)
    for _ in range(2):  # a second pass counts nothing twice
        assert [task.id for task in patient] == ["a", "c"]
    ((item, reason),) = patient.skipped
    assert item == "b" and "--skip-bad" not in reason
    assert len(patient) == 3 and list(patient.ids) == ["a", "b", "c"]
    with pytest.raises(BadItem, match="item 'b'"):
        patient[1]
    assert [task.id for task in patient[1:]] == ["c"]


def test_a_huge_image_is_refused_from_its_header(tmp_path: Path) -> None:
    """A PNG of 80 Mpx whose pixels are not there: only its header can have been read."""
    spec = make_folder(tmp_path)
    save(tmp_path / "images" / "b.png", Image.new("1", (10_000, 8_000)))
    whole = (tmp_path / "images" / "b.png").read_bytes()
    (tmp_path / "images" / "b.png").write_bytes(whole[: whole.index(b"IDAT") + 4])
    with pytest.raises(
        BadItem, match=r"item 'b': .*b.png is 10000 x 8000 pixels .* more than the 50,000,000 pixels allow"
    ):
        data.make(spec)[1]
    with pytest.raises(BadItem, match="more than the 599 pixels allowed"):
        data.make(spec, max_pixels=599)[0]
    assert data.make(spec, max_pixels=600)[0].image.size == 1800


def test_faults_of_the_machine_are_not_bad_items(tmp_path: Path) -> None:
    """Too many open files must stop a run, and must not shrink its dataset."""
    dataset = data.make(make_folder(tmp_path), skip_bad=True)
    assert len(list(dataset)) == 3  # and Pillow has loaded its decoders
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append((tmp_path / "images" / "a.jpg").open())
        with pytest.raises(OSError, match="Too many open files"):
            dataset[0]
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert dataset.skipped == [] and len(list(dataset)) == 3


def test_mask_files_without_an_image_count_too(tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    save(tmp_path / "masks" / "d.png", square())
    patient = data.make(spec, skip_bad=True)
    assert len(patient) == 4 and len(list(patient)) == 3
    assert patient.skipped[0][0] == "d"


@pytest.mark.parametrize(
    "value", ["../secret.png", "/etc/hostname", "linked.png", "images/../../secret.png", 7, None, ""]
)
def test_an_index_reads_nothing_outside_its_folder(value: object, tmp_path: Path) -> None:
    root = tmp_path / "data"
    spec = make_index(root)
    save(tmp_path / "secret.png", photo(0))
    (root / "linked.png").symlink_to(tmp_path / "secret.png")
    items = json.loads((root / "index.json").read_text())
    items[1]["image"] = value
    (root / "index.json").write_text(json.dumps(items))
    with pytest.raises(BadItem, match=r"item 'one/1': .*(leaves .*copy the file|expected a path).*--skip-bad"):
        data.make(spec)[1]
    patient = data.make(spec, skip_bad=True)
    assert len(list(patient)) == 2 and [item for item, _ in patient.skipped] == ["one/1"]


def test_a_folder_reached_through_a_link_is_itself(tmp_path: Path) -> None:
    make_index(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(list(data.make(f"index:{tmp_path / 'link'}"))) == 3


def test_a_size_that_the_index_denies_is_a_bad_item(tmp_path: Path) -> None:
    spec = make_index(tmp_path)
    items = json.loads((tmp_path / "index.json").read_text())
    items[0]["width"] = 31
    (tmp_path / "index.json").write_text(json.dumps([*items, "a.png"]))
    patient = data.make(spec, skip_bad=True)
    assert len(list(patient)) == 2 and len(patient) == 4
    assert "index.json says width 31" in patient.skipped[0][1]
    assert patient.skipped[1] == ("item-3", "item 'item-3': index.json lists a str; expected name, image and mask")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_image_and_mask_alike(orientation: int, tmp_path: Path) -> None:
    """As OpenCV and every viewer show it; a mask that was drawn on the unturned pixels is noticed where sizes tell."""
    cv2 = pytest.importorskip("cv2")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "images" / "a.jpg", photo(0).resize((60, 40)), exif=exif, quality=95)
    shown = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    save(tmp_path / "masks" / "a.png", square(shown.shape[:2]))
    task = data.make(f"folder:{tmp_path}")[0]
    assert task.image.shape == shown.shape
    assert np.abs(task.image.astype(int) - shown).max() <= 8  # two JPEG decoders
    if orientation > 4:
        save(tmp_path / "masks" / "a.png", square((40, 60)))
        with pytest.raises(BadItem, match="drawn on the unturned pixels; remove the image's orientation tag"):
            data.make(f"folder:{tmp_path}")[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_every_eight_bit_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}", photo(3).convert(mode))
    image = read_image(path, "a")
    assert image.dtype == np.uint8 and image.shape == (*SIZE, 3)
    if mode in ("1", "L", "LA"):
        assert (image == image[..., :1]).all()
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(image, np.array(photo(3)))


def palette_mask(values: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette(colours)
    return image


@pytest.mark.parametrize(
    "mask",
    [
        square(ring=0),
        square(ring=0, inside=1),
        Image.fromarray(square(ring=0)).convert("1"),
        Image.fromarray(square(ring=0)).convert("RGB"),
        Image.fromarray(square(ring=0)).convert("RGBA"),
        palette_mask(square(ring=0, inside=1), [0, 0, 0, 255, 255, 255]),
        palette_mask(square(ring=0, inside=1), [0, 0, 0, 128, 0, 0]),
        palette_mask(square(background=1, ring=1, inside=0), [255, 255, 255, 0, 0, 0]),
    ],
    ids=["0/255", "0/1", "1 bit", "gray as RGB", "opaque RGBA", "gray palette", "VOC palette", "palette white first"],
)
def test_the_same_object_in_every_accepted_mask_format(mask: Image.Image | np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", photo(0))
    save(tmp_path / "masks" / "a.png", mask)
    target = data.make(f"folder:{tmp_path}")[0].target
    assert target.dtype == np.uint8 and np.array_equal(target, square(ring=0))


def test_a_jpeg_mask_says_why_it_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", photo(0))
    save(tmp_path / "masks" / "a.jpg", square(), quality=60)
    with pytest.raises(BadItem, match="JPEG blurs labels: save masks as PNG"):
        data.make(f"folder:{tmp_path}")[0]
