"""Supervised fine-tuning: what it learns, what it survives, and what it writes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import tiny
from agents.backends.transformers import TransformersBackend
from agents.tiny import vision_tower
from agents.training.sft import ReplyCollator, SFTOptions, finetune

torch.set_num_threads(1)
SMALL = {"image_size": 32, "width": 64, "vision_layers": 1, "text_layers": 2, "heads": 2}
QUICK = SFTOptions(steps=6, batch_size=4, save_steps=2, log_steps=1, learning_rate=3e-3)


class Rows:
    """Lazy rows: the corner that is lit is the corner that is clicked. `limit` pulls the plug after so many rows."""

    def __init__(self, count: int = 16, limit: int = 10**9) -> None:
        self.count, self.limit = count, limit

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict:
        self.limit -= 1
        if self.limit < 0:
            raise KeyboardInterrupt
        x, y = divmod(i % 4, 2)
        image = np.zeros((16, 16, 3), np.uint8)
        image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255
        return {"image": image, "prompt": "the white square", "reply": f"Positive point: ({y}, {x})"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny model without batch norms, as it is published: their statistics would change beside the weights."""
    folder, (model, processor) = tmp_path_factory.mktemp("base"), tiny.build(**SMALL)
    vision_tower.fold(model.model.vision_tower)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_is_on_the_reply_and_its_end_alone():
    _, processor = tiny.build(**SMALL)
    rows = [
        {"image": Rows()[0]["image"], "prompt": "the red circle on the left of it", "reply": "Stop"},
        {"image": np.zeros((20, 9, 3), np.uint8), "prompt": "it", "reply": "Current IOU: 7\nNegative point: (12, 3)"},
    ]
    batch = ReplyCollator(processor, rows, (32, 32))([{"row": 1}, {"row": 0}])
    for labels, ids, row in zip(batch["labels"], batch["input_ids"], rows[::-1], strict=True):
        learned = labels != -100
        assert torch.equal(labels[learned], ids[learned])
        assert processor.tokenizer.decode(labels[learned]) == row["reply"] + "<|end|>"
        assert row["prompt"] in processor.tokenizer.decode(ids[~learned])


def test_a_model_learns_from_scratch_to_say_which_corner_is_lit(tmp_path):
    options = SFTOptions(steps=150, batch_size=8, learning_rate=3e-3, save_steps=1000)
    fresh = tiny.save(tmp_path / "fresh", **SMALL)
    summary = finetune(fresh, Rows(), tmp_path / "out", options, declare={"codec": "segagent"})
    assert summary["loss"] < 0.1 < summary["log"][0][1]
    assert summary == json.loads((tmp_path / "out" / "sft.json").read_text())
    taught = TransformersBackend(tmp_path / "out", max_new_tokens=16)
    rows = [Rows()[i] for i in range(4)]
    written = taught.generate([row["image"] for row in rows], [row["prompt"] for row in rows], range(4))
    assert written == [row["reply"] for row in rows]
    assert taught.model.config.segenv == {"codec": "segagent", "prompt": "instruction", "image_size": [32, 32]}
    assert not list(tmp_path.glob("out.training"))
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


@pytest.mark.parametrize("lora", [0, 2])
def test_training_that_was_cut_ends_with_the_weights_of_training_that_was_not(base, tmp_path, lora):
    options = replace(QUICK, lora=lora)
    whole = finetune(base, Rows(), tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            base, Rows(limit=4 * 5 - 1), tmp_path / "cut", options
        )  # in the fifth batch: checkpoints of steps 2 and 4
    state = tmp_path / "cut.training"
    assert sorted(folder.name for folder in state.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    (state / "checkpoint-4" / "trainer_state.json").write_text('{"global_')  # killed while it was written
    assert not (tmp_path / "cut").exists()
    rest = Rows()
    resumed = finetune(base, rest, tmp_path / "cut", options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert resumed["log"] == whole["log"]
    assert Rows().limit - rest.limit == 4 * 5  # steps 3 to 6, and one batch ahead: steps 1 and 2 are not made again


def test_a_finished_training_is_not_repeated_and_another_does_not_replace_it(base, tmp_path):
    summary = finetune(base, Rows(), tmp_path / "out", QUICK)
    assert finetune(base, Rows(limit=0), tmp_path / "out", QUICK) == summary
    with pytest.raises(FileExistsError, match="does not come from this training"):
        finetune(base, Rows(), tmp_path / "out", SFTOptions(steps=7))
    moved = shutil.copytree(base, tmp_path / "moved")
    assert finetune(moved, Rows(limit=0), tmp_path / "out", QUICK) == summary, "the base is what it holds, not where"
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    with pytest.raises(FileExistsError, match="does not come from this training"):
        finetune(moved, Rows(), tmp_path / "out", QUICK)


def test_small_batches_add_up_to_the_step_of_a_large_one(base, tmp_path):
    finetune(base, Rows(), tmp_path / "large", SFTOptions(steps=1, batch_size=4))
    finetune(base, Rows(), tmp_path / "small", SFTOptions(steps=1, batch_size=4, micro_batch_size=1))
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    assert all(torch.allclose(large[name], small[name], atol=2e-5) for name in large)
    with pytest.raises(ValueError, match="no multiple of micro_batch_size 3"):
        finetune(base, Rows(), tmp_path / "odd", SFTOptions(batch_size=4, micro_batch_size=3))


def test_adapters_are_merged_into_an_ordinary_checkpoint(base, tmp_path):
    options = SFTOptions(steps=3, batch_size=4, lora=2, gradient_checkpointing=True, learning_rate=1e-2)
    finetune(base, Rows(), tmp_path / "out", options)
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("embed" in name or "norm" in name or "bias" in name for name in changed)
    assert TransformersBackend(tmp_path / "out", max_new_tokens=2).generate([Rows()[0]["image"]], ["it"], [0])


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        finetune(None, [], tmp_path / "out")


KILLED = """
import sys
sys.path[:0] = [{repo!r}, {tests!r}, {here!r}]
from test_sft import QUICK, Rows, finetune, replace
finetune({base!r}, Rows(), {out!r}, replace(QUICK, steps=300, save_steps=20))
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_changes_nothing(base, tmp_path):
    tests = Path(__file__).parents[1]

    def train(name: str) -> subprocess.Popen:
        code = KILLED.format(
            repo=str(tests.parent),
            tests=str(tests),
            here=str(tests / "agents"),
            base=str(base),
            out=str(tmp_path / name),
        )
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    assert train("whole").wait() == 0
    for step in (40, 120):
        process = train("killed")
        while not (tmp_path / "killed.training" / f"checkpoint-{step}").exists():  # it is being written right now
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert train("killed").wait() == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
