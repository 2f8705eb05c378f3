"""Fourier shell correlation: analytic cases, and what phase randomisation must reveal."""

from __future__ import annotations

import numpy as np
import pytest

from spa.errors import InputError
from spa.fsc import (
    CorrectedFsc,
    corrected_fsc,
    doubts,
    fsc,
    phase_randomise,
    resolution_shell,
    shell_to_resolution,
)
from spa.grids import rfft_shells
from spa.mask import soft_mask, soft_sphere
from tests.half_maps import blurred, half_maps, lumps, radius

BOX = 48


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def voxels_per_shell(box):
    return np.bincount(rfft_shells(box, 3).ravel())[: box // 2 + 1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_map_correlates_with_itself_whatever_its_scale_and_sign(rng, ndim):
    a = rng.normal(size=(BOX,) * ndim)
    assert fsc(a, a) == pytest.approx(np.ones(BOX // 2 + 1), abs=1e-12)
    assert fsc(a, -3 * a) == pytest.approx(-np.ones(BOX // 2 + 1), abs=1e-12)


def test_independent_noise_correlates_only_by_chance(rng):
    curve = fsc(rng.normal(size=(BOX,) * 3), rng.normal(size=(BOX,) * 3))
    # half of the voxels on the plane x = 0 are mates of the other half: at most twice the variance
    assert np.all(np.abs(curve[2:]) < 5 * np.sqrt(2 / voxels_per_shell(BOX)[2:]))
    assert np.sqrt(np.mean(curve[5:] ** 2 * voxels_per_shell(BOX)[5:])) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("snr", [0.1, 1.0, 8.0])
def test_signal_in_noise_gives_snr_over_one_plus_snr(rng, snr):
    signal = rng.normal(size=(BOX,) * 3) * np.sqrt(snr)
    curve = fsc(signal + rng.normal(size=signal.shape), signal + rng.normal(size=signal.shape))
    weights = voxels_per_shell(BOX)[4:]
    assert np.average(curve[4:], weights=weights) == pytest.approx(snr / (1 + snr), abs=0.012)
    assert np.all(np.abs(curve[4:] - snr / (1 + snr)) < 5 / np.sqrt(weights))


def test_each_shell_sees_its_own_frequencies(rng):
    a = rng.normal(size=(BOX,) * 3)
    ft, other = np.fft.rfftn(a), np.fft.rfftn(rng.normal(size=a.shape))
    mixed = np.fft.irfftn(np.where(rfft_shells(BOX, 3) == 9, other, ft), s=a.shape, axes=(0, 1, 2))
    curve = fsc(a, mixed)
    assert abs(curve[9]) < 0.2
    assert np.delete(curve, 9) == pytest.approx(np.ones(BOX // 2), abs=1e-9)


def test_a_mask_multiplies_both_maps(rng):
    a, b = rng.normal(size=(2, BOX, BOX, BOX))
    mask = soft_sphere(BOX, 12, 5)
    assert fsc(a, b, mask) == pytest.approx(fsc(a * mask, b * mask), abs=1e-12)


def test_a_shell_without_power_correlates_with_nothing():
    curve = fsc(np.zeros((16, 16, 16)), np.ones((16, 16, 16)))
    assert np.all(curve == 0)


def test_different_boxes_are_refused(rng):
    with pytest.raises(InputError, match="different boxes"):
        fsc(rng.normal(size=(16, 16, 16)), rng.normal(size=(18, 18, 18)))


def test_phase_randomisation_keeps_amplitudes_and_the_low_shells(rng):
    a = blurred(rng.normal(size=(BOX,) * 3), 2.0, 60)
    random = phase_randomise(a, 10, rng)
    before, after, shells = np.fft.rfftn(a), np.fft.rfftn(random), rfft_shells(BOX, 3)
    assert np.abs(after) == pytest.approx(np.abs(before), abs=1e-9 * np.abs(before).max())
    assert after[shells < 10] == pytest.approx(before[shells < 10], abs=1e-9 * np.abs(before).max())
    curve = fsc(a, random)
    assert np.all(np.abs(curve[10:]) < 5 * np.sqrt(2 / voxels_per_shell(BOX)[10:]))


def test_phase_randomisation_is_repeatable_and_differs_between_halves(rng):
    a = rng.normal(size=(16, 16, 16))
    once, again = (phase_randomise(a, 3, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(once, again)
    generator = np.random.default_rng(5)
    first, second = phase_randomise(a, 3, generator), phase_randomise(a, 3, generator)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("seed", range(4))
def test_correlation_made_by_a_mask_is_taken_out(seed):
    """Halves that share only frequencies up to shell 6, under a hard mask that follows a particle."""
    rng = np.random.default_rng(seed)
    support = lumps(64)
    shells = rfft_shells(64, 3)
    common = np.fft.irfftn(np.fft.rfftn(support.astype(float)) * (shells <= 6), s=support.shape, axes=(0, 1, 2))
    halves = [common + 0.06 * rng.normal(size=support.shape) for _ in range(2)]
    curves = corrected_fsc(*halves, soft_mask(support, 0.5, 1, 0), rng=rng)
    assert curves.randomise_from is not None
    assert curves.randomise_from <= 7
    assert resolution_shell(curves.masked) > curves.randomise_from + 4
    assert resolution_shell(curves.corrected) <= curves.randomise_from + 2


@pytest.mark.parametrize("seed", range(5))
def test_pure_noise_under_a_tight_mask_has_no_resolution(seed):
    """Independent noise on a common grey level: the masked halves share the shape of the mask."""
    rng = np.random.default_rng(seed)
    halves = 1 + 2 * rng.normal(size=(2, 64, 64, 64))
    mask = (radius(64) < 20).astype(np.float32)
    curves = corrected_fsc(halves[0], halves[1], mask, rng=rng)
    assert curves.randomise_from == 1
    assert curves.masked[3:8].mean() > 0.5
    assert abs(curves.corrected[6:].mean()) < 0.05
    # beyond randomise_from + 2 each of the small shells is above 0.143 by chance now and then
    assert resolution_shell(curves.corrected) <= 5
    assert resolution_shell(curves.masked) > 7


def test_with_a_soft_mask_the_corrected_curve_follows_the_signal_inside():
    maps = half_maps(noise=0.5)
    mask = soft_mask(maps.support, 0.5, 3, 6)
    curves = corrected_fsc(maps.half1, maps.half2, mask)
    noise = (maps.half1 - maps.half2) * mask / np.sqrt(2)
    power = [
        np.bincount(rfft_shells(64, 3).ravel(), weights=(np.abs(np.fft.rfftn(v)) ** 2).ravel())[1:33]
        for v in (maps.particle * mask, noise)
    ]
    expected = power[0] / (power[0] + power[1])
    tail = slice(curves.randomise_from + 2, None)
    assert curves.corrected[1:][tail] == pytest.approx(expected[tail], abs=0.08)
    assert np.all(curves.corrected[curves.randomise_from : 24] > curves.unmasked[curves.randomise_from : 24])


def test_without_a_mask_the_unmasked_curve_decides(rng):
    a, b = rng.normal(size=(2, 16, 16, 16))
    curves = corrected_fsc(a, b, None)
    assert curves.masked is None
    assert curves.randomised is None
    assert np.array_equal(curves.corrected, fsc(a, b))


def test_resolution_is_the_last_shell_before_the_first_crossing():
    assert resolution_shell(np.array([1, 0.9, 0.5, 0.2, 0.1, 0.9])) == 3
    assert resolution_shell(np.array([-1, 0.9, 0.5, 0.2, 0.143, 0.1])) == 4
    assert resolution_shell(np.array([1, 0.9, 0.9])) == 2
    assert resolution_shell(np.array([1, 0.1, 0.9])) == 0
    assert resolution_shell(np.array([1, 0.9, np.nan, 0.9])) == 1
    assert resolution_shell(np.array([1, 0.9, 0.6, 0.4]), threshold=0.5) == 2


def test_shells_are_resolutions():
    assert shell_to_resolution(32, 64, 1.5) == pytest.approx(3.0)
    assert shell_to_resolution(0, 64, 1.5) == float("inf")


def curves_of(unmasked, masked=None, randomised=None, corrected=None):
    corrected = masked if corrected is None else corrected
    return CorrectedFsc(
        unmasked, masked, randomised, unmasked if masked is None else corrected, None if randomised is None else 3
    )


def falling(to, n=33):
    """1 to shell `to`, then 0."""
    return np.where(np.arange(n) <= to, 1.0, 0.0)


def test_a_mask_that_loses_resolution_is_set_aside():
    curves = curves_of(falling(20), falling(15), falling(2))
    assert curves.mask_hurts
    assert resolution_shell(curves.final) == 20
    assert any("cuts into the particle" in doubt for doubt in doubts(curves, 2.0))


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        (curves_of(falling(0)), "no resolution"),
        (curves_of(falling(40)), "pixel size limits"),
        (curves_of(np.where(np.arange(33) < 10, 0.9, np.where(np.arange(33) < 14, 0.0, 0.12))), "share something"),
        (curves_of(np.full(33, 0.9), np.full(33, 0.95)), "not corrected"),
        (curves_of(falling(10), falling(20), falling(25) * 0.3, falling(18)), "correlates the half maps"),
    ],
)
def test_doubts_are_told(curves, words):
    assert any(words in doubt for doubt in doubts(curves, 2.0))


def test_sound_curves_raise_no_doubt():
    assert doubts(curves_of(falling(15), falling(20), falling(5)), 2.0) == []
