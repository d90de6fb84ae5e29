"""Trainings of the embedded models: however they are cut, their logs and weights are those of whole ones."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.common import trainer
from experiments.common.config import RunError


@dataclass
class Args:
    out: str | None = None
    resume: str | None = None
    only_steps: int = 9
    save_every: int = 2
    cooldown: int = 2
    rate: float = 0.1
    seed: int = 0
    threads: int = 1


class Numbers:
    """Example i is the number i."""

    def __getitem__(self, i):
        return torch.tensor([float(i)])


class Line(trainer.Trainer):
    """Fits a line, on examples that this process makes."""

    stages = ("only",)
    workers = 0
    cut: tuple[str, int] = ("", 0)  # where a kill comes: the call, and its step

    def __init__(self, args):
        torch.manual_seed(0)
        super().__init__(args, nn.Linear(1, 1), nn.Linear(1, 1))

    def open_stage(self, stage):
        return Numbers()

    def indices(self, step):
        return [step, step + 1]

    def loss(self, batch):
        loss = (self.model(batch) - 0.3 * batch).square().mean()
        return loss, {"last": float(batch[-1])}

    def evaluate(self, stage, last, out):
        self.kill("before the row")
        return {}

    def save(self, folder):
        self.kill("before the state")
        super().save(folder)
        self.kill("after the state")

    def kill(self, call):
        if self.cut == (call, self.step):
            raise KeyboardInterrupt

    def write_model(self, model, folder):
        folder.mkdir()


def rows(out):
    every = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    seconds = [row.pop("seconds") for row in every]
    assert seconds == sorted(seconds), "time goes on where it stopped"
    return every


@pytest.mark.parametrize("call", ["before the row", "before the state", "after the state"])
@pytest.mark.parametrize("step", [2, 6, 9])
def test_a_log_has_every_row_once_with_the_means_of_a_whole_training(tmp_path, monkeypatch, call, step):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainer.run(Line, Args(str(whole)), frozenset(), "line")
    monkeypatch.setattr(Line, "cut", (call, step))
    with pytest.raises(KeyboardInterrupt):
        trainer.run(Line, Args(str(cut)), frozenset(), "line")
    monkeypatch.setattr(Line, "cut", ("", 0))
    trainer.run(Line, replace(Args(str(cut)), resume=str(cut)), frozenset(), "line")
    assert [row["step"] for row in rows(whole)] == [2, 4, 6, 8, 9]
    assert rows(cut) == rows(whole)
    one, two = (load_file(out / trainer.STATE) for out in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_state_beyond_the_limit_on_the_size_of_files_is_told_as_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainer.run(Line, Args(str(whole)), frozenset(), "line")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((whole / trainer.STATE).stat().st_size - 1, before[1]))
    try:
        with pytest.raises(RunError, match="the disk is full.*--resume"):
            trainer.run(Line, Args(str(cut)), frozenset(), "line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    trainer.run(Line, replace(Args(str(cut)), resume=str(cut)), frozenset(), "line")
    assert rows(cut) == rows(whole)
