"""Multimodal language models as agents: they see the mask painted over the image, and write a click."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents import tiny
from agents.backends.transformers import Checkpoint, TransformersBackend
from agents.base import EMBEDDED, WEIGHTS, Agent
from segenv import codec as codecs
from segenv import render
from segenv.codec.base import Codec
from segenv.codec.polygons import PolygonCodec
from segenv.mdp import Observation
from segenv.ranges import Count, NotNegative, require
from segenv.types import BadItem, Task

UNTRAINED = "untrained"  # the tiny model with fresh weights
PROMPTS = ("codec", "instruction")
MAX_NEW_TOKENS = 64  # of a reply, unless a checkpoint or the caller gives another number
POLYGON_TOKENS = 512  # of a reply of a polygon codec: room for some 40 vertices


class MllmAgent(Agent):
    """Prompts an image-text-to-text checkpoint with `picture` and `prompt`, and returns its replies.

    `path` is a name or folder for transformers, the bare name of a folder in agents/weights, "untrained" for the tiny
    model with fresh weights of `seed`, None for the embedded tiny model, or a (model, processor) pair;
    `NAME_OR_PATH#448` and `NAME_OR_PATH#336x448` also give the `image_size`. A fine-tuned checkpoint declares its
    `codec`, `prompt`, `image_size` and `max_new_tokens` in the `segenv` entry of its configuration; where neither it
    nor the caller gives them, they are `segagent`, "codec", None (images are sent as they are) and 64 (512 for polygon
    codecs).

    `prompt` is "codec" (the codec's whole prompt) or "instruction" (the task's instruction alone). `act` samples at
    `temperature`, where 0 is greedy; `propose` samples at `proposal_temperature` (0.5: on 200 tasks of
    `synthetic:test` it served a search of the embedded policy as well as 0.8). `options` go to `TransformersBackend`.
    """

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
        self.backend = TransformersBackend(source, **options)
        declared = getattr(self.backend.model.config, "segenv", None) or {}
        super().__init__(codec or codecs.make(declared.get("codec", "segagent")))
        usual = POLYGON_TOKENS if isinstance(self.codec, PolygonCodec) else MAX_NEW_TOKENS
        self.backend.max_new_tokens = max_new_tokens or declared.get("max_new_tokens", usual)
        self.prompt_style = prompt or declared.get("prompt", "codec")
        if self.prompt_style not in PROMPTS:
            raise ValueError(
                f"agent {self.spec!r}: prompt is {self.prompt_style!r}; expected one of {', '.join(PROMPTS)}"
            )
        size = next((size for size in (image_size, sent, declared.get("image_size")) if size is not None), None)
        self.backend.image_size = size if size is None or isinstance(size, int) else tuple(size)
        if isinstance(self.codec, Codec) and self.codec.points.resized:
            self.backend.seen_size(448, 448)  # a processor that does not tell is refused here
            self.codec = self.codec.seen_at(self.backend.seen_size)
        self.temperature = temperature
        self.proposal_temperature = proposal_temperature

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes the agent's texts."""
        backend = self.backend
        return {
            **super().settings,
            "prompt": self.prompt_style,
            "image_size": backend.image_size,
            "temperature": self.temperature,
            "proposal_temperature": self.proposal_temperature,
            "max_new_tokens": backend.max_new_tokens,
            "dtype": backend.dtype,
            "weights": backend.fingerprint,
        }

    def check(self, task: Task) -> None:
        """Raise `BadItem` where the checkpoint's processor takes no image of the task's size."""
        try:
            self.backend.check_size(task.width, task.height)
        except (ValueError, ArithmeticError) as error:
            raise BadItem(
                f"item {task.id!r}: the processor of agent {self.spec!r} takes no image of "
                f"{task.width} x {task.height} pixels, width x height ({error}); have images sent at a size that it "
                "takes, with #HEIGHTxWIDTH behind the agent's name, as in mllm:PATH#448x448"
            ) from error

    def picture(self, observation: Observation) -> np.ndarray:
        """The picture for the model: the mask in green over the image, at the size that is sent; uint8 [h, w, 3]."""
        return self.backend.sent(render.overlay(observation.image, observation.mask))

    def prompt(self, observation: Observation) -> str:
        """The prompt for the model: the codec's, or the instruction alone."""
        return observation.instruction if self.prompt_style == "instruction" else self.codec.prompt(observation)

    def _act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        return self._generate(observations, seeds, self.temperature)

    def _sample(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        return self._generate(observations, seeds, self.proposal_temperature)

    def _generate(self, observations: Sequence[Observation], seeds: Sequence[int], temperature: float) -> list[str]:
        pictures, prompts = map(self.picture, observations), map(self.prompt, observations)
        return self.backend.generate(list(pictures), list(prompts), seeds, temperature)


def checkpoint(spec: str) -> Path | str | None:
    """The checkpoint of the agent `spec`, to be trained further; None is the untrained tiny model."""
    name, _, rest = spec.partition(":")
    if name != "mllm":
        raise ValueError(f"agent {spec!r} has no weights to train; expected mllm or mllm:NAME_OR_PATH")
    path, _ = parse(rest)
    if path == UNTRAINED or (not path and not (EMBEDDED / "config.json").is_file()):
        return None
    return path or EMBEDDED


def parse(rest: str) -> tuple[str | None, int | tuple[int, int] | None]:
    """Split the part of a spec after `mllm:` into name or folder (an embedded checkpoint's bare name as its folder,
    unless there is one of that name here) and the size that images are sent at: `PATH#448` is the longest side,
    `PATH#336x448` height and width."""
    path, _, size = rest.partition("#")
    sides = [int(side) for side in size.split("x") if side.isdecimal() and int(side)]
    if size and (not 1 <= len(sides) <= 2 or len(sides) != size.count("x") + 1):
        raise ValueError(f"agent 'mllm:{rest}': {size!r} is no size of images; expected pixels such as 448 or 336x448")
    if path and Path(path).name == path and not Path(path).exists() and (WEIGHTS / path / "config.json").is_file():
        path = str(WEIGHTS / path)
    return path or None, None if not sides else sides[0] if len(sides) == 1 else (sides[0], sides[1])
