"""Sharpening: planted B-factors and MTFs are found and undone."""

from __future__ import annotations

import numpy as np
import pytest

from spa.errors import InputError
from spa.fsc import fsc
from spa.sharpen import (
    NO_AMPLITUDE,
    detector_mtf,
    fit_guinier,
    fsc_weight,
    guinier_plot,
    sharpen,
)
from tests.half_maps import blurred, frequencies, half_maps

BOX, PIXEL = 64, 1.5


def white(seed=0):
    return np.random.default_rng(seed).normal(size=(BOX,) * 3).astype(np.float32)


@pytest.mark.parametrize("bfactor", [40.0, 150.0])
def test_a_planted_bfactor_is_recovered_from_a_clean_map(bfactor):
    decayed = blurred(white(), PIXEL, bfactor).astype(np.float32)
    result = sharpen(decayed, PIXEL, bfactor=None)
    assert result.bfactor == pytest.approx(-bfactor, rel=0.03)
    assert result.fit.correlation > 0.98
    # only voxels beyond Nyquist, in the corners, are lost
    inside = frequencies(BOX, PIXEL) < 0.49 / PIXEL
    got, truth = np.fft.rfftn(result.volume)[inside], np.fft.rfftn(white())[inside]
    assert np.linalg.norm(got - truth) < 0.1 * np.linalg.norm(truth)


@pytest.mark.parametrize(("bfactor", "noise"), [(80.0, 0.1), (120.0, 0.1), (120.0, 0.3), (200.0, 0.1)])
def test_a_planted_bfactor_is_recovered_from_noisy_half_maps(bfactor, noise):
    maps = half_maps(bfactor=bfactor, noise=noise)
    average, curve = (maps.half1 + maps.half2) / 2, fsc(maps.half1, maps.half2)
    assert sharpen(average, maps.pixel_size, curve, bfactor=None).bfactor == pytest.approx(-bfactor, rel=0.1)


def test_an_adhoc_bfactor_multiplies_amplitudes():
    result = sharpen(white(), PIXEL, bfactor=-90.0)
    ratio = np.fft.rfftn(result.volume) / np.fft.rfftn(white())
    frequency = frequencies(BOX, PIXEL)
    inside = frequency < 0.99 / (2 * PIXEL)
    assert ratio[inside].real == pytest.approx(np.exp(90 / 4 * frequency[inside] ** 2), rel=2e-3)
    assert np.abs(ratio[inside].imag).max() < 2e-3
    assert np.array_equal(sharpen(white(), PIXEL).guinier.original, result.guinier.original)


def test_dividing_by_the_mtf_undoes_the_detector():
    frequency = np.linspace(0, 0.5, 26)
    curve = np.exp(-2 * frequency)
    detector_pixel = 1.0
    seen = np.fft.irfftn(
        np.fft.rfftn(white()) * np.exp(-2 * frequencies(BOX, PIXEL) * detector_pixel), s=(BOX,) * 3, axes=(0, 1, 2)
    )
    result = sharpen(seen.astype(np.float32), PIXEL, mtf=detector_mtf(frequency, curve, detector_pixel))
    inside = frequencies(BOX, PIXEL) < 0.499 / PIXEL
    ratio = (np.fft.rfftn(result.volume) / np.fft.rfftn(white()))[inside]
    assert ratio.real == pytest.approx(np.ones(ratio.shape), abs=2e-3)


@pytest.mark.parametrize(
    ("frequency", "value", "words"),
    [
        ([0, 0.1, 0.1], [1, 0.9, 0.8], "rising"),
        ([0.0], [1.0], "two or more"),
        ([0, 0.1, 0.2], [1, 0.0, 0.5], "row 2"),
        ([0, 0.1, 0.2], [1, 0.9, np.inf], "row 3"),
    ],
)
def test_an_impossible_mtf_is_refused(frequency, value, words):
    with pytest.raises(InputError, match=words):
        detector_mtf(np.array(frequency), np.array(value), 1.0)


def test_fsc_weights_are_the_correlation_with_the_truth():
    """sqrt(2 FSC / (1 + FSC)) of half maps is the FSC between their average and the noiseless map."""
    rng = np.random.default_rng(3)
    truth, noise1, noise2 = rng.normal(size=(3, BOX, BOX, BOX))
    half1, half2 = truth + noise1, truth + noise2
    with_truth = fsc((half1 + half2) / 2, truth)
    assert fsc_weight(fsc(half1, half2))[6:] == pytest.approx(with_truth[6:], abs=0.06)


def test_fsc_weights_end_at_the_first_shell_without_correlation():
    weights = fsc_weight(np.array([-1.0, 1.0, 0.5, 0.00005, 0.9, -0.2]))
    assert weights == pytest.approx([1, 1, np.sqrt(2 / 3), 0, 0, 0])


def test_a_guinier_plot_of_white_noise_is_flat_at_its_level():
    plot = guinier_plot(np.fft.rfftn(white()))
    # the mean modulus of a complex Gaussian of variance v is sqrt(pi v) / 2; v = 1 / box³ after RELION's scaling
    assert plot[5:] == pytest.approx(np.full(BOX // 2 - 4, np.log(np.sqrt(np.pi) / 2) - 1.5 * np.log(BOX)), abs=0.08)
    assert np.all(guinier_plot(np.zeros((8, 8, 5), dtype=complex)) == NO_AMPLITUDE)


def test_the_fit_uses_only_its_range_and_shells_with_amplitude():
    inverse_d2 = (np.arange(33) / 96) ** 2
    line = 1.5 - 20 * inverse_d2
    line[:8] += 3  # below 10 Å
    line[25:] = NO_AMPLITUDE
    fit = fit_guinier(inverse_d2, line, 10.0, 0.0)
    assert (fit.slope, fit.intercept, fit.bfactor) == pytest.approx((-20, 1.5, -80))
    line[18:25] -= 2
    assert fit_guinier(inverse_d2, line, 96 / 10, 96 / 17).slope == pytest.approx(-20)
    assert fit_guinier(inverse_d2, line, 96 / 23, 0.0) is None


def test_without_shells_to_fit_nothing_is_sharpened():
    result = sharpen(white(), PIXEL, bfactor=None, fit_range=(3.05, 0.0))
    assert result.fit is None
    assert result.bfactor == 0
    assert result.volume == pytest.approx(white(), abs=1e-5)


def test_the_low_pass_removes_what_lies_beyond_it():
    power = np.abs(np.fft.rfftn(sharpen(white(), PIXEL, low_pass_at=6.0).volume)) ** 2
    shells = np.rint(frequencies(BOX, PIXEL) * BOX * PIXEL)
    assert power[shells > 17].max() < 1e-6 * power[shells < 15].mean()
    assert power[shells < 15] == pytest.approx(np.abs(np.fft.rfftn(white())[shells < 15]) ** 2, rel=1e-3, abs=1e-2)
