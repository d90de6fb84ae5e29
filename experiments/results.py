"""Write a page of results from finished run folders: the command, the date, the versions and the tables of each run.

    python -m experiments.results runs/sam runs/grabcut --name tools-on-scenes --title "Tools on procedural scenes"

A run is a folder of evaluate, star, tree_search, prm, gspo, polygon_ablation or an ablation, or a JSON file of inputs,
polygons_ceiling or compare. Runs whose tables have equal columns share one table, in the order given. Text between the
markers `<!-- question -->` and `<!-- meaning -->` and their ends is written by hand, and survives when the page is
written again. Absolute paths are replaced by DIR or by the name of the file.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from experiments.report import markdown
from experiments.runs import RunError, write_atomic
from segenv.types import SegenvError

PATH = re.compile(r"(?<![\w./)\]])(?:~|\.{1,2})?/[\w.+-][^\s@#,|`'\"]*")
VERSIONS = ("segenv", "torch", "transformers", "numpy")
STAGES = ("evaluate", "star", "tree_search", "prm", "gspo", "ablation")  # the last stage of a command, X.DONE
HAND = {"question": "What is asked.", "meaning": "What the tables mean, and what they do not."}
Table = tuple[Sequence[str], list[Sequence[str]]]  # header, rows


@dataclass(frozen=True)
class Args:
    """Finished runs, and the page to write."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or JSON files of inputs, polygons_ceiling and compare"""
    name: str
    """of the study: the page is OUT/NAME.md"""
    title: str | None = None
    """first line of the page; by default the title that the page has, or the name"""
    out: Path = Path("docs/results")
    """folder of the pages"""


@dataclass(frozen=True)
class Study:
    """One run: how it was made, and its tables (ready Markdown, or header and rows)."""

    about: str
    tables: list[Table | str]


def load(path: Path) -> Study:
    """The study in a run folder or a JSON file. Raises RunError where there is none, or where it is not finished."""
    if path.suffix == ".json":
        return _load_json(path)
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} is no run folder: it has no config.yaml; give the --out of a command")
    done = next((stage for stage in STAGES if (path / f"{stage}.DONE").is_file()), None)
    if done is None or not (path / "manifest.json").is_file():
        raise RunError(f"{path} is not finished: none of {', '.join(STAGES)} is DONE there; resume it first")
    config = yaml.safe_load((path / "config.yaml").read_text())
    about = json.loads((path / "manifest.json").read_text())
    command = done
    if done == "ablation":
        command = "polygon_ablation" if "vary" in config else "star" if "ablation_seeds" in config else "gspo"
    for name in ("ablation.md", "table.md"):
        if (path / name).is_file():
            blocks = hidden((path / name).read_text()).strip().split("\n\n")
            return Study(_made(command, about), [block for block in blocks if block.startswith("|")])
    task = config.get("task", "segment") if done == "evaluate" else done
    return Study(_made(command, about), list(TABLES[task](json.loads((path / "metrics.json").read_text()))))


def _load_json(path: Path) -> Study:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is no JSON file that can be read: {error}") from error
    day = time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))
    try:
        if isinstance(content, list):
            return Study(f"- `python -m experiments.polygons_ceiling`, {day}", list(_ceiling(content)))
        if "names" in content:
            return Study(f"- `python -m experiments.compare`, {day}", list(_comparison(content)))
        chosen = {key: value for key, value in content["protocol"].items() if key in ("data", "tool", "limit")}
        flags = " ".join(f"--{key} {value}" for key, value in chosen.items())
        return Study(f"- `python -m experiments.inputs {hidden(flags)}`, {day}", list(_inputs(content)))
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} holds no result of inputs, polygons_ceiling or compare: {error!r} is missing") from error


# -------------------------------------------------------------------------------------------------------------- provenance


def hidden(text: str) -> str:
    """`text` with each absolute path, and each that leaves its folder, as DIR or as the name of its file."""

    def short(match: re.Match[str]) -> str:
        name = match[0].rsplit("/", 1)[-1]
        return name if re.search(r"\w\.\w{2,11}$", name) else "DIR"

    return PATH.sub(short, text)


def _made(command: str, about: Mapping[str, Any]) -> str:
    """A list item with the command, the date, the versions and the hashes of a manifest."""
    program, *words = about["command"]
    line = f"python -m experiments.{command}"
    if program in (f"{command}.py", "__main__.py"):
        line = " ".join([line, *(shlex.quote(hidden(word)) for word in _kept(words))])
    else:
        line += "` from Python, `config.yaml"
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in VERSIONS if name in about["versions"])
    hashes = ", ".join(f"{name} {digest}" for name, value in about["hashes"].items() if (digest := _short(value)))
    return f"- `{line}`\n  {about['started'][:10]}; {versions}; {hashes or 'no hashes'}"


