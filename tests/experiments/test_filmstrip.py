"""Pictures of an episode, played or from a run."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import disc_task
from PIL import Image

from experiments import filmstrip
from experiments.evaluate import config, evaluate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on two small pictures."""
    root = tmp_path_factory.mktemp("run")
    for name in ("images", "masks"):
        (root / "photos" / name).mkdir(parents=True)
    for k in range(2):
        task = disc_task(60, 80, 30, 30, 12 + k)
        Image.fromarray(task.image).save(root / f"photos/images/photo-{k}.png")
        Image.fromarray(task.target.astype(np.uint8) * 255).save(root / f"photos/masks/photo-{k}.png")
    args = config.Args(data=f"folder:{root / 'photos'}", tool="disc:radius=5", max_steps=3, out=str(root / "run"))
    evaluate.run(args, quiet=True)
    return root / "run"


def test_a_moving_picture_has_the_start_and_every_step_of_the_runs_episode(run, tmp_path, capsys):
    out = tmp_path / "new" / "episode.gif"
    assert filmstrip.main(["--run", str(run), "--task", "photo-1", "--size", "160", "--out", str(out)]) == 0
    assert "photo-1, IoU 0." in capsys.readouterr().out
    with Image.open(out) as picture:
        frames = []
        for k in range(picture.n_frames):
            picture.seek(k)
            frames.append(np.asarray(picture.convert("RGB"), int))
    assert len(frames) == 4 and frames[0].shape == (142, 160, 3)
    assert all((abs(a - b)[:120] > 40).any() for a, b in zip(frames, frames[1:], strict=False))


def test_a_strip_of_a_runs_episode_is_that_of_the_same_episode_played(run, tmp_path):
    taken, played = tmp_path / "taken.png", tmp_path / "played.png"
    assert filmstrip.main(["--run", str(run), "--out", str(taken)]) == 0
    flags = ["--data", f"folder:{run.parent / 'photos'}", "--tool", "disc:radius=5", "--max-steps", "3"]
    assert filmstrip.main([*flags, "--out", str(played)]) == 0
    assert taken.read_bytes() == played.read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "nobody"], "no episode of task 'nobody' with sample 0"),
        (["--sample", "3"], "no episode with sample 3"),
        (["--out", "episode.jpg"], "expected .png for a strip"),
    ],
)
def test_what_is_not_there_or_cannot_be_written_is_told(run, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    given = [] if "--out" in flags else ["--out", "episode.png"]
    assert filmstrip.main(["--run", str(run), *given, *flags]) == 1
    assert words in capsys.readouterr().err
