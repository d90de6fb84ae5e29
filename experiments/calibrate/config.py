"""Settings of a calibration."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from agents.backends.server import BudgetOptions, ServerOptions
from experiments.common.config import Different, InFolder, OutFolder
from segenv.ranges import Count, Range, Seed

RESUMABLE = frozenset({"batch_size", "server", "budget"})


@dataclass
class Args:
    """Flags of the command line; agents as in docs/mllms.md."""

    agent: str = "mllm"
    codec: str | None = None
    """how the agent is prompted; its own by default. The numbers of its replies are read in every frame"""
    sizes: Annotated[tuple[str, ...], Different()] = ("640x400", "700x1100", "2600x1500")
    """WIDTHxHEIGHT of the pictures: none of them square, and one above the size at which the server shrinks images"""
    each: Annotated[int, Range(4)] = 8
    """pictures of each size"""
    batch_size: Count = 8
    seed: Seed = 0
    out: OutFolder | None = None
    """folder of a new run; by default runs/calibrate-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume"""
    server: ServerOptions = field(default_factory=ServerOptions)
    budget: Annotated[BudgetOptions, tyro.conf.arg(name="")] = field(default_factory=BudgetOptions)
