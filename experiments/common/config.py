"""Settings as dataclasses: read from the command line and from config.yaml, compared and checked.

The types of a dataclass say what its numbers may be (`segenv.ranges`) and what its paths are for. `check` holds them
against the values, and names the flag of the first that is wrong: before anything is loaded, and before a folder is
made.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from agents.training.options import TrlFields
from segenv.ranges import Constraint, Count, CountOrNone, NotNegative, Range, Seed, Share, faults
from segenv.records import reader
from segenv.texts import shown
from segenv.types import RunError as RunError  # for all commands

Config = TypeVar("Config")


@dataclass(frozen=True)
class Place(Constraint):
    """A path that is named; of a `new` folder or file, one that can be made."""

    kind: str
    new: bool = True

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with a path."""
        path = Path(value)
        if not str(value).strip():
            return f"is empty; name a {self.kind}"
        if not str(value).isprintable():
            return f"is {str(value)!r}; expected a name without line breaks and control characters"
        try:
            if not self.new:
                return None
            if path.exists() and path.is_dir() != (self.kind == "folder"):
                found = "file" if self.kind == "folder" else "folder"
                return f"{value} is a {found}; expected a {self.kind}, or a name that is free"
            there = next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))
            usable = os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0))
            made = there.is_dir() or (there == path.absolute() and there.is_file())
        except (OSError, ValueError):  # no permission to look, a name too long
            usable = made = False
        return None if usable and made else f"{value} cannot be written; name another"


class Different(Constraint):
    """One or more values, of which no two are equal."""

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with a tuple."""
        if not value:
            return "names none; give one or more"
        return None if len(set(value)) == len(value) else f"is {value}; expected different ones"


OutFolder = Annotated[str, Place("folder")]
OutPath = Annotated[Path, Place("folder")]
OutFile = Annotated[Path, Place("file")]
InFolder = Annotated[str, Place("folder", new=False)]
Seeds = Annotated[tuple[Seed, ...], Different()]
Names = Annotated[tuple[str, ...], Different()]
Counts = Annotated[tuple[Count, ...], Different()]
Executor = Literal["serial", "process", "ray"]  # of `search.executors`
ProcessesOrNone = Annotated[int, Range(0, 4096)]  # 0 is none, or stands for a default


def check(config: Any) -> None:
    """Raise RunError where a setting is not as the dataclass `config` declares it; the message names its flag."""
    for path, text in faults(type(config), config):
        flag = "--" + ".".join(path).replace("_", "-")
        if flag == "--out" and getattr(config, "resume", None) is not None:
            continue  # the run is where it is, under this name or another
        raise RunError(f"{flag} {text}" + f" {flag}" * text.endswith("name another"))


def plain(config: Any) -> Any:
    """Convert a dataclass, and those within it, to dicts, lists and scalars, for YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [plain(item) for item in config]
    return str(config) if isinstance(config, os.PathLike) else config


def choices(config: Any, aside: frozenset[str] | set[str]) -> dict[str, Any]:
    """Settings that change results, for a protocol: all fields but those in `aside`, `out` and `resume`."""
    return {name: value for name, value in plain(config).items() if name not in {*aside, "out", "resume"}}


def load_config(path: str | os.PathLike[str], kind: type[Config]) -> Config:
    """The settings of the run in `path` as a dataclass of type `kind`; RunError names what does not fit."""
    file = Path(path) / "config.yaml"
    if not file.exists():
        raise RunError(f"--resume {path}: no config.yaml there, so no run to go on with; start one with --out {path}")
    return _build(kind, read_yaml(file), file)


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a config.yaml by name. Raises RunError where it is damaged."""
    advice = "put it back from a copy, or start another run with --out"
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror or error}); {advice}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{file} is damaged: it is no YAML in UTF-8 ({reason[:200]}); {advice}") from error
    if not isinstance(loaded, dict):
        raise RunError(f"{file} is damaged: it holds {shown(loaded)}; expected the settings of a run by name; {advice}")
    return loaded


def _build(kind: type[Config], loaded: dict[str, Any], file: Path) -> Config:
    """`loaded` (from YAML) as the dataclass `kind`, with the dataclasses, tuples and paths that its fields declare."""
    for name, behaviour in getattr(kind, "REMOVED", {}).items():  # options that are gone, with what holds instead
        if (value := loaded.pop(name, behaviour)) != behaviour:
            raise RunError(
                f"{file} holds {name}: {value!r}, an option that was removed: every run now does as with "
                f"{behaviour!r}. Finish this run with the version that began it, or start another with --out"
            )
    try:
        return reader(kind)(loaded)
    except ValueError as error:
        raise RunError(
            f"{file}: {error}. Put it right, finish the run with the version that began it, or start another with --out"
        ) from error


def parse_args(kind: type[Config], argv: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Read the command line into the dataclass `kind`.

    A `kind` with fields `out` and `resume` has defaults for all. With `--resume DIR` the settings come from DIR, and
    the flags that are given count on top; `RunFolder.resume` checks them. A `kind` with a method `preset` gives other
    defaults by it, which may depend on the flags.
    """
    import tyro

    argv = list(sys.argv[1:] if argv is None else argv)
    for flag in ("--out", "--json"):  # as a Path, "" would be the working folder
        if f"{flag}=" in argv or any(pair == (flag, "") for pair in pairwise(argv)):
            raise RunError(f"{flag} is empty; name a place for what is written")
    args: Any = tyro.cli(kind, args=argv, description=description)
    check(args)
    if getattr(args, "resume", None) is None:
        if hasattr(args, "preset") and (chosen := args.preset()) is not args:  # flags that are given count on top
            args = tyro.cli(kind, args=argv, default=chosen, description=description)
            check(args)
        return args
    saved: Any = load_config(args.resume, kind)
    settings: Any = tyro.cli(kind, args=argv, default=saved, description=description)
    if settings.out not in (None, saved.out) and Path(settings.out).resolve() != Path(args.resume).resolve():
        raise RunError(
            f"--out {settings.out} and --resume {args.resume} are two folders; a run goes on where it began, so give "
            "one of them"
        )
    check(settings)
    return settings


def create_or_resume(path: Path) -> dict[str, Any]:
    """The fields `out` and `resume` of a run in `path`, which is resumed where one was begun there."""
    begun = (path / "config.yaml").exists()
    return {"resume": str(path) if begun else None, "out": None if begun else str(path)}


def changes(saved: Any, settings: Any, resumable: frozenset[str] = frozenset()) -> list[str]:
    """List fields outside `resumable` in which two settings differ, as `name: was A, now B`."""
    before, now = plain(saved), plain(settings)
    return [
        f"{name}: was {before.get(name)!r}, now {now[name]!r}"
        for name in now
        if name not in resumable and before.get(name) != now[name]
    ]


@dataclass(frozen=True)
class TrainerOptions:
    """Options of TRL's trainer."""

    lora: CountOrNone = 0
    """rank of adapters on all linear layers (peft); 0 trains all weights"""
    bf16: bool = True
    """compute in bfloat16"""
    gradient_checkpointing: bool = False
    """recompute activations, for large models"""
    micro_batch_size: CountOrNone = 0
    """rows at a time on one device; 0 is the whole batch, or on a CPU four"""
    warmup: Share = 0.05
    """part of all steps"""
    weight_decay: NotNegative = 0.0
    extra: Annotated[dict[str, str], TrlFields()] = field(default_factory=dict)
    """any other field of TRL's SFTConfig: --trainer.extra optim adafactor"""
