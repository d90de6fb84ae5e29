"""Workers on Ray, found and ended as a machine that fails ends them."""

import os
import signal
import time
from pathlib import Path


def actors(kind: str = "Player") -> set[int]:
    """Process ids of the actors of a class."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::" + kind.encode()):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def kill_one(among: set[int]) -> None:
    """Kill the first of some processes, and wait for its end."""
    victim = min(among)
    os.kill(victim, signal.SIGKILL)
    line = Path(f"/proc/{victim}/cmdline")
    while line.exists() and line.read_bytes():
        time.sleep(0.05)
