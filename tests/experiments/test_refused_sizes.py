"""Images of a size that a model's processor refuses: the item's error, in every command that asks a model."""

import json
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import pytest
from made_data import photo, save

from experiments import evaluate, tree_search
from experiments.evaluate.config import FilterOptions, PolygonOptions
from search.executors import Player, Setup
from segenv import data
from segenv.types import BadItem

CODECS = {"segment": "qwen2.5-vl", "polygon": "rings", "filter": "segagent", "search": "segagent"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint whose processor takes no image of 250 : 1, and data of which the middle item is such an image."""
    root = tmp_path_factory.mktemp("made")
    made_models.save("qwen2.5-vl", root / "model")
    items: list[dict[str, Any]] = []
    for name, height, width in (("a", 48, 64), ("stripe", 4, 1000), ("b", 48, 64)):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
        save(root / f"{name}.png", np.resize(np.asarray(photo(0)), (height, width, 3)))
        save(root / f"{name}_mask.png", mask)
        items.append({"name": name, "image": f"{name}.png", "mask": f"{name}_mask.png", "instruction": "it"})
    (root / "index.json").write_text(json.dumps(items))
    return f"index:{root}", f"mllm:{root / 'model'}"


def ask(what: str, data: str, agent: str, out: Path, skip_bad: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"data": data, "agent": agent, "tool": "disc", "codec": CODECS[what], "out": str(out)}
    given["skip_bad"] = skip_bad
    if what == "search":
        small: dict[str, Any] = {"search": ("greedy",), "k": (1,), "depths": (1,), "values": ("oracle",), "steps": ()}
        return tree_search.run(tree_search.Args(**given, **small, budgets=("none",), report_tasks=0), quiet=True)
    given |= {"filter": FilterOptions(masks=1), "polygon": PolygonOptions(max_new_tokens=4), "max_steps": 1}
    return evaluate.run(evaluate.Args(task=what, **given, report_episodes=0), quiet=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", CODECS)
def test_it_is_named_or_passed_over(made: tuple[str, str], tmp_path: Path, what: str) -> None:
    with pytest.raises(BadItem, match="'stripe'.* 1000 x 4 .*#HEIGHTxWIDTH.*--skip-bad"):
        ask(what, *made, tmp_path / "ended", False)
    found = ask(what, *made, tmp_path / "passed", True)
    assert list(found["skipped"]) == ["stripe"]


def test_the_others_are_as_they_are_alone(made: tuple[str, str]) -> None:
    spec, agent = made
    player = Player(Setup(spec, "disc", agent, max_steps=1, skip_bad=True))
    together, alone = list(player.play(range(3))), [*player.play([0]), *player.play([2])]
    assert [(one.task, [step.text for step in one.steps]) for one in together] == [
        (one.task, [step.text for step in one.steps]) for one in alone
    ]
    assert [name for name, _ in player.dataset.skipped] == ["stripe"]


def test_a_size_to_send_images_at_helps(made: tuple[str, str]) -> None:
    spec, agent = made
    player = Player(Setup(spec, "disc", f"{agent}#56x56", max_steps=1))
    assert [one.task for one in player.play(range(3))] == ["a", "stripe", "b"]


def test_a_dataset_that_is_given_keeps_its_own_checks(made: tuple[str, str]) -> None:
    spec, agent = made
    tasks = data.make(spec, skip_bad=True)
    player = Player(Setup(tasks, "disc", agent, max_steps=1))
    assert [task.id for task in player.dataset] == ["a", "b"]
    assert [task.id for task in tasks] == ["a", "stripe", "b"]
