"""Multimodal language models in this process as agents."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from agents import tiny
from agents.backends.base import SENT_AT
from agents.backends.transformers import Checkpoint, TransformersBackend
from agents.base import EMBEDDED, WEIGHTS
from agents.prompted import MAX_NEW_TOKENS, POLYGON_TOKENS, PROMPTS, PromptedAgent, size_of
from segenv import codec as codecs
from segenv.checkpoints import is_local
from segenv.codec.base import Codec
from segenv.codec.frames import padded_square
from segenv.codec.polygons import PolygonCodec
from segenv.ranges import Count, NotNegative, require

UNTRAINED = "untrained"  # the tiny model with fresh weights


class MllmAgent(PromptedAgent):
    """Prompts an image-text-to-text checkpoint with `picture` and `prompt`, and returns its replies.

    `path` is a name or folder for transformers, the bare name of a folder in agents/weights, "untrained" for the tiny
    model with fresh weights of `seed`, None for the embedded tiny model, or a (model, processor) pair;
    `NAME_OR_PATH#448` and `NAME_OR_PATH#336x448` also give the `image_size`. A fine-tuned checkpoint declares its
    `codec`, `prompt`, `image_size` and `max_new_tokens` in the `segenv` entry of its configuration; where neither it
    nor the caller gives them, they are `segagent`, "codec", None (images are sent as they are, or stretched to the
    square that the processor would cut out of them) and 64 (512 for polygon codecs).

    `prompt`, `history`, `temperature` and `proposal_temperature` are those of `PromptedAgent`; `options` go to
    `TransformersBackend`.
    """

    backend: TransformersBackend

    def __init__(
        self,
        path: str | Path | tuple[Any, Any] | None = None,
        codec: Codec | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        proposal_temperature: float = 0.5,
        prompt: str | None = None,
        image_size: int | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        history: int = 0,
        **options: Any,
    ) -> None:
        require(NotNegative, temperature=temperature, proposal_temperature=proposal_temperature)
        require(Count, max_new_tokens=max_new_tokens)
        if path is None and not (EMBEDDED / "config.json").is_file():
            warnings.warn(
                f"no weights are embedded in {EMBEDDED}: the agent 'mllm' is an untrained tiny model", stacklevel=3
            )
            path = UNTRAINED
        source: Checkpoint
        if isinstance(path, tuple):
            self.spec, source, sent = "mllm:a model in memory", path, None
        else:
            self.spec = "mllm" if path is None else f"mllm:{path}"
            name, sent = parse(str(path or ""))
            source = tiny.build(seed) if name == UNTRAINED else name or EMBEDDED
        backend = TransformersBackend(source, **options)
        declared = getattr(backend.model.config, "segenv", None) or {}
        codec, prompt = settle(self.spec, backend, declared, codec, prompt, max_new_tokens, (image_size, sent))
        super().__init__(codec, backend, prompt, temperature, proposal_temperature, history)


def settle(
    spec: str,
    backend: Any,
    declared: dict[str, Any],
    codec: Codec | None,
    prompt: str | None,
    max_new_tokens: int | None,
    sizes: Sequence[int | Sequence[int] | None],
) -> tuple[Codec, str]:
    """Codec and prompt of the agent `spec`, as given, else as its checkpoint `declared`, else usual ones; the length of
    replies and the first of `sizes` of images that is given are set in the backend, likewise."""
    codec = codec or codecs.make(declared.get("codec", "segagent"))
    usual = POLYGON_TOKENS if isinstance(codec, PolygonCodec) else MAX_NEW_TOKENS
    backend.max_new_tokens = max_new_tokens or declared.get("max_new_tokens", usual)
    crop = None if codec.points.extent is padded_square else backend.crop  # stretched to that, an image stays whole
    every = (*sizes, declared.get("image_size"), SENT_AT.get(codec.name.partition(":")[0]), crop)
    size = next((size for size in every if size is not None), None)
    backend.image_size = size if size is None or isinstance(size, int) else tuple(size)
    prompt = prompt or declared.get("prompt", "codec")
    if prompt == declared.get("prompt", "codec") not in PROMPTS:  # a checkpoint names no file of ours
        raise ValueError(f"agent {spec!r}: prompt is {prompt!r}; expected one of {', '.join(PROMPTS)}")
    return codec, prompt


def checkpoint(spec: str) -> Path | str | None:
    """The checkpoint of the agent `spec`, to be trained further; None is the untrained tiny model."""
    name, _, rest = spec.partition(":")
    if name != "mllm":
        raise ValueError(f"agent {spec!r} has no weights to train; expected mllm or mllm:NAME_OR_PATH")
    path, _ = parse(rest)
    if path == UNTRAINED or (not path and not (EMBEDDED / "config.json").is_file()):
        return None
    return path or EMBEDDED


def declared(source: Path | str) -> dict[str, Any]:
    """The `segenv` entry in the configuration of a checkpoint: how it is to be prompted."""
    return getattr(AutoConfig.from_pretrained(source, local_files_only=is_local(source)), "segenv", None) or {}


def parse(rest: str) -> tuple[str | None, int | tuple[int, int] | None]:
    """Split the part of a spec after `mllm:` into name or folder (an embedded checkpoint's bare name as its folder,
    unless there is one of that name here) and the size that images are sent at: `PATH#448` is the longest side,
    `PATH#336x448` height and width."""
    path, _, size = rest.partition("#")
    sent = size_of(f"mllm:{rest}", size)
    if path and Path(path).name == path and not Path(path).exists() and (WEIGHTS / path / "config.json").is_file():
        path = str(WEIGHTS / path)
    return path or None, sent
