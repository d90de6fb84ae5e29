"""Links that lead out of a folder of data: refused with the flag that allows them, and followed with it."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from made_data import make_index, photo, save

from experiments import annotate, evaluate, gspo, polygons_ceiling, prm, star, trajectories, tree_search
from experiments.common.config import RunError
from experiments.evaluate.__main__ import main
from search.executors import Player as Playing
from search.executors import Setup, Skipped, play
from segenv import data


@pytest.fixture
def linked(tmp_path: Path) -> str:
    """Data of which every file is a link to one elsewhere."""
    root = tmp_path / "data"
    spec = make_index(root)
    for number, path in enumerate(sorted(root.rglob("*"))):
        if path.is_file() and path.name != "index.json":
            target = tmp_path / f"elsewhere{number}{path.suffix}"
            path.rename(target)
            path.symlink_to(target)
    return spec


@pytest.mark.parametrize(
    "kind",
    [evaluate.Args, star.Args, prm.Args, gspo.Args, tree_search.Args, annotate.Args, polygons_ceiling.Args]
    + [trajectories.Generate, trajectories.Export],
)
def test_commands_that_read_a_persons_folder_have_the_flag(kind: type) -> None:
    assert "follow_links" in {field.name for field in fields(kind)}


def test_the_error_names_the_flag_that_helps(linked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", linked, "--tool", "disc", "--max-steps", "1", "--out"]
    assert main([*argv, str(tmp_path / "refused")]) == 1
    assert "--follow-links" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "followed"), "--follow-links"]) == 0
    assert json.loads((tmp_path / "followed/metrics.json").read_text())["skipped"] == {}


def test_data_of_what_is_absent_follows_links_as_well(linked: str) -> None:
    followed = data.make(f"absent:0.001:{linked}", follow_links=True)
    assert [task.id for task in followed] == list(data.make(linked).ids)


@pytest.mark.parametrize("executor", ["serial", pytest.param("process", marks=pytest.mark.slow)])
def test_workers_follow_links_as_well(linked: str, executor: str) -> None:
    player, skipped = Playing(Setup(linked, "disc", "annotator", max_steps=1, follow_links=True)), Skipped()
    played = list(play(player, range(len(player.dataset)), executor, 1, skipped))
    assert len(played) == len(player.dataset) and not skipped


def test_links_among_images_to_annotate(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere.png", photo(0))
    (tmp_path / "images").mkdir()
    save(tmp_path / "images/own.png", photo(1))
    (tmp_path / "images/link.png").symlink_to(tmp_path / "elsewhere.png")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({name: [[5, 5, 30, 20]] for name in ("own.png", "link.png")}))
    for follow, images in ((False, 1), (True, 2)):
        given = {"images": str(tmp_path / "images"), "boxes": str(boxes), "tool": "disc", "show": 2}
        found = annotate.run(annotate.Args(**given, follow_links=follow, out=str(tmp_path / f"{follow}")), quiet=True)
        assert found["images"] == images
        assert all("--follow-links" in reason for reason in found["skipped"].values())


def test_trajectories_of_which_all_is_skipped_are_no_success(linked: str, tmp_path: Path) -> None:
    args = trajectories.Generate(data=linked, tool="disc", out=str(tmp_path / "out"), skip_bad=True)
    with pytest.raises(RunError, match="all items of .* are bad, 'one/0' because: .*--follow-links"):
        trajectories.generate(args)
