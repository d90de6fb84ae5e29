"""An answer taken apart: format, frame, object, sign, gain, stop, each a line with its control, and the first to fail;
and the same by the object's size, its expression, its part of the image and its neighbours."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from experiments.common.tables import Table, interval, number
from experiments.evaluate.answers.polygon_metrics import SIZES
from experiments.evaluate.episodes.step_facts import EXCHANGED, EXPRESSIONS, GOOD, NEIGHBOURS, PARTS, StepFacts
from segenv import statistics
from segenv.geometry.rle import decode_mask

Images = Sequence[Hashable] | None
Facts = TypeVar("Facts", bound=StepFacts)

FAULTS = 0.1  # a share of replies with one fault, above which it is told
AHEAD = 0.1  # another frame is told where it has so much more of the first clicks on the object
SURE = 0.9  # a share of first clicks on the object that needs no control
GAIN = 0.5  # of the annotator's gain, below which an agent's is told
EVIDENCE = 5  # episodes with a mask that is to be stopped at, from which stopping is told of
EARLY = 0.05  # IoU that a stop leaves to the annotator's next click, from which it is early
FIELDS = {"size": tuple(SIZES), "expression": EXPRESSIONS, "part": PARTS, "neighbours": NEIGHBOURS}

DEFINITIONS = {
    "decomposed": "each line has its value, its 95 % interval over images, a control and whether it fails; a line "
    f"fails where: more than {FAULTS:g} of all replies have a fault; another frame has at least {AHEAD:g} more of the "
    "first clicks on the object, and more than random ones; the first click, where the first action is one, on the "
    "object (on an error, where there is a mask at the start) in less than "
    f"{SURE:g} of the episodes, is not shown to be better than a random one and the image's middle; signs of clicks on "
    f"an error are worse than always positive, or wrong more often than right; clicks gain less than {GAIN:g} of what "
    "the annotator's click gains in the same state; of the masks at which nothing is left to gain (IoU "
    f"{GOOD:g}, or neither the annotator's click nor anything later gains) less than half end the episode, in "
    f"{EVIDENCE} episodes or more; more than half of the stops leave a gain of {EARLY:g} to the annotator's click. "
    "Shown means: by the interval. The first line to fail explains those behind it"
}


@dataclass(frozen=True)
class Line:
    """A measure of one stage: its value with its interval, what it is held against, and whether it fails."""

    stage: str
    name: str
    value: float
    interval: tuple[float, float]
    control: float | None = None
    against: str = ""
    fails: bool = False

    def to_json(self) -> dict[str, Any]:
        """The line as JSON."""
        return {**vars(self), "interval": list(self.interval)}


def diagnose(facts: Sequence[StepFacts], finals: Sequence[float], images: Images = None) -> dict[str, Any]:
    """Take answers apart: `lines`, the `first` of them that fails (its stage and name, or None), and `groups` of the
    tasks. `finals` are the IoUs of the final masks, and `images` the image of each episode."""
    facts = with_neighbours(facts, images)
    asked = [k for k, one in enumerate(facts) if one.has_object]
    there = [facts[k] for k in asked]
    of_images = None if images is None else [images[k] for k in asked]
    lines = [
        *format_lines(facts, images),
        *frame_lines(facts, there, images, of_images),
        *object_lines(there, of_images),
        *_sign(there, of_images),
        *_gain(there, of_images),
        *_stop(facts, images),
    ]
    finals = [finals[k] for k in asked]
    return told(lines, groups_of(there, lambda places: _group(there, finals, of_images, places)))


def told(lines: Sequence[Line], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The `lines`, the `first` of them that fails, and the `groups` of the tasks, as JSON."""
    first = next((line for line in lines if line.fails), None)
    return {
        "first": first and {"stage": first.stage, "name": first.name},
        "lines": [line.to_json() for line in lines],
        "groups": kinds,
    }


def first_on_other(one: StepFacts, others: Sequence[np.ndarray]) -> float:
    """Whether the first click, if not on its object, is on one of `others`, bool [H, W] each."""
    missed = one.first is not None and not one.on_object["read"]
    return float(missed and any(other[one.first[::-1]] for other in others))  # type: ignore[index]


