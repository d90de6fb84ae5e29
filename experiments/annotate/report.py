"""Report of annotations: contact sheets as PNG pages, a page of HTML, and numbers."""

import colorsys
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.annotate.inputs import LeftOut
from experiments.annotate.outputs import PolygonWriter, Record
from experiments.common.html import jpeg_uri, write_html
from experiments.common.run_folder import RunFolder
from segenv import render
from segenv.data.base import within
from segenv.data.images import read_image
from segenv.data.trajectories.export import write_png
from segenv.geometry.rle import check_counts, rle_to_polygons, segmentation_mask
from segenv.records import reader
from segenv.seeds import seed_of

COLUMNS, ROWS, SIDE, GAP, LINE = 4, 4, 400, 12, 20  # of a contact sheet: tiles, and pixels
PLATE = 16  # height of a label, px
FONT = ImageFont.load_default(12)


class ObjectRecord(TypedDict):
    """An object of an image."""

    phrase: str
    score: float | None
    mask_score: float | None
    box: list[float]
    mask: dict[str, Any]


class ImageRecord(TypedDict):
    """A line of images.jsonl, of an image that was annotated."""

    image: str
    height: int
    width: int
    hash: str
    objects: list[ObjectRecord]
    absent: list[str]
    dropped: dict[str, int]
    seconds: dict[str, float]


def read_image_record(value: Any) -> Record:
    """Read a line of images.jsonl. Raises ValueError where it is another thing."""
    if "error" in reader(dict)(value):
        return reader(dict[str, str])(value)
    record = reader(ImageRecord)(value)
    for one in record["objects"]:
        if one["mask"].get("size") != [record["height"], record["width"]]:
            raise ValueError(f"a mask has size {one['mask'].get('size')}; expected that of the image")
        check_counts(reader(str)(one["mask"].get("counts")), record["height"], record["width"])
    return value


def write(
    folder: RunFolder,
    records: Iterable[Record],
    root: Path,
    writer: PolygonWriter,
    show: int,
    max_pixels: int,
    **page: Any,
) -> None:
    """Write sheets/page-*.png and report.html (from `page`), which show at most `show` images, sampled by name."""
    sampled = heapq.nsmallest(show, records, key=lambda record: seed_of("annotate", record["image"]))
    chosen = sorted(sampled, key=lambda record: record["image"])
    tiles: list[np.ndarray] = []
    cards, pages = [], 0
    for record in chosen:
        image = read_image(
            within(root, record["image"], record["image"], follow_links=True), record["image"], max_pixels
        )
        tiles.append(picture(image, record, writer, SIDE))
        cards.append(_card(tiles[-1], record))
        if len(tiles) == COLUMNS * ROWS or record is chosen[-1]:
            pages += 1
            names = [one["image"] for one in chosen[len(cards) - len(tiles) : len(cards)]]
            write_png(folder / "sheets" / f"page-{pages:03}.png", sheet(tiles, names))
            tiles = []
    for old in sorted((folder / "sheets").glob("page-*.png"))[pages:]:  # of another `show`
        old.unlink()
    write_html(folder / "report.html", "annotate.html", cards=cards, **page)


def picture(image: np.ndarray, record: Record, writer: PolygonWriter, side: int) -> np.ndarray:
    """An image whose longer side is `side` px, with masks, polygons as they are written, boxes and labels; uint8."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    shown = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for i, entry in enumerate(record["objects"]):
        simple = writer.simplify(rle_to_polygons(entry["mask"]), height, width)
        rings = [np.rint(16 * scale * ring).astype(np.int32) for ring in simple]
        inside = np.zeros(shown.shape[:2], np.uint8)
        cv2.fillPoly(inside, rings, (1,), shift=4)
        shown = render.overlay(shown, inside, colour(i), 0.3)
        cv2.polylines(shown, rings, True, colour(i), 2, cv2.LINE_AA, shift=4)
        x0, y0, x1, y1 = (round(scale * corner) for corner in entry["box"])
        cv2.rectangle(shown, (x0, y0), (x1 - 1, y1 - 1), colour(i), 1)
    canvas = Image.fromarray(shown)
    draw = ImageDraw.Draw(canvas)
    for i, entry in enumerate(record["objects"]):
        x, y = entry["box"][0] * scale, entry["box"][1] * scale - PLATE  # above the box
        _label(draw, label(entry), (x, y), colour(i), shape)
    return np.asarray(canvas).copy()


def label(entry: dict[str, Any]) -> str:
    """An object's phrase and score on one line that any font can be asked for."""
    score = "" if entry["score"] is None else f" {entry['score']:.2f}"
    return _printable(entry["phrase"]) + score


