"""Checkpoints of models: loading that refuses what is not whole, and hashes of weights.

A library fills the weights that a file lacks at random, and passes over those that it has no place for; a model that is
loaded here has every weight of its class, of the right shape and finite, and nothing was left out that belongs to it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segenv.files import stream_hash
from segenv.types import SegenvError, ToolError

if TYPE_CHECKING:
    import torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OBJECTS = (  # the files of a checkpoint that hold a JSON object
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", INDEX),
    *("video_preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"),
    *("tokenizer.json", "vocab.json", "adapter_config.json"),
)
AGAIN = "copy or download it again"
FOLDER = "expected a folder written by save_pretrained, or a name on the Hugging Face Hub that this machine can reach"
COUNTS = re.compile(r"^(?!max_)(.*_)?(layers?|depths?|blocks)$")  # settings that count parts which have weights
SIZES = re.compile(r"(size|dim|heads|labels|channels|width|embeddings|model|queries|groups|experts)$")
POSITIVE = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "patch_size", "image_size", "d_model"),
    *("num_channels", "num_key_value_heads", "mlp_dim"),
}
LARGEST = 10**8  # of any size: above the vocabularies and contexts of released models
PACKED = 16  # weights of a model for each number in a file, at most: 4 bits a weight leave 8 to an int32
BUFFERS = 1 << 27  # numbers in tables that a model makes for itself, at most
CONSTANTS = re.compile(r"(inv_freq|position_ids|position_index|num_batches_tracked|masked_bias|attn_mask)$")


class CheckpointError(ToolError):
    """A checkpoint is absent, damaged, or of another model than it says; the message names it and what to do."""


def load_pretrained(model_class: Any, source: str | Path, what: str, **options: Any) -> Any:
    """The model of transformers that `model_class`, an Auto class or one model's, loads from a folder or a name on the
    Hub; `what` names the kind of model in messages, and `options` go to `from_pretrained`.

    Only safetensors are read, and nothing is asked of the Hub about a folder. Raises `CheckpointError` for a checkpoint
    that is not whole: weights that are missing (tied ones aside), of another shape, not finite, or of a larger model
    than its configuration says; and for all that the library cannot read.
    """
    with reading(source, what):
        if is_local(source):
            options["local_files_only"] = True
            sizes = _check_folder(Path(source), what)
            if sizes is None and not (Path(source) / "config.json").is_file():
                return _load_adapters(model_class, Path(source), what, options)
            _check_sizes(model_class, source, sizes, options)
        model, report = model_class.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        _check_report(model, report, source)
    check_finite(model.state_dict().items(), source, getattr(model, "dtype", ""))
    return model


def _load_adapters(model_class: Any, folder: Path, what: str, options: dict[str, Any]) -> Any:
    """The model of a folder of adapters, by peft, and its base: the library would report on the adapters alone."""
    base = _read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} names no base_model_name_or_path, but {base!r}; {AGAIN}"
        )
    named = {name: value for name, value in options.items() if name != "local_files_only"}
    model = load_pretrained(model_class, base, what, **named)
    with reading(folder, "adapters"):
        report = model.load_adapter(str(folder))
        _check_names("its adapters", getattr(report, "missing_keys", ()), (), (), folder)
    check_finite(model.state_dict().items(), folder, model.dtype)
    return model.eval()


def is_local(source: str | Path) -> bool:
    """Whether a checkpoint lies on this machine's disk under the name `source`, and is asked of no server."""
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


@contextmanager
def reading(source: str | Path, what: str) -> Iterator[None]:
    """Raise `CheckpointError`, in one line, for anything that a library raises within the block at the files of the
    checkpoint `source`: a kind of model, or a part of one, that `what` names. Keeps its bars and tables off the
    caller's own progress."""
    try:
        with no_loading_bars():
            yield
    except SegenvError:
        raise
    except Exception as error:  # each library has its own for a file that it cannot read, down to KeyError
        fault = " ".join(str(error).split())[:300]
        if not isinstance(error, (OSError, ValueError)):
            fault = f"{type(error).__name__}: {fault}"
        if is_local(source):
            raise CheckpointError(f"the {what} of {str(source)!r} cannot be loaded: {fault}; {AGAIN}") from error
        raise CheckpointError(f"no {what} at {str(source)!r}: {FOLDER} ({fault})") from error


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], source: str | Path, dtype: object = "") -> None:
    """Raise `CheckpointError` that names some of the weights which are not finite: one pass over each, in place."""
    import torch

    seen: set[tuple[int, Any]] = set()
    bad = []
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel() or tensor.is_meta:
            continue
        if (key := (tensor.data_ptr(), tensor.shape)) in seen:  # tied
            continue
        seen.add(key)
        low, high = torch.aminmax(tensor)
        if not (low.isfinite() and high.isfinite()):  # NaN becomes both
            bad.append(name)
    if bad:
        held = f" as {str(dtype).removeprefix('torch.')}" if dtype else ""
        raise CheckpointError(
            f"{source}: {len(bad)} weights are not finite{held}: {_some(bad)}; their training diverged, or "
            f"the file is damaged: take an earlier one, or {AGAIN}"
        )


