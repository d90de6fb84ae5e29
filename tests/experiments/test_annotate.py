"""`python -m experiments.annotate`: from a folder of images to COCO JSON and conversations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import disc_task
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO

from experiments.annotate import __main__, annotate
from experiments.annotate.config import Args
from experiments.annotate.inputs import read_boxes, read_inputs, read_phrases
from experiments.annotate.outputs import PolygonWriter
from experiments.annotate.pipeline import Annotator
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from segenv import codec, data, metrics, render
from segenv.codec.polygons import PolygonCodec
from segenv.data.base import DataError
from segenv.geometry import mask_to_polygons, polygons_to_mask
from segenv.geometry.rle import segmentation_mask
from segenv.tools.base import SegTool
from segenv.types import Box, Polygons, Prediction, Task

torch = pytest.importorskip("torch")


from experiments.annotate.detector import Detection  # noqa: E402

torch.set_num_threads(1)

DISCS = {"a.png": (40, 20, 12), "in/b.png": (30, 24, 9), "in/c.png": (20, 30, 7)}  # name: x, y, radius
SIZE = (48, 64)


def disc(name: str) -> Task:
    return disc_task(*SIZE, *DISCS[name])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three bright discs on noise, and what a folder of images comes to hold: files that are none, and hidden ones."""
    root = tmp_path / "images"
    (root / "in").mkdir(parents=True)
    for name in DISCS:
        Image.fromarray(disc(name).image).save(root / name)
    (root / "notes.txt").write_text("mine")
    shutil.copy(root / "a.png", root / ".hidden.png")
    return root


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """The discs' tight boxes; two that leave the first image; and one of an image that is not there."""
    lines = ["image,phrase,x0,y0,x1,y1,score"]
    for name, (x, y, r) in DISCS.items():
        lines.append(f"{name},disc,{x - r},{y - r},{x + r + 1},{y + r + 1},0.9")
    lines += ["a.png,<image> corner,50,40,90,70,", "a.png,disc,70,50,90,70,", "gone.png,disc,1,1,5,5,"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return tmp_path / "boxes.csv"


# ------------------------------------------------------------------------------------------------------------- outlines

masks = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.booleans())


@settings(max_examples=60)
@given(masks, st.sampled_from(["rings", "simpleseg", "simpleseg:contour=edges"]), st.integers(4, 30))
def test_outlines_keep_their_budgets_and_their_objects(mask: np.ndarray, dialect: str, budget: int) -> None:
    task = Task("t", np.zeros((*mask.shape, 3), np.uint8), mask)
    speaks = codec.make(dialect)
    assert isinstance(speaks, PolygonCodec)
    exact, tight = PolygonWriter(0.0), PolygonWriter(1.0, max_vertices=budget, max_tokens=60)
    rings = mask_to_polygons(mask)
    assert np.array_equal(polygons_to_mask(exact.simplify(rings, *mask.shape), *mask.shape), mask)
    if mask.any():
        drawn = tight.simplify(rings, *mask.shape)
        assert 3 <= sum(map(len, drawn)) <= budget
        assert all((ring >= 0).all() and (ring <= mask.shape[::-1]).all() for ring in drawn)
    said = exact.reply(mask, task, speaks)
    assert said is not None
    read = speaks.parse(said, task)
    assert isinstance(read, Polygons)
    if dialect == "rings":
        assert np.array_equal(polygons_to_mask(read.rings, *mask.shape), mask)
    short = tight.reply(mask, task, speaks)
    assert short is None or len(short) <= 60
    assert short is not None or replace(tight, max_tokens=None).reply(mask, task, speaks) is not None


# ---------------------------------------------------------------------------------------------------------- the command


