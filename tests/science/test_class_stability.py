"""Stability of a classification: values that follow from the definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from spa import class_stability as stability

A = [1, 1, 1, 2, 2, 2]
B = [1, 1, 2, 2, 3, 3]


def test_entropy_from_sure_to_none():
    found = stability.entropy([[1, 0, 0], [1, 1, 1], [0.5, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(found, [0, 1, np.log(2) / np.log(3), 1])
    assert stability.entropy(np.ones((4, 1))).tolist() == [0] * 4


def test_migration_counts_changed_numbers():
    assert stability.migration(A, A) == 0
    assert stability.migration(A, [1, 1, 2, 2, 2, 1]) == pytest.approx(2 / 6)
    assert stability.migration([], []) == 0
    with pytest.raises(ValueError, match="6 and 5 particles"):
        stability.migration(A, B[:5])


def test_adjusted_rand_is_that_of_counting_pairs():
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = rng.integers(0, 4, 30), rng.integers(0, 3, 30)
        pairs = list(itertools.combinations(range(30), 2))
        same = np.array([[a[i] == a[j], b[i] == b[j]] for i, j in pairs])
        both, each = same.all(axis=1).sum(), same.sum(axis=0)
        expected = each.prod() / len(pairs)
        assert stability.adjusted_rand(a, b) == pytest.approx((both - expected) / (each.mean() - expected))


def test_adjusted_rand_of_known_cases():
    assert stability.adjusted_rand(A, [7, 7, 7, 3, 3, 3]) == 1
    # Hubert & Arabie's index of this pair, by hand: (2 - 6 * 3 / 15) / ((6 + 3) / 2 - 6 * 3 / 15)
    assert stability.adjusted_rand(A, B) == pytest.approx((2 - 1.2) / (4.5 - 1.2))
    assert stability.adjusted_rand([1] * 5, [2] * 5) == 1
    assert stability.adjusted_rand([1] * 6, A) == 0
    rng = np.random.default_rng(2)
    drawn = [stability.adjusted_rand(*rng.integers(0, 5, (2, 500))) for _ in range(20)]
    assert abs(np.mean(drawn)) < 0.005


def test_classes_are_matched_by_what_they_share():
    assert stability.matched(A, [9, 9, 9, 4, 4, 4]).tolist() == A
    assert stability.matched(A, [5, 5, 1, 1, 1, 1]).tolist() == [1, 1, 2, 2, 2, 2]
    assert stability.agreement(A, [5, 5, 1, 1, 1, 1]) == pytest.approx(5 / 6)
    split = stability.matched([1] * 4, [1, 2, 2, 2])
    assert split.tolist()[1:] == [1, 1, 1]
    assert split[0] > 1
    # the match is of the whole, not greedy: the largest overlap is given up for two good ones
    a = [1] * 9 + [2] * 5
    b = [1] * 5 + [2] * 4 + [1] * 5
    assert stability.agreement(a, b) == pytest.approx(9 / 14)


def test_posterior_of_repeats():
    found = stability.posterior_of_repeats([A, [4, 4, 4, 8, 8, 8], [2, 2, 1, 1, 1, 1]])
    np.testing.assert_allclose(found, [[1, 0]] * 2 + [[2 / 3, 1 / 3]] + [[0, 1]] * 3)


def test_the_core_stays_together():
    runs = [[1, 1, 1, 2, 2, 2, 2, 2], [5, 5, 6, 6, 6, 6, 6, 5], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert stability.stable_core(runs).tolist() == [2, 2, 0, 1, 1, 1, 1, 0]
    assert stability.stable_core(runs, smallest=3).tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert stability.stable_core(runs, least=0.6).tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    assert stability.stable_core([A, A]).tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="two or more"):
        stability.stable_core([A])


def test_chance_leaves_small_cores_and_truth_large_ones():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 800)
    shuffled = rng.random(800) < 0.3
    runs = [np.where(shuffled, rng.integers(0, 4, 800), rng.permutation(4)[truth]) for _ in range(4)]
    core = stability.stable_core(runs, smallest=50)
    assert core.max() == 4
    assert (core[~shuffled] > 0).all()
    assert (core[shuffled] > 0).mean() < 0.1
