"""Search for defocus, astigmatism and phase shift: matched filters over sectors of a power spectrum.

The spectrum is averaged in sectors of azimuth, where astigmatism hardly blurs the rings; each sector is correlated
once with the rings of every defocus. Any astigmatism then is a sum over the sectors at the defocus each of them sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.ctf_estimation_model import PEDESTAL, Parameters, Wave
from spa.ctf_estimation_spectrum import Spectrum
from spa.kernels.backend import Array, to_host, xp_of

N_SECTORS = 36
DECAYS = (15.0, 50.0, 120.0, 300.0, 800.0)
"""Angstrom^2: the ring depth falls as exp(-decay s^2) in one of these ways."""

REACH = 500.0
"""Angstrom: a posterior is taken over defoci not farther off than this."""

_DEGREE = 5
_ANGLES = 12
_WIDEST = 1.4  # half difference of the defoci that the table reaches, in units of the largest searched
_DISTINCT = 0.6
_SEARCH_STEP = 1.0


@dataclass(frozen=True)
class Range:
    """What is searched: defocus and step in Angstrom, largest half difference of defoci, phase shifts in radians."""

    defocus_min: float
    defocus_max: float
    step: float
    half_difference: float
    phases: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class Candidate:
    """A local optimum of the search, with its gain in log-likelihood over no rings."""

    parameters: Parameters
    gain: float


def search(table: Table, n_best: int = 4) -> list[Candidate]:
    """The best candidates, distinct in their rings, best first."""
    best = np.full(len(table.inner), -np.inf)
    found: list[Parameters] = [Parameters(0.0)] * len(best)
    for half, angle in _astigmatisms(table.half_difference, max(100.0, 1.25 * table.step)):
        gain, phase = table.gains(half, angle)
        for i in np.flatnonzero(gain > best):
            best[i] = gain[i]
            along, across = half * math.cos(2 * angle), half * math.sin(2 * angle)
            found[i] = Parameters(float(table.inner[i]), along, across, float(phase[i]))
    chosen: list[Candidate] = []
    for i in np.argsort(-best):
        if all(abs(found[i].defocus - other.parameters.defocus) > table.apart for other in chosen):
            chosen.append(Candidate(found[i], float(best[i])))
        if len(chosen) == n_best:
            break
    return chosen


def posterior(
    table: Table, around: Parameters, dispersion: float, spread: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (3,) and covariance (3, 3) of defocus and astigmatism vector within `REACH` of a defocus.

    `dispersion` is what the log-likelihood is divided by; half differences of the defoci have a normal prior of
    standard deviation `spread` (Angstrom) per component.
    """
    middle = min(max(around.defocus, table.inner[0]), table.inner[-1])
    largest = min(2.8 * spread, _WIDEST * table.half_difference)
    near = np.abs(table.inner - middle) < REACH
    logs, points = [], []
    step = 100.0
    for half, angle in _astigmatisms(largest, step):
        gain, _ = table.gains(half, angle)
        area = half / _ANGLES if half else step / (8 * _ANGLES)
        logs.append(gain[near] / dispersion - 0.5 * (half / spread) ** 2 + math.log(area / step))
        vector = np.array([half * math.cos(2 * angle), half * math.sin(2 * angle)])
        points.append(np.column_stack([table.inner[near], np.broadcast_to(vector, (int(near.sum()), 2))]))
    log, place = np.concatenate(logs), np.concatenate(points)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = weight @ place
    return mean, np.asarray((place - mean).T @ (weight[:, None] * (place - mean)))


def _astigmatisms(largest: float, step: float) -> list[tuple[float, float]]:
    """Half differences of the defoci and angles (radians) of a polar grid."""
    halves = np.arange(step, largest + 1, step)
    return [(0.0, 0.0)] + [(float(h), float(a)) for h in halves for a in np.arange(_ANGLES) * np.pi / _ANGLES]


