"""Replies with a mask, a box or a point taken apart: format, frame, object, quality, and what is said of absent
objects, each a line with its control, and the first to fail; and the same by size, expression and neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from experiments.common.tables import Table, interval, number
from experiments.evaluate.answers.reply_facts import ReplyFacts, fits_other
from experiments.evaluate.episodes import diagnosis
from experiments.evaluate.episodes.diagnosis import EVIDENCE, SURE, Images, Line, mean
from segenv import statistics

PLACES = {"mask": "Middle of the mask", "box": "Middle of the box", "point": "Point"}
OTHER = "Replies that fit another known object better"
BOX = 0.5  # mean IoU of boxes on the object, below which their quality is told

DEFINITIONS = {
    "decomposed": "each line has its value, its 95 % interval over images, a control and whether it fails; a line "
    f"fails where: more than {diagnosis.FAULTS:g} of all replies have a fault; another frame has at least "
    f"{diagnosis.AHEAD:g} more of the replies on the object, and more than random places; the middle of a mask or a "
    "box, where there is one, is in the object's own box (a point on the object itself) in less than "
    f"{SURE:g} of the replies, and this is not shown to be better than a random place and the image's middle; more "
    "than half of the replies fit another known object better, by the IoU of masks or boxes, or say of an object that "
    "it is not there; masks on the object fit it less than its own box, filled; boxes on it have a mean IoU below "
    f"{BOX:g} with its own; of {EVIDENCE} tasks without an object or more, less than half are answered so. Shown "
    "means: by the interval. The first line to fail explains those behind it. A reply that is cut counts as a fault, "
    "although what it drew is scored"
}


def diagnose(facts: Sequence[ReplyFacts], asked: str, images: Images = None) -> dict[str, Any] | None:
    """Take replies apart that were `asked` for a mask, a box or a point (None of a text): `lines`, the `first` of them
    that fails, and `groups` of the tasks; `images` is the image of each reply."""
    if asked not in PLACES:
        return None
    facts = diagnosis.with_neighbours(facts, images, partial(fits_other, asked=asked))
    places = [k for k, one in enumerate(facts) if one.has_object]
    there, of_images = [facts[k] for k in places], _some(images, places)
    place = PLACES[asked]
    lines = [
        *diagnosis.format_lines(facts, images, "an answer"),
        *diagnosis.frame_lines(facts, there, images, of_images, place),
        *map(_judged, diagnosis.object_lines(there, of_images, place, OTHER)),
        *_denied(there, of_images),
        *_quality(there, asked, of_images),
        *_absent(facts, images),
    ]
    return diagnosis.told(lines, diagnosis.groups_of(there, lambda some: _group(there, of_images, some)))


def _some(images: Images, places: Sequence[int]) -> Images:
    return None if images is None else [images[k] for k in places]


def _judged(line: Line) -> Line:
    """The line of other objects fails where they are fitted more often than not."""
    return replace(line, fails=line.interval[0] > 0.5) if line.name == OTHER else line


def _denied(there: Sequence[ReplyFacts], images: Images) -> list[Line]:
    value, ends = mean([float(one.denied) for one in there], images)
    return [Line("object", "Replies that tell of no object", value, ends, fails=ends[0] > 0.5)]


def _quality(there: Sequence[ReplyFacts], asked: str, images: Images) -> list[Line]:
    """How well the replies on the object fit it; a point that is on it has no more to it."""
    if asked == "point":
        return []
    on = [k for k, one in enumerate(there) if one.on_object["read"]]
    ious, images = [there[k].iou for k in on], _some(images, on)
    value, ends = mean(ious, images)
    if asked == "box":
        return [Line("quality", "IoU of boxes on the object", value, ends, fails=ends[1] < BOX)]
    filled = [there[k].filled for k in on]
    _, _, high = statistics.bootstrap_difference(ious, filled, images=images)
    control = float(np.mean(filled)) if on else None
    return [Line("quality", "IoU of masks on the object", value, ends, control, "its box, filled", high < 0)]


def _absent(facts: Sequence[ReplyFacts], images: Images) -> list[Line]:
    """Whether absent objects are told of, where there are some."""
    places = [k for k, one in enumerate(facts) if not one.has_object]
    if not places:
        return []
    value, ends = mean([float(facts[k].denied) for k in places], _some(images, places))
    fails = ends[1] < 0.5 and len(places) >= EVIDENCE
    return [Line("absent", "Tasks without an object that are answered so", value, ends, fails=fails)]


def _group(there: Sequence[ReplyFacts], images: Images, places: Sequence[int]) -> dict[str, Any]:
    some, of_images = [there[k] for k in places], _some(images, places)
    placed = [one for one in some if one.first is not None]  # as in the lines
    known = [float(one.on_other) for one in placed if one.others]
    iou, ends = mean([one.iou for one in some], of_images)
    return {
        "tasks": len(some),
        "valid": mean([float(one.fault[0] is None) for one in some], None)[0],
        "on_object": mean([one.on_object["read"] for one in placed], None)[0],
        "on_other": mean(known, None)[0],
        "iou": iou,
        "interval": list(ends),
    }


def sections(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a report that show the lines and the groups; none where replies were not taken apart."""
    found = numbers.get("decomposed")
    if not found:
        return []
    rows = diagnosis.line_rows(found)
    for key, name in (("giou", "gIoU"), ("acc_at_50", "Acc@0.5 (box)")):
        rows.append(["result", name, number(numbers[key]), interval(numbers["intervals"][key]), "", ""])
    parts = [diagnosis.lines_part(numbers, DEFINITIONS["decomposed"], rows)]
    if found["groups"]:
        parts.append({"title": "By kind of task", "notes": [], "table": groups(found["groups"])})
    return parts


def groups(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of groups."""
    header = ("by", "", "tasks", "without a fault", "on object", "fits another", "IoU", "95 % interval")
    rows = []
    for field, names in found.items():
        for name, one in names.items():
            cells = [number(one[key], 3) for key in ("valid", "on_object", "on_other", "iou")]
            rows.append([field, name, str(one["tasks"]), *cells, interval(one["interval"], 3)])
    return Table(header, rows, "<<>")
