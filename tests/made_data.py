"""Tiny datasets in every layout of files, for the tests of `segenv.data`: images of 30 x 20 pixels, and a square."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

SIZE = (20, 30)  # [H, W] of the made-up images


def photo(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def square(size: tuple[int, int] = SIZE, background: int = 0, ring: int = 128, inside: int = 255) -> np.ndarray:
    mask = np.full(size, background, np.uint8)
    mask[4:12, 5:15] = ring
    mask[5:11, 6:14] = inside
    return mask


def save(path: Path, image: Image.Image | np.ndarray, **options: Any) -> Path:
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
    items: list[dict[str, Any]] = [
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


def two_discs(root: Path, radius: int) -> str:
    """Eight images, wide and high, with two discs each, away from the middle: a task for each disc."""
    rng, items = np.random.default_rng(3), []
    for k in range(8):
        height, width = [(100, 160), (160, 100), (120, 200), (180, 130)][k % 4]
        save(root / f"{k}.png", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        left = radius + 3 + 2 * k
        for number, (x, y) in enumerate([(left, height - radius - 4), (width - radius - 3, radius + 2 + k)]):
            rows, columns = np.ogrid[:height, :width]
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            save(root / f"{k}_{number}_mask.png", disc.astype(np.uint8) * 255)
            text = ["the disc at the left", "disc"][number]
            items.append({"name": f"{k}/{number}", "image": f"{k}.png", "mask": f"{k}_{number}_mask.png"})
            items[-1]["instruction"] = text
    (root / "index.json").write_text(json.dumps(items))
    return f"index:{root}"
