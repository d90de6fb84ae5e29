"""Training and held-out tasks without a common image."""

from __future__ import annotations

from experiments.common.config import RunError
from segenv import data as datasets
from segenv.data.base import Dataset


def split(
    data: str, eval_data: str | None, limit: int | None, eval_limit: int | None, skip_bad: bool = False
) -> tuple[Dataset, Dataset, list[int], list[int]]:
    """Training and held-out data, and the places of their tasks. No task is in both, nor two tasks of one image."""
    train = datasets.make(data, skip_bad=skip_bad)
    other = eval_data or ("synthetic:val" if data.startswith("synthetic") else None)
    if other is not None and other != data:
        held_out = datasets.make(other, skip_bad=skip_bad)
        train_places, eval_places = list(range(len(train))[:limit]), list(range(len(held_out))[:eval_limit])
        if shared := set(train.sources[:limit]) & set(held_out.sources[:eval_limit]):
            raise RunError(f"{len(shared)} images are in both {data!r} and {other!r}, {min(shared)!r}; hold out others")
        return train, held_out, train_places, eval_places
    kept, apart = train.hold_out(0.3)
    train_places, eval_places = kept[:limit], apart[:eval_limit]
    if not train_places or not eval_places:
        raise RunError(f"{data!r} has {len(train)} tasks, too few to set some apart; give more, or --eval-data")
    return train, train, train_places, eval_places