def with_neighbours(
    facts: Sequence[Facts], images: Images, on_other: Callable[[Facts, Sequence[np.ndarray]], float] = first_on_other
) -> list[Facts]:
    """Add what other tasks of the same image tell: how many other objects there are, and whether the first click is on
    one, or what else `on_other` says of them. Where neither they nor the task tell of any, it stays unknown."""
    targets: dict[Hashable, set[str]] = {}
    for one, image in zip(facts, images or [fact.task for fact in facts], strict=True):
        if one.target is not None and one.has_object:
            targets.setdefault(image, set()).add(one.target)
    found = []
    for one, image in zip(facts, images or [fact.task for fact in facts], strict=True):
        others = targets.get(image, set()) - {one.target}
        if one.others is None and others:
            masks = [decode_mask(other, *one.shape) for other in others]
            one = replace(one, others=len(others), on_other=on_other(one, masks))
        if one.others is not None:
            kind = NEIGHBOURS[0 if not one.others else 1 if one.others < 4 else 2]
            one = replace(one, groups={**one.groups, "neighbours": kind})
        found.append(one)
    return found


def ratio(above: Sequence[float], below: Sequence[float], images: Images) -> tuple[float, tuple[float, float]]:
    """Σ above / Σ below, NaN of nothing, with its interval over images."""
    total = float(np.sum(below))
    value = float(np.sum(above)) / total if total else float("nan")
    return value, statistics.bootstrap_ratio(above, below, images=images)


def mean(values: Sequence[float], images: Images) -> tuple[float, tuple[float, float]]:
    """The mean of values with its interval over images, NaN of none."""
    return ratio(values, np.ones(len(values)), images)  # type: ignore[arg-type]


def _sums(facts: Sequence[StepFacts], name: str, of: str | None = None) -> list[float]:
    """The sum of a fact over the steps of each episode at which the fact `of` is known."""
    known = [~np.isnan(getattr(one, of or name)) for one in facts]
    return [float(np.nansum(getattr(one, name)[here])) for one, here in zip(facts, known, strict=True)]


def _counts(facts: Sequence[StepFacts], name: str) -> list[float]:
    """How many steps of each episode have a fact."""
    return [float((~np.isnan(getattr(one, name))).sum()) for one in facts]


def _fault(facts: Sequence[StepFacts], stage: str, kind: str, name: str, images: Images) -> Line:
    found = [float(one.fault.count(kind)) for one in facts]
    value, ends = ratio(found, [float(len(one.fault)) for one in facts], images)
    return Line(stage, name, value, ends, fails=value > FAULTS)


def format_lines(facts: Sequence[StepFacts], images: Images, lacks: str = "an action") -> list[Line]:
    """Lines of the stage format; invalid replies are without what they lack."""
    return [
        _fault(facts, "format", "cut", "Replies cut, or ended inside a thought", images),
        _fault(facts, "format", "invalid", f"Replies without {lacks}", images),
    ]


def frame_lines(
    facts: Sequence[StepFacts],
    there: Sequence[StepFacts],
    images: Images,
    of_images: Images,
    place: str = "First click",
) -> list[Line]:
    """Lines of the stage frame: of all `facts`, and of those of tasks with an object that are `there`."""
    lines = [_fault(facts, "frame", "outside", "Numbers outside the frame", images)]
    read = [one.on_object["read"] for one in there]
    ahead: dict[str, tuple[Line, float]] = {}
    for name in dict.fromkeys(name for one in there for name in one.on_object if name != "read"):
        values = [one.on_object.get(name, 0.0) for one in there]
        value, ends = mean(values, of_images)
        difference, low, _ = statistics.bootstrap_difference(values, read, images=of_images)
        _, above, _ = statistics.bootstrap_difference(values, [one.random for one in there], images=of_images)
        label = f"{place} on the object, with {name}" if name == EXCHANGED else f"{place} …, read as {name}"
        line = Line("frame", label, value, ends, float(np.mean(read)), "as declared")
        ahead[name] = line, difference if min(low, above) > 0 and difference >= AHEAD else 0.0
    best = max(ahead, key=lambda name: ahead[name][1], default=None)
    for name, (line, difference) in ahead.items():
        lines.append(replace(line, fails=name == best and difference > 0))
    explained = lines[0].fails and any(line.fails for line in lines[1:])  # another frame has those numbers inside
    return [*lines[1:], lines[0]] if explained else lines


