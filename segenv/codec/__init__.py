"""Codecs: how an agent writes actions as text. The same object writes the prompt, parses the reply and formats an
action.

A codec is three declared parts: a `Frame` for points and one for boxes (what the numbers mean), a `Grammar` (how
statements look) and a prompt. A new model family is one line in `CODECS`, with a new grammar where its syntax is new. A
codec belongs to a checkpoint and is named before the run; nothing about it is ever guessed from a reply. This is the
only module that knows normalised numbers.

**Which statement counts.** A reply may hold a line `Current IOU: 74` and any reasoning. Of all statements in it
(points, boxes, Finish, Undo) the last one counts, because reasoning comes before its conclusion. (SegAgent's published
code takes the first match of its pattern.) A point or box is read anywhere; Finish and Undo count only at the end of a
line and at its start, or after a colon, a number or a tag, so that "I will finish soon" is no stop. A last statement
that breaks off, as in `Positive point: (12,`, makes the reply invalid: it never falls back to an earlier one.
"""

from segenv import specs
from segenv.codec import polygons
from segenv.codec.base import PROMPTS, Codec
from segenv.codec.frames import Frame, image_size, qwen_size
from segenv.codec.grammars import INTERN_TAGS, LISTS, MOLMO, QWEN_TAGS, WORDS, Grammar, json_objects
from segenv.codec.reading import Reading as Reading

CODECS: dict[str, tuple[Frame, Frame, Grammar]] = {
    # The released SegAgent checkpoint: points are (row, column)/1000, and boxes (x, y)/999, in one reply.
    "segagent": (Frame(1000, "yx"), Frame(999), QWEN_TAGS),
    "unit-xy": (Frame(1, decimals=3), Frame(1, decimals=3), LISTS),
    "grid1000-xy": (Frame(1000), Frame(1000), WORDS),
    "grid1000-yx": (Frame(1000, "yx"), Frame(1000, "yx"), WORDS),
    "pixels": (Frame(image_size), Frame(image_size, decimals=3), WORDS),
    "qwen2.5-vl": (Frame(qwen_size), Frame(qwen_size), json_objects("point_2d", "bbox_2d")),
    "qwen3-vl": (Frame(1000), Frame(1000), json_objects("point_2d", "bbox_2d")),
    "internvl": (Frame(1000), Frame(1000), INTERN_TAGS),
    "molmo": (Frame(100, decimals=1), Frame(100, decimals=1), MOLMO),
    "gemini": (Frame(1000, "yx"), Frame(1000, "yx"), json_objects("point", "box_2d")),
}


def make(spec: str) -> Codec:
    """The codec of a spec: a name in `CODECS`, alone or with a prompt in `PROMPTS`, as in `segagent:prompt=short`; or a
    polygon codec, one of `polygons.DIALECTS`."""
    expected = (
        f"one of {', '.join(CODECS)}, alone or followed by :prompt={'|'.join(PROMPTS)}, "
        f"or one of {', '.join(polygons.DIALECTS)}"
    )
    name, _ = specs.name_of("codec", spec, [*CODECS, *polygons.DIALECTS], expected)
    if name not in CODECS:
        return polygons.make(spec)
    return Codec(spec, *CODECS[name], **specs.options_of("codec", spec, {"prompt": "annotator"}))


get = make  # the name that others use
