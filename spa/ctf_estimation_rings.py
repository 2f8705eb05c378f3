"""What a fitted spectrum shows: averages along the rings, how far the rings are seen, ice, drift."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.ctf_estimation_levels import basis, fit_levels
from spa.ctf_estimation_model import PEDESTAL, Parameters, Wave, flattened, ring_phase
from spa.ctf_estimation_spectrum import Spectrum
from spa.kernels.backend import Array, to_host, xp_of

SEEN = 0.5
"""Rings count as seen up to where the correlation of data and fit falls below this."""

_N_NOISE, _N_DEPTH = 14, 12
_FAINT = 0.15
_FIRST_RING = 10.0
_SECTORS = 60
_WINDOW_RINGS = 1.5
_NYQUIST_MARGIN = 0.99
_BANDS = ((15.0, 10.0), (10.0, 7.0), (7.0, 5.5), (5.5, 4.5), (4.5, 3.6))
_ICE_BAND, _ICE_DISTURBS = (4.02, 3.4), 0.1
_ICE_PEAK, _ICE_SHOULDERS = (3.82, 3.58), ((4.4, 4.05), (3.4, 3.2))


@dataclass(frozen=True)
class Whole:
    """A fit carried on to the edge of the spectrum, at fixed parameters.

    Attributes
    ----------
    spectrum : the part of the spectrum that was fitted.
    relative : float32 (n_pixels,), power over the fitted mean power, less 1.
    ring_cos : float32 (n_pixels,), cos 2 chi.
    level, depth : float64 (n_rings,), mean power and depth of the rings relative to it.
    """

    spectrum: Spectrum
    relative: Array
    ring_cos: Array
    level: NDArray[np.float64]
    depth: NDArray[np.float64]


@dataclass(frozen=True)
class Rings:
    """Curves against spatial frequency, all float64 (n,), from the lowest fitted frequency on.

    `frequency` in 1/Angstrom; `rotational` the mean power around circles; `along` the mean along the rings of the
    power over its smooth mean, less 1; `fit` the model of `along`; `ctf2` the squared CTF at the mean defocus;
    `correlation` of `along` with the rings in windows of one ring and a half; `noise` two standard deviations
    of what noise would give; `max_resolution` in Angstrom up to which rings are seen.
    """

    frequency: NDArray[np.float64]
    rotational: NDArray[np.float64]
    along: NDArray[np.float64]
    fit: NDArray[np.float64]
    ctf2: NDArray[np.float64]
    correlation: NDArray[np.float64]
    noise: NDArray[np.float64]
    max_resolution: float


def whole(spectrum: Spectrum, wave: Wave, parameters: Parameters, low: float) -> Whole:
    """Fit the levels of given parameters from frequency `low` (1/Angstrom) to the edge of the spectrum."""
    part = spectrum.within(low, _NYQUIST_MARGIN * spectrum.box_size / (2 * spectrum.extent))
    flat, mean = flattened(part)
    xp = xp_of(part.power)
    ring_cos = xp.cos(ring_phase(part, wave, parameters))
    levels = fit_levels(flat, ring_cos, basis(flat, _N_NOISE, _N_DEPTH))
    level = np.maximum(levels.level - PEDESTAL, PEDESTAL / 5)
    relative = part.power / xp.asarray(level * mean, dtype=np.float32)[part.ring] - 1
    return Whole(part, relative, ring_cos, level * mean, np.minimum(levels.depth / level, 1.0))


def rings(fitted: Whole, wave: Wave, parameters: Parameters) -> Rings:
    """Averages along the rings and their correlation with the fit.

    Notes
    -----
    A pixel belongs to the frequency at which the mean defocus gives the phase that it has (equiphase averaging;
    Zhang 2016, J Struct Biol 193:1).
    """
    spectrum = fitted.spectrum
    xp = xp_of(spectrum.power)
    half_step = 2.0 * spectrum.extent
    s2 = equivalent_s2(spectrum, wave, parameters)
    place = xp.minimum(xp.rint(xp.sqrt(s2) * half_step).astype(np.int32), spectrum.n_rings - 1)
    count, sums, fits = (
        to_host(xp.bincount(place, weights=v, minlength=spectrum.n_rings))
        for v in (
            spectrum.weight,
            spectrum.weight * fitted.relative,
            -spectrum.weight * fitted.ring_cos * xp.asarray(fitted.depth, dtype=np.float32)[spectrum.ring],
        )
    )
    first, last = int(spectrum.ring[0]), int(spectrum.ring[-1])
    kept = slice(first, last + 1)
    along, fit = (v[kept] / np.maximum(count[kept], 1) for v in (sums, fits))
    frequency = spectrum.frequencies[kept]
    phase = np.asarray(wave.phase(frequency**2, parameters.defocus, parameters.phase_shift))
    around = to_host(spectrum.sums(spectrum.weight))[kept]
    rotational = to_host(spectrum.sums(spectrum.weight * spectrum.power))[kept] / np.maximum(around, 1)
    correlation, noise = _ring_correlation(along, -np.cos(2 * phase), phase)
    return Rings(
        frequency=frequency,
        rotational=rotational,
        along=along,
        fit=fit,
        ctf2=np.sin(phase) ** 2,
        correlation=correlation,
        noise=noise,
        max_resolution=_seen(frequency, correlation),
    )


def equivalent_s2(spectrum: Spectrum, wave: Wave, parameters: Parameters) -> Array:
    """Squared frequency at which the mean defocus gives the phase of each pixel."""
    xp = xp_of(spectrum.power)
    aberration = wave.cs * wave.wavelength**2
    along = parameters.towards(spectrum.cos2, spectrum.sin2)
    target = spectrum.s2 * (along - 0.5 * aberration * spectrum.s2)
    root = xp.sqrt(xp.maximum(parameters.defocus**2 - 2 * aberration * target, 0.0))
    return xp.maximum(2 * target / (parameters.defocus + root), 0.0)


def _ring_correlation(
    along: NDArray[np.float64], pattern: NDArray[np.float64], phase: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlation in windows that hold one ring and a half at each place, and its noise (two deviations)."""
    n = len(along)
    turns = np.abs(np.gradient(phase)) / np.pi
    half = np.clip(0.5 * _WINDOW_RINGS / np.maximum(turns, 1e-6), 6, n).astype(np.int64)
    first, last = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    count = last - first

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray((total[last] - total[first]) / count)

    a, b = along - along.mean(), pattern - pattern.mean()
    covariance = mean(a * b) - mean(a) * mean(b)
    variances = (mean(a * a) - mean(a) ** 2) * (mean(b * b) - mean(b) ** 2)
    correlation = covariance / np.sqrt(np.maximum(variances, 1e-30))
    return correlation, np.minimum(1.0, 2 / np.sqrt(np.maximum(count - 1, 1)))


