"""Posterior weights, evidence and the significant set against a sorted float64 softmax."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import logsumexp

from spa.kernels.backend import to_host
from spa.kernels.posterior import BINS_PER_UNIT, posterior

BIN = 1 / BINS_PER_UNIT


def run(device, segments, mass=0.999, temperature=1.0, max_candidates=0):
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in segments])]).astype(np.int64)
    log_weight = np.concatenate([*segments, []]).astype(np.float32)
    result = posterior(device(log_weight), device(offsets), mass, temperature, max_candidates)
    return log_weight, offsets, [to_host(part) for part in result]


def ragged(seed=0, spread=8.0):
    """Segments of one to many chunks, at very different levels, with impossible candidates among them."""
    rng = np.random.default_rng(seed)
    segments = [
        spread * rng.standard_normal(n) + level for n, level in ((1, 5), (7, -1e4), (300, 0), (40000, 2e3), (1000, 1))
    ]
    segments[2][::7] = -np.inf
    return segments


def test_weights_are_the_softmax(device):
    log_weight, offsets, (weights, _, log_evidence, best) = run(device, ragged())
    for i, (a, b) in enumerate(pairwise(offsets)):
        segment = log_weight[a:b].astype(np.float64)
        np.testing.assert_allclose(weights[a:b], np.exp(segment - logsumexp(segment)), rtol=1e-5, atol=1e-30)
        assert log_evidence[i] == pytest.approx(logsumexp(segment), rel=1e-7, abs=1e-6)
        assert best[i] == a + segment.argmax()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("mass", [0.5, 0.95, 0.999])
def test_the_kept_set_is_the_smallest_that_holds_the_mass(device, mass, temperature):
    log_weight, offsets, (_, threshold, _, _) = run(device, ragged(), mass, temperature)
    for i, (a, b) in enumerate(pairwise(offsets)):
        descending = np.sort(log_weight[a:b].astype(np.float64))[::-1]
        share = np.exp(temperature * descending - logsumexp(temperature * descending))
        last = np.searchsorted(np.cumsum(share), mass * (1 - 1e-9))
        assert descending[last] - 2 * BIN <= threshold[i] <= descending[last] + BIN
        kept = share[descending >= threshold[i]].sum()
        assert kept >= mass - 0.02 * temperature * (1 - mass)


def test_the_cap_lowers_the_number_by_whole_bins(device):
    log_weight, offsets, (_, threshold, _, _) = run(device, ragged(), 0.9999, 0.3, 50)
    for i, (a, b) in enumerate(pairwise(offsets)):
        segment = log_weight[a:b]
        kept = int((segment >= threshold[i]).sum())
        assert 1 <= kept <= 50
        if b - a > 50:
            assert int((segment >= threshold[i] - BIN).sum()) > 50 or kept == 50


def test_with_one_candidate_per_bin_the_cap_is_met_exactly(device):
    segment = -BIN * np.maximum(np.arange(400) - 0.5, 0)
    for cap in range(1, 80):
        log_weight, _, (_, threshold, _, _) = run(device, [segment], 0.9999, 0.3, cap)
        assert int((log_weight >= threshold[0]).sum()) == cap


def test_the_best_stays_with_its_ties_whatever_the_cap(device):
    segment = np.array([1.0, 3.0, 3.0, 2.0, 3.0])
    _, _, (weights, threshold, _, best) = run(device, [segment], 0.999, 1.0, 2)
    assert best[0] == 1
    assert threshold[0] == 3.0
    np.testing.assert_allclose(weights[[1, 2, 4]], weights[1])


def test_all_the_mass_keeps_all_that_counts(device):
    segment = np.linspace(-20, 0, 500)
    _, _, (_, threshold, _, _) = run(device, [segment], 1.0, 0.5)
    assert threshold[0] <= -20 + BIN


def test_images_without_a_possible_candidate(device):
    nothing = np.full(5, -np.inf)
    _, offsets, (weights, threshold, log_evidence, best) = run(device, [[], nothing, [4.0], []])
    assert list(best) == [-1, -1, 5, -1]
    assert list(threshold) == [np.inf, np.inf, 4.0, np.inf]
    np.testing.assert_array_equal(log_evidence[[0, 1, 3]], -np.inf)
    np.testing.assert_array_equal(weights, [0, 0, 0, 0, 0, 1])
    assert offsets[-1] == 6


def test_no_images(device):
    _, _, parts = run(device, [])
    assert [part.size for part in parts] == [0, 0, 0, 0]


@pytest.mark.parametrize("wrong", [{"mass": 0.0}, {"mass": 1.1}, {"temperature": 0.0}, {"max_candidates": -1}])
def test_parameters_out_of_range(device, wrong):
    with pytest.raises(ValueError, match="expected"):
        run(device, [[1.0, 2.0]], **wrong)


def test_wrong_arrays_are_refused(device):
    good, offsets = np.zeros(3, np.float32), np.array([0, 3])
    with pytest.raises(TypeError, match="log_weight"):
        posterior(device(good.astype(np.float64)), device(offsets), 0.9, 1.0, 0)
    with pytest.raises(TypeError, match="offsets"):
        posterior(device(good), device(offsets.astype(np.int32)), 0.9, 1.0, 0)
