"""Merge the parts of an evaluation that was played in several folders.

    python -m experiments.evaluate --limit 20000 --tool disc --shard 1/2 --out runs/part1
    python -m experiments.evaluate --limit 20000 --tool disc --shard 2/2 --out runs/part2
    python -m experiments.merge runs/part1 runs/part2 --out runs/whole

The parts may have been played on different machines. The merged folder holds their episodes, one file a part, and
metrics, plots and report as of one run. Parts that are missing, not finished, given twice or of another evaluation are
refused. Run it again where it was ended: it goes on.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
import yaml

from experiments.common import cli
from experiments.common.config import OutPath, RunError, changes, load_config, plain
from experiments.common.run_folder import RunFolder, disk_errors, part_name, write_atomic, write_json
from experiments.evaluate import protocols
from experiments.evaluate.config import RESUMABLE
from experiments.evaluate.config import Args as Evaluation
from experiments.evaluate.shards import parse
from segenv.files import file_hash, replacing

ASIDE = RESUMABLE | {"out", "resume", "shard"}  # settings in which parts may differ
FILES = ("episodes.jsonl", "replies.jsonl", "lost.jsonl")


@dataclass(frozen=True)
class Args:
    """Folders of the parts, and of the whole."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders of experiments.evaluate --shard K/N, all N of them"""
    out: OutPath
    """folder of the merged run"""


def merge(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Merge runs, and return the content of metrics.json."""
    from experiments.evaluate import evaluate

    runs = _in_order([Path(path) for path in args.runs])
    settings = _settings(runs)
    about = _manifest(runs, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "config.yaml").exists():
        if any(args.out.iterdir()):
            raise RunError(f"--out {args.out} is not empty; name a folder that is free")
        write_atomic(args.out / "config.yaml", yaml.safe_dump(plain(settings), sort_keys=False))
    elif changed := changes(load_config(args.out, Evaluation), settings, frozenset({"out", "resume"})):
        raise RunError(f"--out {args.out} holds another run ({'; '.join(changed)}); name a folder that is free")
    for part, run in enumerate(runs, 1):
        for name in FILES:
            _copy(run, name, args.out / part_name(name, part), part)
    write_json(args.out / "manifest.json", about)
    resumed = replace(load_config(args.out, Evaluation), resume=str(args.out), out=None)
    return evaluate.run(resumed, quiet)  # which finds each episode there


def _in_order(runs: Sequence[Path]) -> list[Path]:
    """The folders in the order of their parts. Raises RunError where they are not all parts of one whole."""
    found: dict[int, Path] = {}
    counts = set()
    for run in runs:
        shard = load_config(run, Evaluation).shard
        if shard is None:
            raise RunError(f"{run} is a whole run, not a part; merge runs of experiments.evaluate --shard K/N")
        part, parts = parse(shard)
        counts.add(parts)
        if part in found:
            raise RunError(f"{found[part]} and {run} are both part {shard}; give each part once")
        if not RunFolder(run).done("evaluate"):
            raise RunError(f"{run}, part {shard}, is not finished; go on with it: --resume {run}")
        found[part] = run
    if len(counts) > 1:
        raise RunError(f"the runs are parts of {' and '.join(map(str, sorted(counts)))}; give those of one evaluation")
    if missing := sorted(set(range(1, max(counts, default=0) + 1)) - found.keys()):
        raise RunError(f"part {missing[0]} of {max(counts)} is missing; give the folders of all parts")
    if not found:
        raise RunError("no run is given; name the folders of all parts")
    return [found[part] for part in sorted(found)]


def _settings(runs: Sequence[Path]) -> Evaluation:
    """The settings of the whole. Raises RunError where those of parts differ."""
    first, *others = (load_config(run, Evaluation) for run in runs)
    aside = ASIDE | ({"tool"} if _one_service([RunFolder(run).manifest() for run in runs]) else set())
    for run, other in zip(runs[1:], others, strict=True):
        if changed := changes(first, other, aside):
            raise RunError(f"{runs[0]} and {run} are of different evaluations: {'; '.join(changed)}")
    return replace(first, shard=None, out=None, resume=None, sensitivity=False)  # --resume --sensitivity adds it


def _manifest(runs: Sequence[Path], settings: Evaluation) -> dict[str, Any]:
    """The manifest of the whole. Raises RunError where parts saw other data, models or choices."""
    about: list[dict[str, Any]] = [{**RunFolder(run).manifest()} for run in runs]
    shards = [one["protocol"].pop("shard", None) for one in about]
    for one in about:
        one["protocol"] = protocols.about_whole(settings, one["protocol"])
    if _one_service(about):
        for one in about:
            one["protocol"]["tool"] = about[0]["protocol"]["tool"]
    for run, one in zip(runs[1:], about[1:], strict=True):
        for name in ("hashes", "protocol"):
            if changed := changes(about[0][name], one[name]):
                raise RunError(f"{runs[0]} and {run} cannot be merged: {'; '.join(changed)}")
    parts = [{"shard": shard, "started": one["started"]} for shard, one in zip(shards, about, strict=True)]
    return {**about[0], "merged": parts}


def _one_service(about: Sequence[Mapping[str, Any]]) -> bool:
    """Whether services with one fingerprint, at any address, were the tool of all parts."""
    found = {str(one["hashes"].get("tool")) for one in about}
    return len(found) == 1 and found.pop().startswith("http|")


def _copy(run: Path, name: str, target: Path, part: int) -> None:
    """Copy a file of records, whole or not at all, from where the part has it."""
    source = next((path for path in (run / part_name(name, part), run / name) if path.exists()), None)
    if source is None or (target.exists() and file_hash(target) == file_hash(source)):
        return
    with disk_errors(target), open(source, "rb") as file, replacing(target) as copied:
        shutil.copyfileobj(file, copied, 1 << 20)


def show(args: Args) -> str:
    """Merge, and return the numbers for a terminal."""
    from experiments.evaluate.evaluate import text

    numbers = merge(args)
    return text("segment", numbers) + f"\nreport: {args.out}/report.html"


main = partial(cli.main, "merge", Args, show, __doc__)

if __name__ == "__main__":
    sys.exit(main())
