"""Checkpoints that are not whole are refused in one line, wherever they are loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_models
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from agents import tiny
from agents.backends.transformers import TransformersBackend, load
from agents.mllm import EMBEDDED as TINY
from agents.training.checkpoints import ADAPTERS, ResumesWhole, check_state
from agents.training.sft import SFTExample, SFTOptions, finetune
from experiments.annotate.annotate import _token_counter
from experiments.annotate.detector import Detector
from experiments.common.trainer import STATE, Trainer
from experiments.sft.trainer import tiny_checkpoint
from segenv import tools
from segenv.checkpoints import CheckpointError, put_weights, read_weights, weights_hash
from segenv.tools.sam import EMBEDDED as SAM
from segenv.types import SegenvError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Fault = Callable[[Path], Any]


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Fault:
    """A fault in the weights: `change` alters them in place, or returns others."""

    def fault(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        changed = change(held)
        save_file(changed if isinstance(changed, dict) else held, folder / WEIGHTS, {"format": "pt"})

    return fault


def spoil(value: float, last: bool = False) -> Fault:
    def change(held: dict[str, torch.Tensor]) -> None:
        held[sorted(held)[-1 if last else 0]].view(-1)[-1] = value

    return tensors(change)


def setting(*path: str, to: Any, file: str = "config.json") -> Fault:
    """A fault in a file of settings: the one at `path` is `to`, or gone where that is `...`."""

    def fault(folder: Path) -> None:
        held = part = json.loads((folder / file).read_text())
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to
        if to is ...:
            del part[path[-1]]
        (folder / file).write_text(json.dumps(held))

    return fault


def text(file: str, content: str | bytes) -> Fault:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(file: str, share: float) -> Fault:
    def fault(folder: Path) -> None:
        held = (folder / file).read_bytes()
        (folder / file).write_bytes(held[: int(len(held) * share)])

    return fault


def gone(*files: str) -> Fault:
    return lambda folder: [(folder / file).unlink() for file in files]


def sharded(change: Callable[[dict[str, Any], Path], Any]) -> Fault:
    """The weights in two files and an index, which `change` alters."""

    def fault(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(held)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, some in parts.items():
            save_file({name: held[name] for name in some}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
        changed = change(index, folder)
        (folder / INDEX).write_text(changed if isinstance(changed, str) else json.dumps(index))

    return fault


def second_layer(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return held | {name.replace("layers.0.", "layers.7."): value.clone() for name, value in held.items()}


ANY: dict[str, Fault] = {  # in a checkpoint of any model
    "a weight is missing": tensors(lambda held: held.pop(min(held))),
    "all names have a prefix": tensors(lambda held: {f"other.{name}": value for name, value in held.items()}),
    "no weights": tensors(lambda held: {"nothing": torch.zeros(1)}),
    "an empty file of weights": text(WEIGHTS, b""),
    "a header without tensors": tensors(lambda held: held.clear()),
    "cut off in the middle": cut(WEIGHTS, 0.5),
    "cut off at the end": cut(WEIGHTS, 0.9999),
    "cut off in the header": cut(WEIGHTS, 0.001),
    "weights that are text": text(WEIGHTS, "<html>404: not found</html>"),
    "a header longer than the file": text(WEIGHTS, b"\xff" * 8 + b"{}"),
    "a pickle as safetensors": text(WEIGHTS, pickle.dumps(print, protocol=2)),
    "weights of another shape": tensors(lambda held: held.update({sorted(held)[0]: torch.zeros(3, 5)})),
    "a layer too many": tensors(second_layer),
    "NaN": spoil(float("nan")),
    "infinity": spoil(float("inf")),
    "minus infinity in the last": spoil(float("-inf"), last=True),
    "no file of weights": gone(WEIGHTS),
    "a .bin in place of safetensors": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    "a shard is absent": sharded(lambda index, folder: (folder / "model-00002-of-00002.safetensors").unlink()),
    "a shard is cut off": sharded(lambda index, folder: cut("model-00001-of-00002.safetensors", 0.5)(folder)),
    "an index that is text": sharded(lambda index, folder: "weights"),
    "an index that is a list": sharded(lambda index, folder: "[]"),
    "an index without a map": sharded(lambda index, folder: index.pop("weight_map") and None),
    "an index whose map is a list": sharded(lambda index, folder: index.update(weight_map=["a"])),
    "an index of numbers": sharded(lambda index, folder: index.update(weight_map={"a": 1})),
    "an index that leads outside": sharded(lambda index, folder: index["weight_map"].update(a="../x.safetensors")),
    "no config": gone("config.json"),
    "a config that is text": text("config.json", "model"),
    "a config that is a list": text("config.json", "[1]"),
    "a config that is null": text("config.json", "null"),
    "a config of bytes": text("config.json", b"\xff\xfe{}"),
    "a config that is cut off": cut("config.json", 0.6),
    "a deep config": text("config.json", "[" * 100_000),
    "an empty config": text("config.json", "{}"),
    "no model_type": setting("model_type", to=...),
    "model_type is a list": setting("model_type", to=["llava"]),
    "model_type is an object": setting("model_type", to={"a": 1}),
    "model_type is unknown": setting("model_type", to="colossus"),
    "model_type of another kind": setting("model_type", to="bert"),
    "dtype is unknown": setting("dtype", to="float33"),
    "dtype is a number": setting("dtype", to=7),
}
VISION, WORDS = "vision_config", "text_config"
TEXT_MODEL: dict[str, Fault] = {  # in a checkpoint of a language model, too
    f"{name} is {value!r}": setting(WORDS, name, to=value)
    for name, values in {
        "hidden_size": ("64", None, [64], -1, 0, 10**9, 32, 64.5),
        "num_hidden_layers": ("2", 10**9, -2, 3, 1, None),
        "vocab_size": ("x", 10**9, 0, 17),
        "num_attention_heads": ("4", 0, 10**9, -4),
        "intermediate_size": ({}, 10**9),
        "model_type": ("colossus", 7, ["qwen2"]),
    }.items()
    for value in values
} | {
    "the text model is a list": setting(WORDS, to=[]),
    "the vision model is a text": setting(VISION, to="clip"),
    "no tokenizer": gone("tokenizer.json", "tokenizer_config.json"),
    "no tokenizer.json": gone("tokenizer.json"),
    "no processor": gone("processor_config.json"),
    "no chat template": gone("chat_template.jinja"),
    "a chat template that is none": text("chat_template.jinja", "{% for %}"),
    "a tokenizer that is text": text("tokenizer.json", "words"),
    "a tokenizer that is a list": text("tokenizer.json", "[]"),
    "a tokenizer that is empty": text("tokenizer.json", "{}"),
    "a tokenizer that is cut off": cut("tokenizer.json", 0.5),
    "tokenizer settings that are a list": text("tokenizer_config.json", "[]"),
    "processor settings that are text": text("processor_config.json", "x"),
    "processor settings that are a list": text("processor_config.json", "[]"),
    "an image processor that is unknown": setting(
        "image_processor", "image_processor_type", to="Colossus", file="processor_config.json"
    ),
    "a mean of text": setting("image_processor", "image_mean", to="grey", file="processor_config.json"),
    "a mean that is not finite": setting(
        "image_processor", "image_mean", to=[float("nan")] * 3, file="processor_config.json"
    ),
    "a deviation of zero": setting("image_processor", "image_std", to=[0, 0, 0], file="processor_config.json"),
    "generation settings that are cut off": text("generation_config.json", '{"eos'),
    "generation settings that are a list": text("generation_config.json", "[]"),
    "another image token": setting("image_token_index", to=7),
}

SIZES = {"image_size": 32, "width": 32, "vision_layers": 1, "text_layers": 1, "heads": 2}


def refused(use: Callable[[Path], Any], folder: Path) -> None:
    """`use` refuses the checkpoint in one line, which names it."""
    with pytest.raises(SegenvError) as caught:
        use(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and 30 < len(message) < 1000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole checkpoints by name; `small` is a tiny model of ours, and the SAM is of a few kilobytes."""
    folder = tmp_path_factory.mktemp("whole")
    made_models.save("llava-1.5", folder / "llava")
    made_models.save_detector("owlvit", folder / "owlvit")
    tiny.save(folder / "small", **SIZES)
    shutil.copytree(SAM, folder / "sam")
    return folder


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tool": ("sam", lambda folder: tools.make(f"sam:{folder}")),
    "agent or base": ("llava", load),
    "base of ours": ("small", lambda folder: tiny_checkpoint(str(folder))),
    "detector": ("owlvit", Detector),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_whole_checkpoint_loads(loader: str, whole: Path) -> None:
    name, use = LOADERS[loader]
    use(whole / name)


