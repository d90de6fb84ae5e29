"""A training in as many processes as `accelerate launch` was asked for."""

from __future__ import annotations

import os
import re
import sys

from experiments.common.config import RunError

LAUNCHER = re.compile(r"^(launch|accelerate\.commands\.launch)$|(accelerate-launch|accelerate/commands/launch\.py)$")


def as_launched() -> None:
    """Become the processes that `accelerate launch --num_processes N` was asked for. Without GPUs it starts one,
    whatever N says, unless it is told `--multi_gpu`, which on CPUs means gloo: so this process goes on as the same
    command with that flag. Raises RunError where there are fewer GPUs than that."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ:
        return  # not launched, or launched in full
    import psutil
    import torch
    from accelerate.commands.launch import launch_command_parser

    words = psutil.Process(os.getppid()).cmdline()
    begin = next((k + 1 for k, word in enumerate(words) if LAUNCHER.search(word)), None)
    if begin is None:
        return
    flags = words[begin:]
    asked = launch_command_parser().parse_args(flags)
    if (asked.num_processes or 1) == 1:
        return
    if torch.cuda.is_available():
        raise RunError(
            f"accelerate started 1 process where {asked.num_processes} were asked for, as this machine has "
            f"{torch.cuda.device_count()} GPU; give --num_processes 1"
        )
    if asked.cpu:
        flags.remove("--cpu")  # it cannot stand beside the other
    print(f"accelerate started 1 process of {asked.num_processes}: again, with --multi_gpu", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, *words[1:begin], "--multi_gpu", *flags])
