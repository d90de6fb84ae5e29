"""HTML pages from templates, each one file with its pictures in it."""

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.common.run_folder import RunFolder, write_atomic


def write_html(path: Path, template: str, **context: Any) -> None:
    """Render `template` to `path`. Texts in `context` are escaped, also within scripts (`tojson`)."""
    write_atomic(path, rendered(template, **context).encode("utf-8", "replace"))


def rendered(template: str, **context: Any) -> str:
    """Render `template`, with texts in `context` escaped, also within scripts."""
    return _environment().get_template(template).render(**context)


def write_report(folder: RunFolder, template: str, plots: Mapping[str, bytes], **context: Any) -> None:
    """Write plots/ and report.html, which shows the plots."""
    write_html(folder / "report.html", template, plots=save_plots(folder.path, plots), **context)


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page.trim_blocks = page.lstrip_blocks = True
    return page


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg(picture: np.ndarray, quality: int = 82) -> bytes:
    """A picture, uint8 [H, W, 3], as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_uri(picture: np.ndarray, quality: int = 82) -> str:
    """A picture, uint8 [H, W, 3], as the URL of a JPEG."""
    return data_uri(jpeg(picture, quality), "image/jpeg")


def save_plots(folder: Path, plots: Mapping[str, bytes], prefix: str = "") -> dict[str, str]:
    """Write PNGs to `plots/PREFIX…NAME.png` in `folder`, and return their URLs by name."""
    for name, content in plots.items():
        write_atomic(folder / "plots" / f"{prefix}{name}.png", content)
    return {name: data_uri(content, "image/png") for name, content in plots.items()}
