"""What all commands share: their consoles, and how they end."""

import importlib
import io
import sys

import pytest

from experiments.common import cli


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1", "cp437", "utf-8"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_console_that_lacks_a_character_shows_another(monkeypatch, stream, encoding):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(sys, stream, shown)
    cli.use_plain_characters()
    text = "".join(cli.PLAIN) + "é 猫 \ud800"
    print(text, file=getattr(sys, stream), end="", flush=True)
    got = shown.buffer.getvalue().decode(encoding)
    if encoding == "ascii":
        assert got == "---...x.+/-<=>=-><-dusum ^2''\"\"? ? ?"
    elif encoding == "utf-8":
        assert got == text.replace("\ud800", "?")
    else:
        assert got.endswith("?") and "\ufffd" not in got


@pytest.mark.parametrize(
    "name",
    ["evaluate", "compare", "annotate", "train_tool", "polygons_ceiling", "inputs", "benchmark", "results", "gspo"]
    + ["filmstrip", "trajectories", "prm", "polygon_ablation", "tree_search", "sft", "star", "ppo"],
)
def test_every_command_takes_such_a_console(monkeypatch, name):
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{name}.__main__")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit):
        module.main(["--no-such-flag"]) and sys.exit(2)  # trajectories returns its status
    assert sys.stdout.errors == sys.stderr.errors == "segenv.plain"
