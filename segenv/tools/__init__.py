"""Segmentation tools by spec: `sam`, `sam:NAME_OR_PATH`, `segment-anything:vit_b@FILE.pth`, `grabcut`, `disc`, and
`http://HOST:PORT` of a tool service."""

from importlib import import_module
from typing import Any

from segenv import specs
from segenv.tools.base import SegTool
from segenv.tools.cache import EncodingCache

__all__ = ["EncodingCache", "SegTool", "make"]

TOOLS = {  # name: (module, class, what its argument after the colon is, or None)
    "sam": ("segenv.tools.sam", "SamTool", "name_or_path"),
    "segment-anything": ("segenv.tools.segment_anything", "SegmentAnythingTool", "checkpoint"),
    "grabcut": ("segenv.tools.grabcut", "GrabCutTool", None),
    "disc": ("segenv.tools.disc", "DiscTool", None),
    "http": ("segenv.tools.service.client", "HttpTool", "url"),
}


def make(spec: str | SegTool, **options: Any) -> SegTool:
    """The tool that `spec` names; a tool is returned as it is.

    A spec is `name`, `name:argument`, `name:key=value,...` or `name:argument,key=value,...`; keyword arguments are
    options too and win, `cache` among them. Raises ValueError, naming what there is, where a name is unknown.
    """
    if isinstance(spec, SegTool):
        return spec
    name, _ = specs.name_of("tool", spec, TOOLS)
    module, class_name, argument = TOOLS[name]
    tool = getattr(import_module(module), class_name)
    known = specs.defaults_of(tool)
    for key in options:
        if key not in known:
            raise specs.unknown_option("tool", spec, key, known)
    return tool(**specs.options_of("tool", spec, known, argument) | options)
