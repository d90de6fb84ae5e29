"""Players of the segmentation process: `make(spec)` gives an `Agent`, which answers observations with text.

| spec | agent |
|---|---|
| `annotator`, `annotator:VARIANT` | the simulated annotator (see `segenv.annotator`); privileged: it reads the target |
| `random`, `random:p=0.8` | uniform clicks on the image, positive with probability p |
| `mllm` | the embedded tiny multimodal model (untrained, with a warning, where no weights are embedded) |
| `mllm:untrained` | the tiny model with fresh weights |
| `mllm:tiny-mllm`, … | an embedded checkpoint, by the bare name of its folder in agents/weights |
| `mllm:NAME_OR_PATH` | any image-text-to-text checkpoint that transformers loads |
| `mllm:NAME_OR_PATH#448`, `…#336x448` | the same, sent images whose longest side (height x width) is that in pixels |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.base import Agent

if TYPE_CHECKING:
    from segenv.codec.base import Codec

__all__ = ["Agent", "make"]


def make(spec: str | Agent, codec: str | Codec | None = None, seed: int = 0, **options: Any) -> Agent:
    """The agent that `spec` names; an agent is returned as it is.

    `codec` is a name or a codec; None is `pixels`, and for a model what its checkpoint declares, else `segagent`.
    `seed` sets the weights of an untrained model and nothing else: what an agent does is driven by the seeds given to
    `act`. `options` go to the agent's class. Raises ValueError for an unknown name and TypeError for an unknown option.
    """
    from segenv import codec as codecs

    if isinstance(spec, Agent):
        return spec
    name, _, rest = spec.partition(":")
    speaks = codecs.get(codec) if isinstance(codec, str) else codec
    if name == "annotator":
        from agents.annotator import AnnotatorAgent

        return AnnotatorAgent(rest or "ritm", speaks or codecs.get("pixels"), **options)
    if name == "random":
        from agents.random import RandomAgent

        return RandomAgent(speaks or codecs.get("pixels"), **_numbers(spec, rest), **options)
    if name == "mllm":
        from agents.mllm import MllmAgent

        return MllmAgent(rest or None, speaks, seed=seed, **options)
    raise ValueError(f"unknown agent {spec!r}; expected one of annotator[:VARIANT], random[:p=P], mllm[:NAME_OR_PATH]")


def _numbers(spec: str, text: str) -> dict[str, float]:
    """`"p=0.8"` as `{"p": 0.8}`."""
    try:
        pairs = [part.split("=", 1) for part in text.split(",") if part]
        return {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        raise ValueError(
            f"agent {spec!r}: cannot read the options {text!r}; expected key=number pairs such as p=0.8"
        ) from None
