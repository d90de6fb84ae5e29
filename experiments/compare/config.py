"""Settings of a comparison."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.common.config import OutFile, OutPath
from segenv.ranges import CountOrNone


@dataclass(frozen=True)
class Args:
    """Run folders of experiments.evaluate; the others are compared with the first."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """two or more finished runs"""
    out: OutPath | None = None
    """folder of a page with the table, the differences and the tasks on which the runs disagree most"""
    json: OutFile | None = None
    """also write the comparison to this file"""
    gallery: CountOrNone = 24
    """tasks that the page shows, those on which the runs disagree most"""
    any_protocol: bool = False
    """compare also runs under other protocols, in what both measure"""
    any_data: bool = False
    """compare also runs on other data, on the tasks that have one name in all of them"""
    any_prompt: bool = False
    """compare also runs whose models were prompted by other words"""

    @property
    def allowed(self) -> tuple[str, ...]:
        """In what the runs may differ."""
        kinds = {"protocol": self.any_protocol, "data": self.any_data, "prompt": self.any_prompt}
        return tuple(kind for kind, given in kinds.items() if given)
