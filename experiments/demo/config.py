"""Settings of the demo."""

import os
from dataclasses import dataclass
from typing import Annotated

from experiments.common.config import RunError
from segenv.data.images import MAX_PIXELS
from segenv.ranges import Count, Processes, Range, Seed

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PASSWORD, USER = "SEGENV_DEMO_PASSWORD", "segenv"


def password() -> str:
    """The password of the page from the environment, or nothing."""
    return os.environ.get(PASSWORD, "").strip()


@dataclass(frozen=True)
class Args:
    """Flags of the command line."""

    data: str = "synthetic:test"
    """tasks that can be opened by number"""
    tool: str = "sam"
    agent: str = "mllm"
    """who makes the next click when asked"""
    codec: str | None = None
    """how the agent writes actions; by default as its checkpoint says"""
    value: str = "prm"
    """the estimate of the mask's IoU beside the tool's own: prm, prm-mean or self, as in a search, or none"""
    max_steps: Count = 20
    """steps of an episode, those of the person included"""
    seed: Seed = 0
    max_pixels: Count = MAX_PIXELS
    """pixels of an image; larger ones are refused before they are decoded"""
    size: Annotated[int, Range(128, 4096)] = 768
    """longer side of the picture on the page, in pixels"""
    host: str = "127.0.0.1"
    """address to answer at; any but a loopback address needs a password"""
    port: Annotated[int, Range(0, 65535)] = 7860
    """0 takes one that is free"""
    share: bool = False
    """also answer at a public address, through a tunnel of gradio's; needs a password"""
    threads: Processes = 1
    """threads of the tool and the agent"""

    def check_access(self) -> None:
        """Raise RunError where anybody could use the page."""
        if (self.share or self.host not in LOOPBACK) and not password():
            flag = "--share" if self.share else f"--host {self.host}"
            raise RunError(f"{flag} lets others in; set {PASSWORD} to a long random text, which they log in with")