def check_words(tokenizer: Any) -> None:
    """Raise ValueError where a tokenizer knows no words, as one does whose vocabulary a library could not find."""
    ids = tokenizer("cat", add_special_tokens=False)["input_ids"]
    if set(ids) <= {tokenizer.unk_token_id}:
        raise ValueError("its tokenizer does not know the word 'cat'; expected tokenizer.json, or the family's files")


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Finite tensors by name from a file of safetensors, or of PyTorch, from which nothing is executed. Raises
    `CheckpointError` for any other content."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is damaged, or holds more than tensors, which is not read; {AGAIN}") from error
    except Exception as error:
        raise CheckpointError(f"{file} is damaged: {' '.join(str(error).split())[:200]}; {AGAIN}") from error
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{file} holds {type(found).__name__} and no weights; expected tensors by name")
    if wrong := [name for name, value in found.items() if not (isinstance(name, str) and torch.is_tensor(value))]:
        raise CheckpointError(f"{file} holds more than tensors by name: {_some(wrong)}; give the weights alone")
    check_finite(found.items(), file)
    return found


def put_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], file: Path, what: str) -> None:
    """Load the tensors of `file` into a model: all of its own, and no others. Raises `CheckpointError`."""
    check_tensors(tensors, model.state_dict(), file, what)
    model.load_state_dict(dict(tensors))


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], file: Path, what: str
) -> None:
    """Raise `CheckpointError` where the tensors of `file` have other names or shapes than those of `what`."""
    wrong = [
        (name, tensors[name].shape, value.shape)
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    _check_names(what, expected.keys() - tensors.keys(), wrong, tensors.keys() - expected.keys(), file)


def _check_report(model: Any, report: Mapping[str, Any], source: str | Path) -> None:
    """Raise `CheckpointError` for what the library reports of loading `model`."""
    unknown = set(report["unexpected_keys"])
    modules = {_numberless(name) for name, _ in model.named_modules()}
    own = {name for name in unknown if not CONSTANTS.search(name) and not modules.isdisjoint(_places(name))}
    if getattr(model, "hf_quantizer", None) is not None:
        own = set()  # scales and the like, which belong to the quantised form
    elif len(unknown) > len(model.state_dict()):
        own = unknown
    _check_names(type(model).__name__, report["missing_keys"], report["mismatched_keys"], own, source, unknown)


def _check_names(
    what: str,
    missing: Iterable[str],
    wrong: Iterable[tuple[str, Any, Any]],
    extra: Iterable[str],
    source: str | Path,
    unknown: Iterable[str] = (),
) -> None:
    """Raise `CheckpointError` where there is any of these; `unknown` may explain what is missing."""
    absent, misshaped, foreign = sorted(missing), sorted(wrong), sorted(extra)
    if absent:
        held = sorted(unknown) or foreign
        instead = f", and holds {_some(held)} instead" if held else ""
        fault = f"the checkpoint lacks {len(absent)} weights of {what}: {_some(absent)}{instead}"
    elif misshaped:
        shapes = [f"{name} is {list(found)} and not {list(expected)}" for name, found, expected in misshaped]
        fault = f"{len(shapes)} weights have other shapes than {what} of this configuration: {_some(shapes)}"
    elif foreign:
        fault = f"the checkpoint has {len(foreign)} weights that {what} of this configuration has no place for: "
        fault += _some(foreign)
    else:
        return
    raise CheckpointError(f"{source}: {fault}; these weights are not whole, or of another model: {AGAIN}")


def _check_folder(folder: Path, what: str) -> dict[str, int] | None:
    """The size of each tensor in a folder's weights, None where they lie under other names than usual. Raises
    `CheckpointError` for files that cannot be read, and for settings that no model can have."""
    if not folder.is_dir():
        raise CheckpointError(f"no {what} at {str(folder)!r}, which is a file; {FOLDER}")
    found = {name: _read_object(folder / name) for name in OBJECTS if (folder / name).is_file()}
    if "config.json" not in found:
        if "adapter_config.json" in found:
            return None
        raise CheckpointError(f"no {what} at {str(folder)!r}: the folder has no config.json; {FOLDER}")
    config = found["config.json"]
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; expected the name of a family"
        )
    if "transformers_weights" in config:
        return None
    if (folder / WEIGHTS).is_file() or INDEX not in found:
        files = [WEIGHTS]
    else:
        listed = found[INDEX].get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(f"{folder / INDEX} has no weight_map from names to files; {AGAIN}")
        files = sorted(set(listed.values()))
    sizes: dict[str, int] = {}
    for name in files:
        sizes |= _tensor_sizes(folder, name)
    if not sizes:
        raise CheckpointError(f"{folder}: {_some(files)} holds no weights; {AGAIN}")
    _check_numbers(config, folder, len(sizes))
    return sizes


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: no JSON ({' '.join(str(error).split())[:120]}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a JSON {type(found).__name__}; expected an object with names; {AGAIN}")
    return found


def _tensor_sizes(folder: Path, name: str) -> dict[str, int]:
    """Numbers in each tensor of a file of safetensors, from its header."""
    from math import prod

    from safetensors import safe_open

    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{folder / INDEX} lists {name!r}, which lies outside the folder; {AGAIN}")
    if not file.is_file():
        other = next(folder.glob("*.bin"), None)
        hint = f"; {other.name} is not read, as it can hold code: convert it to safetensors" if other else f"; {AGAIN}"
        raise CheckpointError(f"{folder} has no file {name}{hint}")
    try:
        with safe_open(file, "pt") as opened:
            return {key: prod(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError, which derives from nothing narrower
        raise CheckpointError(f"{file} is damaged: {' '.join(str(error).split())[:120]}; {AGAIN}") from error


def _check_numbers(config: Mapping[str, Any], folder: Path, tensors: int) -> None:
    """Raise `CheckpointError` where a size in config.json, or in a part of it, is none that a model can have: before
    the library makes as many parts."""
    for name, value in config.items():
        if isinstance(value, dict) and name != "quantization_config":
            _check_numbers(value, folder, tensors)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, int):
                continue
            if COUNTS.search(name) and one > max(tensors, 1000):
                expected = f"no more than the {tensors} tensors of the weights"
            elif one < 1 and name in POSITIVE:
                expected = "1 or more"
            elif one > LARGEST and SIZES.search(name):
                expected = f"{LARGEST} or less"
            else:
                continue
            raise CheckpointError(f"{folder / 'config.json'}: {name} is {one}; expected {expected}; {AGAIN}")


def _check_sizes(model_class: Any, source: str | Path, sizes: dict[str, int] | None, options: dict[str, Any]) -> None:
    """Raise `CheckpointError` for a configuration of a model many times larger than its weights: before there is memory
    for it, with a model of shapes alone."""
    import torch

    if sizes is None:
        return
    named = {name: options[name] for name in ("trust_remote_code", "local_files_only") if name in options}
    if hasattr(model_class, "config_class"):
        config = model_class.config_class.from_pretrained(source, **named)
        build = model_class._from_config
    else:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(source, **named)
        build = model_class.from_config
        named.pop("local_files_only")
    with torch.device("meta"):
        shapes = build(deepcopy(config), **(named if "trust_remote_code" in named else {}))
    needed, there = sum(tensor.numel() for tensor in shapes.parameters()), sum(sizes.values())
    tables = sum(tensor.numel() for tensor in shapes.buffers())
    if needed > PACKED * there + BUFFERS or tables > PACKED * there + BUFFERS:
        raise CheckpointError(
            f"{source}: config.json describes a model of {needed:,} weights and tables of {tables:,} numbers, and the "
            f"weights hold {there:,}; they are not of this model: {AGAIN}"
        )


def _numberless(name: str) -> str:
    """The name of a module without the numbers of layers."""
    return re.sub(r"\d+", "#", name)


def _places(name: str) -> list[str]:
    """The module of a weight, and the list of layers that it is in, without their numbers."""
    module = _numberless(name.rpartition(".")[0])
    return [module, *([module.partition(".#")[0]] if ".#" in module else [])]


def _some(names: Iterable[Any], limit: int = 3) -> str:
    """The first of some names."""
    listed = list(names)
    return ", ".join(map(str, listed[:limit])) + " …" * (len(listed) > limit)


def weights_hash(model: torch.nn.Module, facts: str = "", label: str = "{name} {shape} {dtype}") -> str:
    """128-bit hash of a model's weights and of `facts` that its weights do not show, in hex. Each weight is preceded by
    its `label`."""
    import torch

    def parts() -> Iterator[Any]:  # weights leave a GPU one at a time
        yield facts.encode()
        for name, tensor in sorted(model.state_dict().items()):
            yield label.format(name=name, shape=list(tensor.shape), dtype=tensor.dtype).encode()
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data

    return stream_hash(parts())


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Keep transformers' "Loading weights" bars, and its tables of weights that do not fit, out of the midst of the
    caller's own progress."""
    from transformers.utils import logging as theirs

    shown, reports = theirs.is_progress_bar_enabled(), logging.getLogger("transformers.modeling_utils")

    def no_table(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    theirs.disable_progress_bar()
    reports.addFilter(no_table)
    try:
        yield
    finally:
        reports.removeFilter(no_table)
        if shown:
            theirs.enable_progress_bar()
