"""Intervals where values share an image, and where models were trained in several seeds."""

import math

import numpy as np
import pytest

from segenv import statistics


def test_tasks_of_one_image_are_resampled_together():
    """Six tasks on each of 30 images, all alike: their mean is as unsure as that of 30 values."""
    rng = np.random.default_rng(0)
    of_images = rng.random(30)
    values, images = np.repeat(of_images, 6), np.repeat(np.arange(30), 6).tolist()
    together, apart = statistics.bootstrap(values, images=images), statistics.bootstrap(values)
    assert together == pytest.approx(statistics.bootstrap(of_images), abs=1e-12)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert statistics.bootstrap(of_images, images=list(range(30))) == statistics.bootstrap(of_images)
    mean, *ends = statistics.bootstrap_difference(values, np.zeros(180), images=images)
    assert mean == pytest.approx(of_images.mean()) and tuple(ends) == together
    with pytest.raises(ValueError, match="got 2 images of 180 values"):
        statistics.bootstrap(values, images=["a", "b"])


def test_images_of_unlike_counts_keep_the_mean_over_tasks():
    values, images = [0.0, 1.0, 1.0, 1.0, 0.5], ["a", "b", "b", "b", "c"]
    low, high = statistics.bootstrap(values, images=images)
    assert low == 0 and high == 1  # all resamples of a, all of b
    mean, low, high = statistics.random_effects([values, values], images)
    assert mean == pytest.approx(0.7) and low < 0 < 1 < high


def test_a_ratio_becomes_a_mean():
    rng = np.random.default_rng(0)
    clicks = rng.integers(0, 5, 200)
    right = rng.binomial(clicks, 0.4)
    terms = statistics.ratio_terms(right, clicks)
    assert terms.mean() == pytest.approx(right.sum() / clicks.sum())
    assert statistics.bootstrap(terms) == pytest.approx(statistics.bootstrap_ratio(right, clicks), abs=0.004)
    assert np.isnan(statistics.ratio_terms([0, 0], [0, 0])).all()


def test_seeds_that_differ_widen_the_interval_to_students_and_others_do_not():
    rng = np.random.default_rng(0)
    images, noise = rng.normal(0, 0.1, 200), rng.normal(0, 0.05, (3, 200))
    mean, low, high = statistics.random_effects(images + noise)
    pooled = statistics.bootstrap((images + noise).mean(0))
    assert mean == pytest.approx((images + noise).mean()) and low < mean < high
    assert 1 <= (high - low) / (pooled[1] - pooled[0]) < 1.6
    seeds = np.array([[-0.2], [0.0], [0.2]])
    mean, low, high = statistics.random_effects(seeds + np.zeros((3, 50)))
    assert mean == pytest.approx(0) and high == pytest.approx(4.303 * 0.2 / 3**0.5, rel=0.03)  # t of 2 degrees
    assert statistics.random_effects(images[None]) == (images.mean(), *statistics.bootstrap(images))
    assert statistics.random_effects(np.full((3, 4), 0.5)) == (0.5, 0.5, 0.5)
    assert statistics.random_effects([[0.1], [0.3]])[2] > 0.3  # one image: of the seeds alone
    with pytest.raises(ValueError, match=r"shape \[3\]; expected \[seeds, items\]"):
        statistics.random_effects([1.0, 2.0, 3.0])


def coverage(interval, spread: float, seeds: int = 3, images: int = 60, runs: int = 400) -> float:
    """How often an interval holds 0, the true mean, where seeds add `spread` times the images' part of its error."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(runs):
        of_seeds = rng.normal(0, spread * 0.1 * (seeds / images) ** 0.5, (seeds, 1))
        values = of_seeds + rng.normal(0, 0.1, images) + rng.normal(0, 0.07, (seeds, images))
        low, high = interval(values)
        held += low <= 0 <= high
    return held / runs


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_the_pooled_interval_holds_the_true_mean_95_times_in_100(spread):
    assert coverage(lambda values: statistics.random_effects(values)[1:], spread) >= 0.93


@pytest.mark.slow
def test_averaging_seeds_first_does_not_where_they_differ():
    """The interval over images alone, which says nothing of other seeds."""
    assert coverage(lambda values: statistics.bootstrap(values.mean(0), n=400), 0.0) > 0.92
    assert coverage(lambda values: statistics.bootstrap(values.mean(0), n=400), 4.0) < 0.6


def test_calibration_resamples_images():
    rng = np.random.default_rng(0)
    true = np.repeat(rng.random(20), 4)
    stated = true + np.repeat(rng.normal(0, 0.1, 20), 4)
    tasks, images = [f"t{k}" for k in range(80)], [f"i{k // 4}" for k in range(80)]
    apart, together = statistics.calibration(stated, true, tasks), statistics.calibration(stated, true, tasks, images)
    assert apart["mae"] == together["mae"] and apart["tasks"] == together["tasks"] == 80
    width = [found["intervals"]["mae"][1] - found["intervals"]["mae"][0] for found in (apart, together)]
    assert width[1] > 1.5 * width[0] and not math.isnan(width[1])
