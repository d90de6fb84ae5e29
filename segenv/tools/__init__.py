"""Segmentation tools by spec: `sam`, `sam:NAME_OR_PATH`, `segment-anything:vit_b@FILE.pth`, `grabcut`, `disc`."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

from segenv.tools.base import SegTool
from segenv.tools.cache import EncodingCache

__all__ = ["EncodingCache", "SegTool", "make"]

TOOLS = {  # name: (module, class, what its argument after the colon is, or None)
    "sam": ("segenv.tools.sam", "SamTool", "name_or_path"),
    "segment-anything": ("segenv.tools.segment_anything", "SegmentAnythingTool", "checkpoint"),
    "grabcut": ("segenv.tools.grabcut", "GrabCutTool", None),
    "disc": ("segenv.tools.disc", "DiscTool", None),
}


def make(spec: str | SegTool, **options: Any) -> SegTool:
    """The tool that `spec` names; a tool is returned as it is.

    A spec is `name`, `name:argument`, `name:key=value,...` or `name:argument,key=value,...`; keyword arguments are
    options too and win, `cache` among them. Raises ValueError, naming what there is, where a name is unknown.
    """
    if isinstance(spec, SegTool):
        return spec
    name, _, rest = spec.partition(":")
    if name not in TOOLS:
        raise ValueError(f"tool {spec!r} is unknown; expected one of {', '.join(TOOLS)}, with options after a colon")
    module, class_name, argument = TOOLS[name]
    parts = rest.split(",") if rest else []
    given: dict[str, Any] = {}
    while parts and (match := re.fullmatch(r"([a-z_]+)=(.*)", parts[-1])):
        given[match[1]] = _value(match[2])
        parts.pop()
    if parts:
        if argument is None:
            raise ValueError(f"tool {spec!r}: {','.join(parts)!r} is no option; expected key=value")
        given[argument] = ",".join(parts)
    given.update(options)
    tool = getattr(import_module(module), class_name)
    known = inspect.signature(tool).parameters
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"tool {name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return tool(**given)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