def outputs(run: Path) -> dict[str, Any]:
    """What a run made, without the times."""
    numbers = json.loads((run / "metrics.json").read_text())
    del numbers["seconds"]
    lines = (run / "images.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    pictures = {path.name: path.read_bytes() for path in sorted((run / "sheets").iterdir())}
    files = [(run / name).read_text() for name in ("annotations.json", "sft/metadata.jsonl")]
    return {"numbers": numbers, "records": records, "pictures": pictures, "files": files}


def test_given_boxes_become_masks_polygons_and_conversations(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tool `disc` fills a box, so everything that is made can be worked out by hand."""
    run = tmp_path / "run"
    flags = ["--images", str(images), "--boxes", str(boxes), "--tool", "disc", "--out", str(run)]
    assert __main__.main([*flags, "--queries", "text-mask", "box-mask", "mask-text", "text-box"]) == 0
    assert "3 annotated, 0 of them without an object, 0 skipped" in capsys.readouterr().out
    numbers = RunFolder(run).read_json("metrics.json")
    assert (numbers["images"], numbers["objects"], numbers["unknown_images"]) == (3, 4, ["gone.png"])
    assert numbers["dropped"] == {"outside the image": 1} and numbers["outlines"]["worst_iou"] == 1

    expected = {name: np.zeros(SIZE, bool) for name in DISCS}
    for name, (x, y, r) in DISCS.items():
        expected[name][y - r : y + r + 1, x - r : x + r + 1] = True
    corner = np.zeros(SIZE, bool)
    corner[40:, 50:] = True
    tasks = list(data.make(f"coco:{run}/annotations.json@{images}"))
    assert [task.meta["file_name"] for task in tasks] == ["a.png", "a.png", "in/b.png", "in/c.png"]
    for task, target in zip(tasks, [expected["a.png"], corner, *list(expected.values())[1:]], strict=True):
        assert np.array_equal(task.target == 255, target) and np.array_equal(task.image, disc_of(task).image)
    coco = COCO(str(run / "annotations.json"))
    for annotation, task in zip(coco.loadAnns(coco.getAnnIds()), tasks, strict=True):
        x, y, width, height = annotation["bbox"]
        assert metrics.box_of(task.target == 255) == Box(x, y, x + width, y + height)
        assert annotation["area"] == coco.annToMask(annotation).sum() == (task.target == 255).sum()
    assert coco.anns[1]["score"] == 0.9 and "score" not in coco.anns[2]

    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(run / "sft"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == numbers["conversations"] == 16 == sum(numbers["queries"].values())
    asked = [(row["messages"][0]["content"], row["messages"][1]["content"], np.array(row["images"][0])) for row in rows]
    prompt, reply, picture = next(
        row for row in asked if row[0].startswith("Outline exactly") and "else: disc" in row[0]
    )
    read = codec.make("rings").parse(reply, tasks[0])
    assert isinstance(read, Polygons) and np.array_equal(polygons_to_mask(read.rings, *SIZE), expected["a.png"])
    assert np.array_equal(picture, disc("a.png").image) and "<image>" not in "".join(row[0] for row in asked)
    painted = next(picture for prompt, _, picture in asked if "green" in prompt)
    assert np.array_equal(painted, render.overlay(disc("a.png").image, expected["a.png"]))
    with Image.open(run / "sheets/page-001.png") as page:
        assert page.size[0] > 1600
    assert (
        "<b>in/b.png</b>" in (run / "report.html").read_text() and "&lt;image&gt;" in (run / "report.html").read_text()
    )


def disc_of(task: Task) -> Task:
    return disc(task.meta["file_name"])


def test_bad_images_are_skipped_and_named(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.jpg").write_bytes((images / "a.png").read_bytes()[:100])
    Image.new("RGB", (300, 200)).save(images / "huge.png")
    outside = tmp_path / "secret.png"
    shutil.copy(images / "a.png", outside)
    (images / "link.png").symlink_to(outside)
    flags = ["--images", str(images), "--boxes", str(boxes), "--tool", "disc", "--max-pixels", "50000"]
    assert __main__.main([*flags, "--out", str(tmp_path / "run")]) == 0
    numbers = RunFolder(tmp_path / "run").read_json("metrics.json")
    assert numbers["images"] == 3 and list(numbers["skipped"]) == ["broken.jpg", "huge.png", "link.png"]
    said, page = capsys.readouterr().err, (tmp_path / "run/report.html").read_text()
    for name, reason in (("broken.jpg", "cannot be decoded"), ("huge.png", "50,000 pixels"), ("link.png", "leaves")):
        assert reason in numbers["skipped"][name] and f"skipped: item '{name}'" in said and name in page


def test_a_detector_finds_phrases_and_a_kill_loses_nothing(
    images: Path, grounding_dino: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector, run, things = tmp_path / "detector", tmp_path / "run", [f"thing {k}" for k in range(12)]
    shutil.copytree(grounding_dino, detector)
    (tmp_path / "phrases.json").write_text(json.dumps({"a.png": ["disc", *things], "in/c.png": "zebra"}))
    flags = ["--images", str(images), "--phrases", "cat", "--phrases-file", str(tmp_path / "phrases.json")]
    flags += ["--detector", str(detector), "--tool", "disc", "--several", "union", "--negatives", "--nms", "0.3"]
    flags += ["--box-threshold", "0.3", "--text-threshold", "0.1", "--max-objects", "4"]
    assert __main__.main([*flags, "--out", str(run), "--dry-run"]) == 0
    assert "15 phrases" in capsys.readouterr().out and not run.exists()
    assert __main__.main([*flags, "--out", str(run)]) == 0
    whole = outputs(run)
    asked = {"a.png": {"cat", "disc", *things}, "in/b.png": {"cat"}, "in/c.png": {"cat", "zebra"}}
    for record in whole["records"]:
        found = {one["phrase"] for one in record["objects"]}
        assert 0 < len(record["objects"]) <= 4 and found <= asked[record["image"]]
        assert not set(record["absent"]) & found
    classes = [entry["name"] for entry in json.loads(whole["files"][0])["categories"]]
    assert classes == ["cat", "disc", *things, "zebra"]
    asked_all = whole["numbers"]["queries"]["text-mask"]
    assert asked_all == whole["numbers"]["conversations"] > 0
    absent = sum(len(record["absent"]) for record in whole["records"])
    assert absent and sum('Vertices: 0\\n[]"' in line for line in whole["files"][1].splitlines()) == absent

    records = (run / "images.jsonl").read_bytes()
    for cut in (0, 1, records.index(b"\n") + 1, len(records) - 7):  # a kill at any moment
        for made in run.iterdir():
            if made.name not in ("config.yaml", "manifest.json"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        (run / "images.jsonl").write_bytes(records[:cut])
        assert __main__.main(["--resume", str(run)]) == 0
        assert outputs(run) == whole
    capsys.readouterr()
    assert __main__.main(["--resume", str(run), "--nms", "0.9"]) == 1
    assert "nms: was 0.3, now 0.9" in capsys.readouterr().err

    shutil.rmtree(detector)  # what is found is found: other outlines need no model
    again = ["--codec", "simpleseg", "--tolerance", "0", "--queries", "box-mask", "--show", "1"]
    assert __main__.main(["--resume", str(run), *again]) == 0
    other = outputs(run)
    assert other["records"] == whole["records"] and len(other["pictures"]) == 1
    assert list(other["numbers"]["queries"]) == ["box-mask"] and "[[[0." in other["files"][1]


class Bright(SegTool):
    """Everything bright in the box: an image can then hold holes and specks. Its score is the box's width / 100."""

    spec = fingerprint = "bright"

    def _encode(self, images):
        return [{"bright": image[..., 0] > 127} for image in images]

    def _predict(self, encodings, prompts):
        return [
            self._answer(encoding["bright"], prompt.box) for encoding, prompt in zip(encodings, prompts, strict=True)
        ]

    def _answer(self, bright: np.ndarray, box: Box) -> Prediction:
        mask, part = np.zeros_like(bright), np.s_[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
        mask[part] = bright[part]
        return Prediction(mask, score=(box.x1 - box.x0) / 100)


@pytest.fixture
def sheet_of_shapes(tmp_path: Path) -> Path:
    """A ring with a pinhole and a speck (left), a frame with a wide hole (middle), and a dot (right)."""
    shown = np.zeros((30, 90), np.uint8)
    shown[4:24, 4:24], shown[10, 10], shown[26, 26] = 255, 0, 255
    shown[4:24, 34:54], shown[9:19, 39:49] = 255, 0
    shown[10:12, 70:72] = 255
    (tmp_path / "one").mkdir()
    Image.fromarray(np.repeat(shown[..., None], 3, axis=2)).save(tmp_path / "one/x.png")
    boxes = {"x.png": [{"box": [2, 2, 30, 30]}, {"box": [32, 2, 56, 28]}, {"box": [65, 5, 80, 15]}, [60, 20, 64, 24]]}
    (tmp_path / "one.json").write_text(json.dumps(boxes))
    return tmp_path


def test_specks_holes_and_small_or_doubtful_objects(sheet_of_shapes: Path) -> None:
    tool: Any = Bright()
    args = Args(boxes="given", tool=tool, min_part=5, min_area=3, min_mask_score=0.2)
    found = read_inputs(str(sheet_of_shapes / "one"), (), None, str(sheet_of_shapes / "one.json"), None)
    record = Annotator(args).annotate("x.png", found)
    assert record["dropped"] == {"empty mask": 2}  # the dot is a small part; nothing is bright in the last box
    assert [round(one["mask_score"], 2) for one in record["objects"]] == [0.28, 0.24]
    ring, frame = (segmentation_mask(one["mask"], 30, 90) for one in record["objects"])
    assert ring.sum() == 400 and frame.sum() == 300  # the pinhole is filled, the speck gone, the wide hole left
    kept = Annotator(replace(args, min_part=0, min_mask_score=0.25)).annotate("x.png", found)
    assert [one["phrase"] for one in kept["objects"]] == ["object"] and kept["dropped"]["below min_mask_score"] == 2


def test_a_language_model_describes_objects(images: Path, boxes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = Args(images=str(images), boxes=str(boxes), tool="disc", caption="mllm:untrained", limit=1, out=str(run))
    numbers = annotate.run(args, quiet=True)
    assert numbers["objects"] == 2 and numbers["seconds"]["caption"] > 0
    records = list(RunFolder(run).records("images.jsonl"))
    said = [one["caption"] for one in records[0]["objects"]]
    assert all(isinstance(text, str) for text in said) and any(said)
    assert not any("<|" in text or "\n" in text for text in said)
    found = [entry.get("caption", "") for entry in json.loads((run / "annotations.json").read_text())["annotations"]]
    assert found == said
    assert __main__.main(["--images", str(images), "--boxes", str(boxes), "--caption", "random", "--out", "no"]) == 1
    assert not Path("no").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no images; give the folder"),
        (["--images", "IMAGES"], "nothing to look for; give --phrases"),
        (["--images", "IMAGES", "--phrases", "?!"], "expected what to look for"),
        (["--images", "IMAGES", "--phrases", "cat", "--boxes", "BOXES"], "not both"),
        (["--images", "IMAGES", "--boxes", "BOXES", "--codec", "segagent"], "writes no polygons"),
        (["--images", "IMAGES", "--boxes", "BOXES", "--queries", "mask-mask"], "query 'mask-mask' is unknown"),
        (["--images", "IMAGES", "--boxes", "BOXES", "--max-vertices", "3"], "expected 4 or more"),
        (["--images", "IMAGES", "--boxes", "BOXES", "--nms", "1.5"], "--nms is 1.5; expected 0 or more and at most 1"),
        (["--images", "IMAGES", "--boxes", "BOXES", "--out", "IMAGES/run"], "lies in the folder of the images"),
        (["--images", "IMAGES", "--boxes", "BOXES", "--tool", "magic"], "unknown tool 'magic'"),
        (["--images", "IMAGES", "--phrases", "cat", "--detector", "IMAGES"], "no zero-shot object detection"),
        (["--images", "NOWHERE", "--phrases", "cat"], "does not exist"),
    ],
)
def test_what_is_refused(
    images: Path, boxes: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [flag.replace("IMAGES", str(images)).replace("BOXES", str(boxes)) for flag in flags]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "run")]
    assert __main__.main([*given, *out]) == 1
    assert message in capsys.readouterr().err


BOX_FILES = {
    "a.csv": ("image,phrase,x0,y0,x1,y1\nx.png,,1,2,3,4\n", Detection("object", Box(1, 2, 3, 4))),
    "a.json": ('{"x.png": [{"box": [1, 2, 3, 4], "phrase": "a  cup", "score": 1}]}', None),
    "coco.json": (
        '{"images": [{"id": 7, "file_name": "x.png"}], "categories": [{"id": 2, "name": "cup"}], "annotations": '
        '[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 2, 2]}, '
        '{"image_id": 7, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1}]}',
        Detection("cup", Box(1, 2, 3, 4)),
    ),
}


@pytest.mark.parametrize("name", BOX_FILES)
def test_boxes_come_in_three_forms(name: str, tmp_path: Path) -> None:
    text, expected = BOX_FILES[name]
    (tmp_path / name).write_text(text)
    expected = expected or Detection("a cup", Box(1, 2, 3, 4), 1.0)
    assert read_boxes(tmp_path / name) == {"x.png": [expected]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,x0,y0,x1\n", "no column y1"),
        ("a.csv", "image,x0,y0,x1,y1\nx.png,1,2,3\n", "line 2 is incomplete"),
        ("a.csv", "image,x0,y0,x1,y1\nx.png,5,2,3,4\n", "the second corner right"),
        ("a.csv", "image,x0,y0,x1,y1\nx.png,1,2,nan,4\n", "expected finite numbers"),
        ("a.csv", "image,x0,y0,x1,y1\nx.png,1,2,three,4\n", "expected x0, y0, x1, y1 and a number"),
        ("a.json", '{"x.png": 3}', "names no lists"),
        ("a.json", '{"x.png": [{"phrase": "cup"}]}', "box is None"),
        ("a.json", '{"annotations": [{"bbox": [1, 2]}]}', "not as COCO instances are"),
        ("a.json", "{}", "holds no box"),
        ("a.json", "{", "not valid JSON"),
        ("a.txt", "", "ends in .csv or .json"),
    ],
)
def test_box_files_that_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((RunError, DataError), match=message):
        read_boxes(tmp_path / name)