def _kept(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line without --out and --resume."""
    rest = iter(words)
    for word in rest:
        if word in ("--out", "--resume"):
            next(rest, None)
        elif not word.startswith(("--out=", "--resume=")):
            yield word


def _short(value: Any) -> str:
    """The first eight digits of the hash in a fingerprint, or its plain text where it has none and no path."""
    if value is None:
        return ""
    found = re.search(r"\b[0-9a-f]{16,}\b", str(value))
    return found[0][:8] if found else hidden(str(value).replace("|", " "))


# ------------------------------------------------------------------------------------------------------------------ tables


def number(value: float | None, interval: Sequence[float | None] | None = None, digits: int = 3, sign: str = "") -> str:
    """`0.654 [0.617, 0.688]`: a mean with its 95 % interval where both are known."""
    if value is None:
        return "–"
    text = f"{value:{sign}.{digits}f}"
    if interval is None or None in interval:
        return text
    return f"{text} [{interval[0]:{sign}.{digits}f}, {interval[1]:{sign}.{digits}f}]"


def _clicks(numbers: Mapping[str, Any]) -> Iterator[Table]:
    protocol, ends = numbers["protocol"], numbers["intervals"]
    steps = [k for k in ("1", "3", "5", "7", "10", "20") if k in numbers["iou_at"]]
    cells = [number(numbers["iou_at"][k], ends["iou_at"][k]) for k in steps]
    noc = " / ".join(number(numbers["noc"][t], digits=2) for t in ("85", "90"))
    parts = [numbers["seconds"]["per_click"][part] for part in ("encode", "decode")]
    spent = "–" if None in parts else f"{1000 * sum(parts):.1f}"
    search = protocol.get("search", "none")
    who = [protocol["tool"], protocol["agent"] + ("" if search == "none" else f", {search}")]
    header = ["tool", "agent", "episodes", *(f"IoU@{k}" for k in steps), "final mIoU", "NoC@85 / 90"]
    row = [*who, str(numbers["episodes"]), *cells, number(numbers["miou"], ends["miou"]), noc]
    yield [*header, "stopped", "ms a click"], [[*row, number(numbers["stop_rate"], ends["stop_rate"]), spent]]


def _polygons(numbers: Mapping[str, Any]) -> Iterator[Table]:
    protocol, measures = numbers["protocol"], ("giou", "ciou", "boundary_f", "valid", "tokens")
    header = ["agent", "codec", "tasks", "gIoU", "cIoU", "boundary F", "valid", "tokens", "sampled gIoU"]
    cells = [number(numbers[key], numbers["intervals"][key], 1 if key == "tokens" else 3) for key in measures]
    sampled = numbers.get("sampled")
    last = number(sampled["giou"], sampled["intervals"]["giou"]) if sampled else "–"
    yield header, [[protocol["agent"], protocol["codec"], str(numbers["tasks"]), *cells, last]]


def _estimates(readings: Mapping[str, Mapping[str, Any]], *who: str) -> Table:
    """Predicted against true IoU, a row for each way to read a prediction."""
    measures = {"mae": "MAE", "bias": "bias", "pearson": "Pearson", "spearman": "Spearman", "ece": "ECE"}
    rows = []
    for name, found in readings.items():
        cells = [number(found[key], found["intervals"].get(key)) for key in measures]
        rows.append([*who, name, str(found["masks"]), *cells])
    return ["data", "masks of", "prediction", "masks", *measures.values()], rows


def _filter(numbers: Mapping[str, Any]) -> Iterator[Table]:
    yield _estimates(numbers["readings"], numbers["protocol"]["data"], numbers["protocol"]["agent"])
    rows = [
        [name, *(number(found[key]) for key in ("threshold", "precision", "recall", "kept", "iou_all", "iou_kept"))]
        for name, found in numbers["acceptance"].items()
    ]
    yield ["filter by", "threshold", "precision", "recall", "kept", "mIoU of all", "mIoU of kept"], rows


def _prm(numbers: Mapping[str, Any]) -> Iterator[Table]:
    for data, found in numbers["data"].items():
        for part in ("all", "balanced"):
            if part in found["readings"]:
                yield _estimates(found["readings"][part], data, f"{part} IoUs")


def _star(numbers: Mapping[str, Any]) -> Iterator[Table]:
    rows = []
    for policy in numbers["policies"]:
        ends = policy["intervals"]
        cells = [number(policy[key], ends[key]) for key in ("miou", "best_iou", "stop_rate")]
        gain = number(policy.get("gain"), ends.get("gain"), sign="+") if policy["round"] else ""
        rows.append([f"S_{policy['round']}", str(policy["episodes"]), cells[0], gain, *cells[1:]])
    yield ["policy", "episodes", "mIoU", "gain over S_0", "best mIoU", "stopped"], rows


def _gspo(numbers: Mapping[str, Any]) -> Iterator[Table]:
    rows = []
    for when in ("before", "after"):
        for mode, found in numbers[when].items():
            gain = numbers["gain"][mode] if when == "after" else None
            cells = [number(found[key], found["intervals"][key]) for key in ("giou", "valid")]
            shown = number(gain[0], gain[1:], sign="+") if gain else ""
            rows.append([when, mode, str(found["tasks"]), cells[0], shown, cells[1], number(found["tokens"], None, 1)])
    yield ["policy", "replies", "tasks", "gIoU", "gain", "valid", "tokens"], rows


def _inputs(numbers: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        [name, number(found["value"], found["interval"], sign="+" if "paired" in name else ""), str(found["episodes"])]
        for name, found in numbers["measures"].items()
    ]
    yield ["measure", "value", "episodes"], rows


def _ceiling(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    header = ["budget", "topology", "codec", "tasks", "IoU", "boundary F", "tokens", "first codec less this one"]
    lines = []
    for row in rows:
        name = [str(row[key]) for key in ("budget", "topology", "codec", "tasks")]
        cells = [number(row["iou"]), number(row["boundary_f"]), number(row["tokens"], None, 0)]
        between = "" if row["difference"] is None else number(row["difference"], row["interval"], sign="+")
        lines.append([*name, *cells, between])
    yield header, lines


def _comparison(result: Mapping[str, Any]) -> Iterator[Table]:
    first, second = result["names"]
    rows = result.get("measures") or {f"IoU@{k}": row for k, row in result["iou_at"].items()}
    yield (
        ["paired", first, second, "difference"],
        [
            [name, number(row["first"]), number(row["second"]), number(row["difference"], row["interval"], sign="+")]
            for name, row in rows.items()
        ],
    )


TABLES: dict[str, Callable[[Mapping[str, Any]], Iterator[Table]]] = {
    **{"segment": _clicks, "polygon": _polygons, "filter": _filter},
    **{"star": _star, "prm": _prm, "gspo": _gspo},
}


# -------------------------------------------------------------------------------------------------------------------- page


def page(studies: Sequence[Study], title: str, hand: Mapping[str, str]) -> str:
    """The page in Markdown; `hand` is the text between the markers, by name."""
    tables: list[Table | str] = []
    for table in (table for study in studies for table in study.tables):
        if not isinstance(table, str):
            header, rows = table
            same = next((one for one in tables if not isinstance(one, str) and list(one[0]) == list(header)), None)
            if same is not None:
                same[1].extend(rows)
                continue
            table = (header, list(rows))
        tables.append(table)
    shown = [table if isinstance(table, str) else hidden(markdown(*table)).strip() for table in tables]
    between = {name: f"<!-- {name} -->\n{hand[name].strip()}\n<!-- end of {name} -->" for name in HAND}
    about = "## Runs\n\n" + "\n".join(study.about for study in studies)
    note = "Written by `python -m experiments.results`; intervals are 95 %."
    parts = [f"# {title}", between["question"], "## Tables", *shown, between["meaning"], about, note]
    return "\n\n".join(parts) + "\n"


def written_by_hand(text: str) -> dict[str, str]:
    """The text between the markers of a page, or what should be written there."""
    found = {name: re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", text, re.DOTALL) for name in HAND}
    return {name: match[1] if match else HAND[name] for name, match in found.items()}


def run(args: Args) -> Path:
    """Write the page; returns where it is."""
    if not args.runs:
        raise RunError("no run is given; give the folders of finished runs")
    if not re.fullmatch(r"[\w-]+", args.name):
        raise RunError(f"--name is {args.name!r}; expected letters, digits and hyphens, as in tools-on-scenes")
    path = args.out / f"{args.name}.md"
    before = path.read_text() if path.exists() else ""
    head = re.match(r"# (.+)", before)
    title = args.title or (head[1] if head else args.name)
    write_atomic(path, page([load(one) for one in args.runs], title, written_by_hand(before)))
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    try:
        print(run(args))
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
