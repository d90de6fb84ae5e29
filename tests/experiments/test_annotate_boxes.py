"""Boxes that `python -m experiments.annotate` is given: read as `coco:` data are, and what is left out is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import disc_task
from made_data import photo, save
from mutations import mutated

from experiments.annotate import __main__
from experiments.annotate.inputs import read_inputs
from segenv import data

COCO_BOXES: dict[str, tuple[Callable[[Any], Any], int]] = {  # what is done to two images with a box each; boxes left
    "zero-area box": (lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 10]), 2),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), 2),
    "no box, and run lengths": (
        lambda c: c["annotations"][0].update(
            bbox=None, segmentation={"size": [60, 80], "counts": [80 * 30, 60, 80 * 60 - 80 * 30 - 60]}
        ),
        2,
    ),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=9), 2),
    "no categories": (lambda c: c.pop("categories"), 2),
    "whole floats as ids": (lambda c: c["annotations"][0].update(id=1.0, image_id=1.0, category_id=1.0), 2),
    "no id": (lambda c: c["annotations"][0].pop("id"), 2),
    "dot and slash": (lambda c: c["images"][0].update(file_name="./sub/a.png"), 2),
    "backslash": (lambda c: c["images"][0].update(file_name="sub\\a.png"), 2),
    "LVIS": (lambda c: c["images"][0].update(file_name=None, coco_url="http://x.org/sub/a.png"), 2),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd=1), 1),
    "unlisted image": (lambda c: c["annotations"][0].update(image_id=9), 1),
    "no file name": (lambda c: c["images"][0].pop("file_name"), 1),
    "no record": (lambda c: c["annotations"].__setitem__(0, None), 1),
    "huge numbers": (lambda c: c["annotations"][0].update(bbox=[0, 0, 10**400, 1], segmentation=[]), 1),
    "nothing of a box": (lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 0], segmentation=None), 1),
}


@pytest.mark.parametrize("name", COCO_BOXES)
def test_boxes_and_data_read_coco_files_alike(name: str, tmp_path: Path) -> None:
    """What is one object to `--boxes` is one to `coco:`, but for crowds; what is left out is counted."""
    change, count = COCO_BOXES[name]
    for file in ("sub/a.png", "b.png"):
        save(tmp_path / "images" / file, photo(0, (60, 80)))
    square = {"bbox": [5, 5, 20, 20], "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]], "category_id": 1}
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "sub/a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": k, "image_id": k, **square} for k in (1, 2)],
    }
    change(content)
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    found = read_inputs(str(tmp_path / "images"), (), None, str(file), None)
    assert found.boxes is not None and not found.unknown and set(found.boxes) <= {"sub/a.png", "b.png"}
    assert sum(map(len, found.boxes.values())) == count
    assert (found.left_out.crowds, len(found.left_out.bad)) == ((name == "crowd"), 2 - count - (name == "crowd"))
    tasks = data.make(f"coco:{file}@{tmp_path / 'images'}", skip_bad=True)
    assert len(list(tasks)) == count + (name == "crowd"), tasks.skipped
    said = [*tasks.skipped, ("", str(found.left_out))][0][1]
    assert not found.left_out.bad or (found.left_out.bad[0].split("'")[1] in said and "\n" not in said)


def test_a_box_that_is_none_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, images = "a.png", tmp_path / "images"
    save(images / name, disc_task(48, 64, 40, 20, 12).image)
    listed = {f"./{name}": [[1, 1, 30, 30], [3, 3, 3, 9], {"box": [1, 1, 20, 20], "score": 10**400}]}
    (tmp_path / "boxes.json").write_text(json.dumps(listed))
    flags = ["--images", str(images), "--boxes", str(tmp_path / "boxes.json"), "--tool", "disc"]
    assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert "2 of 3 boxes were left out as bad, the first: " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "metrics.json").read_text())["boxes_left_out"]["bad"]) == 2
    (tmp_path / "boxes.json").write_text(json.dumps({name: [[3, 3, 3, 9]]}))
    assert __main__.main([*flags, "--out", str(tmp_path / "none")]) == 1
    assert "holds no box to segment: 1 of 1 boxes were left out as bad" in capsys.readouterr().err
    (tmp_path / "boxes.json").write_text(f'{{"{name}": [[1, 1, 9, 9]], "{name}": [[1, 1, 30, 30]]}}')
    assert __main__.main([*flags, "--out", str(tmp_path / "none")]) == 1
    assert f"lists two values of one record as '{name}'" in capsys.readouterr().err


def try_boxes(root: Path, count: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Annotate with `count` damaged files of boxes; how many runs were made of them. Each other one is one line."""
    save(root / "images" / "a.png", disc_task(48, 64, 40, 20, 12).image)
    box: dict[str, Any] = {"bbox": [5, 5, 20, 20], "category_id": 1, "image_id": 1, "score": 0.5}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": 1, **box},
            {"id": 2, **box, "bbox": None, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]},
            {"id": 3, **box, "iscrowd": 1},
        ],
    }
    named = {"a.png": [{"box": [5, 5, 25, 25], "phrase": "cup", "score": 1}, [1, 1, 9, 9]], "b.png": [[1, 2, 3, 4]]}
    ran = 0
    for seed in range(count):
        (root / "boxes.json").write_bytes(mutated(named if seed % 2 else coco, seed))
        flags = ["--images", str(root / "images"), "--boxes", str(root / "boxes.json"), "--tool", "disc"]
        status, said = __main__.main([*flags, "--out", str(root / f"run{seed}")]), capsys.readouterr().err
        assert status in (0, 1), f"seed {seed}"
        if status:
            assert said.startswith("error: ") and len(said.splitlines()) == 1 and len(said) < 3000, (
                f"seed {seed}: {said}"
            )
        ran += not status
    return ran


def test_a_damaged_file_of_boxes_is_used_or_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 < try_boxes(tmp_path, 40, capsys) < 40


@pytest.mark.slow
def test_many_damaged_files_of_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 < try_boxes(tmp_path, 500, capsys) < 500
