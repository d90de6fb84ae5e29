"""Tiny datasets in the published layouts of referring and reasoning segmentation, for the tests of their loaders."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from made_data import photo, save, square
from pycocotools import mask as rle


def python2_pickle(value: Any) -> bytes:
    """What Python 2's cPickle writes by protocol 0, where RefCOCO's files come from: byte strings for ASCII texts,
    Unicode for others, and each container in the memo before it is filled."""
    number = count(1)

    def write(one: Any) -> bytes:
        if isinstance(one, bool):
            return f"I0{int(one)}\n".encode()
        if isinstance(one, int):
            return f"I{one}\n".encode()
        if isinstance(one, str):
            told = repr(one).encode() if one.isascii() else one.encode("raw-unicode-escape")
            return (b"S" if one.isascii() else b"V") + told + f"\np{next(number)}\n".encode()
        if isinstance(one, list):
            return f"(lp{next(number)}\n".encode() + b"".join(write(item) + b"a" for item in one)
        pairs = b"".join(write(name) + write(item) + b"s" for name, item in one.items())
        return f"(dp{next(number)}\n".encode() + pairs

    return write(value) + b"."


def sentence(number: int, text: str) -> dict[str, Any]:
    return {"tokens": text.split(), "raw": text.title(), "sent_id": number, "sent": text}


def reference(number: int, image: int, annotation: Any, split: str, **sentences: str) -> dict[str, Any]:
    """A record as in refs(*).p; `sentences` are s0="…", s1="…" by their ids."""
    told = [sentence(int(name[1:]), text) for name, text in sentences.items()]
    return {
        "sent_ids": [one["sent_id"] for one in told],
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",  # names no file: the published ones do not either
        "ann_id": annotation,
        "ref_id": number,
        "image_id": image,
        "split": split,
        "sentences": told,
        "category_id": 1,
    }


REFERENCES = [
    reference(1, 7, 11, "train", s0="left cat", s1="the café cat"),
    reference(2, 8, 13, "val", s2="both halves", s3='the one that\'s "broken"', s4="both halves"),
    reference(3, 7, 12, "testA", s5="dog"),
    reference(4, 8, 14, "testAB", s6="crowd of dogs"),
    reference(5, 8, 13, "testB", s7="cat below"),
]
GENERALISED = [
    reference(1, 7, [11, 12], "val", s0="cat and dog"),
    reference(2, 7, [-1], "val", s1="the horse", s2="green car") | {"no_target": True},
    reference(3, 8, [13], "val", s3="the cat"),
    reference(4, 8, [], "val", s4="a zebra"),
    reference(5, 8, [13, 14], "testA", s5="all but the crowd"),
]


def make_instances(home: Path, images: Path) -> None:
    """instances.json of two images; annotation 11 has two parts that overlap, 13 is RLE, 14 a crowd."""
    for number in (7, 8):
        save(images / f"COCO_train2014_{number:012d}.jpg", photo(number))
    counts = rle.encode(np.asfortranarray(square() == 255))["counts"].decode()
    flat = [20 * 20, 3, 17, 3, 20 * 9 - 3]
    annotations = [
        {"id": 11, "segmentation": [[2, 2, 10, 2, 10, 9, 2, 9], [6, 5, 14, 5, 14, 12, 6, 12]], "category_id": 1},
        {"id": 12, "segmentation": [[20.5, 3, 27, 3, 27, 15]], "category_id": 2},
        {"id": 13, "segmentation": {"size": [20, 30], "counts": counts}, "category_id": 1},
        {"id": 14, "segmentation": {"size": [20, 30], "counts": flat}, "category_id": 2, "iscrowd": 1},
    ]
    for annotation in annotations:
        annotation |= {"image_id": 7 if annotation["id"] < 13 else 8, "iscrowd": annotation.get("iscrowd", 0)}
    records = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": 20, "width": 30, "license": 1} for n in (7, 8)
    ]
    categories = [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}]
    home.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": records, "annotations": annotations, "categories": categories, "licenses": []}
    (home / "instances.json").write_text(json.dumps(content))


def make_refcoco(root: Path, name: str = "refcoco+", by: str = "unc", split: str = "val") -> str:
    make_instances(root / name, root / "images/mscoco/images/train2014")
    (root / name / f"refs({by}).p").write_bytes(python2_pickle(REFERENCES))
    return f"refcoco:{root}/{name}/{by}/{split}"


def make_grefcoco(root: Path, split: str = "val") -> str:
    make_instances(root / "grefcoco", root / "images/train2014")
    (root / "grefcoco/grefs(unc).json").write_text(json.dumps(GENERALISED))
    return f"grefcoco:{root}/{split}"


def masks_of(file: Path) -> dict[int, np.ndarray]:
    """Every annotation's mask by pycocotools alone, bool [H, W], by the annotation's id."""
    found = {}
    for entry in json.loads(file.read_text())["annotations"]:
        given = entry["segmentation"]
        runs = rle.frPyObjects(given, 20, 30) if isinstance(given, list) or isinstance(given["counts"], list) else given
        decoded = rle.decode(runs)
        found[entry["id"]] = decoded.any(axis=2) if decoded.ndim == 3 else decoded.astype(bool)
    return found


SHAPES = {  # label and corners (x0, y0), (x1, y1) of a rectangle
    "a": [("target", 4, 3, 12, 9), ("ignore_region", 10, 7, 16, 12), ("flag", 20, 2, 25, 6)],
    "b": [("target", 20, 10, 22, 12), ("ignore", 18, 8, 26, 16), ("target", 2, 2, 5.9, 4.9)],
}


def make_reasonseg(root: Path) -> str:
    for number, (stem, shapes) in enumerate(SHAPES.items()):
        save(root / "val" / f"{stem}.jpg", photo(number))
        drawn = [
            {
                "label": label,
                "labels": [label],
                "shape_type": "polygon",
                "image_name": f"{stem}.jpg",
                "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]],
                "group_id": None,
                "group_ids": [None],
                "flags": {},
            }
            for label, x0, y0, x1, y1 in shapes
        ]
        texts = [f"What holds {stem}?", f"the thing that holds {stem}"]
        content = {"text": texts, "is_sentence": stem == "a", "shapes": drawn}
        (root / "val" / f"{stem}.json").write_text(json.dumps(content))
    return f"reasonseg:{root}/val"


SOFT = np.array([0, 1, 100, 127, 128, 129, 200, 255], np.uint8)  # an edge, from the background to the object


def soft_mask() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 4:12] = SOFT
    mask[5:15, 12:20] = 255
    return mask


def make_dis(root: Path) -> str:
    for number, name in enumerate(["1#Accessories#1#Bag#23395_83cf9_o", "3#Aircraft#5#Helicopter#48783_o"]):
        save(root / "im" / f"{name}.jpg", photo(number))
        save(root / "gt" / f"{name}.png", soft_mask())
    return f"dis:{root}"


def make_sa1b(root: Path) -> str:
    for number in (2, 10):
        save(root / f"sa_{number}.jpg", photo(number))
        masks = [square() >= level for level in (128, 255)]  # a whole, and a part of it
        listed = []
        for k, mask in enumerate(masks):
            runs = rle.encode(np.asfortranarray(mask, np.uint8))
            told = {"size": [20, 30], "counts": runs["counts"].decode()}
            more = {"bbox": rle.toBbox(runs).tolist(), "area": int(mask.sum()), "crop_box": [0, 0, 30, 20]}
            scores = {"predicted_iou": 0.9 + k / 100, "stability_score": 0.97, "point_coords": [[7.5, 8.5]]}
            listed.append({"id": 500 * number + k, "segmentation": told} | more | scores)
        image = {"image_id": number, "width": 30, "height": 20, "file_name": f"sa_{number}.jpg"}
        (root / f"sa_{number}.json").write_text(json.dumps({"image": image, "annotations": listed}))
    return f"sa1b:{root}"


def png(seed: int) -> bytes:
    file = BytesIO()
    photo(seed).save(file, "PNG")
    return file.getvalue()


def make_reasonseg_table(root: Path) -> str:
    """ReasonSeg-X as the hub has it: a row for each text, in two files."""
    import pyarrow
    from pyarrow import parquet

    (root / "data").mkdir(parents=True)
    for part, numbers in enumerate([(0, 1, 2), (3,)]):
        rows = [
            {
                "image": {"bytes": png(number // 2), "path": None},
                "text": f"What is {number}?",
                "mask": np.roll(square() == 255, number, axis=1).tolist(),
                "image_id": f"im{number // 2}",
                "ann_id": str(number),
                "img_height": 20,
                "img_width": 30,
                "reasoning_type": "physical",
            }
            for number in numbers
        ]
        file = root / f"data/test-{part:05d}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
    return f"reasonseg:{root}/test"


BOXES = [[4.0, 3.0, 10.0, 6.0], [2.4, 3.6, 5.2, 2.0], [28.2, 18.7, 0.3, 0.2]]  # [x, y, width, height]


def make_ref_l4(root: Path) -> str:
    import pyarrow
    from pyarrow import parquet

    save(root / "images/o365_1.jpg", photo(1))
    rows = [
        {
            "id": f"{number:06d}",
            "caption": f"the thing at {box[0]}",
            "bbox": box,
            "bbox_area": box[2] * box[3],
            "bbox_id": f"o365_{number}",
            "ori_category_id": "o365_1",
            "image_id": "o365_1",
            "height": 20,
            "width": 30,
            "file_name": "o365_1.jpg",
            "is_rewrite": False,
            "split": "val",
        }
        for number, box in enumerate(BOXES)
    ]
    for split, few in (("val", rows), ("test", rows[:1])):
        listed = [row | {"id": f"{split}{row['id']}", "split": split} for row in few]
        parquet.write_table(pyarrow.Table.from_pylist(listed), root / f"ref-l4-{split}.parquet")
    return f"ref-l4:{root}/val"


FIELDS = [make_refcoco, make_grefcoco, make_reasonseg, make_dis, make_sa1b, make_reasonseg_table, make_ref_l4]
assert pickle.loads(python2_pickle(REFERENCES), encoding="utf-8") == REFERENCES
