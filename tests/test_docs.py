"""The documents: links lead somewhere, commands parse, Python runs, and pages stay short."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARDS = [*ROOT.glob("segenv/tools/weights/*/README.md"), *ROOT.glob("agents/weights/*/README.md")]
GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
RESULTS = sorted(ROOT.glob("docs/results/*.md"))
PAGES = [*GUIDES, *RESULTS, ROOT / "CONTRIBUTING.md", *sorted(CARDS)]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"(?<![\w.])[+-]?\d+(?:[.,]\d+)*")
COMMAND = re.compile(r"-m experiments\.(\w+)(.*)", re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def module_file(module: str) -> Path | None:
    """The file that `python -m MODULE` runs."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__main__.py") if file.is_file()), None)


def commands(text: str) -> list[str]:
    """Each command line of a page: from code blocks, one a line, and from inline code."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "sh")]
    prose = FENCE.sub("", text)
    blocks += [line for line in prose.splitlines() if line.startswith("    ")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", prose)
    return list(dict.fromkeys(line.strip() for line in (*lines, *inline) if COMMAND.search(line)))


def written(text: str) -> str:
    """A page without code blocks, pictures, tables, headings and inline code."""
    text = re.sub(r"^( {4}|\||#|!\[|```).*$", "", FENCE.sub("", text), flags=re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_file_named_exists(page):
    text = page.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module in ("venv", "pytest", "experiments.NAME") or module_file(module), module
    for name in re.findall(r"`((?:segenv|agents|search|experiments|tests)/[\w./-]+)`", text):
        assert name.endswith("-v0") or (ROOT / name).exists(), name


class Parsed(BaseException):
    """A command line was read; its command goes no further."""


@pytest.mark.parametrize("page", [*GUIDES, *RESULTS], ids=name_of)
def test_every_command_line_is_read_by_its_command(page, monkeypatch, capsys):
    import tyro

    read = tyro.cli

    def stop(*args, **options):
        read(*args, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", stop)
    for line in commands(page.read_text()):
        name, rest = COMMAND.search(line).groups()
        if name == "NAME" or not rest.strip():
            continue  # a command that is named, not shown
        package = (ROOT / "experiments" / name).is_dir()
        module = importlib.import_module(f"experiments.{name}.__main__" if package else f"experiments.{name}")
        try:
            module.main(shlex.split(re.sub(r"\s#\s.*", "", rest)))
        except Parsed:
            continue
        except SystemExit:
            pass
        pytest.fail(f"{line}\n{''.join(capsys.readouterr())}")


def snippets() -> list:
    """The Python blocks of README and guides; training is cut to one round, and measuring to a few episodes."""
    found, known = [], set()
    for page in GUIDES:
        for k, (language, body) in enumerate(FENCE.findall(page.read_text())):
            if language == "python" and body not in known:
                known.add(body)
                short = body.replace("learn(20_000)", "learn(1)").replace("episodes=300", "episodes=4")
                marks = [pytest.mark.slow] if short != body or "from datasets" in body else []
                found.append(pytest.param(short, id=f"{name_of(page)}-{k}", marks=marks))
    return found


@pytest.mark.parametrize("code", snippets())
def test_every_python_block_runs(code, tmp_path):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_is_short_and_plain():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for paragraph in written(text).split("\n\n"):
        assert len([line for line in paragraph.splitlines() if line.strip()]) <= 5, paragraph
        for sentence in re.split(r"(?<=[.!?:])\s", paragraph):
            assert len(FIGURE.findall(sentence)) <= 2, sentence
    assert 'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[all]"' in text
    assert "    make test\n" in text


def test_readme_leads_to_every_guide_and_result():
    text = (ROOT / "README.md").read_text()
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)#]+)", text)}
    assert [name_of(page) for page in (*GUIDES[1:], *RESULTS) if page not in linked] == []


@pytest.mark.parametrize("page", GUIDES[1:], ids=name_of)
def test_every_guide_is_short(page):
    text = page.read_text()
    assert len(text.splitlines()) <= 150
    for sentence in re.split(r"(?<=[.!?:;])\s|\n\n|^- ", written(text), flags=re.MULTILINE):
        assert len(FIGURE.findall(sentence)) <= 2, sentence


@pytest.mark.parametrize("page", RESULTS, ids=name_of)
def test_every_result_says_how_it_was_made_and_names_no_private_folder(page):
    text = page.read_text()
    assert "python -m experiments." in text
    assert re.findall(r"(?<![\w.])(?:/(?:tmp|home|root|work|mnt|Users)\b|~/)\S*", text) == []


def test_every_embedded_checkpoint_has_a_card_and_is_small():
    rooms = ("segenv/tools/weights", "agents/weights")
    folders = [path.parent for room in rooms for path in ROOT.glob(f"{room}/*/model.safetensors")]
    assert {folder.name for folder in folders} >= {"tiny-sam", "tiny-mllm", "tiny-polygon"}
    for folder in folders:
        assert (folder / "README.md").is_file(), folder
        assert (folder / "model.safetensors").stat().st_size < 10e6, folder
