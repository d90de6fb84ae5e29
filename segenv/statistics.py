"""Bootstrap intervals, correlations, and calibration of predicted IoUs: as a regression, as probabilities, as a ranking
of one task's masks, and as a filter.

Values of one image are alike, so every 95 % interval is of a bootstrap over images; of models trained in several
seeds, seeds are a random effect too (`random_effects`).
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from segenv.metrics import Numbers

BINS = 10
RESAMPLES = 2000
DRAWS = 100_000
APART = 0.05  # masks whose IoUs are nearer than this need not be ranked

METRIC_DEFINITIONS = {
    "mae": "mean |stated − true IoU|, in 0..1",
    "mse": "mean (stated − true IoU)²",
    "bias": "mean stated − true IoU",
    "pearson": "linear correlation of stated and true IoU over all masks",
    "spearman": "rank correlation, equal values sharing their mean rank",
    "ece": f"|mean stated − mean true IoU| in {BINS} equal bins of the stated IoU, weighted by their masks",
    "ranking": f"share of pairs of masks of one task, their true IoUs at least {APART} apart, that the statements put "
    "in the right order; equal statements count half",
    "intervals": f"95 % percentile bootstrap over images, {RESAMPLES} resamples, seed 0",
}


def bootstrap(
    values: Numbers, seed: int = 0, n: int = RESAMPLES, images: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % percentile interval of the mean from `n` resamples; (NaN, NaN) without values. The same values and seed give
    the same interval. `images` names the image of each value: values of one image are alike, so images are resampled,
    with all of their values. Without it each value is of an image of its own."""
    return bootstrap_ratio(values, np.ones(len(values)), seed, n, images)


