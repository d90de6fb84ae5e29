"""Named protocols: every choice of a published table, or of one of ours, under a name.

A protocol fixes flags, says which data it is measured on, and names the measures of its table. A run under it states
`protocol.name`. One flag changed, or other data, and the run has no name, and says what differs. Agents, tools, codecs
and prompts are what is measured, so they are free where `PROTOCOLS` does not fix them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from experiments.common.config import RunError
from experiments.common.suite import SUITE, TASKS, RlTask
from experiments.common.tables import Table, interval, number
from segenv import specs
from segenv.data import Dataset
from segenv.data.coco import Coco
from segenv.seeds import seed_of

Settings = TypeVar("Settings")

SHARD = "--shard"
WHOLE = {"limit": None, "exclude": None, "skip_bad": False, "seed": 0, "start": None}
CLICKS = {**WHOLE, "task": "segment", "agent": "annotator", "search": "none"}
REFERRING = {
    **WHOLE,
    "task": ("segment", "polygon"),  # a mask by clicks, or by one reply
    "max_steps": 7,
    "polygon.given": "text",
    "polygon.asked": "mask",
    "polygon.temperature": 0.0,
}
ANNOTATOR = "the deepest pixel of the deeper of the two errors, as RITM's published clicker; from an empty mask"
ONE_EMPTY = "two empty masks have IoU 1, one empty mask 0; every task has an object"
SENTENCES = "one sentence a task; a sentence that stands twice counts twice"
GIOU, CIOU = ("gIoU", ("miou", "giou")), ("cIoU", ("ciou",))


@dataclass(frozen=True)
class NamedProtocol:
    """Choices behind a table. `data` are patterns of specs, whose group `part` names the part that is measured, and
    `of_root` makes the spec of a root folder. `tasks` are the numbers of tasks of the parts, where they are published.
    `settings` are flags with their values, or the values allowed, the first by default. `headline` are the names of
    measures, each with its places in metrics.json. `rules` say in words what no flag does. `sample` chooses tasks by
    their positions in the data."""

    about: str
    data: tuple[str, ...]
    settings: Mapping[str, Any]
    headline: tuple[tuple[str, tuple[str, ...]], ...]
    rules: Mapping[str, str]
    of_root: str | None = None
    tasks: Mapping[str, int] = field(default_factory=dict)
    sample: Callable[[Dataset], Sequence[int]] | None = None

    def part(self, data: str) -> str | None:
        """The part of the data that a spec names ("" where there is one alone); None where it is of other data."""
        for pattern in self.data:
            if (found := re.fullmatch(pattern, data)) is not None:
                return found.groupdict().get("part", "")
        return None


def coco_500(data: Dataset) -> list[int]:
    """Positions of the instances of at least 32 x 32 pixels that are no crowds, on 500 images of those that have one:
    the first by a hash of their ids."""
    if not isinstance(data, Coco):
        raise RunError(f"data {data.spec!r} are no COCO instances; expected coco:ANNOTATIONS.json@IMAGES")
    large = [i for i in range(len(data)) if not data.crowd(i) and data.area(i) >= 32**2]
    sources = data.sources
    images = sorted({sources[i] for i in large}, key=lambda name: seed_of("sam2-coco-500x5", name))[:500]
    chosen = set(images)
    return [i for i in large if sources[i] in chosen]


PROTOCOLS: dict[str, NamedProtocol] = {
    "refcoco-umd": NamedProtocol(
        about="RefCOCOg, UMD split: cIoU of one mask for each sentence",
        data=(r"refcoco:.*refcocog/umd/(?P<part>val|test)(@.*)?",),
        of_root="refcoco:{root}/refcocog/umd/val",
        tasks={"val": 4896, "test": 9602},
        settings=REFERRING,
        headline=(CIOU, GIOU, ("Acc@0.5 (box)", ("acc_at_50",))),
        rules={"sentences": SENTENCES, "empty": ONE_EMPTY, "ciou": "sum of intersections over sum of unions"},
    ),
    "refcoco-unc": NamedProtocol(
        about="RefCOCO and RefCOCO+, UNC split: cIoU of one mask for each sentence",
        data=(r"refcoco:.*(?P<part>refcoco\+?/unc/(val|testA|testB))(@.*)?",),
        of_root="refcoco:{root}/refcoco/unc/val",
        tasks={
            **{"refcoco/unc/val": 10834, "refcoco/unc/testA": 5657, "refcoco/unc/testB": 5095},
            **{"refcoco+/unc/val": 10758, "refcoco+/unc/testA": 5726, "refcoco+/unc/testB": 4889},
        },
        settings=REFERRING,
        headline=(CIOU, GIOU, ("Acc@0.5 (box)", ("acc_at_50",))),
        rules={"sentences": SENTENCES, "empty": ONE_EMPTY, "ciou": "sum of intersections over sum of unions"},
    ),
    "reasonseg": NamedProtocol(
        about="ReasonSeg: gIoU first, and cIoU, on the first text of each image",
        data=(r"reasonseg:[^#]*/(?P<part>val|test)",),
        of_root="reasonseg:{root}/val",
        tasks={"val": 200, "test": 779},
        settings=REFERRING,
        headline=(GIOU, CIOU),
        rules={"texts": "the first of each image", "ignored": "pixels labelled so count nowhere", "empty": ONE_EMPTY},
    ),
    "grefcoco": NamedProtocol(
        about="gRefCOCO: sentences that name one object, several, or none",
        data=(r"grefcoco:.*/(?P<part>val|testA|testB)(@.*)?",),
        of_root="grefcoco:{root}/val",
        settings=REFERRING,
        headline=(GIOU, CIOU, ("N-acc", ("n_acc",)), ("T-acc", ("t_acc",))),
        rules={
            "sentences": SENTENCES,
            "empty": "without an object gIoU counts an empty mask 1 and any other 0; cIoU adds its pixels to the union",
            "invalid": "without an object an invalid reply leaves the mask of clicks empty, which gIoU counts 1; of "
            "--task polygon it is no answer, which gIoU counts 0",
            "n_acc": "of sentences without an object, the share answered so; an invalid reply is no answer. ReLA "
            "answers by a classifier of its own; here an empty mask is the answer, and no small mask counts as empty",
            "t_acc": "of sentences with an object, the share answered with a mask",
        },
    ),
    "ritm-davis": NamedProtocol(
        about="Clicks on the 345 masks of DAVIS: RITM's table",
        data=(r"davis:.*",),
        of_root="davis:{root}",
        tasks={"": 345},
        settings={**CLICKS, "max_steps": 20},
        headline=(
            *(("NoC@85", ("noc.85",)), ("NoC@90", ("noc.90",)), ("NoF@85", ("nof.85",)), ("NoF@90", ("nof.90",))),
            *(("IoU@1", ("iou_at.1",)), ("IoU@5", ("iou_at.5",))),
        ),
        rules={
            "clicks": ANNOTATOR,
            "noc": "IoU >= t in float32; 20 where it is never reached",
            "nof": "tasks whose NoC is 20, as RITM's code counts",
            "labels": "every pixel that is not black",
            "empty": "RITM's code gives two empty masks no IoU; every task has an object",
        },
    ),
    "sam2-coco-500x5": NamedProtocol(
        about="Up to five clicks on COCO val2017: 500 images, instances of at least 32 x 32 pixels, no crowds",
        data=(r"coco:.*instances_val2017\.json@.*",),
        of_root="coco:{root}/annotations/instances_val2017.json@{root}/val2017",
        settings={**CLICKS, "max_steps": 5},
        headline=(
            *(("mIoU@1", ("iou_at.1",)), ("mIoU@3", ("iou_at.3",)), ("mIoU@5", ("iou_at.5",))),
            *(("NoC@85", ("noc.85",)), ("never 85", ("nof_never.85",))),
        ),
        rules={
            "images": "the published ones (ultralytics, pull request 26144: 500 at random, 915 instances) are not "
            "named; ours are the first 500 by a hash of their ids, with all of their instances that count",
            "clicks": ANNOTATOR + "; the published words are the interior-most point of the larger error region, which "
            "leaves open what is larger",
            "noc": "IoU >= 0.85 in float32; 5 where it is never reached, which is not published",
            "masks": "as the tool gives them; the published ones went through a service that answers with polygons",
            "empty": ONE_EMPTY,
        },
        sample=coco_500,
    ),
    "segnext-hq44k": NamedProtocol(
        about="Clicks on the 1,537 masks of HQSeg-44K's validation: DIS5K-VD, COIFT, HRSOD and ThinObject5K-TE",
        data=(r"hq44k:.*,threshold=0",),
        of_root="hq44k:{root},threshold=0",
        tasks={"": 1537},
        settings={**CLICKS, "max_steps": 20},
        headline=(
            *(("5-mIoU", ("iou_at.5",)), ("NoC@90", ("noc.90",)), ("NoC@95", ("noc.95",))),
            *(("NoF@90", ("nof.90",)), ("NoF@95", ("nof.95",))),
        ),
        rules={
            "clicks": ANNOTATOR,
            "labels": "every pixel that is not black, as SegNext's loader has it; HQ-SAM's own table has those above "
            "128, which hq44k:DIR gives",
            "noc": "IoU >= t in float32; 20 where it is never reached",
            "nof": "tasks whose NoC is 20, as RITM's code counts",
            "empty": ONE_EMPTY,
        },
    ),
    "hlmat-synthetic-v1": NamedProtocol(
        about="500 procedural test scenes, with the embedded tool: ours",
        data=(r"from:6000:synthetic:test",),
        of_root="from:6000:synthetic:test",
        settings={**WHOLE, "task": "segment", "tool": "sam", "max_steps": 7, "limit": 500},
        headline=(
            *(("mIoU", ("miou",)), ("IoU@1", ("iou_at.1",)), ("IoU@3", ("iou_at.3",)), ("best IoU", ("best_iou",))),
            *(("regret", ("regret",)), ("stop rate", ("stop_rate",)), ("parse rate", ("parse_rate",))),
        ),
        rules={"scenes": "tasks 6,000 to 6,499 of synthetic:test", "empty": ONE_EMPTY},
    ),
}


def _of_suite(task: RlTask) -> NamedProtocol:
    """The protocol of the test tasks of the suite's task."""
    episodes = {"tool": task.tool, "start": task.start, "max_steps": task.max_steps, "limit": task.test_tasks}
    return NamedProtocol(
        about=f"{SUITE}, to {task.about}: ours",
        data=(re.escape(task.test),),
        of_root=task.test,
        settings={**WHOLE, "task": "segment", **episodes},
        headline=(
            *(("mIoU", ("miou",)), ("IoU@1", ("iou_at.1",)), ("best IoU", ("best_iou",))),
            *(("stop rate", ("stop_rate",)), ("parse rate", ("parse_rate",))),
        ),
        rules={"scenes": f"the first {task.test_tasks} of {task.test}", "starts": "of seed 0 and the task's id"},
    )


