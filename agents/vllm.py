"""Multimodal language models in vLLM's engine, in this process, as agents."""

from collections.abc import Sequence
from typing import Any

from agents.backends.vllm import VllmBackend
from agents.mllm import parse, settle
from agents.prompted import PromptedAgent
from segenv.codec.base import Codec
from segenv.ranges import Count, NotNegative, require


class VllmAgent(PromptedAgent):
    """Prompts the checkpoint of the spec `NAME_OR_PATH`, or `NAME_OR_PATH#SIZE`, as `MllmAgent` does; `options` go to
    `VllmBackend`."""

    backend: VllmBackend

    def __init__(
        self,
        path: str,
        codec: Codec | None = None,
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
        self.spec = f"vllm:{path}"
        name, sent = parse(path)
        if name is None:
            raise ValueError(f"agent {self.spec!r} names no model; expected vllm:NAME_OR_PATH")
        backend = VllmBackend(name, **options)
        declared = getattr(backend.config, "segenv", None) or {}
        codec, prompt = settle(self.spec, backend, declared, codec, prompt, max_new_tokens, (image_size, sent))
        super().__init__(codec, backend, prompt, temperature, proposal_temperature, history)
