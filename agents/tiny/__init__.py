"""The embedded multimodal model: its vision tower, text model, tokenizer and processor."""

from agents.tiny.model import (
    END,
    IMAGE,
    SENTENCES,
    WORDS,
    build,
    deepen,
    enlarge,
    extend,
    initialise,
    refine,
    resize,
    save,
    stretch,
    tokenizer,
)

__all__ = [
    "END",
    "IMAGE",
    "SENTENCES",
    "WORDS",
    "build",
    "deepen",
    "enlarge",
    "extend",
    "initialise",
    "refine",
    "resize",
    "save",
    "stretch",
    "tokenizer",
]
