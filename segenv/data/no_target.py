"""Tasks whose object is not in the image: an image, and the words of another image's object."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from segenv.data.base import Dataset
from segenv.files import json_hash
from segenv.seeds import seed_of
from segenv.types import BadItem, Task

_TRIES = 100  # objects of other images, before an image is said to hold them all


class NoTarget(Dataset):
    """The tasks of another dataset, of which about a `share` (0..1, by a hash of their ids) ask for what is not there.

    These have an empty target, the instruction of a task that is drawn from the same dataset until `Dataset.lacks` says
    that nothing in the image fits it, and `meta["absent"]`; what else is in `meta` is the original task's. Ids are
    those of the other dataset.
    """

    def __init__(self, whole: Dataset, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected a part of the tasks, above 0 and at most 1")
        super().__init__(whole.skip_bad, whole.follow_links)
        self.spec = f"no-target:{'' if share == 1 else f'{share:g}:'}{whole.spec}"
        self._skipped = whole._skipped
        self._whole, self._share = whole, share

    @property
    def ids(self) -> Sequence[str]:
        return self._whole.ids

    @property
    def sources(self) -> Sequence[str]:
        return self._whole.sources

    def __len__(self) -> int:
        return len(self._whole)

    @property
    def fingerprint(self) -> str:
        return json_hash(["absent", self._share, self._whole.fingerprint])

    def load(self, i: int) -> Task:
        task = self._whole.load(i)
        rng = np.random.default_rng(seed_of("absent", task.id))
        if rng.random() >= self._share:
            return task
        nothing, meta = np.zeros(task.target.shape, bool), {**task.meta, "absent": True}
        return replace(task, target=nothing, instruction=self._words(i, rng), initial_mask=None, meta=meta)

    def _words(self, i: int, rng: np.random.Generator) -> str:
        """The instruction of another task that nothing in image `i` fits."""
        for k in rng.integers(len(self), size=_TRIES).tolist():
            try:
                words = self._whole.load(k).instruction
            except BadItem:
                continue
            if words and self._whole.lacks(i, words):
                return words
        raise BadItem(
            f"item {self.ids[i]!r}: of {_TRIES} instructions drawn from {self._whole.spec}, none is known to fit "
            "nothing in its image; take a dataset whose images differ more, and whose tasks have instructions"
        )
