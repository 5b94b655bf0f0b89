from __future__ import annotations

import itertools

import numpy as np
import pytest

from raycl.report.statistics import bootstrap, paired, summary


def test_golden_summary() -> None:
    found = summary({2: 87.0, 0: 80.0, 1: 82.0})
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(83.0)
    assert found["std"] == pytest.approx(13**0.5)
    # each extreme has probability 1/27 > 2.5 %: with three seeds the interval is the range
    assert (found["low"], found["high"]) == (80.0, 87.0)


def test_interval_is_the_bootstrap_distributions_quantiles() -> None:
    values = np.array([61.0, 70.5, 72.0, 80.0, 93.5])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=len(values))])
    low, high = bootstrap(values)
    assert low == pytest.approx(np.percentile(every, 2.5), abs=0.5)
    assert high == pytest.approx(np.percentile(every, 97.5), abs=0.5)


def test_interval_covers_a_normal_mean_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(0).normal(50, 4, size=(30, 2000))
    low, high = bootstrap(samples)
    assert 0.92 < np.mean((low <= 50) & (high >= 50)) < 0.97


def test_columns_are_independent_and_repeatable() -> None:
    values = np.random.default_rng(1).normal(size=(6, 4))
    low, high = bootstrap(values)
    again = [bootstrap(values[:, k]) for k in range(4)]
    np.testing.assert_allclose(low, [a for a, _ in again])
    np.testing.assert_allclose(high, [b for _, b in again])
    np.testing.assert_array_equal(bootstrap(values)[0], low)


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = summary(dict.fromkeys(range(7), 84.3))
    assert (found["mean"], found["low"], found["high"]) == (84.3, 84.3, 84.3)
    assert found["std"] == pytest.approx(0, abs=1e-9)


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    assert summary({4: 12.5}) == {"n": 1, "mean": 12.5, "std": None, "low": None, "high": None}
    with pytest.raises(ValueError, match="no interval"):
        bootstrap(np.array([1.0]))


def test_differences_use_shared_seeds_only() -> None:
    found = paired({0: 80.0, 1: 82.0, 2: 87.0}, {1: 70.0, 2: 74.0, 3: 10.0})
    assert (found["mean"], found["n"]) == (12.5, 2)
    assert (found["low"], found["high"]) == (12.0, 13.0)
    assert paired({0: 1.0}, {1: 1.0}) == {}


def test_pairing_is_sharper_than_the_two_intervals() -> None:
    noise = np.random.default_rng(2).normal(0, 10, size=8)
    base = dict(enumerate(50 + noise))
    better = {seed: value + 1 for seed, value in base.items()}
    found = paired(better, base)
    assert found["low"] == pytest.approx(1)
    assert summary(better)["low"] < summary(base)["high"]
