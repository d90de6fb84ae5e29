"""Tasks left out of an evaluation: those that a file names, such as tasks with labels known to be wrong; and the file
of tasks that the annotator could not solve, from which such a file can be made."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, write_atomic
from experiments.evaluate import protocols
from experiments.evaluate.config import Args
from experiments.evaluate.episodes.metrics import UNSOLVED, Outcome
from segenv.data import Dataset
from segenv.files import content_hash

UNSOLVED_FILE = "unsolved.txt"
SHOWN = 5  # ids that a message names


@dataclass(frozen=True)
class Choice:
    """The tasks that are evaluated, by their `positions` in the data, and entries `about` them for the protocol: what
    `protocols.about` says, and with a file `exclude`: its hash, the tasks that it leaves out, and the ids in it that
    the data does not hold."""

    positions: Sequence[int]
    about: dict[str, Any]


def choose(data: Dataset, args: Args, quiet: bool = False) -> Choice:
    """Choose the tasks of `args`: the first `args.limit` of those that `args.protocol` samples and `args.exclude` does
    not name. The protocol, unless `quiet`, and ids that the data does not hold are said on stderr. RunError where the
    file cannot be read, or nothing is left."""
    about, every = protocols.about(args, len(data)), protocols.positions(args, data)
    if about and not quiet:
        print(protocols.text(about), file=sys.stderr)
    if args.exclude is None:
        return Choice(every[: args.limit], about)
    path = Path(args.exclude)
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"--exclude {path} cannot be read ({error}); expected a text with a task's id a line") from error
    out, unknown = set[int](), list[str]()
    for line in filter(None, map(str.strip, lines)):
        if line.startswith("#"):
            continue
        ends = [len(line), *(found.start() for found in reversed(list(re.finditer(r"\s+#", line))))]
        places = (data.place_of(line[:end]) for end in ends)  # an id may hold a # itself, behind a blank, too
        if (place := next((one for one in places if one is not None), None)) is None:
            unknown.append(line[: ends[-1]])
        else:
            out.add(place)
    if unknown:
        named = ", ".join(map(repr, unknown[:SHOWN])) + (", …" if len(unknown) > SHOWN else "")
        print(f"--exclude {path}: {len(unknown)} ids are of no task of {args.data!r}: {named}", file=sys.stderr)
    positions = [i for i in every if i not in out] if out else every
    if not positions:
        raise RunError(f"--exclude {path} names all {len(every)} tasks of {args.data!r}; nothing to evaluate")
    excluded = {"hash": content_hash(content), "tasks": len(out), "unknown": len(unknown)}
    return Choice(positions[: args.limit], {**about, "exclude": excluded})


def unsolved(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The best IoU of each task that was not solved: of which no episode's best IoU reaches `UNSOLVED`."""
    best: dict[str, float] = {}
    for item in outcomes:
        best[item.task] = max(item.best_iou, best.get(item.task, 0.0))
    return {name: iou for name, iou in best.items() if iou < UNSOLVED}


def write_unsolved(folder: RunFolder, found: dict[str, float], player: str) -> None:
    """Write the file of tasks that were not solved, for `--exclude` of another run; `player` is the agent and tool."""
    head = f"# tasks whose best IoU by {player} is below {UNSOLVED:g}; check their labels, then --exclude this file\n"
    write_atomic(folder / UNSOLVED_FILE, head + "".join(f"{name}  # {iou:.4f}\n" for name, iou in found.items()))
