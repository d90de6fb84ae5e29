"""Files of a run folder that are damaged, or of another shape: one line that names the file, in every command."""

import importlib
import json
import shutil

import numpy as np
import pytest
import yaml
from made_episodes import CLICK, made_episode, made_task, part
from PIL import Image

from experiments.annotate.report import read_image_record
from experiments.common import run_folder
from experiments.common.run_folder import RunFolder, manifest
from experiments.evaluate.episodes.metrics import read_episode
from experiments.tree_search.report import read_tree

ENTIRE = {"empty": b"", "binary": bytes(range(256)) + b"\n", "a list": b"[1]\n", "null": b"null\n", "text": b'"no"\n'}
LINES = {"binary": bytes(range(256)) + b"\n", "a list": b"[1]\n", "a number": b"3\n", "other names": b'{"other": 1}\n'}
RESUMABLE = ["evaluate", "annotate", "train_tool", "gspo", "trajectories", "prm", "polygon_ablation", "tree_search"]
RESUMABLE += ["sft", "star", "ppo"]
PLAYED = ["--data", "synthetic:val", "--tool", "disc", "--agent", "annotator", "--limit", "2"]


def command(name: str, *argv: object) -> int:
    found = importlib.import_module(f"experiments.{name}")
    main = (
        found.main if not hasattr(found, "__path__") else importlib.import_module(f"experiments.{name}.__main__").main
    )
    return main([*(["generate"] if name == "trajectories" else []), *map(str, argv)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    images = root / "images"
    images.mkdir()
    Image.fromarray(np.full((40, 60, 3), 9, np.uint8)).save(images / "a.png")
    (root / "boxes.json").write_text(json.dumps({"a.png": [{"box": [5, 5, 30, 30], "phrase": "thing"}]}))
    boxes = ["--images", images, "--boxes", root / "boxes.json", "--tool", "disc"]
    assert command("evaluate", *PLAYED, "--max-steps", 2, "--out", root / "evaluate") == 0
    play = ["--data", "synthetic:val", "--tool", "disc", "--limit", 1, "--max-clicks", 2]
    assert command("annotate", *boxes, "--out", root / "annotate") == 0
    assert command("trajectories", *play, "--out", root / "trajectories") == 0
    search = ["--k", 2, "--depths", 2, "--budgets", "policy_calls=4"]
    search += ["--values", "oracle", "--agent", "random"]
    assert command("tree_search", *PLAYED, *search, "--out", root / "tree_search") == 0
    return root


def refused(capsys, file: str, name: str, *argv: object) -> None:
    capsys.readouterr()
    assert command(name, *argv) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and file in said[0], said
    assert any(word in said[0] for word in ("another", "delete", "put it back", "Put it right"))


@pytest.mark.parametrize("damage", [*ENTIRE, "truncated", "other names"])
@pytest.mark.parametrize("name", RESUMABLE)
def test_a_damaged_config_is_named(tmp_path, capsys, name, damage):
    others = {"truncated": b"dat", "other names": b"other: 1\n"}
    (tmp_path / "config.yaml").write_bytes((ENTIRE | others)[damage])
    refused(capsys, "config.yaml", name, "--resume", tmp_path)


@pytest.mark.parametrize("damage", [*ENTIRE, "truncated", "other names"])
@pytest.mark.parametrize("name", ["evaluate", "annotate", "trajectories", "tree_search", "results", "compare"])
def test_a_damaged_manifest_is_named(tmp_path, capsys, runs, name, damage):
    kind = name if (runs / name).exists() else "evaluate"
    folder = shutil.copytree(runs / kind, tmp_path / "run")
    for stage in ("annotate", "generate"):
        (folder / f"{stage}.DONE").unlink(missing_ok=True)
    file = folder / "manifest.json"
    others = {"truncated": file.read_bytes()[:-40], "other names": b'{"other": 1}'}
    file.write_bytes((ENTIRE | others)[damage])
    refused(capsys, "manifest.json", name, *_flags(name, folder, runs, tmp_path))


@pytest.mark.parametrize("damage", [*ENTIRE, "truncated", "other names"])
@pytest.mark.parametrize("name", ["results", "compare"])
def test_a_reader_of_damaged_metrics_names_them(tmp_path, capsys, runs, name, damage):
    folder = shutil.copytree(runs / "evaluate", tmp_path / "run")
    file = folder / "metrics.json"
    others = {"truncated": file.read_bytes()[:-40], "other names": b'{"other": 1}'}
    file.write_bytes((ENTIRE | others)[damage])
    refused(capsys, "metrics.json", name, *_flags(name, folder, runs, tmp_path))


@pytest.mark.parametrize("damage", LINES)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("evaluate", "episodes.jsonl"),
        ("compare", "episodes.jsonl"),
        ("annotate", "images.jsonl"),
        ("trajectories", "plays.jsonl"),
        ("tree_search", "results.jsonl"),
        ("tree_search", "trees.jsonl"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, capsys, runs, name, file, damage):
    folder = shutil.copytree(runs / ("evaluate" if name == "compare" else name), tmp_path / "run")
    for stage in ("annotate", "generate"):
        (folder / f"{stage}.DONE").unlink(missing_ok=True)
    with open(folder / file, "ab") as records:
        records.write(LINES[damage])
    refused(capsys, f"{file}, line ", name, *_flags(name, folder, runs, tmp_path))


def test_a_play_of_another_task_is_named(tmp_path, capsys, runs):
    folder = shutil.copytree(runs / "trajectories", tmp_path / "run")
    (folder / "generate.DONE").unlink()
    with open(folder / "plays.jsonl", "ab") as records:
        records.write(b'{"task": "gone", "start": "empty", "sample": 0, "entries": []}\n')
    refused(capsys, "it holds task 'gone', which the data does not", "trajectories", "--resume", folder)


def _flags(name, folder, runs, tmp_path):
    if name == "compare":
        return [folder, runs / "evaluate"]
    return [folder, "--name", "page", "--out", tmp_path / "pages"] if name == "results" else ["--resume", folder]


READERS = {"evaluate/episodes.jsonl": read_episode, "annotate/images.jsonl": read_image_record}
READERS |= {"tree_search/trees.jsonl": read_tree}


@pytest.mark.parametrize("file", READERS)
def test_whatever_value_of_a_record_is_another_thing_its_reader_says_so(runs, file):
    line = (runs / file).read_text().splitlines()[0]
    READERS[file](json.loads(line))
    for key, value in json.loads(line).items():
        for other in (object, "nested"):
            changed = json.loads(line)
            if other is object:
                changed[key] = {"other": [{}]}
            elif isinstance(value, list) and value:
                changed[key][0] = [[]]
            else:
                continue
            if key == "seconds" and other is object and file.startswith("evaluate"):
                continue
            with pytest.raises(ValueError):
                READERS[file](changed)


@pytest.mark.parametrize("mask", ["", "!", "zz", "é", "00", "0" * 40, "PPPPPPPPPP"])
def test_a_mask_that_cannot_be_decoded_is_noticed(mask):
    record = json.loads(json.dumps(made_episode(made_task(), [(CLICK, part(9))]).to_json()))
    read_episode(json.loads(json.dumps(record)))
    record["steps"][0]["mask"] = mask
    with pytest.raises(ValueError, match="mask"):
        read_episode(record)


def test_another_version_is_said_on_resume_and_kept(tmp_path, monkeypatch, capsys):
    folder = RunFolder(tmp_path)
    folder.keep_manifest(manifest(0, {"tool": "disc", "miou": "mean IoU"}, {"data": "x"}), {"miou"})
    monkeypatch.setattr(run_folder, "__version__", "99.0")
    for _ in range(2):
        about = folder.keep_manifest(manifest(0, {"tool": "disc", "miou": "mean of IoU"}, {"data": "x"}), {"miou"})
    said = capsys.readouterr().err
    assert said.count("resumed by 99.0") == 1 and said.count("definition of miou") == 1
    kept = yaml.safe_load((tmp_path / "manifest.json").read_text())
    assert kept["versions"]["segenv"] != "99.0" and [one["segenv"] for one in kept["resumed"]] == ["99.0"]
    assert about["protocol"]["miou"] == "mean of IoU"
    with pytest.raises(run_folder.RunError, match="tool"):
        folder.keep_manifest(manifest(0, {"tool": "sam", "miou": "mean of IoU"}, {"data": "x"}), {"miou"})