def _seen(frequency: NDArray[np.float64], correlation: NDArray[np.float64]) -> float:
    """Resolution (Angstrom) at which the correlation first stays below `SEEN` for a while, once it has risen.

    Strong low frequencies may hide the first rings; rings that show only beyond `_FIRST_RING` do not count.
    """
    patience = max(3, len(frequency) // 50)
    above = correlation >= SEEN
    starts = [i for i in np.flatnonzero(frequency < 1 / _FIRST_RING) if above[i : i + patience].all()]
    if not starts:
        return float(1 / frequency[0])
    for i in range(int(starts[0]), len(above)):
        if not above[i : i + patience].any():
            return float(1 / frequency[max(i - 1, 0)])
    return float(1 / frequency[-1])


def figure_of_merit(fitted: Whole, high: float) -> float:
    """Correlation of relative power and rings over the pixels up to frequency `high` (1/Angstrom)."""
    spectrum = fitted.spectrum
    xp = xp_of(spectrum.power)
    used = spectrum.weight * (spectrum.s2 <= high**2)
    total = used.sum()
    a, b = fitted.relative, -fitted.ring_cos
    a, b = (used * (v - (used * v).sum() / total) for v in (a, b))
    return float((a * b).sum() / xp.sqrt((a * a).sum() * (b * b).sum()))


def ice_ring(spectrum: Spectrum) -> float:
    """Excess of the mean power near 3.7 Angstrom over the line between its shoulders; 0 where it is out of reach."""
    count = to_host(spectrum.sums(spectrum.weight))
    power = to_host(spectrum.sums(spectrum.weight * spectrum.power)) / np.maximum(count, 1)
    s = spectrum.frequencies

    def mean(band: tuple[float, float]) -> tuple[float, float]:
        inside = (s >= 1 / band[0]) & (s <= 1 / band[1]) & (count > 0) & (power > 0)
        return float(s[inside].mean()), float(np.log(power[inside]).mean())

    if s[int(spectrum.ring[-1])] < 1 / _ICE_SHOULDERS[1][1]:
        return 0.0
    (x0, y0), (x1, y1), (x, y) = mean(_ICE_SHOULDERS[0]), mean(_ICE_SHOULDERS[1]), mean(_ICE_PEAK)
    return float(np.expm1(y - (y0 + (y1 - y0) * (x - x0) / (x1 - x0))))


def without_ice(spectrum: Spectrum) -> Spectrum:
    """The spectrum without weight where ice stands out in it, else unchanged."""
    if ice_ring(spectrum) < _ICE_DISTURBS:
        return spectrum
    clear = (spectrum.s2 < _ICE_BAND[0] ** -2) | (spectrum.s2 > _ICE_BAND[1] ** -2)
    return replace(spectrum, weight=spectrum.weight * clear.astype(np.float32))


def drift(fitted: Whole) -> float:
    """How unequal the power is around the circle: the largest relative second harmonic of any band, 0 to 1.

    Drift during the exposure takes power along its direction, from the high frequencies first; a spectrum without
    it is even but for the rings, which are fitted.
    """
    spectrum = fitted.spectrum
    worst = 0.0
    for low, high in _BANDS:
        inside = spectrum.weight * (spectrum.s2 >= low**-2) * (spectrum.s2 <= high**-2)
        n = float(inside.sum())
        if n > 200:
            along = float((inside * fitted.relative * spectrum.cos2).sum()) * 2 / n
            across = float((inside * fitted.relative * spectrum.sin2).sum()) * 2 / n
            worst = max(worst, float(np.hypot(along, across)))
    return min(worst, 1.0)


def diagnostic(fitted: Whole) -> NDArray[np.float32]:
    """The spectrum in the right half, the fit in the left one: float32 (box, box), origin at box // 2, 0 to 1.

    Power over its mean level, divided by the depth of the rings as long as they stand out and by the speckle beyond,
    as grey around 0.5; averaged over some degrees of azimuth, without which faint rings drown in speckle.
    """
    spectrum = fitted.spectrum
    xp = xp_of(spectrum.power)
    box, n = spectrum.box_size, spectrum.n_rings
    depth = xp.asarray(np.maximum(fitted.depth, max(_FAINT * float(fitted.depth.max()), 0.02)))
    radius = xp.sqrt(spectrum.s2) * spectrum.extent
    azimuth = xp.arctan2(spectrum.sin2, spectrum.cos2) / 2
    index = xp.floor((azimuth / np.pi % 1) * _SECTORS).astype(np.int32) % _SECTORS * n + spectrum.ring
    data, used = (
        _spread(xp.bincount(index, weights=v, minlength=_SECTORS * n).reshape(_SECTORS, n))
        for v in (spectrum.weight * fitted.relative, spectrum.weight)
    )
    mean = data / xp.maximum(used, 1e-3)
    shown = (mean / xp.maximum(depth, xp.sqrt((mean**2).mean(axis=0)))).ravel()[index]
    kx, ky = xp.rint(radius * xp.cos(azimuth)).astype(np.int32), xp.rint(radius * xp.sin(azimuth)).astype(np.int32)
    out = xp.full((box, box), 0.5, dtype=np.float32)
    out[box // 2 + ky, box // 2 + kx] = xp.clip(0.5 + 0.35 * shown, 0, 1)
    out[box // 2 - ky, box // 2 - kx] = 0.5 - 0.5 * fitted.ring_cos
    return np.asarray(to_host(out), dtype=np.float32)


def _spread(table: Array) -> Array:
    """Weighted sums of each sector with its neighbours, along the first axis, which is periodic."""
    xp = xp_of(table)
    for _ in range(2):
        table = xp.roll(table, 1, 0) + 2 * table + xp.roll(table, -1, 0)
    return table
