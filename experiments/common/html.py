"""Pages from templates, each one file with everything in it."""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.common.run_folder import write_atomic


def write_html(path: Path, template: str, **context: Any) -> None:
    """Render `template` to `path`. Texts in `context` are escaped, also within scripts (`tojson`)."""
    write_atomic(path, _environment().get_template(template).render(**context).encode("utf-8", "replace"))


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