EVERYWHERE = (  # faults that each entry is tried with; of the others, each entry is tried with some
    *("a weight is missing", "all names have a prefix", "cut off in the middle", "weights of another shape", "NaN"),
    *("a shard is absent", "a config that is a list", "model_type is a list"),
)
CASES = [(loader, fault) for fault in EVERYWHERE for loader in LOADERS]
CASES += [(list(LOADERS)[k % len(LOADERS)], fault) for k, fault in enumerate(ANY) if fault not in EVERYWHERE]


@pytest.mark.parametrize(("loader", "fault"), CASES)
def test_what_is_not_whole_is_refused(loader: str, fault: str, whole: Path, tmp_path: Path) -> None:
    name, use = LOADERS[loader]
    folder = shutil.copytree(whole / name, tmp_path / "broken")
    ANY[fault](folder)
    refused(use, folder)


@pytest.mark.parametrize(
    "fault", [pytest.param(k, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, k in enumerate(TEXT_MODEL)]
)
def test_a_language_model_that_is_not_whole_is_refused(fault: str, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "llava", tmp_path / "broken")
    TEXT_MODEL[fault](folder)
    refused(load, folder)


@pytest.mark.parametrize("value", [[], "x", {"image_size": 10**9}, {"image_size": "64"}, {"max_new_tokens": -1}])
def test_a_declaration_that_no_agent_understands(value: Any, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "small", tmp_path / "broken")
    setting("segenv", to=value or [1])(folder)
    refused(load, folder)


@pytest.mark.parametrize(
    "fault",
    [
        setting("text_config", "rms_norm_eps", to=float("nan")),
        setting("vision_feature_layer", to=99),
    ],
)
def test_a_model_that_cannot_answer_is_no_agent(fault: Fault, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "llava", tmp_path / "broken")
    fault(folder)
    refused(TransformersBackend, folder)


@pytest.mark.parametrize("fault", [gone("tokenizer.json"), text("tokenizer.json", "{}"), text("tokenizer.json", "[]")])
@pytest.mark.parametrize("use", [Detector, lambda folder: _token_counter(str(folder))], ids=["detector", "tokenizer"])
def test_a_tokenizer_that_knows_no_words(fault: Fault, use: Any, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "owlvit", tmp_path / "broken")
    fault(folder)
    refused(use, folder)


@pytest.mark.parametrize("value", ["grey", [0.5], [0, 0, 0], [float("nan")] * 3, [None] * 3])
def test_a_normalisation_that_is_none(value: Any, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "sam", tmp_path / "broken")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_std": value}))
    refused(lambda folder: tools.make(f"sam:{folder}"), folder)


def test_tied_weights_are_written_once_and_missed_together(whole: Path, tmp_path: Path) -> None:
    model, _ = load(whole / "small")
    held = load_file(whole / "small" / WEIGHTS)
    (table,) = [name for name in held if "embed_tokens" in name]
    assert not [name for name in held if "lm_head" in name]
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    folder = shutil.copytree(whole / "small", tmp_path / "broken")
    tensors(lambda held: held.pop(table))(folder)
    refused(load, folder)


def test_a_loaded_model_has_the_weights_of_the_library(whole: Path) -> None:
    for folder in (whole / "small", TINY):
        (ours, _), theirs = load(folder), transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
        assert weights_hash(ours) == weights_hash(theirs)


def test_weights_in_shards_and_of_more_than_the_model_load(whole: Path, tmp_path: Path) -> None:
    """Heads that a training added, and tables that older versions stored, are no other model."""
    folder = shutil.copytree(whole / "small", tmp_path / "more")
    plain = weights_hash(load(folder)[0])
    more = {"v_head.summary.weight": torch.zeros(3), "language_model.model.rotary_emb.inv_freq": torch.zeros(3)}
    tensors(lambda held: held | more)(folder)
    assert weights_hash(load(folder)[0]) == plain
    sharded(lambda index, folder: None)(folder)
    assert weights_hash(load(folder)[0]) == plain


PTH: dict[str, Callable[[Path], Any]] = {
    "a text": lambda file: file.write_text("weights"),
    "nothing": lambda file: file.write_bytes(b""),
    "a pickle": lambda file: file.write_bytes(pickle.dumps(print, protocol=2)),
    "cut off": lambda file: (
        torch.save({"a": torch.zeros(999)}, file),
        file.write_bytes(file.read_bytes()[: -len(file.read_bytes()) // 2]),
    ),
    "a list": lambda file: torch.save([torch.zeros(1)], file),
    "no tensors": lambda file: torch.save({"a": 1}, file),
    "numbers as names": lambda file: torch.save({1: torch.zeros(1)}, file),
    "in a dict": lambda file: torch.save({"model": {"a": torch.zeros(1)}}, file),
    "no dict of anything": lambda file: torch.save({}, file),
    "NaN": lambda file: torch.save({"a": torch.full((2,), float("nan"))}, file),
}


@pytest.mark.parametrize("fault", PTH)
def test_a_file_of_pytorch_that_holds_no_weights(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "sam.pth"
    PTH[fault](file)
    refused(read_weights, file)


@pytest.mark.parametrize("change", [{"weight": torch.zeros(2, 3)}, {"more": torch.zeros(1)}, {"bias": None}])
def test_weights_of_another_model_are_not_put_into_one(change: dict[str, Any], tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    held = {name: value for name, value in {**model.state_dict(), **change}.items() if value is not None}
    torch.save(held, tmp_path / "a.pth")
    refused(lambda file: put_weights(model, read_weights(file), file, "Linear"), tmp_path / "a.pth")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    put_weights(model, read_weights(tmp_path / "a.pth"), tmp_path / "a.pth", "Linear")


def test_adapters_and_their_base_are_whole(whole: Path, tmp_path: Path) -> None:
    base = shutil.copytree(whole / "small", tmp_path / "base")
    (model, processor), folder = load(base), tmp_path / "adapters"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)
    processor.save_pretrained(folder)
    names = [name for name, _ in load(folder)[0].named_parameters() if "lora_" in name]
    assert names
    shutil.copytree(folder, tmp_path / "broken")
    held = load_file(folder / ADAPTERS)
    for changed in ({name: held[name] for name in sorted(held)[1:]}, {name: held[name] / 0 for name in held}):
        save_file(changed, tmp_path / "broken" / ADAPTERS, {"format": "pt"})
        refused(load, tmp_path / "broken")
    tensors(lambda held: held.pop(max(held)))(base)
    with pytest.raises(CheckpointError, match=r"base: the checkpoint lacks 1 weights"):
        load(folder)


@pytest.mark.parametrize("fault", ["a weight is missing", "NaN", "cut off in the middle"])
def test_a_training_begins_with_nothing_but_a_whole_base(fault: str, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "small", tmp_path / "broken")
    ANY[fault](folder)
    row: SFTExample = {"image": np.zeros((32, 32, 3), np.uint8), "prompt": "mask", "reply": "Finish"}
    refused(lambda folder: finetune(folder, [row], tmp_path / "out", SFTOptions(steps=1)), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("fault", ["a weight is missing", "NaN", "weights of another shape", "cut off at the end"])
def test_a_training_resumes_with_whole_weights(fault: str, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "small", tmp_path / "checkpoint-7")
    trainer: Any = SimpleNamespace(model=tiny.build(1, **SIZES)[0])
    ResumesWhole._load_from_checkpoint(trainer, str(folder))
    assert weights_hash(trainer.model) == weights_hash(load(folder)[0])
    ANY[fault](folder)
    refused(lambda folder: ResumesWhole._load_from_checkpoint(trainer, str(folder)), folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_training_resumes_with_a_whole_state(name: str, tmp_path: Path) -> None:
    torch.save({"state": torch.arange(99)}, tmp_path / name)
    check_state(tmp_path)
    content = (tmp_path / name).read_bytes()
    middle = content.index(bytes(torch.arange(50, 60).numpy().tobytes()))
    for damaged in (b"", b"state", content[:-9], content[:middle] + b"\xff" + content[middle + 1 :]):
        (tmp_path / name).write_bytes(damaged)
        refused(check_state, tmp_path)


class Line(Trainer):
    """The smallest training."""

    stages = ("only",)

    def __init__(self) -> None:
        settings = {"only_steps": 2, "rate": 0.1, "cooldown": 1}
        super().__init__(SimpleNamespace(**settings), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        return self.heads(self.model(batch)).sum(), {}


def test_the_state_of_a_tiny_training_is_whole(tmp_path: Path) -> None:
    begun, file = Line(), tmp_path / STATE
    begun.train_step(torch.ones(1, 2))
    begun.save(tmp_path)
    content, held = file.read_bytes(), load_file(file)
    resumed = Line()
    resumed.load(tmp_path)
    assert resumed.step == 1 and torch.equal(resumed.model.weight, begun.model.weight)
    about = {"state": '{"step": 1}'}
    wrong = {
        "cut": lambda: file.write_bytes(content[:-9]),
        "text": lambda: file.write_text("state"),
        "missing": lambda: save_file({k: v for k, v in held.items() if k != "model.weight"}, file, about),
        "shape": lambda: save_file(held | {"model.weight": torch.zeros(1)}, file, about),
        "NaN": lambda: save_file(held | {"model.bias": torch.full((2,), torch.nan)}, file, about),
        "no place": lambda: save_file(held | {"model.more": torch.zeros(1)}, file, about),
        "no step": lambda: save_file(held, file),
        "another step": lambda: save_file(held, file, {"state": "[]"}),
    }
    for write in wrong.values():
        write()
        with pytest.raises(SegenvError, match=STATE):
            Line().load(tmp_path)
