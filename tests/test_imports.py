"""Imports point one way, and `import segenv` stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# types, seeds, files, specs <- geometry, metrics <- tools, codec, render <- mdp <- envs <- adapters;
# segenv <- agents <- search <- experiments.
# A module imports from its own layer or from layers before it. The layer of a package is that of all its modules.
LAYERS = [
    {"segenv.checkpoints", "segenv.files", "segenv.ranges", "segenv.records", "segenv.seeds"}
    | {"segenv.specs", "segenv.texts", "segenv.types"},
    {"segenv.geometry", "segenv.metrics", "segenv.statistics"},
    {"segenv.annotator", "segenv.codec", "segenv.data", "segenv.queries", "segenv.render", "segenv.rewards"}
    | {"segenv.tools"},
    {"segenv.mdp"},
    {"segenv.envs"},
    {"segenv.adapters"},
    {"agents"},
    {"search"},
    {"experiments"},
]
FILES = sorted(path for top in ("segenv", "agents", "search", "experiments") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's module name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports: anywhere in it, those for type checkers included."""
    module = name_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            # `from segenv import metrics` names a module, `from segenv.types import Task` a thing in one
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= (names & MODULES) | ({source} if names - MODULES else set())
    return {name for name in found if name.split(".")[0] in ("segenv", "agents", "search", "experiments")}


def layer_of(module: str) -> int:
    """The place of a module's layer, or an error that says where to enter it."""
    for place, layer in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in layer):
            return place
    raise LookupError(f"{module} belongs to no layer; enter it in LAYERS of {Path(__file__).name}")


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) != "segenv"], ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    module = name_of(path)
    own = layer_of(module)
    wrong = [name for name in imports_of(path) if name != "segenv" and layer_of(name) > own]
    assert not wrong, f"{module} imports {', '.join(wrong)}, which stand above it"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each leads to all others by imports (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in arrows[module]:
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            found.extend([sorted(group)] if len(group) > 1 else [])

    for module in arrows:
        if module not in order:
            visit(module)
    return found


def test_no_circle_anywhere() -> None:
    """Late imports and those for type checkers count as well. A module may import its own package's front."""
    arrows = {
        name_of(path): {
            name
            for name in imports_of(path) & MODULES
            if name != name_of(path) and not name_of(path).startswith(f"{name}.")
        }
        for path in FILES
    }
    assert circles(arrows) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_nothing_imports_a_main() -> None:
    """A command's `__main__` is its top: what others need of it stands below."""
    assert [name_of(path) for path in FILES if any(name.endswith(".__main__") for name in imports_of(path))] == []


def test_the_package_itself_imports_nothing_of_ours() -> None:
    """So importing any part of it starts no chain; the environments are registered by name."""
    assert imports_of(ROOT / "segenv/__init__.py") == set()


def test_the_walk_sees_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule above is worth what this walk finds."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "MODULES", {"segenv.metrics", "segenv.tools.disc", "segenv.tools"})
    path = tmp_path / "segenv" / "tools" / "disc.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import search.beam, numpy\nfrom segenv import metrics, __version__\nfrom . import disc\n"
        "from ..types import Task\ndef late():\n    from agents.base import Agent\n"
    )
    assert imports_of(path) == {
        *("search.beam", "segenv.metrics", "segenv", "segenv.tools.disc", "segenv.types", "agents.base")
    }


def test_importing_segenv_is_light() -> None:
    """Counted in modules and not in seconds: those of Gymnasium and NumPy are the whole cost (0.1 s)."""
    code = "import json, sys; import segenv; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(json.loads(run.stdout))
    heavy = {"torch", "transformers", "cv2", "PIL", "matplotlib", "pandas", "scipy", "stable_baselines3", "safetensors"}
    assert not loaded & heavy
    assert {name for name in loaded if name.startswith("segenv")} == {"segenv"}

    code = "import json, sys; import gymnasium; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded - set(json.loads(run.stdout)) <= {"segenv"}, "nothing but Gymnasium is loaded"


@pytest.mark.parametrize(
    "module", ["segenv.mdp", "segenv.envs.hlmat", "segenv.envs.numeric", "segenv.tools", "segenv.data"]
)
def test_the_core_needs_no_torch(module: str) -> None:
    """So an environment with the disc or GrabCut runs where no deep learning library is installed."""
    code = f"import sys; import {module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
