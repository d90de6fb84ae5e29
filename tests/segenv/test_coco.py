"""COCO: one task for each annotation, masks as pycocotools makes them, and texts that say that they are derived."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import make_coco, photo, save, square
from pycocotools import mask as rle

from segenv import data, geometry, rewards
from segenv.geometry.rle import decode_mask, segmentation_box, segmentation_mask
from segenv.types import BadItem, Box


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
    assert np.array_equal(segmentation_mask({"size": size, "counts": packed}, *size), mask)
    assert np.array_equal(segmentation_mask({"size": size, "counts": counts}, *size), mask)


@given(
    st.text(max_size=30) | st.lists(st.integers(-3, 20)) | st.none() | st.integers(), st.sampled_from([[4, 4], [4, 5]])
)
def test_broken_rle_never_reads_out_of_bounds(counts: object, size: list[int]) -> None:
    try:
        assert segmentation_mask({"size": size, "counts": counts}, 4, 4).shape == (4, 4)
    except ValueError as error:
        assert "expected" in str(error)


@pytest.mark.parametrize(
    "segmentation",
    [[], [[1, 1, 3, 3]], [[1, 1, 3, 1, 3]], [[1, 1, 3, 1, 3, 1e12]], [[1, 1, float("nan"), 1, 3, 3]], ["box"], None, 7],
)
def test_broken_polygons_are_refused(segmentation: object) -> None:
    with pytest.raises(ValueError, match="polygon|expected"):
        segmentation_mask(segmentation, 20, 30)


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


def test_a_crowd_has_no_text_even_alone(tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    content["annotations"] = content["annotations"][3:4]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (task,) = data.make(spec)
    assert task.instruction == "" and task.meta["iscrowd"] and task.meta["category"] == "dog"


def test_an_annotation_without_a_known_class_has_no_text(tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    content["annotations"][0]["category_id"] = [1]
    del content["annotations"][1]["category_id"]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    for task in data.make(spec)[:2]:
        assert (task.instruction, task.meta["text"], task.meta["category"]) == ("", None, None)


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


BROKEN_RLE = {
    "short": {"size": [30, 40], "counts": [155, 15]},
    "over-long run": {"size": [30, 40], "counts": [0, 10**400]},
    "negative": {"size": [30, 40], "counts": [1300, -100]},
    "float": {"size": [30, 40], "counts": [1200.0]},
    "bool": {"size": [30, 40], "counts": [True] * 1200},
    "no counts": {"size": [30, 40]},
    "null counts": {"size": [30, 40], "counts": None},
    "nested counts": {"size": [30, 40], "counts": [[1200]]},
    "compressed and short": {"size": [30, 40], "counts": "5Z1"},
    "compressed garbage": {"size": [30, 40], "counts": "~é"},
    "compressed and cut": {"size": [30, 40], "counts": "PPP"},
    "compressed and endless": {"size": [30, 40], "counts": "o" * 70 + "0"},
    "compressed and empty": {"size": [30, 40], "counts": ""},
    "no size": {"size": None, "counts": [1200]},
    "size of one": {"size": [1200], "counts": [1200]},
    "size of texts": {"size": ["30", "40"], "counts": [1200]},
    "bool size": {"size": [True, 1200], "counts": [1200]},
    "huge size": {"size": [10**9, 10**9], "counts": [10**18]},
    "infinite size": {"size": [float("inf"), 40], "counts": [1200]},
    "list": [1, 2],
    "nothing": None,
}
RLE_READERS: dict[str, Callable[[Any], object]] = {
    "segmentation_mask": lambda found: segmentation_mask(found, 30, 40),
    "segmentation_box": segmentation_box,
    "rle_to_polygons": geometry.rle_to_polygons,
    "reward": lambda found: rewards.polygon("iou")(["[]"], target=[found]),
    "decode_mask": lambda found: decode_mask(found["counts"], *found["size"]),
}


@pytest.mark.parametrize("reader", RLE_READERS)
@pytest.mark.parametrize("name", BROKEN_RLE)
def test_every_reader_refuses_broken_run_lengths(name: str, reader: str) -> None:
    if reader == "decode_mask" and not {"size", "counts"} <= set(BROKEN_RLE[name] or ()):
        pytest.skip("it takes counts and sides, which are not there")
    if reader == "decode_mask" and name in ("no size", "size of one"):
        pytest.skip("it takes two sides")
    with pytest.raises(ValueError, match="expected"):
        RLE_READERS[reader](BROKEN_RLE[name])


def test_the_box_of_a_segmentation_is_that_of_its_pixels() -> None:
    """As pycocotools has it, for runs that end in their column or go on; and of polygons, that of their vertices."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 9, 2)) < rng.choice([0.05, 0.3, 0.9])
        coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        box, (x, y, width, height) = segmentation_box(coded), rle.toBbox(coded)
        assert box == (Box(x, y, x + width, y + height) if mask.any() else None)
    assert segmentation_box([[1, 2, 3, 2, 3, 4.5], [0, 3, 1, 3, 1, 4]]) == Box(0, 2, 3, 4.5)
    assert segmentation_box([[1, 1, 2, 1, 3, 1]]) is None


@pytest.mark.parametrize("name", ["images", "annotations", "categories", "licenses"])
def test_an_id_that_two_records_have_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    content.setdefault("licenses", [{"id": 1, "name": "mine"}, {"id": 2, "name": "yours"}])
    content[name][1]["id"] = float(content[name][0]["id"])  # 7.0 is 7
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(data.DataError, match=f"lists two {name} with id {content[name][0]['id']}, .*give each its own"):
        data.make(spec, skip_bad=True)


def make_lvis(root: Path) -> str:
    """Without file names; of image 8, dogs are not all annotated, and cats are known to be absent from 9."""
    make_coco(root)
    content = json.loads((root / "instances.json").read_text())
    save(root / "train" / "val2017" / "9.png", photo(9))
    content["images"].append({"id": 9})
    content["annotations"] += [{"id": 6, "image_id": 9, "category_id": 2, "segmentation": [[2, 2, 12, 2, 12, 12]]}]
    for image in content["images"]:
        image.pop("file_name", None)
        place = "val2017" if image["id"] == 9 else "train2017"
        image |= {"coco_url": f"http://images.example.org/{place}/{image['id']}.png", "neg_category_ids": []}
    content["images"][0]["not_exhaustive_category_ids"] = [2]
    content["images"][2]["neg_category_ids"] = [1]
    (root / "instances.json").write_text(json.dumps(content))
    return f"lvis:{root / 'instances.json'}@{root / 'train'}"


def test_lvis_names_files_by_address_and_knows_what_it_did_not_annotate(tmp_path: Path) -> None:
    tasks = data.make(make_lvis(tmp_path))
    assert tasks.spec.startswith("lvis:") and [task.id for task in tasks][-1] == "9_6"
    assert [task.instruction for task in tasks] == ["the cat", "", "", "", "", "the dog"]
    assert [tasks.lacks(i, "the cat") for i in (0, 2, 5)] == [False, False, True]
    assert not tasks.lacks(0, "the bird"), "nobody looked for one"


def test_tasks_of_one_file_stay_together_though_two_records_name_it(tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    content["images"][1]["file_name"] = "7.png"
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert set(data.make(spec).sources) == {"7"}
