"""Parts that every command shares: its `main`, its folder, its progress bar, and checks of its settings.

def show(args: Args) -> str | None:  # in a command's __main__.py
    return report.text(run(args))

main = partial(cli.main, "evaluate", Args, show, __doc__)

with cli.open_run(args, RESUMABLE) as folder, cli.progress(len(ids), "episode", done=len(have)) as bar: ...
"""

import codecs
import errno
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from experiments.common.config import RunError, check, parse_args
from experiments.common.run_folder import RunFolder, disk_errors
from experiments.common.signals import EndSignals
from segenv.types import SegenvError

Config = TypeVar("Config")
ABOUT = ("config.yaml", "manifest.json", ".lock")  # files of a run that has made nothing yet
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # after which a run is resumed
EXPECTED = (SegenvError, FileExistsError)  # errors whose message says enough
PLAIN = {
    **{"–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "·": ".", "±": "+/-", "≤": "<=", "≥": ">=", "→": "->"},
    **{"←": "<-", "Δ": "d", "∪": "u", "Σ": "sum ", "²": "^2", "’": "'", "‘": "'", "“": '"', "”": '"'},
}


def use_plain_characters() -> None:
    """Let stdout and stderr show ASCII in place of characters that their encoding lacks, so that no print fails."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return "".join(PLAIN.get(one, "?") for one in error.object[error.start : error.end]), error.end

    codecs.register_error("segenv.plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="segenv.plain")


def main(
    command: str,
    kind: type[Config],
    show: Callable[[Config], str | None],
    description: str | None,
    argv: Sequence[str] | None = None,
    folder: str | Callable[[Config], str] = "",
    errors: tuple[type[Exception], ...] = EXPECTED,
) -> int:
    """Run `python -m experiments.COMMAND` with settings of the dataclass `kind`, and return its exit status.

    `show` runs the command and returns the text to print; None prints nothing, no line about the report either. Where
    `kind` has fields `out` and `resume`, `out` is by default `runs/FOLDER-DATE`; `folder` is `command` where not given.
    """
    use_plain_characters()
    args: Any = None
    signals = EndSignals()
    try:
        args = parse_args(kind, argv, description)
        resumable = hasattr(args, "resume")
        if resumable and args.resume is None and args.out is None:
            name = folder(args) if callable(folder) else folder or command
            args = replace(args, out=time.strftime(f"runs/{name}-%Y%m%d-%H%M%S"))
            check(args)
        text = show(args)
    except BaseException as error:
        number = signals.number or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
        if number is not None:  # or what broke because of it, such as a worker that the signal reached first
            _tell_interrupted(command, args)
            return 128 + number
        if not isinstance(error, errors):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signals.restore()
    if text is not None:
        print(text)
        if resumable:
            print(f"report: {args.resume or args.out}/report.html")
    return 0


def _tell_interrupted(command: str, args: Any) -> None:
    begun = hasattr(args, "resume") and (args.resume or args.out)
    again = f"--resume {begun}" if begun and Path(begun, "config.yaml").exists() else "the same flags"
    way_on = f"; go on with: python -m experiments.{command} {again}" if args is None or hasattr(args, "out") else ""
    with suppress(OSError):  # the terminal may be gone
        print(f"\ninterrupted{way_on}", file=sys.stderr, flush=True)


@contextmanager
def open_run(args: Any, resumable: frozenset[str] = frozenset()) -> Iterator[RunFolder]:
    """Resume the run in `args.resume`, or create one in `args.out`, and hold the folder's lock. Settings named in
    `resumable` change no result, and may differ from those that the run began with. Of a new run that is refused before
    it has made anything, nothing stays that would be in the way of the corrected command."""
    check(args)
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    path = Path(out)
    there = path.is_dir()
    fresh = not args.resume and not (there and any(path.iterdir()))
    try:
        folder = RunFolder.resume(out, args, resumable) if args.resume else RunFolder.create(out, args)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or error}); name another --out") from error
    with folder:
        try:
            yield folder
        except (SegenvError, OSError, ValueError) as error:
            full = {getattr(one, "errno", None) for one in (error, error.__cause__)} & FULL
            made = [one for one in path.rglob("*") if one.name not in ABOUT]
            if fresh and not full and not any(one.is_file() and one.stat().st_size for one in made):
                for one in path.iterdir():
                    shutil.rmtree(one) if one.is_dir() else one.unlink()
                if not there:
                    path.rmdir()
            raise


def run_stage(folder: RunFolder, name: str, work: Callable[[], None]) -> None:
    """Do a stage of the run in `folder`, unless it was done before the run was resumed."""
    if folder.done(name):
        print(f"[{name}] done before", file=sys.stderr)
        return
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with disk_errors(folder.path):
        work()
    folder.finish(name)
    print(f"[{name}] {time.perf_counter() - began:.1f} s", file=sys.stderr)


def progress(
    total: int, unit: str, done: int = 0, name: str | None = None, quiet: bool = False, items: Iterable | None = None
) -> tqdm:
    """A progress bar on stderr, over `items` or to `update`; where that is no terminal, a line every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(items, total=total, initial=done, unit=unit, desc=name, disable=quiet, mininterval=interval)


@contextmanager
def setting_up(subject: str) -> Iterator[None]:
    """Raise RunError "cannot set up SUBJECT: …" for a spec or path that is wrong, or an extra that is not installed."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up {subject}: {error}") from error
