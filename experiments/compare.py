"""Compare two evaluations on the episodes that both played, paired.

    python -m experiments.compare runs/sam runs/grabcut

prints, for each number of clicks, the mean IoU of both, the mean of the differences with its 95 % bootstrap interval
over images, and the seconds per click of both. Of two runs with `--task polygon` it prints the measures of their
replies so, also by size and topology of the object. Runs of unlike protocols (other data, other budget, other
prompts) are refused.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.common import cli
from experiments.common.config import OutFile, RunError
from experiments.common.run_folder import COPY, RunFolder, as_expected, write_json
from experiments.common.tables import Table, interval, number
from experiments.evaluate import polygon_answers
from experiments.evaluate.metrics import Outcome, curves, outcome_of, read_episode
from experiments.evaluate.polygon_metrics import MEANS, SIZES, TOPOLOGIES, VALUES, Record, by_task, having, images_of
from experiments.evaluate.records import read_images
from segenv import statistics
from segenv.data.base import unique

SAME = ("task", "data", "limit", "max_steps", "start", "asked")  # what two runs must share, to be of the same episodes
SHOWN = (1, 3, 5, 7, 10, 20)


@dataclass(frozen=True)
class Args:
    """Two run folders of experiments.evaluate."""

    first: tyro.conf.Positional[Path]
    second: tyro.conf.Positional[Path]
    json: OutFile | None = None
    """also write the comparison to this file"""
    any_prompt: bool = False
    """compare also runs whose models were prompted by other words"""


def compare(first: Path, second: Path, any_prompt: bool = False) -> dict[str, Any]:
    """Compare two finished runs, paired: `iou_at` by number of clicks, `seconds_per_click`, `episodes`. Runs of models
    that were prompted by other words are refused, unless `any_prompt`."""
    with as_expected(f"metrics.json of {first} or {second}", "metrics of experiments.evaluate"):
        numbers = [_numbers(path) for path in (first, second)]
        prompts = {item["protocol"].get("prompt_hash") for item in numbers} - {None}
        if len(prompts) > 1 and not any_prompt:
            names = " and ".join(str(item["protocol"].get("prompt")) for item in numbers)
            raise RunError(
                f"the models of the runs were prompted by other words ({names}; see prompt_text in their manifests): "
                "prompt them alike, or compare them so with --any-prompt"
            )
        return _compare(first, second, numbers)


def _compare(first: Path, second: Path, numbers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    for key in SAME:
        values = [item["protocol"].get(key) for item in numbers]
        if values[0] != values[1]:
            raise RunError(
                f"the runs differ in {key}: {values[0]!r} and {values[1]!r}; compare runs of the same episodes"
            )
    if len({RunFolder(path).manifest()["hashes"]["data"] for path in (first, second)}) > 1:
        raise RunError(
            f"the runs read other data under the name {numbers[0]['protocol']['data']!r}; "
            "compare runs of the same episodes"
        )
    if numbers[0]["protocol"].get("task") == "polygon":
        return _answers((first, second), numbers)
    played = [_outcomes(path) for path in (first, second)]
    shared = sorted(played[0].keys() & played[1].keys())
    if len(shared) < max(len(played[0]), len(played[1])):
        print(f"{len(shared)} of {len(played[0])} and {len(played[1])} episodes are in both runs", file=sys.stderr)
    if not shared:
        raise RunError("the runs share no episode")
    steps = numbers[0]["protocol"]["max_steps"]
    a, b = (curves([episodes[key] for key in shared], steps) for episodes in played)
    images = read_images(RunFolder(first), [task for task, _ in shared])
    at = {str(k): _paired(a[:, k - 1], b[:, k - 1], images) for k in sorted({k for k in SHOWN if k < steps} | {steps})}
    per_click = [sum(item["seconds"]["per_click"][part] or 0.0 for part in ("encode", "decode")) for item in numbers]
    names = [_name(item["protocol"]) for item in numbers]
    return {"names": names, "episodes": len(shared), "iou_at": at, "seconds_per_click": per_click}


def _answers(paths: Sequence[Path], numbers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare replies, paired: `measures` of all tasks, gIoU by size and by topology, and of sampled replies."""
    runs = [polygon_answers.read(RunFolder(path)) for path in paths]
    shared = set.intersection(*({one.task for one in records} for records in runs))
    if not shared:
        raise RunError("the runs share no task")
    greedy, sampled = (
        [[one for one in records if one.task in shared and bool(one.sample) is some] for records in runs]
        for some in (False, True)
    )
    images = read_images(RunFolder(paths[0]), tasks := sorted(shared))
    of_task = dict(zip(tasks, images or tasks, strict=True))
    rows = {name: _row(greedy, name, of_task) for name in MEANS}
    if all(sampled):
        rows["sampled giou"] = _row(sampled, "giou", of_task)
    for field in ("size", "topology"):
        for name in (*SIZES, *TOPOLOGIES):
            parts = [[one for one in records if getattr(one, field) == name] for records in greedy]
            if all(parts):
                rows[f"giou, {name}"] = _row(parts, "giou", of_task)
    names = [_name(item["protocol"]) for item in numbers]
    return {"names": names, "episodes": len(shared), "measures": rows}