def test_phrases_come_in_three_forms(tmp_path: Path) -> None:
    def files() -> Iterator[tuple[str, str]]:
        yield "all.txt", "a cat\n\n  red   cup \n"
        yield "all.json", '["a cat", "red cup"]'
        yield "each.json", '{"x.png": ["a cat", "red cup"]}'
        yield "each.csv", '\ufeffimage,phrase\nx.png,a cat\nx.png,"red cup"\n'

    for name, text in files():
        (tmp_path / name).write_text(text)
        everywhere, each = read_phrases(tmp_path / name)
        assert (everywhere or each["x.png"]) == ["a cat", "red cup"] and bool(everywhere) == name.startswith("all")
    for name, text in (("a.json", '{"x.png": [3]}'), ("a.json", "7"), ("a.csv", "image\nx"), ("a.xls", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(RunError):
            read_phrases(tmp_path / name)


def test_boxes_of_real_photos(shared_data: Path, tmp_path: Path) -> None:
    """COCO's own boxes through the embedded SAM, which was trained on procedural scenes: the objects that come out are
    the annotated ones, more or less."""
    root, file = shared_data / "coco/train2017", shared_data / "coco/annotations/instances_train2017_mini.json"
    run = tmp_path / "run"
    args = Args(images=str(root), boxes=str(file), tool="sam", min_part=30, limit=4, show=4, out=str(run))
    numbers = annotate.run(args, quiet=True)
    assert numbers["objects"] > 8 and numbers["outlines"]["iou"] > 0.9
    found, truth = COCO(str(run / "annotations.json")), COCO(str(file))
    ious = []
    for image in found.dataset["images"]:
        number = int(Path(image["file_name"]).stem)
        targets = [truth.annToMask(a) > 0 for a in truth.loadAnns(truth.getAnnIds([number], iscrowd=False))]
        for one in found.loadAnns(found.getAnnIds([image["id"]])):
            ious.append(max(metrics.iou(target, found.annToMask(one) > 0) for target in targets))
    assert np.mean(ious) > 0.3, np.mean(ious)
    assert len(list(data.make(f"coco:{run}/annotations.json@{root}"))) == len(ious)