def bootstrap_ratio(
    numerators: Numbers,
    denominators: Numbers,
    seed: int = 0,
    n: int = RESAMPLES,
    images: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """95 % percentile interval of Σ numerators / Σ denominators over resampled pairs, or `images` of pairs: of cIoU,
    from its `areas`."""
    above, below = _by_image(np.stack(_paired(numerators, denominators)), images)
    rng, ratios = np.random.default_rng(seed), []
    chunk = max(1, 2_000_000 // max(1, len(above)))  # resamples at a time, to bound the memory
    for start in range(0, n if len(above) else 0, chunk):
        sampled = rng.integers(0, len(above), (min(chunk, n - start), len(above)))
        totals = below[sampled].sum(1)
        ratios.append(above[sampled].sum(1)[totals > 0] / totals[totals > 0])
    return _interval(np.concatenate(ratios) if ratios else np.zeros(0))


def bootstrap_difference(
    first: Numbers,
    second: Numbers,
    seed: int = 0,
    n: int = RESAMPLES,
    images: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """Mean of first − second on the same items, and its paired 95 % interval: (mean, low, high)."""
    a, b = _paired(first, second)
    return (_mean(a - b), *bootstrap(a - b, seed, n, images))


def random_effects(
    values: Sequence[Numbers] | np.ndarray, images: Sequence[Hashable] | None = None
) -> tuple[float, float, float]:
    """Mean and 95 % interval, (mean, low, high), of `values` [seeds, items] for other seeds and other images: both are
    random effects, crossed, as every seed has the same items.

    A percentile bootstrap over three seeds covers far less than 95 %. So the interval is the generalised one of a
    two-way analysis of variance (Weerahandi 1995): each mean square over its χ², and the mean's variance from them. It
    goes from Student's t with seeds − 1 degrees of freedom, where seeds differ most, to that of the images' means,
    where seeds differ no more than chance, and is a little wide there. Of one seed, `bootstrap` over images."""
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"got values of shape {list(table.shape)}; expected [seeds, items], one or more of each")
    mean, count = float(table.mean()), table.shape[1]
    if len(table) == 1:
        return (mean, *bootstrap(table[0], images=images))
    parts = _by_image(table - mean, images)  # [seeds, images]: of images with several items, the ratio's linear terms
    parts = parts * (parts.shape[1] / count)
    seeds, clusters = parts.shape
    by_seed, by_image = parts.mean(1), parts.mean(0)
    rest = parts - by_seed[:, None] - by_image
    rng = np.random.default_rng(0)

    def variances(squares: np.ndarray, times: int, freedom: int) -> np.ndarray:
        chance = rng.chisquare(freedom, DRAWS) if freedom else np.full(DRAWS, np.inf)
        return times * float((squares**2).sum()) / chance

    of_rest = variances(rest, 1, (seeds - 1) * (clusters - 1))
    of_seeds = np.maximum(variances(by_seed, clusters, seeds - 1) - of_rest, 0)
    of_images = variances(by_image, seeds, clusters - 1)
    errors = np.abs(rng.standard_normal(DRAWS)) * np.sqrt((of_seeds + of_images) / parts.size)
    margin = float(np.percentile(errors, 95))
    return mean, mean - margin, mean + margin


def ratio_terms(numerators: Numbers, denominators: Numbers) -> np.ndarray:
    """Values of items, float64 [N], whose mean is Σ numerators / Σ denominators and whose spread gives the ratio's (its
    first-order terms), so that ratios can be paired and pooled as means are. NaN where all denominators are 0."""
    above, below = _paired(numerators, denominators)
    if not below.sum():
        return np.full(len(above), np.nan)
    ratio = above.sum() / below.sum()
    return ratio + (above - ratio * below) * (len(below) / below.sum())


def _by_image(rows: np.ndarray, images: Sequence[Hashable] | None) -> np.ndarray:
    """Sum the columns of each image, [rows, items] to [rows, images], images in the order in which they come first."""
    if images is None:
        return rows
    if len(images) != rows.shape[1]:
        raise ValueError(f"got {len(images)} images of {rows.shape[1]} values; give the image of each value")
    index: dict[Hashable, int] = {}
    which = [index.setdefault(image, len(index)) for image in images]
    return np.stack([np.bincount(which, row, len(index)) for row in rows])


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of resampled values, but for NaNs."""
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _paired(first: Numbers, second: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Two lists about the same items, float64 [N] each."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"got lists of shapes {list(a.shape)} and {list(b.shape)}; give one value of each for every item"
        )
    return a, b


def pearson(stated: Numbers, true: Numbers) -> float:
    """Linear correlation; NaN where one side does not vary."""
    first, second = _paired(stated, true)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def spearman(stated: Numbers, true: Numbers) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where one side does not vary."""
    first, second = _paired(stated, true)
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, [N], equal values sharing their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[which]


def mae(stated: Numbers, true: Numbers) -> float:
    """Mean absolute error of stated against true IoUs."""
    first, second = _paired(stated, true)
    return _mean(np.abs(first - second))


def ece(stated: Numbers, true: Numbers, bins: int = 10) -> float:
    """Expected calibration error: |mean stated − mean true| in `bins` equal bins of the stated IoU in 0..1, weighted by
    their items."""
    first, second = _paired(stated, true)
    gaps = np.bincount(_bin_of(first, bins), first - second)
    return float(np.abs(gaps).sum() / len(first)) if len(first) else float("nan")


def _bin_of(values: np.ndarray, bins: int) -> np.ndarray:
    """The index of each value's bin, of equal ones in 0..1."""
    return np.clip((values * bins).astype(int), 0, bins - 1)


def calibration(
    stated: Sequence[float] | np.ndarray,
    true: Sequence[float] | np.ndarray,
    tasks: Sequence[Hashable],
    images: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Measures of stated against true IoUs (in 0..1), [N] each, of masks of `tasks` [N] on `images` [N] (by default one
    for each task): those of `METRIC_DEFINITIONS`, with `intervals` under the same keys where there is one, and
    `reliability`, a list of bins of the stated IoU."""
    said, real = np.asarray(stated, np.float64), np.asarray(true, np.float64)
    _, which = np.unique([str(task) for task in tasks], return_inverse=True)
    rows = [np.ones(len(said)), said, real, said**2, real**2, said * real, np.abs(said - real), (said - real) ** 2]
    sums = np.stack([np.bincount(which, row) for row in rows])  # [8, tasks]
    count = sums.shape[1]
    pairs = np.array([_pairs(said[which == k], real[which == k]) for k in range(count)]).reshape(-1, 2)
    of_tasks = None if images is None else [images[int(np.argmax(which == k))] for k in range(count)]
    sums = _by_image(sums, of_tasks)  # [8, images]
    sampled = np.random.default_rng(0).multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), RESAMPLES)
    again = sampled @ sums.T  # [resamples, 8]
    return {
        "masks": len(said),
        "tasks": count,
        "mae": mae(said, real),
        "mse": float(((said - real) ** 2).mean()),
        "bias": float((said - real).mean()),
        "pearson": pearson(said, real),
        "spearman": spearman(said, real),
        "ece": ece(said, real, BINS),
        "ranking": float(pairs[:, 0].sum() / pairs[:, 1].sum()) if pairs[:, 1].any() else float("nan"),
        "intervals": {
            "mae": list(_interval(again[:, 6] / again[:, 0])),
            "mse": list(_interval(again[:, 7] / again[:, 0])),
            "bias": list(_interval((again[:, 1] - again[:, 2]) / again[:, 0])),
            "pearson": list(_interval(_correlations(again))),
            "ranking": list(bootstrap_ratio(pairs[:, 0], pairs[:, 1], images=of_tasks)),
        },
        "reliability": reliability(said, real),
    }


def reliability(stated: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """For each of `BINS` equal bins of the stated IoU that holds a mask: its edges, masks, mean stated and true IoU,
    and the quartiles of the true one."""
    which = _bin_of(stated, BINS)
    found = []
    for k in np.unique(which):
        said, real = stated[which == k], true[which == k]
        low, high = np.percentile(real, (25, 75))
        found.append(
            {
                "bin": [k / BINS, (k + 1) / BINS],
                "masks": len(said),
                "stated": float(said.mean()),
                "true": float(real.mean()),
                "quartiles": [float(low), float(high)],
            }
        )
    return found


def acceptance(
    stated: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray, threshold: float
) -> dict[str, Any]:
    """Annotation filtering: keep the masks whose stated IoU is at least `threshold`. `precision` is the share of the
    kept that are as good as that, `recall` the share of those as good that are kept, `kept` the share of all, and
    `iou_kept` and `iou_all` are mean true IoUs. NaN where there is nothing to divide by."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected an IoU in 0..1, such as 0.75")
    said, real = np.asarray(stated, np.float64), np.asarray(true, np.float64)
    kept, good = said >= threshold, real >= threshold
    return {
        "threshold": threshold,
        "precision": _mean(good[kept]),
        "recall": _mean(kept[good]),
        "kept": _mean(kept),
        "good": _mean(good),
        "iou_kept": _mean(real[kept]),
        "iou_all": _mean(real),
    }


def _pairs(stated: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """How many pairs of one task's masks are ranked right, and how many there are to rank."""
    better = true[:, None] - true[None, :] >= APART
    apart = stated[:, None] - stated[None, :]
    return float((better & (apart > 0)).sum() + (better & (apart == 0)).sum() / 2), float(better.sum())


def _correlations(sums: np.ndarray) -> np.ndarray:
    """Pearson's r from n, Σx, Σy, Σx², Σy², Σxy, [resamples, 6 or more]; NaN where a side does not vary."""
    n, x, y, xx, yy, xy = sums[:, :6].T
    spread = (n * xx - x**2).clip(0) * (n * yy - y**2).clip(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, (n * xy - x * y) / np.sqrt(spread), np.nan)
