"""Finished runs of evaluations: read for a comparison, and refused where their numbers are not of one kind."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common.config import RunError
from experiments.common.run_folder import COPY, Manifest, RunFolder, as_expected, hidden
from experiments.evaluate.answers import filter, polygon_metrics
from experiments.evaluate.episodes import metrics
from experiments.evaluate.episodes.click_quality import METRIC_DEFINITIONS as OF_CLICKS

DEFINITIONS = {
    **polygon_metrics.METRIC_DEFINITIONS,
    **filter.DEFINITIONS,
    **metrics.METRIC_DEFINITIONS,
    **OF_CLICKS,
}
KINDS = {  # what may differ between runs, and the entries of their protocols that tell
    "protocol": (
        *("task", "max_steps", "start", "given", "asked", "masks", "points", "threshold", "name", "part"),
        *DEFINITIONS,
    ),
    "data": ("data", "limit", "exclude", "shard"),
    "prompt": ("prompt_hash",),
}
DRAWN = ("points", "distort")  # starts that a run's seed draws
OF_SOME = {"prompt_hash", "given", *DEFINITIONS}  # not of agents that are not prompted, or of other measures


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the content of metrics.json and manifest.json, and its name among others, which shows
    no place on the machine."""

    folder: RunFolder
    numbers: Mapping[str, Any]
    about: Manifest
    name: str

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Every choice that changes a number."""
        return self.numbers["protocol"]

    @property
    def task(self) -> str:
        """The task: segment, filter or polygon."""
        return self.protocol.get("task", "segment")

    @property
    def place(self) -> Path:
        """Where the run is."""
        return self.folder.path


def read(paths: Sequence[Path]) -> list[Run]:
    """Read finished runs. Raises RunError where one is missing or damaged."""
    folders = [RunFolder(path) for path in paths]
    found = [_numbers(folder) for folder in folders]
    with as_expected(f"metrics.json of {' or '.join(map(str, paths))}", "metrics of experiments.evaluate"):
        names = [hidden(_name(numbers["protocol"])) for numbers in found]
        return [
            Run(folder, numbers, folder.manifest(), name if names.count(name) == 1 else f"{name} ({folder.path.name})")
            for folder, numbers, name in zip(folders, found, names, strict=True)
        ]


def _numbers(folder: RunFolder) -> dict[str, Any]:
    numbers = folder.read_json("metrics.json")
    if numbers is None:
        raise RunError(f"{folder.path} holds no metrics.json; give a finished run of experiments.evaluate")
    if not isinstance(numbers.get("protocol"), dict):
        raise RunError(f"{folder / 'metrics.json'} has no protocol of experiments.evaluate; {COPY}")
    return numbers


def _name(protocol: Mapping[str, Any]) -> str:
    parts = [str(protocol[key]) for key in ("tool", "agent", "codec") if key in protocol]
    return " / ".join(parts if protocol.get("search", "none") == "none" else [*parts, protocol["search"]])


def check_alike(
    runs: Sequence[Run], allowed: Collection[str] = (), advice: str = "give runs that are alike"
) -> list[str]:
    """Raise RunError, with `advice` for a {kind}, where runs differ in something that makes their numbers no match: the
    protocol, the data or the prompts, but for the kinds of `KINDS` in `allowed`. Returns in what they differ as it is
    allowed."""
    found = []
    for kind, text in differences(runs):
        if kind not in allowed:
            raise RunError(f"{text}; {advice.format(kind=kind)}")
        found.append(text)
    return found


def differences(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The kind of each difference from the first of some runs, with a text that names it."""
    found, first = [], runs[0]
    for other in runs[1:]:
        drawn = any(str(run.protocol.get("start")).partition(":")[0] in DRAWN for run in (first, other))
        for kind, names in KINDS.items():
            if kind == "protocol" and _in_one_table(first, other):
                names = ()
            for name in (*names, "seed") if kind == "data" and drawn else names:
                a, b = (run.protocol.get(name) for run in (first, other))
                if a == b or (None in (a, b) and name in OF_SOME):
                    continue
                if name == "prompt_hash":
                    names_of = " and ".join(str(run.protocol.get("prompt")) for run in (first, other))
                    text = f"were prompted by other words ({names_of}; see prompt_text in their manifests)"
                    found.append((kind, f"the models of {first.place} and {other.place} {text}"))
                    continue
                if name in DEFINITIONS:
                    text = f"the definition of {name}, of {first.place} and {other.place}: see their metrics.json"
                else:
                    text = f"{name}: {a!r} ({first.place}) and {b!r} ({other.place})"
                found.append((kind, f"the runs differ in {text}"))
        hashes = [run.about["hashes"].get("data") for run in (first, other)]
        if hashes[0] != hashes[1] and first.protocol.get("data") == other.protocol.get("data"):
            spec = first.protocol.get("data")
            if first.protocol.get("limit") == other.protocol.get("limit"):  # else that is why
                text = f"the runs {first.place} and {other.place} read other data under the name {spec!r}"
                found.append(("data", text))
    return found


def _in_one_table(first: Run, other: Run) -> bool:
    """Whether runs of two tasks are under one named protocol, which allows both and has its measures of both."""
    named = [(run.protocol.get("name"), run.protocol.get("part")) for run in (first, other)]
    return first.task != other.task and named[0] == named[1] and named[0][0] is not None
