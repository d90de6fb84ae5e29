"""Codecs: how an agent writes actions as text. The same object writes the prompt, parses the reply and formats an
action.

A codec is three declared parts: a `Frame` for points and one for boxes (what the numbers mean), a `Grammar` (how
statements look) and a prompt. A new model family is one line in `CODECS`, with a new grammar where its syntax is new. A
codec belongs to a checkpoint and is named before the run; nothing about it is ever guessed from a reply. This is the
only module that knows normalised numbers.

**Reading** is the same for every codec (see `segenv.codec.statements`), and lenient where a reply has one reading: of
the last block of statements the first is played, and `Reading.extra` counts the others; a point without a sign is a
positive click, and `Reading.unsigned` says so. Words, tags, JSON objects and tool calls are read in any codec. A number
outside the frame makes the reply invalid, and so does a last statement that breaks off, as in `Positive point: (12,`:
nothing is clipped, and nothing falls back to an earlier statement.
"""

from pathlib import Path

from segenv import specs
from segenv.codec import file, polygons
from segenv.codec.base import PROMPTS, Codec
from segenv.codec.frames import Frame, claude_size, image_size, padded_square, qwen_size, sent_size
from segenv.codec.grammars import (
    DEEPSEEK,
    FLORENCE,
    GEMINI,
    GLM,
    IBISAGENT,
    INTERN_TAGS,
    LISTS,
    LLAVA,
    MEDSAM,
    MINICPM,
    MOLMO,
    MOLMO2,
    PALIGEMMA,
    QWEN2_TAGS,
    QWEN_JSON,
    QWEN_TAGS,
    SEG_ZERO,
    SEGAGENT,
    WORDS,
    Grammar,
)
from segenv.codec.grids import GRID, GridCodec
from segenv.codec.reading import Reading as Reading
from segenv.files import content_hash

CODECS: dict[str, tuple[Frame, Frame, Grammar]] = {
    # The released SegAgent checkpoint: points are (row, column)/1000, and boxes (x, y)/999, in one reply.
    "segagent": (Frame(1000, "yx"), Frame(999), SEGAGENT),
    "unit-xy": (Frame(1, decimals=3), Frame(1, decimals=3), LISTS),
    "grid1000-xy": (Frame(1000), Frame(1000), WORDS),
    "grid1000-yx": (Frame(1000, "yx"), Frame(1000, "yx"), WORDS),
    "pixels": (Frame(image_size), Frame(image_size, decimals=3), WORDS),
    **{
        name: (frame, frame, grammar)
        for name, frame, grammar in (
            ("qwen-vl", Frame(1000), QWEN_TAGS),
            ("qwen2-vl", Frame(1000), QWEN2_TAGS),
            ("qwen2.5-vl", Frame(qwen_size), QWEN_JSON),
            ("qwen3-vl", Frame(1000), QWEN_JSON),
            ("internvl", Frame(1000), INTERN_TAGS),
            ("molmo", Frame(100, decimals=1), MOLMO),
            ("molmo2", Frame(1000), MOLMO2),
            ("gemini", Frame(1000, "yx"), GEMINI),
            ("gemini-computer-use", Frame(999), WORDS),
            ("claude", Frame(claude_size), WORDS),
            ("gpt", Frame(sent_size), WORDS),
            ("glm", Frame(1000), GLM),
            ("kimi-vl", Frame(1, decimals=3), QWEN_JSON),
            ("minicpm-v", Frame(1000), MINICPM),
            ("seg-zero", Frame(840), SEG_ZERO),
            ("ibisagent", Frame(1, decimals=4), IBISAGENT),
            ("medsam-agent", Frame(qwen_size), MEDSAM),
            ("swim", Frame(1000), QWEN_JSON),
            ("deepseek-vl2", Frame(999), DEEPSEEK),
            ("paligemma", Frame(1023, "yx"), PALIGEMMA),
            ("florence-2", Frame(999), FLORENCE),
            ("llava-1.5", Frame(padded_square, decimals=3), LLAVA),
        )
    },
}


def make(spec: str) -> Codec:
    """The codec of a spec: a name in `CODECS`, alone or with a prompt in `PROMPTS`, as in `segagent:prompt=short`; a
    codec of masks, one of `polygons.DIALECTS` or `text4seg:grid=16`; or a file that ends in .yaml
    (`segenv.codec.file`)."""
    if spec.endswith((".yaml", ".yml")):
        return _of_file(spec)
    expected = (
        f"one of {', '.join(CODECS)}, alone or followed by :prompt={'|'.join(PROMPTS)}, "
        f"one of {', '.join(polygons.DIALECTS)}, text4seg or text4seg:grid=N, or a file that ends in .yaml"
    )
    name, _ = specs.name_of("codec", spec, [*CODECS, *polygons.DIALECTS, "text4seg"], expected)
    if name == "text4seg":
        return GridCodec(spec, **specs.options_of("codec", spec, {"grid": GRID}))
    if name not in CODECS:
        return polygons.make(spec)
    return Codec(spec, *CODECS[name], **specs.options_of("codec", spec, {"prompt": "annotator"}))


def _of_file(spec: str) -> Codec:
    found, content = file.read(Path(spec))
    if found.writes not in CODECS:
        raise ValueError(f"codec {spec!r}: writes is {found.writes!r}; expected one of {', '.join(CODECS)}")
    grammar = CODECS[found.writes][2]
    if found.order == "yx" and "x=" in grammar.point:
        raise ValueError(f"codec {spec!r}: order is 'yx', and {found.writes} names its axes; expected xy")
    codec = Codec(spec, found.frame, found.frame, grammar, found.prompt)
    codec.writes, codec.content_hash = found.writes, content_hash(content)
    return codec


get = make  # the name that others use
