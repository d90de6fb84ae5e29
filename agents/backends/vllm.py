"""Image-text-to-text models through vLLM in this process; the checkpoint's own processor tells the frame of each image.

The prompt is the text that transformers would be given: `LLM.generate` takes it with the image beside it.
"""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig

from agents.backends.base import Backend, Reply, Size
from agents.backends.processors import Sizes, processor_of
from agents.backends.transformers import chat
from segenv.checkpoints import is_local, reading
from segenv.files import folder_hash

try:
    from vllm import LLM
except ImportError as missing:
    raise ImportError("agent 'vllm:…' needs vLLM and a GPU: pip install 'segenv[vllm]'") from missing

WHAT = "image-text-to-text checkpoint"


class VllmBackend(Sizes, Backend):
    """The checkpoint `source`, a name or folder, in vLLM's engine. `dtype` is vLLM's; `engine` are further options of
    `vllm.LLM`, such as `tensor_parallel_size`. Sampling is seeded by the item, but vLLM's kernels may depend on the
    batch, as the last bits of any batched model do."""

    def __init__(
        self,
        source: str | Path,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        engine: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__(**sampling)
        self.source, self.dtype = str(source), dtype
        with reading(source, WHAT):
            self.config = AutoConfig.from_pretrained(
                source, trust_remote_code=trust_remote_code, local_files_only=is_local(source)
            )
            self.processor = processor_of(source, self.config, trust_remote_code)
        if "mm_processor_kwargs" in (engine or {}):
            raise ValueError(
                f"vllm:{source}: engine has mm_processor_kwargs, which change what the model sees and not what its "
                "processor tells; give the size of images instead, as in vllm:NAME#448"
            )
        self.engine = {"limit_mm_per_prompt": {"image": 1}, **(engine or {})}
        self._frames: dict[Size, Size | None] = {}
        self.llm: Any = LLM(model=self.source, dtype=dtype, trust_remote_code=trust_remote_code, **self.engine)

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash of the folder's files; None for a name."""
        return folder_hash(Path(self.source)) if is_local(self.source) else None

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes replies."""
        engine = {name: str(value) for name, value in sorted(self.engine.items())}
        revision = getattr(self.config, "_commit_hash", None)  # of a name on the Hub
        told = {"backend": "vllm", "dtype": self.dtype, "engine": engine}
        return {**super().settings, **told, "weights": self.fingerprint or revision}

    def _ask(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int], temperature: float
    ) -> list[Reply]:
        if not len(pictures):
            return []
        began = time.perf_counter()
        asked = [
            {"prompt": self._text(prompt), "multi_modal_data": {"image": Image.fromarray(picture)}}
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        outputs = self.llm.generate(asked, [self._sampling(seed, temperature) for seed in seeds], use_tqdm=False)
        seconds = (time.perf_counter() - began) / len(pictures)
        return [self._reply(*each, seconds) for each in zip(outputs, pictures, strict=True)]

    def _text(self, prompt: str) -> str:
        """The prompt in the checkpoint's chat template, without the token at its start that vLLM's tokenizer adds."""
        text, tokenizer = chat(self.processor, prompt)[0], self.processor.tokenizer
        start = tokenizer.bos_token
        adds = start is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return text.removeprefix(start) if adds else text

    def _sampling(self, seed: int, temperature: float) -> Any:
        """vLLM's settings of one reply; special tokens stay, as they are some families' grammar of points."""
        params = self.llm.get_default_sampling_params()  # the checkpoint's own
        if not self.own_sampling:
            params = type(params)(temperature=temperature, top_p=self.top_p)
        params.max_tokens, params.seed, params.logprobs = self.max_new_tokens, seed & 0x7FFFFFFF, 0
        params.skip_special_tokens = params.spaces_between_special_tokens = False
        return params

    def _reply(self, output: Any, picture: np.ndarray, seconds: float) -> Reply:
        """The reply in vLLM's `RequestOutput`. Its tokens hold the one that ended it, its text does not."""
        said, before = output.outputs[0], len(output.prompt_token_ids or ())
        tokens = len(said.token_ids) - (said.finish_reason == "stop")
        self.tokens["prompt"] += before
        self.tokens["reply"] += tokens
        sent: Size = picture.shape[1], picture.shape[0]
        if sent not in self._frames:
            self._frames[sent] = self.frame_of(*sent)
        return Reply(
            said.text,
            finish_reason=said.finish_reason,
            prompt_tokens=before,
            tokens=tokens,
            seconds=seconds,
            sent=sent,
            frame=self._frames[sent],
            log_probability=said.cumulative_logprob,
        )
