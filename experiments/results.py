"""Write a page of results from finished run folders: the command, the date, the versions and the tables of each run.

    python -m experiments.results runs/sam runs/grabcut --name tools-on-scenes --title "Tools on procedural scenes"

A run is a folder of evaluate, star, tree_search, prm, gspo, polygon_ablation or an ablation, or a JSON file of inputs,
polygons_ceiling or compare. Runs of one kind share a table, in the order given. Text between the markers
`<!-- question -->` and `<!-- meaning -->` and their ends is written by hand, and survives when the page is written
again. Absolute paths are replaced by DIR or by the name of the file.
"""

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from experiments.common import cli
from experiments.common.config import OutPath, RunError, read_yaml
from experiments.common.run_folder import RunFolder, as_expected, hidden, write_atomic
from experiments.common.tables import Table
from segenv.envs.starts import STARTS

VERSIONS = ("segenv", "torch", "transformers", "numpy")
STAGES = ("evaluate", "star", "tree_search", "prm", "gspo", "ablation", "ppo")  # the last stage of a command, X.DONE
HAND = {"question": "What is asked.", "meaning": "What the tables mean, and what they do not."}
ESTIMATES = {"MAE": "mae", "bias": "bias", "Pearson": "pearson", "Spearman": "spearman", "ECE": "ece"}
REPLIES = {"gIoU": "giou", "cIoU": "ciou", "boundary F": "boundary_f", "valid": "valid", "tokens": "tokens"}
TABLES: dict[str, dict[str, str]] = {  # kind of row: columns, each with the path of its value in the row
    "segment": {
        **{name: f"protocol/{name}" for name in ("data", "tool", "agent", "search")},
        **{"start": "start", "gain over the start": "start_gain"},
        **{"episodes": "episodes", **{f"IoU@{k}": f"iou_at/{k}" for k in (1, 3, 5, 7, 10, 20)}, "final mIoU": "miou"},
        **{"NoC@85": "noc/85", "NoC@90": "noc/90", "first click in object": "first_click_in_object"},
        **{"clicks on an error": "clicks_on_error/all", "stopped": "stop_rate", "ms a click": "ms"},
    },
    "polygon": {"agent": "protocol/agent", "codec": "protocol/codec", "replies": "mode", "tasks": "tasks", **REPLIES},
    "estimates": {"data": "data", "masks of": "part", "prediction": "name", "masks": "masks", **ESTIMATES},
    "acceptance": {
        **{"filter by": "name", **{name: name for name in ("threshold", "precision", "recall", "kept")}},
        **{"mIoU of all": "iou_all", "mIoU of kept": "iou_kept"},
    },
    "star": {
        **{"policy": "name", "episodes": "episodes", "mIoU": "miou", "gain over S_0": "gain"},
        **{"best mIoU": "best_iou", "first click in object": "first_click_in_object"},
        **{f"on an error, step {k}": f"clicks_on_error/{k}" for k in (1, 2, 3)},
        **{"clicks on an error": "clicks_on_error/all", "stopped": "stop_rate"},
    },
    "gspo": {"policy": "name", "replies": "mode", "tasks": "tasks", "gain": "difference", **REPLIES},
    "inputs": {"measure": "name", "value": "value", "episodes": "episodes"},
    "ceiling": {
        **{name: name for name in ("budget", "topology", "codec", "tasks")},
        **{"IoU": "iou", "boundary F": "boundary_f", "tokens": "tokens", "gain of the first codec": "difference"},
    },
    "compare": {name: name for name in ("data", "paired", "first", "second", "difference")},
}
WHERE_UNLIKE = {("segment", "data"), ("compare", "data")}  # columns, by kind, that stand only where their cells differ
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Args:
    """Finished runs, and the page to write."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or JSON files of inputs, polygons_ceiling and compare"""
    name: str
    """of the study: the page is OUT/NAME.md"""
    title: str | None = None
    """first line of the page; by default the title that the page has, or the name"""
    out: OutPath = Path("docs/results")
    """folder of the pages"""


@dataclass(frozen=True)
class Study:
    """One run: how it was made, its rows by kind, and the tables that it wrote in Markdown."""

    about: str
    rows: list[tuple[str, Row]]
    written: Sequence[str] = ()