PROTOCOLS |= {f"{SUITE}-{name}": _of_suite(task) for name, task in TASKS.items()}


def make(name: str) -> NamedProtocol:
    """The protocol of a name. Raises RunError for another name."""
    try:
        return PROTOCOLS[specs.name_of("protocol", name, PROTOCOLS)[0]]
    except ValueError as error:
        raise RunError(str(error)) from error


def preset(args: Settings) -> Settings:
    """Settings like `args`, whose `protocol` (and `root`) fix what they fix; all others have their defaults."""
    name, root = (getattr(args, key) for key in ("protocol", "root"))
    if name is None:
        if root is not None:
            raise RunError(f"--root {root} is the folder of a protocol's data; name a --protocol, or give --data")
        return args
    found = make(name)
    flags = {key: _first(value) for key, value in found.settings.items() if "." not in key}
    if found.of_root is not None and (root is not None or "{root}" not in found.of_root):
        flags["data"] = found.of_root.format(root=str(root or "").rstrip("/"))
    return dataclasses.replace(type(args)(), protocol=name, root=root, **flags)  # type: ignore[type-var]


def differences(args: Any, tasks: int | None = None) -> list[str]:
    """Where `args` depart from the protocol that they name; `tasks` are how many there are in the data."""
    found, differ = make(args.protocol), []
    for key, wanted in found.settings.items():
        value = args
        for name in key.split("."):
            value = getattr(value, name)
        if value not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            flag = key.replace("_", "-")
            differ.append(f"--{flag} is {value}, and {_first(wanted)} there")
    if args.shard is not None:
        differ.append(f"{SHARD} is {args.shard}, and all tasks are played there")
    part = found.part(args.data)
    if part is None:
        differ.append(f"--data is {args.data}, and {found.of_root or ' or '.join(found.data)} there")
    elif tasks is not None and part in found.tasks and found.tasks[part] != tasks:
        differ.append(f"the data hold {tasks} tasks, and {found.tasks[part]} there")
    return differ