def _row(runs: Sequence[Sequence[Record]], name: str, images: Mapping[str, str]) -> dict[str, Any]:
    """Compare a measure of two runs' replies to the same tasks; `images` holds the image of each task."""
    chosen = [sorted(having(records, name), key=lambda one: one.task) for records in runs]
    a, b = (by_task(records, VALUES[name]) for records in chosen)
    return {"tasks": len(a), **_paired(a, b, images_of(chosen[0], images))}


def _paired(a: np.ndarray, b: np.ndarray, images: Sequence[str] | None = None) -> dict[str, Any]:
    difference, *ends = statistics.bootstrap_difference(a, b, images=images)
    means = [float(values.mean()) if len(values) else float("nan") for values in (a, b)]
    return {"first": means[0], "second": means[1], "difference": difference, "interval": ends}


def _name(protocol: dict[str, Any]) -> str:
    parts = [protocol[key] for key in ("tool", "agent", "codec") if key in protocol]
    return " / ".join(parts if protocol.get("search", "none") == "none" else [*parts, protocol["search"]])


def _numbers(path: Path) -> dict[str, Any]:
    numbers = RunFolder(path).read_json("metrics.json")
    if numbers is None:
        raise RunError(f"{path} holds no metrics.json; give a finished run of experiments.evaluate")
    if not isinstance(numbers.get("protocol"), dict):
        raise RunError(f"{path / 'metrics.json'} has no protocol of experiments.evaluate; {COPY}")
    return numbers


def _outcomes(path: Path) -> dict[tuple[str, int], Outcome]:
    episodes = RunFolder(path).records("episodes.jsonl", read_episode)
    found = [((one.task, one.sample), outcome_of(one)) for one in episodes]
    if not found:
        raise RunError(f"{path / 'episodes.jsonl'} is missing or empty; {COPY}")
    unique((key for key, _ in found), "episodes with task and sample", path / "episodes.jsonl")
    return dict(found)


def text(result: dict[str, Any]) -> str:
    """Format the comparison for a terminal."""
    rows = [
        [name, number(row["first"]), number(row["second"]), number(row["difference"], sign="+")]
        + [interval(row["interval"], sign="+")]
        for name, row in (result.get("measures") or {f"IoU@{k}": row for k, row in result["iou_at"].items()}).items()
    ]
    head = f"first: {result['names'][0]}, second: {result['names'][1]}, {result['episodes']} paired episodes"
    lines = [head, Table(("", "first", "second", "difference", "95 % interval"), rows).text()]
    if "measures" not in result:
        first, second = result["seconds_per_click"]
        lines.append(f"ms per click of the tool (encode + decode): {1000 * first:.1f} and {1000 * second:.1f}")
    return "\n".join(lines)


def show(args: Args) -> str:
    """Compare two runs, write the JSON file, and return the comparison for a terminal."""
    result = compare(args.first, args.second, args.any_prompt)
    if args.json is not None:
        write_json(args.json, result)
    return text(result)


main = partial(cli.main, "compare", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
