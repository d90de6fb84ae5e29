"""vLLM's offline API as far as `agents.backends.vllm` uses it, over transformers on the CPU.

Names, defaults and checks are those of vLLM's documentation of multimodal inputs and of its `entrypoints/llm.py`,
`sampling_params.py` and `outputs.py`: `LLM.generate` takes prompts with `multi_modal_data` and one `SamplingParams`
each, tokenizes with special tokens, keeps the token that ended a reply in `token_ids` and leaves it out of `text`.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from agents.backends.transformers import load


@dataclass
class SamplingParams:
    """Settings of one reply."""

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    def __post_init__(self) -> None:
        assert self.temperature >= 0 and 0 < self.top_p <= 1


@dataclass
class CompletionOutput:
    """A reply."""

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    finish_reason: str | None


@dataclass
class RequestOutput:
    """The replies to one prompt."""

    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]


class LLM:
    """An engine; `asked` holds prompts and settings as they came."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        limit_mm_per_prompt: dict[str, int] | None = None,
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
    ) -> None:
        assert limit_mm_per_prompt == {"image": 1} and tensor_parallel_size == 1
        self.model, self.processor = load(model, "float32", trust_remote_code)
        self.model.eval()
        self.asked: list[tuple[str, SamplingParams]] = []

    def get_default_sampling_params(self) -> SamplingParams:
        """The checkpoint's own settings."""
        own = self.model.generation_config
        names = ("repetition_penalty", "temperature", "top_p", "top_k")
        return SamplingParams(**{name: value for name in names if (value := getattr(own, name)) is not None})

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[RequestOutput]:
        """One output for each prompt, in their order."""
        assert len(prompts) == len(sampling_params), "The lengths of prompts and params must be the same."
        return [self._one(prompt, params) for prompt, params in zip(prompts, sampling_params, strict=True)]

    @torch.inference_mode()
    def _one(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        assert set(prompt) == {"prompt", "multi_modal_data"} and set(prompt["multi_modal_data"]) == {"image"}
        image = prompt["multi_modal_data"]["image"]
        assert isinstance(image, Image.Image)
        self.asked.append((prompt["prompt"], params))
        inputs = self.processor(text=[prompt["prompt"]], images=[[image]], return_tensors="pt")
        end = self.model.generation_config.eos_token_id
        ends = [end] if isinstance(end, int) else end or [self.processor.tokenizer.eos_token_id]
        length = inputs["input_ids"].shape[1]
        torch.manual_seed(params.seed or 0)
        sampling = {"temperature": params.temperature, "top_p": params.top_p} if params.temperature else {}
        config = GenerationConfig(
            max_new_tokens=params.max_tokens,
            do_sample=bool(sampling),
            num_beams=1,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **sampling,
        )
        made = self.model.generate(**inputs, generation_config=config, output_logits=True, return_dict_in_generate=True)
        ids = made.sequences[0, length:].tolist()
        steps = [one[0].float().log_softmax(-1)[token].item() for one, token in zip(made.logits, ids, strict=True)]
        stopped = ids[-1] in ends
        text = self.processor.tokenizer.decode(
            ids[: len(ids) - stopped],
            skip_special_tokens=params.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        reason = "stop" if stopped else "length"
        chance = None if params.logprobs is None else math.fsum(steps)
        return RequestOutput(inputs["input_ids"][0].tolist(), [CompletionOutput(0, text, ids, chance, reason)])


@contextmanager
def installed() -> Iterator[None]:
    """Have `import vllm` find this API."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    before = {name: sys.modules.pop(name, None) for name in ("vllm", "agents.backends.vllm", "agents.vllm")}
    sys.modules["vllm"] = module
    try:
        yield
    finally:
        for name, one in before.items():
            sys.modules.pop(name, None)
            if one is not None:
                sys.modules[name] = one
