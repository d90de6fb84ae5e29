"""Training and held-out tasks without a common image."""

from experiments.common.config import RunError
from segenv import data as datasets
from segenv.data.base import Dataset

HEADLINE = "from:6000:synthetic:test"  # tasks on which nothing is chosen: no rule, rate, constant or checkpoint


def split(
    data: str,
    eval_data: str | None,
    limit: int | None,
    eval_limit: int | None,
    skip_bad: bool = False,
    follow_links: bool = False,
) -> tuple[Dataset, Dataset, list[int], list[int]]:
    """Split training and held-out data, with their tasks' indices. No image is in both."""
    train = datasets.make(data, skip_bad=skip_bad, follow_links=follow_links)
    other = eval_data or ("synthetic:val" if data.startswith("synthetic") else None)
    if other is not None and other != data:
        held_out = datasets.make(other, skip_bad=skip_bad, follow_links=follow_links)
        train_indices, eval_indices = list(range(len(train))[:limit]), list(range(len(held_out))[:eval_limit])
        if shared := set(train.sources[:limit]) & set(held_out.sources[:eval_limit]):
            raise RunError(f"{len(shared)} images are in both {data!r} and {other!r}, {min(shared)!r}; hold out others")
        return train, held_out, train_indices, eval_indices
    kept, apart = train.hold_out(0.3)
    train_indices, eval_indices = kept[:limit], apart[:eval_limit]
    if not train_indices or not eval_indices:
        raise RunError(f"{data!r} has {len(train)} tasks, too few to set some apart; give more, or --eval-data")
    return train, train, train_indices, eval_indices