def _clicked(facts: Sequence[StepFacts]) -> list[int]:
    """Places of the episodes that begin with a click or a box, where there is something to click."""
    return [k for k, one in enumerate(facts) if one.first is not None and one.random]


def object_lines(
    there: Sequence[StepFacts],
    images: Images,
    place: str = "First click",
    other: str = "First click on another known object",
) -> list[Line]:
    """Lines of the stage object: whether a first click, or another place, is on it, or on the other one."""
    clicked = _clicked(there)
    images = None if images is None else [images[k] for k in clicked]
    there = [there[k] for k in clicked]
    read = [one.on_object["read"] for one in there]
    value, ends = mean(read, images)
    controls = {"random": [one.random for one in there], "middle": [one.centre for one in there]}
    told = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in controls.items()) if there else ""
    better = max(controls.values(), key=sum)
    _, low, _ = statistics.bootstrap_difference(read, better, images=images)
    control = float(np.mean(better)) if there else None
    lines = [Line("object", f"{place} on the object", value, ends, control, told, value < SURE and not low > 0)]
    known = [k for k, one in enumerate(there) if one.others]
    if known:
        found = mean([there[k].on_other for k in known], None if images is None else [images[k] for k in known])
        lines.append(Line("object", other, *found))
    return lines


def _sign(there: Sequence[StepFacts], images: Images) -> list[Line]:
    right, positive, clicks = _sums(there, "sign"), _sums(there, "positive"), _counts(there, "sign")
    value, ends = ratio(right, clicks, images)
    control, _ = ratio(positive, clicks, images)
    _, (_, high) = ratio(np.subtract(right, positive).tolist(), clicks, images)
    fails = high < 0 or ends[1] < 0.5
    return [Line("sign", "Clicks on an error with the right sign", value, ends, control, "always positive", fails)]


def _gain(there: Sequence[StepFacts], images: Images) -> list[Line]:
    gained, clicks = _sums(there, "gain"), _counts(there, "gain")
    value, ends = ratio(gained, clicks, images)
    compared, reference = _sums(there, "gain", "reference"), _sums(there, "reference")
    control, _ = ratio(reference, _counts(there, "reference"), images)
    _, (_, high) = ratio(compared, reference, images)
    fails = control > 0 and high < GAIN
    return [Line("gain", "IoU gained by a click", value, ends, control, "the annotator, same state", fails)]


def _stop(facts: Sequence[StepFacts], images: Images) -> list[Line]:
    ended = [float((one.ended * one.done).sum()) for one in facts]
    value, ends = ratio(ended, _sums(facts, "done"), images)
    fails = ends[1] < 0.5 and sum(bool(one.done.any()) for one in facts) >= EVIDENCE
    lines = [Line("stop", "Masks with nothing left to gain that end the episode", value, ends, fails=fails)]
    known = [float((one.ended * ~np.isnan(one.missed)).sum()) for one in facts]
    early = [float((one.ended * (np.nan_to_num(one.missed) >= EARLY)).sum()) for one in facts]
    value, ends = ratio(early, known, images)
    return [*lines, Line("stop", f"Stops that leave a gain of {EARLY:g}", value, ends, fails=ends[0] > 0.5)]


def groups_of(there: Sequence[StepFacts], measure: Callable[[list[int]], Any]) -> dict[str, dict[str, Any]]:
    """Measure the places of each group of tasks, by each of `FIELDS` whose value differs between tasks."""
    found: dict[str, dict[str, Any]] = {}
    for field, names in FIELDS.items():
        places = {name: [k for k, one in enumerate(there) if one.groups.get(field) == name] for name in names}
        if sum(map(bool, places.values())) > 1:
            found[field] = {name: measure(some) for name, some in places.items() if some}
    return found


