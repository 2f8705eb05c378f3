"""Sharpening: detector MTF, FSC weighting, Guinier plot and B-factor, in the order of relion_postprocess."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.errors import InputError
from spa.fourier import forward, inverse, low_pass
from spa.grids import rfft_frequencies, rfft_shells
from spa.kernels.backend import Array, to_host, xp_of

NO_AMPLITUDE = -99.0  # RELION's mark in a Guinier plot for a shell without amplitude
_FSC_FLOOR = 1e-4
_FEWEST_SHELLS = 3


@dataclass(frozen=True)
class Mtf:
    """Modulation transfer function of a detector: `value` float64 (n,) at `frequency` float64 (n,) in 1/Å."""

    frequency: Array
    value: Array


@dataclass(frozen=True)
class GuinierFit:
    """Line through a Guinier plot, ln(amplitude) = slope / d² + intercept, and its squared correlation."""

    slope: float
    intercept: float
    correlation: float

    @property
    def bfactor(self) -> float:
        """The B-factor in Å² whose removal makes the plot flat, negative for a map that decays."""
        return 4 * self.slope


@dataclass(frozen=True)
class Guinier:
    """Guinier plots after each step of the sharpening: ln of the mean amplitude per Fourier shell.

    All float64 (box // 2 + 1); `inverse_d2` in 1/Å². Amplitudes are those of a transform divided by its
    number of voxels, as RELION has it. A shell without amplitude is -99; a step that was not done is None.
    """

    inverse_d2: Array
    original: Array
    mtf_corrected: Array | None
    weighted: Array | None
    sharpened: Array | None


@dataclass(frozen=True)
class Sharpened:
    """A sharpened map, float32 like the input, and how it was made; `bfactor` in Å² is the one applied."""

    volume: Array
    bfactor: float
    fit: GuinierFit | None
    guinier: Guinier


def detector_mtf(inverse_pixels: Array, values: Array, pixel_size: float) -> Mtf:
    """An MTF given at frequencies in 1/pixel of the detector, whose pixel on the specimen is `pixel_size` Å.

    Raises
    ------
    InputError if frequencies do not rise, or a value is not positive and finite.
    """
    frequency = np.asarray(inverse_pixels, dtype=np.float64) / pixel_size
    value = np.asarray(values, dtype=np.float64)
    if len(frequency) < 2 or not np.all(np.diff(frequency) > 0):
        raise InputError("MTF: expected two or more rows with rising frequencies")
    if not (np.all(np.isfinite(value)) and np.all(value > 1e-10)):
        row = int(np.flatnonzero(~(value > 1e-10) | ~np.isfinite(value))[0])
        raise InputError(f"MTF: row {row + 1}: expected a positive value, found {value[row]:g}")
    return Mtf(frequency, value)


def fsc_weight(curve: Array) -> Array:
    """Amplitude weight of each shell, sqrt(2 FSC / (1 + FSC)), zero from the first FSC < 0.0001 on.

    float64 (n,) in and out; the origin counts as 1 when the curve is not positive there (a map of mean zero).

    Notes
    -----
    Rosenthal & Henderson (2003), J. Mol. Biol. 333, 721, equation 14: the expected correlation of the map
    with the truth.
    """
    curve = np.array(curve, dtype=np.float64)
    curve[0] = curve[0] if curve[0] > 0 else 1.0
    low = np.flatnonzero(~(curve >= _FSC_FLOOR))
    curve[low[0] if low.size else len(curve) :] = 0
    return np.sqrt(2 * curve / (1 + curve))


def guinier_plot(ft: Array) -> Array:
    """ln of the mean amplitude per shell, float64 (box // 2 + 1), of a transform in rfft layout."""
    xp, box = xp_of(ft), ft.shape[0]
    shells = xp.asarray(rfft_shells(box, ft.ndim)).ravel()
    total = to_host(xp.bincount(shells, weights=abs(ft).ravel().astype(np.float64)))[: box // 2 + 1]
    mean = total / to_host(xp.bincount(shells))[: box // 2 + 1] / float(box) ** ft.ndim
    return np.log(mean, out=np.full_like(mean, NO_AMPLITUDE), where=mean > 0)


def fit_guinier(inverse_d2: Array, log_amplitude: Array, lowres: float, highres: float) -> GuinierFit | None:
    """Least-squares line through a Guinier plot from `lowres` to `highres` Å (0: to the last amplitude).

    Returns None where fewer than three shells lie between.

    Notes
    -----
    Rosenthal & Henderson (2003), J. Mol. Biol. 333, 721: amplitudes decay as exp(-B / (4 d²)).
    """
    used = (inverse_d2 >= lowres**-2 * (1 - 1e-9)) & (log_amplitude > NO_AMPLITUDE)
    if highres > 0:
        used &= inverse_d2 <= highres**-2 * (1 + 1e-9)
    if np.count_nonzero(used) < _FEWEST_SHELLS:
        return None
    x, y = inverse_d2[used], log_amplitude[used]
    slope, intercept = np.polyfit(x, y, 1)
    return GuinierFit(float(slope), float(intercept), float(np.corrcoef(x, y)[0, 1] ** 2))


def sharpen(
    volume: Array,
    pixel_size: float,
    fsc: Array | None = None,
    mtf: Mtf | None = None,
    bfactor: float | None = 0.0,
    fit_range: tuple[float, float] = (10.0, 0.0),
    low_pass_at: float = 0.0,
) -> Sharpened:
    """Divide a map by the MTF, weight it by its FSC, sharpen it by a B-factor and low-pass filter it.

    Parameters
    ----------
    volume : float (box, box, box), axes (z, y, x).
    pixel_size : Å.
    fsc : weights come from this curve (box // 2 + 1); None for no weighting.
    mtf : divided out below the Nyquist frequency (as RELION); None for none. Beyond its last frequency its last
        value holds.
    bfactor : Å² applied as exp(-bfactor / (4 d²)), negative sharpens, 0 does nothing; None fits it.
    fit_range : (low, high) resolution in Å of the fit, see `fit_guinier`. Without enough shells nothing is
    applied.
    low_pass_at : Å, raised-cosine edge of two shells; 0 for none.
    """
    xp, box = xp_of(volume), volume.shape[0]
    frequency = xp.sqrt(sum(xp.asarray(k) ** 2 for k in rfft_frequencies(box, 3))) / (box * pixel_size)
    inverse_d2 = (np.arange(box // 2 + 1) / (box * pixel_size)) ** 2
    ft = forward(volume.astype(np.float32, copy=False), 3)
    original = latest = guinier_plot(ft)
    mtf_corrected = weighted = sharpened = fit = None
    if mtf is not None:
        values = xp.interp(frequency, xp.asarray(mtf.frequency), xp.asarray(mtf.value))
        ft /= xp.where(frequency < 1 / (2 * pixel_size), values, 1).astype(np.float32)
        mtf_corrected = latest = guinier_plot(ft)
    if fsc is not None:
        weight = np.zeros(int(rfft_shells(box, 3).max()) + 1, dtype=np.float32)
        weight[: box // 2 + 1] = fsc_weight(fsc)
        ft *= xp.asarray(weight)[xp.asarray(rfft_shells(box, 3))]
        weighted = latest = guinier_plot(ft)
    if bfactor is None:
        fit = fit_guinier(inverse_d2, latest, *fit_range)
        bfactor = fit.bfactor if fit is not None else 0.0
    if bfactor != 0:
        inside = frequency <= 1 / (2 * pixel_size)
        ft *= xp.where(inside, xp.exp(-bfactor / 4 * frequency * frequency), 0).astype(np.float32)
        sharpened = guinier_plot(ft)
    result = inverse(ft, box, 3)
    if low_pass_at > 0:
        result = low_pass(result, pixel_size, low_pass_at)
    plots = Guinier(inverse_d2, original, mtf_corrected, weighted, sharpened)
    return Sharpened(result.astype(np.float32, copy=False), bfactor, fit, plots)
