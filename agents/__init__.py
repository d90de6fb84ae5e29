"""Players of the segmentation process: `make(spec)` gives an `Agent`, which answers observations with text.

| spec | agent |
|---|---|
| `annotator`, `annotator:VARIANT` | the simulated annotator (see `segenv.annotator`); privileged: it reads the target |
| `random`, `random:p=0.8` | uniform clicks on the image, positive with probability p |
| `random:grid=8` | uniform choice among the actions that `segenv/HLMATGrid-v0` allows on that grid |
| `mllm` | the embedded tiny multimodal model (untrained, with a warning, where no weights are embedded) |
| `mllm:untrained` | the tiny model with fresh weights |
| `mllm:tiny-mllm`, … | an embedded checkpoint, by the bare name of its folder in agents/weights |
| `mllm:NAME_OR_PATH` | any image-text-to-text checkpoint that transformers loads |
| `mllm:NAME_OR_PATH#448`, `…#336x448` | the same, sent images whose longest side (height x width) is that in pixels |
| `vllm:NAME_OR_PATH`, `…#448` | the same, in vLLM's engine on a GPU |
| `openai:MODEL@BASE_URL`, `…#448` | a model behind a server that speaks OpenAI's chat completions |
| `sb3:DIR`, `sb3:FILE.zip` | a policy that Stable-Baselines3 trained, see `agents.sb3_policy`, `agents.sb3_zip` |
| `MODULE:CLASS` | your own subclass of `Agent` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.base import Agent
from agents.own import own_agent, own_class

if TYPE_CHECKING:
    from segenv.codec.base import Codec

__all__ = ["Agent", "make"]
NAMES = ("annotator", "random", "mllm", "vllm", "openai", "sb3")


def make(spec: str | Agent, codec: str | Codec | None = None, seed: int = 0, **options: Any) -> Agent:
    """The agent that `spec` names; an agent is returned as it is.

    `codec` is a name or a codec; None is `pixels`, and for a model what its checkpoint declares, else `segagent`.
    `seed` sets the weights of an untrained model and nothing else: what an agent does is driven by the seeds given to
    `act`. `options` go to the agent's class; a class of your own gets those that it names. Raises
    ValueError for an unknown name and TypeError for an unknown option.
    """
    from segenv import codec as codecs
    from segenv import specs

    if isinstance(spec, Agent):
        return spec
    expected = (
        "one of annotator[:VARIANT], random[:p=P], mllm[:NAME_OR_PATH], vllm:NAME_OR_PATH, openai:MODEL@BASE_URL, "
        "sb3:DIR, MODULE:CLASS"
    )
    own = own_class(spec)
    name, rest = ("own", "") if own else specs.name_of("agent", spec, NAMES, expected)
    if isinstance(codec, str):
        codec = codecs.make(codec)
    if name == "annotator":
        from agents.annotator import AnnotatorAgent

        return AnnotatorAgent(rest or "ritm", codec or codecs.make("pixels"), **options)
    if name == "random":
        from agents.random import RandomAgent

        options = specs.options_of("agent", spec, specs.defaults_of(RandomAgent, skip=1)) | options
        return RandomAgent(codec or codecs.make("pixels"), **options)
    if own is not None:
        return own_agent(own, spec, codec, seed, options)
    if name == "sb3":
        from agents.sb3 import Sb3Agent

        return Sb3Agent(rest, codec or codecs.make("pixels"), **options)
    if name == "openai":
        from agents.served import ServedAgent

        return ServedAgent(rest, codec, **options)
    if name == "vllm":
        from agents.vllm import VllmAgent

        return VllmAgent(rest, codec, **options)
    from agents.mllm import MllmAgent

    return MllmAgent(rest or None, codec, seed=seed, **options)
