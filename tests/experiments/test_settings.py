"""Settings of all commands that cannot be are refused at once, by flag name, and before a folder is made."""

import importlib
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

import pytest

from agents.random import RandomAgent
from agents.training.options import GSPOOptions, SFTOptions
from experiments.common import cli
from experiments.common.config import RunError
from experiments.evaluate.config import Args as EvaluateArgs
from experiments.gspo.config import Args as GSPOArgs
from experiments.star.config import Args as StarArgs
from search.budget import Limits
from search.executors import Setup
from search.planner import SearchConfig
from search.star import Rules
from segenv import annotator, codec
from segenv import data as datasets
from segenv.data.no_target import NoTarget
from segenv.envs.hlmat import HLMATEnv
from segenv.envs.numeric import HLMATGridEnv
from segenv.mdp import SegMDP
from segenv.ranges import Range, Seed
from segenv.tools.disc import DiscTool
from segenv.tools.grabcut import GrabCutTool

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {  # what is typed, with the flags that have to be given, and the name of its settings
    "annotate": "annotate.config.Args",
    "benchmark": "benchmark.__main__.Args",
    "calibrate": "calibrate.config.Args",
    "compare A B": "compare.config.Args",
    "demo": "demo.config.Args",
    "evaluate": "evaluate.config.Args",
    "filmstrip --out OUT": "filmstrip.Args",
    "gspo": "gspo.config.Args",
    "ppo": "ppo.config.Args",
    "inputs": "inputs.Args",
    "leaderboard A --out OUT": "leaderboard.Args",
    "merge A B --out OUT": "merge.Args",
    "plan A": "plan.Args",
    "polygon_ablation": "polygon_ablation.Args",
    "polygons_ceiling": "polygons_ceiling.Args",
    "prm": "prm.config.Args",
    "results A --name a": "results.Args",
    "serve_tool": "serve_tool.Args",
    "sft": "sft.config.ClickArgs",
    "sft --mode polygon": "sft.config.PolygonArgs",
    "star": "star.config.Args",
    "train_tool": "train_tool.config.Args",
    "trajectories convert --run A --out OUT": "trajectories.Convert",
    "trajectories export --data A --out OUT": "trajectories.Export",
    "trajectories generate": "trajectories.Generate",
    "tree_search": "tree_search.config.Args",
}


class Number(NamedTuple):
    """A flag that takes a number, or several."""

    name: str
    kind: type
    range: Range | None


def settings_of(command: str) -> Any:
    """The dataclass of a command's settings."""
    module, name = COMMANDS[command].rsplit(".", 1)
    return getattr(importlib.import_module(f"experiments.{module}"), name)


def main_of(command: str) -> Callable[[list[str]], int]:
    """A command as a function of what is typed after its name."""
    name, *given = command.split()
    package = (ROOT / "experiments" / name).is_dir()
    main = importlib.import_module(f"experiments.{name}.__main__" if package else f"experiments.{name}").main
    return lambda argv: main([*given, *argv])


def numbers_of(hint: Any, name: str = "", known: Range | None = None) -> Iterator[Number]:
    """The flags with numbers that a type stands for, whether a range is declared for them or not."""
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        known = next((mark for mark in marks if isinstance(mark, Range)), known)
        name = name.rpartition(".")[0] if any(getattr(mark, "name", None) == "" for mark in marks) else name
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        for field in fields(hint):
            yield from numbers_of(hints[field.name], f"{name}.{field.name}".lstrip("."))
    elif typing.get_origin(hint) in (Union, types.UnionType, tuple, list):
        for one in typing.get_args(hint):
            yield from numbers_of(one, name, known)
    elif hint in (int, float):
        yield Number("--" + name.replace("_", "-"), hint, known)


FLAGS = [(command, number) for command in COMMANDS for number in numbers_of(settings_of(command))]
RUNS = [command for command in COMMANDS if "resume" in {field.name for field in fields(settings_of(command))}]


