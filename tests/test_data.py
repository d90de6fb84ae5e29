"""Every dataset keeps one contract, reads labels as published, and never leaves an item out in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from segenv import data
from segenv.data import base, coco
from segenv.types import BadItem, Task, object_of

SIZE = (20, 30)  # [H, W] of the made-up images


def photo(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def square(size: tuple[int, int] = SIZE, background: int = 0, ring: int = 128, inside: int = 255) -> np.ndarray:
    mask = np.full(size, background, np.uint8)
    mask[4:12, 5:15] = ring
    mask[5:11, 6:14] = inside
    return mask


def save(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def pairs(root: Path, images: str, masks: str, mask_names: tuple[str, ...] = ("a.png", "b.bmp", "c.PNG")) -> None:
    for i, name in enumerate(("a.jpg", "b.png", "c.JPG")):
        save(root / images / name, photo(i))
    for name in mask_names:
        save(root / masks / name, square())


def make_folder(root: Path) -> str:
    pairs(root, "images", "masks")
    return f"folder:{root}"


def make_index(root: Path) -> str:
    pairs(root, "images", "masks")
    items = [
        {"name": f"one/{k}", "subset": "PQ"[k % 2], "image": f"images/{i}", "mask": f"masks/{m}", "licence": "mine"}
        for k, (i, m) in enumerate([("a.jpg", "a.png"), ("b.png", "b.bmp"), ("c.JPG", "c.PNG")])
    ]
    items[0] |= {"width": 30, "height": 20, "instruction": "the square"}
    (root / "index.json").write_text(json.dumps(items))
    return f"index:{root}"


def make_grabcut(root: Path) -> str:
    pairs(root, "data_GT", "boundary_GT")
    return f"grabcut:{root}"


def make_berkeley(root: Path) -> str:
    pairs(root, "images", "masks", ("a#001.png", "a#002.png", "b.png", "c#1.png"))
    return f"berkeley:{root}"


def make_davis(root: Path) -> str:
    pairs(root, "img", "gt")
    return f"davis:{root}"


def make_coco(root: Path) -> str:
    save(root / "train" / "7.png", photo(7))
    save(root / "train" / "8.png", photo(8))
    size = {"height": 20, "width": 30}
    crowd = rle.encode(np.asfortranarray(square() == 255))["counts"].decode()
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]},
        {"id": 2, "image_id": 7, "category_id": 2, "segmentation": [[2, 2, 8, 2, 8, 8], [12, 2, 18, 2, 18, 8]]},
        {"id": 3, "image_id": 8, "category_id": 2, "segmentation": [[2, 2, 8, 2, 8, 8]]},
        {"id": 4, "image_id": 8, "category_id": 2, "segmentation": {"size": [20, 30], "counts": crowd}, "iscrowd": 1},
        {"id": 5, "image_id": 8, "category_id": 1, "segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]]},
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", **size} for n in (7, 8)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    (root / "instances.json").write_text(json.dumps(content))
    return f"coco:{root / 'instances.json'}@{root / 'train'}"


MADE = [make_folder, make_index, make_grabcut, make_berkeley, make_davis, make_coco]
REAL = ["index:{}/click#GrabCut", "coco:{0}/coco/annotations/instances_train2017_mini.json@{0}/coco/train2017"]
PROCEDURAL = ["synthetic", "synthetic:val", "synthetic:test", "synthetic:val#hard"]


@pytest.fixture(params=[*MADE, *REAL, *PROCEDURAL], ids=lambda p: p if isinstance(p, str) else p.__name__)
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in PROCEDURAL:
        return request.param
    if isinstance(request.param, str):
        return request.param.format(request.getfixturevalue("shared_data"))
    return request.param(tmp_path)


def same(one: Task, other: Task) -> bool:
    return (
        (one.id, one.instruction, one.image_hash) == (other.id, other.instruction, other.image_hash)
        and one.target.dtype == other.target.dtype
        and np.array_equal(one.target, other.target)
    )


def test_a_dataset_is_a_lazy_sequence_of_tasks(spec: str) -> None:
    dataset = data.make(spec)
    few = dataset[:4]
    assert 0 < len(few) == len(list(few)) <= len(dataset)
    assert list(few.ids) == [task.id for task in few] == [dataset.ids[i] for i in range(len(few))]
    for i, task in enumerate(few):
        assert same(task, dataset[i]) and same(task, dataset[i - len(dataset)]), "a second reading equals the first"
        assert task.image.dtype == np.uint8 and task.image.shape == (*task.target.shape, 3)
        assert task.target.dtype == bool or set(np.unique(task.target)) <= {0, 128, 255}
        assert object_of(task.target).any()
        assert not task.image.flags.writeable and not task.target.flags.writeable
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[outside]
    assert [task.id for task in dataset.select([-1, 0])] == [dataset.ids[-1], dataset.ids[0]]
    assert dataset.skipped == []


def test_ids_are_unique_and_the_spec_makes_the_dataset_again(spec: str) -> None:
    dataset = data.make(spec)
    again = data.make(dataset.spec)
    assert again.fingerprint == dataset.fingerprint and again.spec == dataset.spec
    first = list(dataset[:1000].ids)
    assert len(set(first)) == len(first) and first == list(again[:1000].ids)
    assert dataset[:2].fingerprint != dataset[:1].fingerprint


IN_A_NEW_PROCESS = """
import sys
from segenv import data
for spec in sys.argv[1:]:
    dataset = data.make(spec)
    task = dataset[-1]
    print(dataset.fingerprint, task.id, task.image_hash, int(task.target.sum()), sep="|")