def load(path: Path) -> Study:
    """The study in a run folder or a JSON file. Raises RunError where there is none, or where it is not finished."""
    if path.suffix == ".json":
        return _load_json(path)
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} is no run folder: it has no config.yaml; give the --out of a command")
    done = next((stage for stage in STAGES if (path / f"{stage}.DONE").is_file()), None)
    if done is None or not (path / "manifest.json").is_file():
        raise RunError(f"{path} is not finished: none of {', '.join(STAGES)} is DONE there; resume it first")
    config, about = read_yaml(path / "config.yaml"), RunFolder(path).manifest()
    command = done
    if done == "ablation":
        command = "polygon_ablation" if "vary" in config else "star" if "ablation_seeds" in config else "gspo"
    for name in ("ablation.md", "table.md"):
        if (path / name).is_file():
            blocks = hidden((path / name).read_text(encoding="utf-8")).strip().split("\n\n")
            return Study(_made(command, about), [], [block for block in blocks if block.startswith("|")])
    kind = config.get("task", "segment") if done == "evaluate" else done
    numbers = RunFolder(path).load_json("metrics.json")
    with as_expected(path / "metrics.json", f"metrics of {kind}"):
        return Study(_made(command, about), list(_rows(kind, numbers)))


def _load_json(path: Path) -> Study:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = "ceiling" if isinstance(content, list) else "compare" if "names" in content else "inputs"
        flags = content["protocol"] if kind == "inputs" else {}
        words = [f"--{key} {hidden(str(flags[key]))}" for key in ("data", "tool", "limit") if key in flags]
        command = {"ceiling": "polygons_ceiling", "compare": "compare RUNS"}.get(kind, kind)
        day = time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))
        return Study(f"- `{' '.join([f'python -m experiments.{command}', *words])}`, {day}", list(_rows(kind, content)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no result of inputs, polygons_ceiling or compare: {error!r}") from error


def _made(command: str, about: Row) -> str:
    """A list item with the command, the date, the versions and the hashes of a manifest."""
    typed = command_line(command, about)
    line = f"`{typed}`" if typed else f"`python -m experiments.{command}` from Python"
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in VERSIONS if name in about["versions"])
    hashes = {name: re.search(r"\b[0-9a-f]{16,}\b", str(value)) for name, value in about["hashes"].items()}
    shown = ", ".join(f"{name} {found[0][:8]}" for name, found in hashes.items() if found)
    return f"- {line}\n  {about['started'][:10]}; {versions}; hashes: {shown or 'none'}"


def command_line(command: str, about: Row) -> str:
    """The command line in a manifest, without places on the machine; empty for a run that Python began."""
    program, *words = about["command"]
    if program not in (f"{command}.py", "__main__.py"):
        return ""
    pairs = zip(words, ["", *words[:-1]], strict=True)  # each word with the one before it
    kept = [word for word, last in pairs if not {word, last} & {"--out", "--resume"}]
    return " ".join([f"python -m experiments.{command}", *(shlex.quote(hidden(one)) for one in kept)]).strip()


def _rows(kind: str, numbers: Any) -> Iterator[tuple[str, Row]]:
    """The rows of a run's numbers, each with its kind; values beside `intervals` under the same path."""
    if kind == "segment":
        parts = [numbers["seconds"]["per_click"][part] for part in ("encode", "decode")]
        found = numbers | {"ms": "–" if None in parts else f"{1000 * sum(parts):.1f}"}
        start = numbers["protocol"].get("start", "")
        made = start.partition(":")[0] in STARTS.keys() - {"empty"}
        yield kind, found | ({"start": start} if made else {"start": None, "start_gain": None})
    elif kind == "polygon":
        yield kind, numbers | {"mode": "greedy"}
        if numbers.get("sampled"):
            yield kind, numbers["sampled"] | {"protocol": numbers["protocol"], "mode": "sampled"}
    elif kind == "filter":
        for name, found in numbers["readings"].items():
            yield "estimates", found | {"name": name, "data": numbers["protocol"]["data"], "part": "random clicks"}
        yield from (("acceptance", found | {"name": name}) for name, found in numbers["acceptance"].items())
    elif kind == "prm":
        for data, found in numbers["data"].items():
            for part in ("all", "balanced"):
                for name, one in found["readings"].get(part, {}).items():
                    yield "estimates", one | {"name": name, "data": data, "part": part}
    elif kind == "star":
        yield from ((kind, policy | {"name": f"S_{policy['round']}"}) for policy in numbers["policies"])
    elif kind == "gspo":
        for name in ("before", "after"):
            for mode, found in numbers[name].items():
                gain = numbers["gain"][mode] if name == "after" else None
                yield kind, found | {"name": name, "mode": mode, "difference": gain}
    elif kind == "inputs":
        for name, found in numbers["measures"].items():
            yield kind, found | {"name": name, "intervals": {"value": found["interval"]}}
    elif kind == "ceiling":
        yield from ((kind, row | {"intervals": {"difference": row["interval"]}}) for row in numbers)
    else:
        for k, other in enumerate(numbers["names"][1:]):
            data = {"data": numbers.get("data")}
            yield kind, data | {"paired": "run", "first": numbers["names"][0], "second": other, "difference": ""}
            for name, row in numbers["measures"].items():
                pair = data | {"paired": name, "first": row["values"][0], "second": row["values"][k + 1]}
                difference = row["differences"][k]
                pair["difference"] = difference["difference"]
                yield kind, pair | {"intervals": {"difference": difference["interval"]}}


def cell(row: Row, path: str) -> str:
    """The value at `path`, with its 95 % interval where there is one: `0.654 [0.617, 0.688]`."""
    value: Any = row
    ends: Any = row.get("intervals")
    for key in path.split("/"):
        value, ends = (one.get(key) if isinstance(one, Mapping) else None for one in (value, ends))
    if isinstance(value, list):
        value, ends = value[0], value[1:]
    if value is None or isinstance(value, (str, int)):
        return "" if value is None else str(value)
    sign = "+" if path in ("gain", "start_gain", "difference", "bias") else ""
    form = f"{sign}.{1 if path == 'tokens' else 2 if path.startswith('noc/') else 3}f"
    known = ends is not None and None not in ends
    return f"{value:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]" if known else f"{value:{form}}"


def page(studies: Sequence[Study], title: str, hand: Mapping[str, str]) -> str:
    """The page in Markdown; `hand` is the text between the markers, by name."""
    tables = [table for study in studies for table in study.written]
    rows = [pair for study in studies for pair in study.rows]
    for kind in dict.fromkeys(kind for kind, _ in rows):
        lines = [[cell(row, path) for path in TABLES[kind].values()] for one, row in rows if one == kind]
        head, columns = list(TABLES[kind]), [{line[k] for line in lines} for k in range(len(TABLES[kind]))]
        least = [1 + ((kind, name) in WHERE_UNLIKE) for name in head]
        filled = [k for k, cells in enumerate(columns) if cells - {"", "none"} and len(cells) >= least[k]]
        table = Table([head[k] for k in filled], [[line[k] for k in filled] for line in lines])
        tables.append(hidden(table.markdown()).strip())
    between = {name: f"<!-- {name} -->\n{hand[name].strip()}\n<!-- end of {name} -->" for name in HAND}
    about = "## Runs\n\n" + "\n".join(study.about for study in studies)
    note = "Written by `python -m experiments.results`; intervals are 95 %."
    return (
        "\n\n".join([f"# {title}", between["question"], "## Tables", *tables, between["meaning"], about, note]) + "\n"
    )


def run(args: Args) -> str:
    """Write the page; returns where it is."""
    if not args.runs or not re.fullmatch(r"[\w-]+", args.name):
        raise RunError(f"expected one or more runs and a --name of letters, digits and hyphens; got {args.name!r}")
    path = args.out / f"{args.name}.md"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    hand = {name: re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", before, re.DOTALL) for name in HAND}
    if before and None in hand.values():
        raise RunError(
            f"{path} has no markers {' and '.join(f'<!-- {name} -->' for name in HAND)}; its text would be lost"
        )
    head = re.match(r"# (.+)", before)
    title = args.title or (head[1] if head else args.name)
    kept = {name: match[1] if match else HAND[name] for name, match in hand.items()}
    write_atomic(path, page([load(one) for one in args.runs], title, kept))
    return str(path)


main = partial(cli.main, "results", Args, run, __doc__)

if __name__ == "__main__":
    sys.exit(main())
