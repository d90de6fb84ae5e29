"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARDS = [*ROOT.glob("segenv/tools/weights/*/README.md"), *ROOT.glob("agents/weights/*/README.md")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(CARDS)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_file_named_exists(page):
    text = page.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module in ("venv", "pytest") or (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for name in re.findall(r"`((?:segenv|agents|search|experiments|tests)/[\w./-]+)`", text):
        assert name.endswith("-v0") or (ROOT / name).exists(), name


def test_every_embedded_checkpoint_has_a_card_and_is_small():
    rooms = ("segenv/tools/weights", "agents/weights")
    folders = [path.parent for room in rooms for path in ROOT.glob(f"{room}/*/model.safetensors")]
    assert {folder.name for folder in folders} >= {"tiny-sam", "tiny-mllm", "tiny-polygon"}
    for folder in folders:
        assert (folder / "README.md").is_file(), folder
        assert (folder / "model.safetensors").stat().st_size < 10e6, folder