"""


def test_another_process_reads_the_same_from_the_spec(tmp_path: Path) -> None:
    specs = [*(make(tmp_path / make.__name__) for make in MADE), "synthetic:val#hard"]
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, *specs]
    root = Path(__file__).resolve().parents[1]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.split("\n")
    for spec, line in zip(specs, out, strict=False):
        task = data.make(spec)[-1]
        assert line == "|".join([data.make(spec).fingerprint, task.id, task.image_hash, str(int(task.target.sum()))])


@pytest.mark.parametrize("make", MADE)
def test_the_fingerprint_follows_the_data_and_not_its_place(make: Callable[[Path], str], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    spec = make(here)
    shutil.copytree(here, there)
    moved = spec.replace(str(here), str(there))
    before = data.make(spec).fingerprint
    assert data.make(moved).fingerprint == before
    if make is make_coco:
        (there / "instances.json").write_text((there / "instances.json").read_text().replace("12", "13"))
    else:
        mask = next(path for path in sorted(there.rglob("*")) if path.parent.name in ("masks", "boundary_GT", "gt"))
        save(mask, square(inside=0, ring=255))
    assert data.make(moved).fingerprint != before


# --- labels and layouts


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


# --- COCO


def test_coco_names_an_object_only_where_the_class_picks_it_out(tmp_path: Path) -> None:
    tasks = list(data.make(make_coco(tmp_path)))
    assert [task.id for task in tasks] == ["7_1", "7_2", "8_3", "8_4", "8_5"]
    # 8_3: a crowd of dogs stands beside; 8_4 is that crowd; 8_5 covers less than 1 % of the image
    assert [task.instruction for task in tasks] == ["the cat", "the dog", "", "", ""]
    assert [task.meta["text"] for task in tasks] == ["derived", "derived", None, None, None]
    assert np.array_equal(tasks[3].target == 255, square() == 255)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under NumPy 2
def test_coco_texts_and_masks_agree_with_the_shared_references(shared_data: Path) -> None:
    """The derived references name 140 of 923 annotations; pycocotools gives every mask."""
    folder = shared_data / "coco"
    file = folder / "annotations" / "instances_train2017_mini.json"
    dataset = data.make(f"coco:{file}@{folder / 'train2017'}")
    listed = json.loads((folder / "annotations" / "derived_classname_refs.json").read_text())["refs"]
    expected = {ref["ann_id"]: ref["expression"] for ref in listed}
    by_id = {entry["id"]: entry for entry in json.loads(file.read_text())["annotations"]}
    found = {}
    for task in dataset:
        entry = by_id[task.meta["annotation_id"]]
        runs = rle.frPyObjects(entry["segmentation"], task.height, task.width)
        mask = rle.decode(rle.merge(runs) if isinstance(runs, list) else runs)
        assert np.array_equal(task.target, mask * 255), task.id
        if task.instruction:
            found[entry["id"]] = task.instruction
    assert len(dataset) == 923 and found == expected


masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda t: np.random.default_rng(t[2]).random((t[0], t[1])) < t[3]
)


@given(masks)
def test_rle_of_both_kinds_is_read_back_exactly(mask: np.ndarray) -> None:
    size = [*mask.shape]
    packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *([0] if flat[0] else []), *edges, flat.size]).tolist()
    assert np.array_equal(coco.segmentation_mask({"size": size, "counts": packed}, *size), mask)
    assert np.array_equal(coco.segmentation_mask({"size": size, "counts": counts}, *size), mask)


@given(
    st.text(max_size=30) | st.lists(st.integers(-3, 20)) | st.none() | st.integers(), st.sampled_from([[4, 4], [4, 5]])
)
def test_broken_rle_never_reads_out_of_bounds(counts: object, size: list[int]) -> None:
    try:
        assert coco.segmentation_mask({"size": size, "counts": counts}, 4, 4).shape == (4, 4)
    except ValueError as error:
        assert "expected" in str(error)


@pytest.mark.parametrize(
    "segmentation",
    [[], [[1, 1, 3, 3]], [[1, 1, 3, 1, 3]], [[1, 1, 3, 1, 3, 1e12]], [[1, 1, float("nan"), 1, 3, 3]], ["box"], None, 7],
)
def test_broken_polygons_are_refused(segmentation: object) -> None:
    with pytest.raises(ValueError, match="polygon|expected"):
        coco.segmentation_mask(segmentation, 20, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(segmentation=[[1, 1, 3, 3]]), "at least three points"),
        (lambda c: c["annotations"][1].update(segmentation=[[1, 1, 1, 1, 1, 1]]), "no object pixel"),
        (lambda c: c["annotations"][1].update(image_id=99), "lists no image with id 99"),
        (lambda c: c["annotations"][1].update(image_id=[]), "lists no image"),
        (lambda c: c["annotations"].__setitem__(1, None), "annotation without an id"),
        (lambda c: c["annotations"][1].pop("segmentation"), "expected polygons"),
    ],
)
def test_a_broken_annotation_is_one_bad_item(change: Callable, message: str, tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    change(content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(BadItem, match=f"item '.*': .*{message}.*--skip-bad"):
        list(data.make(spec))
    patient = data.make(spec, skip_bad=True)
    assert len(list(patient)) == 4 and len(patient.skipped) == 1 and len(patient) == 5


def test_coco_images_of_another_size_or_place_are_bad_items(tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    content["images"][0]["height"] = 21
    content["images"][1]["file_name"] = "../train/../../elsewhere.png"
    (tmp_path / "instances.json").write_text(json.dumps(content))
    dataset = data.make(spec)
    with pytest.raises(BadItem, match=r"item '7_1': .*30 x 20 .* says 30 x 21"):
        dataset[0]
    with pytest.raises(BadItem, match=r"item 'elsewhere_3': .* leaves "):
        dataset[2]


# --- bad files


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


# --- reading images and masks


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
    image = base.read_image(path, "a")
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


# --- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "imagenet:x",
            "unknown data 'imagenet:x'; expected one of: synthetic.*coco:ANNOTATIONS.json@IMAGES.*davis:DIR",
        ),
        ("", "unknown data ''"),
        ("folder", "names no files; expected folder:DIR"),
        ("folder:{}/none", "none does not exist; expected a folder with images/ and masks/"),
        ("folder:{}", "images does not exist"),
        ("folder:{}/empty", "has no items"),
        ("folder:{}/nested", "is a folder; expected files only"),
        ("index:{}", "index.json cannot be read .No such file"),
        ("index:{}/file.json", "file.json is not a folder"),
        ("index:{}/broken", "index.json is not valid JSON"),
        ("index:{}/deep", "index.json is not valid JSON"),
        ("index:{}/twice", "two items as 'a'"),
        ("coco:{}/file.json", "lacks a part; expected coco:ANNOTATIONS.json@IMAGES"),
        ("coco:{}/file.json@{}/none", "none does not exist"),
        ("coco:{}/file.json@{}", "has no list of images"),
        ("grabcut:{}", "data_GT does not exist; expected GrabCut with data_GT/ and boundary_GT/"),
        ("davis:{}", "img does not exist; expected DAVIS with img/ and gt/"),
        ("synthetic:dev", "no split 'dev'.*train, val, test"),
        ("synthetic:val#huge", "no difficulty 'huge'.*easy, medium, hard"),
    ],
)
def test_a_spec_that_cannot_be_made_says_what_was_expected(spec: str, message: str, tmp_path: Path) -> None:
    for name in ("empty/images", "empty/masks", "nested/images/deeper", "nested/masks", "broken", "deep", "twice"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file.json").write_text("[]")
    (tmp_path / "broken" / "index.json").write_text("[{")
    (tmp_path / "deep" / "index.json").write_text("[" * 100_000)
    item = {"name": "a", "image": "a.png", "mask": "b.png"}
    (tmp_path / "twice" / "index.json").write_text(json.dumps([item, item]))
    for skip_bad in (False, True):  # data that cannot be read as a whole is never skipped
        with pytest.raises(data.DataError, match=message):
            data.make(spec.replace("{}", str(tmp_path)), skip_bad)


def test_paths_may_hold_the_separators_of_specs(tmp_path: Path) -> None:
    assert len(data.make(make_index(tmp_path / "set #2"))) == 3
    assert len(data.make(make_index(tmp_path / "set #3") + "#P")) == 2
    assert len(data.make(make_coco(tmp_path / "me@home"))) == 5
