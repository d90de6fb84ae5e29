"""A few tasks of a dataset, kept in memory: for learning that meets each task many times."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from segenv.data.base import Dataset
from segenv.files import json_hash
from segenv.ranges import Count, Seed, require
from segenv.seeds import seed_of
from segenv.tools.base import SegTool
from segenv.types import Task


class Pool(Dataset):
    """`size` tasks of `data`, sampled without replacement by `seed`; all of them where there are no more.

    A task is read when it is first asked for, and then stays. A tool that is asked about these alone keeps all their
    encodings, where its cache has room for them (`check_room`).
    """

    def __init__(self, data: Sequence[Task], size: int, seed: int = 0) -> None:
        require(Count, size=size)
        require(Seed, seed=seed)
        whole = data if isinstance(data, Dataset) else None
        super().__init__(whole is not None and whole.skip_bad, whole is not None and whole.follow_links)
        if whole is not None:
            self._skipped, self.checks = whole._skipped, whole.checks
        rng = np.random.default_rng(seed_of("pool", seed))
        self.positions = rng.choice(len(data), min(size, len(data)), replace=False).tolist()
        self.data = data
        self.spec = f"{whole.spec if whole is not None else 'tasks'}, {len(self.positions)} of them"
        self._kept: dict[int, Task] = {}

    @cached_property
    def _ids(self) -> list[str]:
        ids = self.data.ids if isinstance(self.data, Dataset) else [task.id for task in self.data]
        return [ids[i] for i in self.positions]

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def load(self, i: int) -> Task:
        if i not in self._kept:
            place = self.positions[i]
            self._kept[i] = self.data.load(place) if isinstance(self.data, Dataset) else self.data[place]
        return self._kept[i]

    @property
    def fingerprint(self) -> str:
        return json_hash([self.data.fingerprint if isinstance(self.data, Dataset) else "", *self.ids])

    def check_room(self, tool: SegTool) -> None:
        """Raise ValueError where the tool's cache cannot hold the encodings of all tasks, by the size of the first."""
        task = next(iter(self))
        [encoding] = tool.encode([task.image], [task.image_hash])
        needed = len(self) * sum(array.nbytes for array in encoding.values())
        if needed > tool.cache.max_bytes:
            raise ValueError(
                f"pool of {len(self)} tasks needs {needed >> 20} MiB for encodings of {tool.spec}; its cache holds "
                f"{tool.cache.max_bytes >> 20} MiB: take fewer, or give the tool a larger EncodingCache(max_bytes=...)"
            )
