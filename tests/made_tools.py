"""Tools that fail, for the tests of whatever stands over a tool."""

from __future__ import annotations

from segenv.tools.disc import DiscTool
from segenv.types import ToolError


class BrokenTool(DiscTool):
    """A tool that answers with an error."""

    def _predict(self, encodings, prompts):
        raise ToolError("the tool is gone")
