"""How good stated IoUs are: as a regression, as probabilities, as a ranking of one task's masks, and as a filter.

Masks of one task are alike, so every 95 % interval is of a bootstrap over tasks (2000 resamples).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from segenv import metrics

BINS = 10
RESAMPLES = 2000
APART = 0.05  # masks whose IoUs are nearer than this need not be ranked

PROTOCOL = {
    "mae": "mean |stated − true IoU|, in 0..1",
    "mse": "mean (stated − true IoU)²",
    "bias": "mean stated − true IoU",
    "pearson": "linear correlation of stated and true IoU over all masks",
    "spearman": "rank correlation, equal values sharing their mean rank",
    "ece": f"|mean stated − mean true IoU| in {BINS} equal bins of the stated IoU, weighted by their masks",
    "ranking": f"share of pairs of masks of one task, their true IoUs at least {APART} apart, that the statements put "
    "in the right order; equal statements count half",
    "intervals": f"95 % percentile bootstrap over tasks, {RESAMPLES} resamples, seed 0",
}


def calibration(
    stated: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray, tasks: Sequence[Hashable]
) -> dict[str, Any]:
    """Measures of stated against true IoUs (in 0..1), [N] each, of masks of `tasks` [N]: those of `PROTOCOL`, with
    `intervals` under the same keys where there is one, and `reliability`, a list of bins of the stated IoU."""
    said, real = np.asarray(stated, np.float64), np.asarray(true, np.float64)
    _, which = np.unique([str(task) for task in tasks], return_inverse=True)
    rows = [np.ones(len(said)), said, real, said**2, real**2, said * real, np.abs(said - real), (said - real) ** 2]
    sums = np.stack([np.bincount(which, row) for row in rows])  # [8, tasks]
    pairs = np.array([_pairs(said[which == k], real[which == k]) for k in range(sums.shape[1])]).reshape(-1, 2)
    drawn = np.random.default_rng(0).multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), RESAMPLES)
    again = drawn @ sums.T  # [resamples, 8]
    return {
        "masks": len(said),
        "tasks": sums.shape[1],
        "mae": metrics.mae(said, real),
        "mse": float(((said - real) ** 2).mean()),
        "bias": float((said - real).mean()),
        "pearson": metrics.pearson(said, real),
        "spearman": metrics.spearman(said, real),
        "ece": metrics.ece(said, real, BINS),
        "ranking": float(pairs[:, 0].sum() / pairs[:, 1].sum()) if pairs[:, 1].any() else float("nan"),
        "intervals": {
            "mae": _between(again[:, 6] / again[:, 0]),
            "mse": _between(again[:, 7] / again[:, 0]),
            "bias": _between((again[:, 1] - again[:, 2]) / again[:, 0]),
            "pearson": _between(_correlations(again)),
            "ranking": list(metrics.bootstrap_ratio(pairs[:, 0], pairs[:, 1])),
        },
        "reliability": reliability(said, real),
    }


def reliability(stated: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """For each of `BINS` equal bins of the stated IoU that holds a mask: its edges, masks, mean stated and true IoU,
    and the quartiles of the true one."""
    which = np.clip((stated * BINS).astype(int), 0, BINS - 1)
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


def _between(values: np.ndarray) -> list[float]:
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return [float(low), float(high)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
