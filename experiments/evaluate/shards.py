"""Parts of an evaluation that several machines share: `--shard K/N`."""

import re
from dataclasses import replace

from experiments.common.config import RunError
from experiments.evaluate.config import Args
from experiments.evaluate.exclusion import Choice

MOST = 99_999  # parts that names of files have digits for


def parse(shard: str) -> tuple[int, int]:
    """K and N of "K/N", 1 <= K <= N. Raises RunError."""
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", shard, re.ASCII)
    if found and 1 <= int(found[1]) <= int(found[2]) <= MOST:
        return int(found[1]), int(found[2])
    raise RunError(f"--shard is {shard!r}; expected K/N, the K-th of N parts, such as 3/8")


def of(chosen: Choice, args: Args) -> tuple[Choice, int | None]:
    """The tasks of one part, and its number; all of them, and None, without `args.shard`. Parts are cut between the
    groups of `batch_size` tasks that advance together, so that episodes equal those of a run in one folder."""
    if args.shard is None:
        return chosen, None
    part, parts = parse(args.shard)
    groups = -(-len(chosen.positions) // args.batch_size)
    if parts > groups:
        raise RunError(f"--shard {args.shard} cuts {groups} groups of --batch-size tasks into {parts} parts; cut fewer")
    begin, end = ((part - 1 + k) * groups // parts * args.batch_size for k in (0, 1))
    return replace(chosen, positions=chosen.positions[begin:end]), part
