"""Cluster bootstrap: it covers what it says it covers, and it is what a plain loop gives."""

from __future__ import annotations

import numpy as np
import pytest

from ima.core.resampling import macro_mean, mean, of_sums, paired_difference, ratio


def clustered(seed: int, num_clusters: int = 40, per_cluster: int = 6) -> tuple[np.ndarray, list[int]]:
    """Values whose cluster means vary: mean 0.5 in truth."""
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0.1, 0.9, num_clusters)
    values = (generator.random((num_clusters, per_cluster)) < centres[:, None]).astype(float)
    return values.ravel(), [cluster for cluster in range(num_clusters) for _ in range(per_cluster)]


def test_interval_covers_the_truth_about_as_often_as_it_says_and_iid_does_not() -> None:
    covered = independent = 0
    for seed in range(200):
        values, clusters = clustered(seed)
        interval = mean(values, clusters, num_resamples=300)
        covered += interval.low <= 0.5 <= interval.high
        naive = mean(values, list(range(len(values))), num_resamples=300)
        independent += naive.low <= 0.5 <= naive.high
    assert 0.89 <= covered / 200 <= 0.99
    assert independent < covered


def test_same_seed_same_interval() -> None:
    values, clusters = clustered(1)
    assert mean(values, clusters) == mean(values, clusters)
    assert mean(values, clusters, seed=1).low != mean(values, clusters, seed=2).low


def test_ratio_equals_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    above, below = generator.integers(0, 4, 30), generator.integers(1, 5, 30)
    clusters = [f"c{i % 7}" for i in range(30)]
    interval = ratio(above, below, clusters, num_resamples=2000)
    assert interval.value == above.sum() / below.sum()
    groups = [[i for i in range(30) if i % 7 == c] for c in range(7)]
    drawn = []
    for _ in range(2000):
        rows = [i for c in generator.integers(0, 7, 7) for i in groups[c]]
        drawn.append(above[rows].sum() / below[rows].sum())
    assert np.allclose([interval.low, interval.high], np.quantile(drawn, [0.025, 0.975]), atol=0.03)


def test_pairing_removes_what_both_share() -> None:
    values, clusters = clustered(3)
    difference = paired_difference(values + 0.1, values, clusters)
    assert difference.value == pytest.approx(0.1) and difference.high - difference.low < 1e-9


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_clusters_have_no_interval(num: int) -> None:
    interval = mean([1.0] * num, ["a"] * num)
    assert np.isnan(interval.low) and np.isnan(interval.high) and interval.num_clusters == num


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="lengths differ"):
        mean([1.0, 2.0], ["a"])


def test_macro_mean_counts_every_group_the_same_and_its_interval_is_that_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    values, groups = generator.random(40), ["a"] * 30 + ["b"] * 8 + ["c"] * 2
    clusters = [f"c{i % 13}" for i in range(40)]
    rows_of = [[i for i in range(40) if i % 13 == c] for c in range(13)]

    def macro(rows: list[int]) -> float:
        kinds = {groups[i] for i in rows}
        return float(np.mean([np.mean([values[i] for i in rows if groups[i] == kind]) for kind in kinds]))

    interval = macro_mean(values, groups, clusters, num_resamples=2000)
    assert interval.value == pytest.approx(macro(list(range(40))))
    drawn = [macro([i for c in generator.integers(0, 13, 13) for i in rows_of[c]]) for _ in range(2000)]
    assert np.allclose([interval.low, interval.high], np.quantile(drawn, [0.025, 0.975]), atol=0.03)


def test_a_ratio_is_a_statistic_of_sums() -> None:
    values, clusters = clustered(5)
    parts = np.stack([values, np.ones_like(values)], axis=1)
    assert of_sums(parts, lambda sums: sums[..., 0] / sums[..., 1], clusters) == mean(values, clusters)