@dataclass(frozen=True)
class Table:
    """Correlations of each sector with cos and sin rings, (n_sectors, n_decays, n_defoci), and their norms.

    `inner` are the defoci searched, `step` apart; `defoci` those that astigmatism reaches from there; `apart` is how
    far off a defocus must be for its rings to differ by more than half a ring below 6 Angstrom.
    """

    cosine: Array
    sine: Array
    norm: NDArray[np.float64]
    defoci: NDArray[np.float64]
    inner: NDArray[np.float64]
    step: float
    half_difference: float
    apart: float
    phases: tuple[float, ...]

    @classmethod
    def of(cls, spectrum: Spectrum, wave: Wave, within: Range) -> Table:
        """The table of a flattened spectrum."""
        xp = xp_of(spectrum.power)
        s_max = float(spectrum.s2.max())
        step = min(within.step, _SEARCH_STEP / (2 * np.pi * wave.wavelength * s_max))
        margin = _WIDEST * within.half_difference + 2 * step
        defoci = np.arange(within.defocus_min - margin, within.defocus_max + margin + step, step)
        inner = defoci[(defoci >= within.defocus_min - step / 2) & (defoci <= within.defocus_max + step / 2)]
        values, count, s2 = _sectors(spectrum)
        residual, project = _detrended(values, count)
        twice = 2 * wave.phase(s2[:, None], defoci[None, :])
        decay = np.exp(-np.outer(DECAYS, s2))
        cosine, sine = np.cos(twice), np.sin(twice)
        tables = []
        for rings in (cosine, sine):
            shaped = (decay[:, :, None] * rings).transpose(1, 0, 2).reshape(len(s2), -1)
            tables.append((xp.asarray(residual) @ xp.asarray(shaped)).reshape(N_SECTORS, len(DECAYS), -1))
        total = count.sum(axis=0)
        norm = np.stack([_norms(d[:, None] * cosine, total, project) for d in decay])
        apart = _DISTINCT / (wave.wavelength * min(s_max, 1 / 36.0))
        return cls(tables[0], tables[1], norm, defoci, inner, step, within.half_difference, apart, within.phases)

    def gains(self, half: float, angle: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gain and phase shift for every inner defocus at one astigmatism."""
        xp = xp_of(self.cosine)
        azimuth = (np.arange(N_SECTORS) + 0.5) * np.pi / N_SECTORS
        offset = half * np.cos(2 * (azimuth - angle)) / self.step
        first = round((self.inner[0] - self.defoci[0]) / self.step)
        n = len(self.inner)
        sums = [xp.zeros((len(DECAYS), n)), xp.zeros((len(DECAYS), n))]
        for j, shift in enumerate(offset):
            at = first + int(np.floor(shift))
            part = shift - np.floor(shift)
            for total, table in zip(sums, (self.cosine, self.sine), strict=True):
                total += (1 - part) * table[j, :, at : at + n] + part * table[j, :, at + 1 : at + 1 + n]
        cosine, sine = (to_host(total) for total in sums)
        norm = self.norm[:, first : first + n]
        best, phase = np.full(n, -np.inf), np.zeros(n)
        for shift in self.phases:
            signal = -(np.cos(2 * shift) * cosine - np.sin(2 * shift) * sine)
            gain = (np.maximum(signal, 0) ** 2 / (2 * norm)).max(axis=0)
            better = gain > best
            best[better], phase[better] = gain[better], shift
        return best, phase


def _sectors(spectrum: Spectrum) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Relative power less its mean, weighted sums (n_sectors, n_bins), their weights, and s^2 (n_bins,)."""
    xp = xp_of(spectrum.power)
    relative = spectrum.power / (1 + PEDESTAL) - 1
    azimuth = xp.arctan2(spectrum.sin2, spectrum.cos2) / 2 % np.pi
    sector = xp.minimum((azimuth * (N_SECTORS / np.pi)).astype(np.int32), N_SECTORS - 1)
    n = spectrum.n_rings
    index = sector * n + spectrum.ring
    sums = [
        to_host(xp.bincount(index, weights=v, minlength=N_SECTORS * n)).reshape(N_SECTORS, n)
        for v in (spectrum.weight * xp.minimum(relative, 5.0), spectrum.weight)
    ]
    used = slice(int(spectrum.ring[0]), int(spectrum.ring[-1]) + 1)
    s2 = spectrum.frequencies[used] ** 2
    return sums[0][:, used], sums[1][:, used], s2


def _detrended(
    values: NDArray[np.float64], count: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted sums of each sector less a polynomial of its own; and the polynomials (n_bins, degree + 1)."""
    x = np.linspace(-1, 1, values.shape[1])
    poly = np.asarray(np.polynomial.legendre.legvander(x, _DEGREE), dtype=np.float64)
    out = np.empty_like(values)
    ridge = 1e-6 * np.eye(_DEGREE + 1)
    for j, (v, w) in enumerate(zip(values, count, strict=True)):
        coefficients = np.linalg.solve(poly.T @ (w[:, None] * poly) + ridge, poly.T @ v)
        out[j] = v - w * (poly @ coefficients)
    return out, poly


def _norms(rings: NDArray[np.float64], count: NDArray[np.float64], poly: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted squared norm of each column of rings (n_bins, n) once it is free of polynomials."""
    weighted = count[:, None] * rings
    overlap = poly.T @ weighted
    inside = np.linalg.solve(poly.T @ (count[:, None] * poly) + 1e-6 * np.eye(poly.shape[1]), overlap)
    norm = (weighted * rings).sum(axis=0) - (overlap * inside).sum(axis=0)
    return np.asarray(np.maximum(norm, 0.02 * (count[:, None] * rings**2).sum(axis=0)))