def positions(args: Any, data: Dataset) -> Sequence[int]:
    """The positions of the tasks that the protocol of `args` samples from the data; of all where it takes them all."""
    found = make(args.protocol) if args.protocol is not None else None
    if found is None or found.sample is None or found.part(args.data) is None:
        return range(len(data))
    return found.sample(data)


def about(args: Any, tasks: int | None = None) -> dict[str, Any]:
    """The part of a run's protocol that says under which name it is measured, if under one: `name`, `part` of the data
    and `rules`; else `departs_from`, with what differs."""
    return {} if args.protocol is None else _about(args, differences(args, tasks))


def about_whole(args: Any, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of a part of a run, as `about` writes it for the whole, whose settings `args` are."""
    if "departs_from" not in protocol:
        return dict(protocol)
    others = {key: value for key, value in protocol.items() if key != "departs_from"}
    differ = [one for one in protocol["departs_from"]["differences"] if not one.startswith(f"{SHARD} ")]
    return others | _about(args, differ)


def _about(args: Any, differ: list[str]) -> dict[str, Any]:
    if differ:
        return {"departs_from": {"name": args.protocol, "differences": differ}}
    found = make(args.protocol)
    part = found.part(args.data)
    return {"name": args.protocol, **({"part": part} if part else {}), "about": found.about, "rules": dict(found.rules)}


def text(protocol: Mapping[str, Any]) -> str:
    """Say in lines for a terminal under which protocol a run is measured; nothing where none was asked for."""
    if (differ := protocol.get("departs_from")) is not None:
        return f"not under protocol {differ['name']}: " + "; ".join(differ["differences"])
    if "name" not in protocol:
        return ""
    part = f", {protocol['part']}" if "part" in protocol else ""
    found = make(protocol["name"])
    flags = ", ".join(f"--{key.replace('_', '-')} {_shown(value)}" for key, value in found.settings.items())
    rules = [f"  {key}: {value}" for key, value in protocol["rules"].items()]
    return "\n".join([f"protocol {protocol['name']}{part}: {protocol['about']}", f"  flags: {flags}", *rules])


def headline(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The measures of the protocol that a run is measured under, by name, each with `value` and `interval`, from its
    numbers; none where it is under none."""
    found = {}
    for measure, places in make(name).headline if (name := numbers["protocol"].get("name")) else ():
        place = next((one for one in places if _at(numbers, one) is not None), places[0])
        found[measure] = {"value": _at(numbers, place), "interval": _at(numbers["intervals"], place)}
    return found


def section(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The part of a report about the protocol that was asked for, if one was: rules and headline, or what differs."""
    protocol = numbers["protocol"]
    if not (lines := text(protocol).splitlines()):
        return []
    rows = [[name, number(one["value"]), interval(one["interval"])] for name, one in headline(numbers).items()]
    table = Table(("measure", "value", "95 % interval"), rows) if rows else None
    title = f"Protocol {protocol['name']}" if "name" in protocol else "Not under the protocol"
    return [{"title": title, "notes": lines, "table": table}]


def _at(tree: Mapping[str, Any], place: str) -> Any:
    """The value at a place such as `noc.90`, or None."""
    found: Any = tree
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, tuple) else str(value)