def _group(there: Sequence[StepFacts], finals: Sequence[float], images: Images, places: Sequence[int]) -> Any:
    some = [there[k] for k in places]
    of_images = None if images is None else [images[k] for k in places]
    final, ends = mean([finals[k] for k in places], of_images)
    return {
        "episodes": len(some),
        "first_on_object": mean([some[k].on_object["read"] for k in _clicked(some)], None)[0],
        "sign": ratio(_sums(some, "sign"), _counts(some, "sign"), of_images)[0],
        "gain": ratio(_sums(some, "gain"), _counts(some, "gain"), of_images)[0],
        "reference": ratio(_sums(some, "reference"), _counts(some, "reference"), of_images)[0],
        "final_iou": final,
        "interval": list(ends),
    }


def sections(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a report that show the lines and the groups."""
    found, rows = numbers["decomposed"], []
    for key, name in (("parse_rate", "Valid replies"), ("exact_rate", "Replies exactly as asked")):
        rows.append(["format", name, number(numbers[key]), interval(numbers["intervals"][key]), "", ""])
    rows += line_rows(found)
    for key, name in (("miou", "Final IoU"), ("best_iou", "Best IoU")):
        rows.append(["result", name, number(numbers[key]), interval(numbers["intervals"][key]), "", ""])
    clicks = numbers["noc"]["85"], numbers["intervals"]["noc"]["85"]
    rows.append(["result", "NoC@85", number(clicks[0], 2), interval(clicks[1], 2), "", ""])
    parts = [lines_part(numbers, DEFINITIONS["decomposed"], rows)]
    if found["groups"]:
        parts.append({"title": "By kind of task", "notes": [], "table": groups(found["groups"])})
    return parts


def line_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table: the lines of `told`, each marked where it fails."""
    rows = []
    for line in found["lines"]:
        mark = ("first to fail" if _is_first(line, found["first"]) else "fails") if line["fails"] else ""
        control = f"{number(line['control'])} ({line['against']})" if line["control"] is not None else ""
        rows.append([line["stage"], line["name"], number(line["value"]), interval(line["interval"]), control, mark])
    return rows


def lines_part(numbers: Mapping[str, Any], definition: str, rows: list[list[str]]) -> dict[str, Any]:
    """The part of a report that shows the lines of `line_rows`, and others."""
    header = ("stage", "measure", "value", "95 % interval", "control", "")
    rules = definition[0].upper() + definition[1:] + "."
    table = Table(header, rows, "<<>><<")
    return {"title": "Where answers fail", "notes": [text(numbers)], "rules": rules, "table": table}


def groups(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of groups; gains are those of a click, the agent's and the annotator's in the same states."""
    header = (
        "by",
        "",
        "episodes",
        "first on object",
        "right sign",
        "gain",
        "annotator's",
        "final IoU",
        "95 % interval",
    )
    rows = []
    for field, names in found.items():
        for name, one in names.items():
            cells = [number(one[key], 3) for key in ("first_on_object", "sign", "gain", "reference", "final_iou")]
            rows.append([field, name, str(one["episodes"]), *cells, interval(one["interval"], 3)])
    return Table(header, rows, "<<>")


def text(numbers: Mapping[str, Any]) -> str:
    """Say in a line which part of the answers fails first."""
    found = numbers["decomposed"]
    for line in found["lines"]:
        if _is_first(line, found["first"]):
            control = f" against {number(line['control'], 3)}, {line['against']}" if line["control"] is not None else ""
            return f"first to fail: {line['stage']} ({line['name']}: {number(line['value'], 3)}{control})"
    return "first to fail: none"


def _is_first(line: Mapping[str, Any], first: Mapping[str, str] | None) -> bool:
    return first is not None and (line["stage"], line["name"]) == (first["stage"], first["name"])
