"""Multimodal language models behind a server as agents."""

from typing import Any

from agents.backends.openai import OFFICIAL, OpenAIBackend
from agents.backends.server import ServerOptions
from agents.prompted import PromptedAgent, size_of
from segenv import codec as codecs
from segenv.codec.base import Codec
from segenv.codec.polygons import PolygonCodec
from segenv.ranges import Count, NotNegative, require

MAX_NEW_TOKENS = 1024  # of a reply: room for a short thought
POLYGON_TOKENS = 4096


class ServedAgent(PromptedAgent):
    """Prompts the model of the spec `MODEL@BASE_URL`, or `MODEL@BASE_URL#SIZE` with the size at which images are sent.

    The codec is `segagent` where none is given, replies have at most 1,024 tokens (4,096 of polygon codecs), and
    images are sent at a size that servers of the codec's family keep. `server` says how the server is asked, and
    `options` go to `OpenAIBackend`.
    """

    backend: OpenAIBackend

    def __init__(
        self,
        spec: str,
        codec: Codec | None = None,
        temperature: float = 0.0,
        proposal_temperature: float = 0.5,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        history: int = 0,
        server: ServerOptions = ServerOptions(),  # noqa: B008  # frozen
        **options: Any,
    ) -> None:
        require(NotNegative, temperature=temperature, proposal_temperature=proposal_temperature)
        require(Count, max_new_tokens=max_new_tokens)
        self.spec = f"openai:{spec}"
        place, _, size = spec.partition("#")
        model, at, base_url = place.rpartition("@")
        if not at:
            model, base_url = place, OFFICIAL
        if not model or (at and not base_url):
            raise ValueError(f"agent {self.spec!r} names no model; expected openai:MODEL@BASE_URL")
        codec = codec or codecs.make("segagent")
        usual = POLYGON_TOKENS if isinstance(codec, PolygonCodec) else MAX_NEW_TOKENS
        backend = OpenAIBackend(
            model,
            base_url,
            getattr(codec, "writes", codec.name.partition(":")[0]),
            server,
            image_size=size_of(self.spec, size),
            max_new_tokens=max_new_tokens or usual,
            **options,
        )
        super().__init__(codec, backend, prompt or "codec", temperature, proposal_temperature, history)
