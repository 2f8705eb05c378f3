"""The tilt of the specimen, from the defocus of the tiles of a micrograph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline
from scipy.optimize import minimize

from spa.ctf_estimation_model import Parameters, Wave
from spa.ctf_estimation_rings import Whole, equivalent_s2
from spa.ctf_estimation_spectrum import Tiles
from spa.kernels.backend import to_host, xp_of

_STEEPEST = math.tan(math.radians(65))
_STEP = 60.0
_OFFSETS = (-300.0, -150.0, 0.0, 150.0, 300.0)
_GRID = 15
_SURE = 15.0


@dataclass(frozen=True)
class Tilt:
    """A plane of defocus: D(x, y) = mean + x per_x + y per_y.

    Attributes
    ----------
    angle : degrees of tilt, 0 to 90; axis : degrees from the x axis to the tilt axis, 0 to 180.
    per_x, per_y : change of defocus along x and y (Angstrom per Angstrom).
    offset : Angstrom to add to the mean defocus of the fit without tilt.
    gain : how much larger the log-likelihood is than without tilt, nats.
    """

    angle: float
    axis: float
    per_x: float
    per_y: float
    offset: float
    gain: float


def tilt(tiles: Tiles, wave: Wave, parameters: Parameters, fitted: Whole, high: float, averages: float = 1.0) -> Tilt:
    """Fit a plane of defocus to the tiles, for astigmatism and ring depths already found.

    Parameters
    ----------
    tiles : of `tile_powers`, and `fitted` the fit of their mean.
    high : highest frequency used, 1/Angstrom.
    averages : independent spectra a tile counts for in the likelihood (its pixels are correlated, so less than 1).

    Returns no tilt where the plane is not surely better than none.
    """
    centres = tiles.centres[tiles.kept]
    if len(centres) < 4 or np.ptp(centres, axis=0).min() <= 0:
        return Tilt(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    reach = _STEEPEST * float(np.hypot(*np.abs(centres).max(axis=0))) + max(_OFFSETS)
    defocus = np.arange(-reach, reach + _STEP, _STEP)
    table = averages * _scores(tiles, wave, parameters, fitted, high, defocus)
    score = RectBivariateSpline(np.arange(len(centres)), defocus, table, kx=1, ky=3)
    rows = np.arange(len(centres))

    def total(plane: NDArray[np.float64]) -> float:
        shifts = np.clip(centres @ plane[:2] + plane[2], defocus[0], defocus[-1])
        return -float(score.ev(rows, shifts).sum())

    side = np.linspace(-_STEEPEST, _STEEPEST, 2 * _GRID + 1)
    starts = [
        np.array([x, y, offset]) for x in side for y in side if np.hypot(x, y) <= _STEEPEST for offset in _OFFSETS
    ]
    best = min(starts, key=total)
    found = minimize(total, best, method="Nelder-Mead", options={"initial_simplex": _simplex(best), "xatol": 1e-3})
    per_x, per_y, offset = (float(v) for v in found.x)
    level = min(total(np.array([0.0, 0.0, offset])) for offset in np.linspace(_OFFSETS[0], _OFFSETS[-1], 61))
    gain = level - float(found.fun)
    if gain < _SURE:
        return Tilt(0.0, 0.0, 0.0, 0.0, 0.0, gain)
    axis = (math.degrees(math.atan2(per_y, per_x)) + 90) % 180
    return Tilt(math.degrees(math.atan(math.hypot(per_x, per_y))), axis, per_x, per_y, offset, gain)


def _simplex(start: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(start + np.vstack([np.zeros(3), np.diag([0.05, 0.05, 50.0])]))


def _scores(
    tiles: Tiles, wave: Wave, parameters: Parameters, fitted: Whole, high: float, defocus: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log-likelihood of each kept tile, (n_kept, n), at its mean defocus plus each of `defocus`."""
    spectrum = fitted.spectrum
    xp = xp_of(spectrum.power)
    place = xp.rint(xp.sqrt(equivalent_s2(spectrum, wave, parameters)) * (2 * spectrum.extent)).astype(np.int32)
    inside = spectrum.weight * (spectrum.s2 <= high**2)
    level = xp.asarray(fitted.level, dtype=np.float32)[spectrum.ring]
    n = spectrum.n_rings
    place = xp.minimum(place, n - 1)
    count = to_host(xp.bincount(place, weights=inside, minlength=n))
    sums = []
    for row in np.flatnonzero(tiles.kept):
        part = tiles.spectrum(np.arange(len(tiles.kept)) == row)
        start = int(np.searchsorted(to_host(part.ring), int(spectrum.ring[0])))
        power = part.power[start : start + len(spectrum.power)]
        sums.append(to_host(xp.bincount(place, weights=inside * (power / level - 1), minlength=n)))
    s2 = spectrum.frequencies**2
    rings = -np.cos(2 * wave.phase(s2[:, None], parameters.defocus + defocus[None, :], parameters.phase_shift))
    signal = np.stack(sums) @ (fitted.depth[:, None] * rings)
    power = (count * fitted.depth**2) @ rings**2
    return np.asarray(signal - power / 2)