def colour(i: int) -> tuple[int, int, int]:
    """The colour of object number `i` of an image: hues a golden angle apart, as far from each other as may be."""
    red, green, blue = colorsys.hsv_to_rgb((0.33 + 0.618034 * i) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def sheet(tiles: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Pictures in rows of `COLUMNS`, each over its name; uint8 [h, w, 3]."""
    rows = [slice(start, start + COLUMNS) for start in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.shape[0] for tile in tiles[row]) + LINE + GAP for row in rows]
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, sum(heights) + GAP), "white")
    draw, top = ImageDraw.Draw(canvas), GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (tile, name) in enumerate(zip(tiles[row], names[row], strict=True)):
            left = GAP + column * (SIDE + GAP)
            canvas.paste(Image.fromarray(tile), (left, top))
            text = render.shorten(draw, _printable(name), SIDE, FONT)
            draw.text((left, top + tile.shape[0] + 3), text, fill="black", font=FONT)
        top += height
    return np.asarray(canvas).copy()


def _label(
    draw: ImageDraw.ImageDraw, text: str, at: tuple[float, float], fill: tuple[int, int, int], room: tuple[int, int]
) -> None:
    """A text on a plate, its upper left corner at `at` or, where it would leave the picture, as near as may be."""
    text = render.shorten(draw, text, room[0] - 6, FONT)
    wide = draw.textlength(text, FONT) + 6
    x, y = max(min(at[0], room[0] - wide), 0), max(min(at[1], room[1] - PLATE), 0)
    draw.rectangle((x, y, x + wide, y + PLATE - 1), fill=fill)
    dark = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] < 110
    draw.text((x + 3, y + 1), text, fill="white" if dark else "black", font=FONT)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:200])


def _card(tile: np.ndarray, record: Record) -> dict[str, Any]:
    """Card of an image for the page."""
    objects = []
    for i, entry in enumerate(record["objects"]):
        share, score = segmentation_mask(entry["mask"], record["height"], record["width"]).mean(), entry["mask_score"]
        facts = f"{share:.1%} of the image" + ("" if score is None else f", mask score {score:.2f}")
        colour_code, caption = "#{:02x}{:02x}{:02x}".format(*colour(i)), entry.get("caption") or ""
        objects.append({"colour": colour_code, "label": label(entry), "caption": caption, "facts": facts})
    return {
        "name": _printable(record["image"]),
        "size": f"{record['width']} x {record['height']}",
        "picture": jpeg_uri(tile, 85),
        "objects": objects,
        "absent": ", ".join(record["absent"]),
    }


def summarise(records: Iterator[Record]) -> dict[str, Any]:
    """Count images, objects and seconds, in all and by phrase."""
    counts, dropped, seconds, skipped = Counter[str](), Counter[str](), Counter[str](), {}
    phrases = defaultdict[str, dict](lambda: dict(objects=0, images=0, absent=0, score=[], mask_score=[]))
    for record in records:
        if "error" in record:
            skipped[record["image"]] = record["error"]
            continue
        counts.update(images=1, without_object=int(not record["objects"]), objects=len(record["objects"]))
        dropped.update(record["dropped"])
        seconds.update(record["seconds"])
        for one in record["objects"]:
            phrases[one["phrase"]]["objects"] += 1
            for key in ("score", "mask_score"):
                phrases[one["phrase"]][key] += [one[key]] if one[key] is not None else []
        for phrase in {one["phrase"] for one in record["objects"]}:
            phrases[phrase]["images"] += 1
        for phrase in record["absent"]:
            phrases[phrase]["absent"] += 1
    for numbers in phrases.values():
        for key in ("score", "mask_score"):
            numbers[key] = float(np.mean(numbers[key])) if numbers[key] else None
    return {
        **{name: counts[name] for name in ("images", "without_object", "objects")},
        "skipped": skipped,
        "dropped": dict(dropped),
        "phrases": dict(sorted(phrases.items())),
        "seconds": dict(seconds),
    }


def facts(numbers: dict[str, Any]) -> dict[str, str]:
    """Describe the results of a run in words."""
    polygons, images = numbers["outlines"], numbers["images"]
    dropped = ", ".join(f"{count} {why}" for why, count in numbers["dropped"].items())
    left = numbers["left_out"]
    facts = {
        "Images": f"{images} annotated, {numbers['without_object']} of them without an object, "
        f"{len(numbers['skipped'])} skipped",
        "Objects": f"{numbers['objects']}" + (f"; dropped: {dropped}" if dropped else ""),
        "Conversations": f"{numbers['conversations']}; left out: {left['several']} texts that name several objects, "
        f"{left['no_room']} replies that do not fit",
    }
    if polygons["iou"] is not None:
        facts["Polygons"] = (
            f"{polygons['vertices']:.1f} vertices an object; IoU with the mask {polygons['iou']:.4f}, at worst "
            f"{polygons['worst_iou']:.4f}"
        )
    if numbers["unknown_images"]:
        facts["Unknown"] = f"{len(numbers['unknown_images'])} named images are not in the folder"
    if told := str(LeftOut(**numbers["boxes_left_out"])):
        facts["Boxes"] = told
    each = ", ".join(f"{name} {1000 * value / images:.0f}" for name, value in numbers["seconds"].items() if images)
    return facts | {"ms an image": each or "–"}