def refused(command: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that refuses `argv` says; the working folder stays empty."""
    try:
        status = main_of(command)(argv)
    except SystemExit as stopped:  # the parser's: no number at all, or not a whole one
        status = stopped.code
    assert status in (1, 2), f"{command} {argv}: exit status {status}"
    assert not any(Path().iterdir()), f"{command} {argv} made {sorted(Path().iterdir())}"
    return capsys.readouterr().err


def test_the_table_finds_the_flags() -> None:
    """Nested ones, tuples and those without a prefix, too."""
    names = {(command, number.name) for command, number in FLAGS}
    assert {("star", "--trainer.warmup"), ("gspo", "--warmup"), ("gspo", "--seeds")} <= names
    assert {("tree_search", "--k"), ("evaluate", "--polygon.temperature"), ("prm", "--seed")} <= names


@pytest.mark.parametrize(("command", "number"), FLAGS, ids=lambda one: getattr(one, "name", one))
def test_numbers_that_cannot_be(
    command: str, number: Number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert number.range is not None, "declare a range"
    lowest = number.range.above if number.range.least is None else number.range.least
    assert lowest is not None, "declare the least number"
    below = [str(lowest - 1)] + [str(lowest)] * (number.range.least is None)
    highest = [number.range.most, number.range.below]
    beyond = [str(bound + 1) for bound in highest if bound is not None] or ["1" + "0" * 400] * (number.kind is int)
    dry = [[], ["--dry-run"]] if hasattr(settings_of(command), "dry_run") else [[]]
    unread = ["nan", "inf", "-inf"] if number.kind is float else ["nan"]  # the parser's, where no whole number is read
    for value in (*unread, *below, *beyond):
        for more in dry if value in ("nan", below[0]) else [[]]:
            said = refused(command, [number.name, value, *more], capsys)
            assert number.name in said, f"{number.name} {value}: {said}"
            if value in below:
                assert said.startswith(f"error: {number.name} "), said
                assert "expected" in said, said


@pytest.mark.parametrize("command", RUNS)
def test_a_run_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "--out is empty" in refused(command, ["--out", ""], capsys)
    assert "--out is empty" in refused(command, ["--out", "  "], capsys)
    assert "expected a name without line breaks" in refused(command, ["--out", "two\nlines"], capsys)
    assert "--resume is empty" in refused(command, ["--resume", ""], capsys)
    assert refused(command, ["--out", f"{file}/run"], capsys) == (
        f"error: --out {file}/run cannot be written; name another --out\n"
    )
    assert "--out" in refused(command, ["--out", str(file)], capsys)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(RUNS) - {"demo", "serve_tool"}))  # which write none
def test_a_place_for_files_is_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    flag = "--json" if "json" in {field.name for field in fields(settings_of(command))} else "--out"
    assert f"{flag} is empty" in refused(command, [flag, ""], capsys)
    place = f"{tmp_path}/file/x"
    assert refused(command, [flag, place], capsys) == f"error: {flag} {place} cannot be written; name another {flag}\n"


@pytest.mark.parametrize(
    ("command", "flag", "one"),
    [
        *(("tree_search", f"--{name}", one) for name, one in (("search", "beam"), ("k", "1"), ("depths", "3"))),
        *(("tree_search", f"--{name}", one) for name, one in (("values", "oracle"), ("budgets", "tokens=9"))),
        *(("polygons_ceiling", f"--{name}", one) for name, one in (("codecs", "rings"), ("budgets", "64"))),
        ("prm", "--eval-data", "synthetic:val"),
        ("polygon_ablation", "--seeds", "1"),
        ("gspo", "--seeds", "1"),
    ],
)
def test_values_of_a_list_are_there_and_different(
    command: str,
    flag: str,
    one: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(command, [flag], capsys) == f"error: {flag} names none; give one or more\n"
    assert f"{flag} is " in (said := refused(command, [flag, one, one], capsys)) and "expected different" in said


EXTRA = {"gspo": "--extra", "prm": "--trainer.extra", "star": "--trainer.extra"}


@pytest.mark.parametrize("command", EXTRA)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", "/tmp/x"),
        ("logging_dir", "/tmp/x"),
        ("report_to", "wandb"),
        ("push_to_hub", "true"),
        ("hub_model_id", "a/b"),
        ("max_grad_norm", "nan"),
        ("max_grad_norm", ".inf"),
        ("max_grad_norm", "-1"),
        ("adam_epsilon", "-1e-8"),
        ("optim", "{"),
        ("optim", "2020-13-45"),
        ("optim_args", "[1, .nan]"),
        ("optim_args", "[" * 5000),
    ],
)
def test_fields_of_trl_that_cannot_be(
    command: str,
    name: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(command, [EXTRA[command], name, value], capsys)
    assert said.startswith(f"error: {EXTRA[command]} "), said
    assert name in said


@pytest.mark.parametrize(("command", "more"), [("gspo", ()), ("prm", ()), ("star", ()), ("star", ("--dry-run",))])
def test_fields_that_trl_has_not(
    command: str,
    more: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are looked up before anything is played; the nearest name stands in the message."""
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    few = {"gspo": (), "prm": ("--limit", "1"), "star": ("--limit", "1", "--sft-steps", "1")}[command]
    tool = () if command == "gspo" else ("--tool", "disc")
    said = refused(command, [EXTRA[command], "max_grad_nrm", "1", "--out", "run", *few, *tool, *more], capsys)
    assert "max_grad_nrm" in said
    assert "max_grad_norm" in said


def test_a_refusal_needs_no_model_library() -> None:
    """A command that refuses its settings says so before torch and its friends are imported."""
    code = f"""
import importlib, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.experiments.test_settings import COMMANDS, FLAGS, main_of
for command in COMMANDS:
    flag = next((number.name for owner, number in FLAGS if owner == command), None)
    assert flag is None or main_of(command)([flag, "-2"]) == 1, command
heavy = sorted({{"torch", "transformers", "trl", "datasets", "peft", "ray"}} & set(sys.modules))
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (EvaluateArgs(limit=0, out="run"), "--limit is 0"),
        (EvaluateArgs(seed=2**32, out="run"), "--seed is 4294967296"),
        (StarArgs(learning_rate=float("nan"), out="run"), "--learning-rate is nan"),
        (GSPOArgs(seeds=(0, 2**32), out="run"), "--seeds holds 4294967296"),
        (GSPOArgs(seeds=(0, 0), out="run"), "--seeds is (0, 0)"),
        (GSPOArgs(train=GSPOOptions(temperature=float("inf")), out="run"), "--temperature is inf"),
        (EvaluateArgs(limit="3", out="run"), "--limit is '3'"),  # type: ignore[arg-type]
        (EvaluateArgs(out=""), "--out is empty"),
    ],
    ids=str,
)
def test_settings_in_python(settings: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError) as refusal, cli.open_run(settings):
        pass
    assert str(refusal.value).startswith(named)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("before", [False, True])
def test_a_refused_start_is_not_in_the_way(before: bool, tmp_path: Path) -> None:
    """Of a run that has made nothing no folder stays; an empty one that was there does."""
    out = tmp_path / "run"
    if before:
        out.mkdir()
    settings = EvaluateArgs(out=str(out))
    with pytest.raises(ValueError, match="unknown agent"), cli.open_run(settings):
        raise ValueError("unknown agent")
    assert out.exists() == before
    with cli.open_run(settings) as folder:
        (folder.path / "made.json").write_text("{}")
    with pytest.raises(ValueError, match="later"), cli.open_run(EvaluateArgs(resume=str(out))):
        raise ValueError("later")
    assert (out / "made.json").exists()


def test_options_of_trainings_are_declared() -> None:
    """They are checked where a training begins, for those who call it from Python."""
    for kind in (SFTOptions, GSPOOptions):
        assert all(number.range is not None for number in numbers_of(kind))
        assert dict((number.name, number.range) for number in numbers_of(kind))["--seed"] == Seed.__metadata__[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("radius", DiscTool),
        ("size", GrabCutTool),
        ("iterations", GrabCutTool),
        ("reach", GrabCutTool),
        ("seed_radius", GrabCutTool),
        ("max_steps", partial(SegMDP, DiscTool())),
        ("p", partial(RandomAgent, codec.make("segagent"))),
        ("sigma", annotator.VARIANTS["jitter"]),
        ("k", annotator.VARIANTS["best-of"]),
        ("p", annotator.VARIANTS["flip"]),
        ("share", partial(NoTarget, datasets.make("synthetic:val"))),
        ("batch_size", partial(Setup, "synthetic:val", "disc", "random")),
        ("temperature", partial(Setup, "synthetic:val", "disc", "random")),
        ("near", SearchConfig),
        ("patience", SearchConfig),
        ("tolerance", SearchConfig),
        ("tokens", Limits),
        ("seconds", Limits),
        ("keep_iou", Rules),
        ("saturation_iou", Rules),
        ("render_size", partial(HLMATEnv, DiscTool(), "synthetic:val")),
        ("grid", partial(HLMATGridEnv, DiscTool(), "synthetic:val")),
    ],
)
def test_objects_in_python(name: str, make: Callable[..., Any], value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}; expected"):
        make(**{name: value})
