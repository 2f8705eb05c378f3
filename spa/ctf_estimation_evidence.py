"""Whether the rings of a fitted CTF are seen one by one, and where the fit has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.ctf_estimation_model import Parameters, Wave
from spa.ctf_estimation_rings import Rings, Whole
from spa.kernels.backend import to_host

ALLOWED_OFFSET = 30.0
"""Degrees of 2 chi by which a ring may lie off."""

_REACH = 1.0
_LEAST_REACH, _LEAST_BINS = 1.6, 10
_DEGREE = 3


@dataclass(frozen=True)
class Evidence:
    """What each ring by itself says, both float64 (n,), from low frequencies up, in standard deviations.

    `depth` is that of the ring where the fit has it; `offset` how far its phase lies beyond `ALLOWED_OFFSET`.
    """

    depth: NDArray[np.float64]
    offset: NDArray[np.float64]


def evidence(
    fitted: Whole, curves: Rings, wave: Wave, parameters: Parameters, highest: float, averages: float
) -> Evidence:
    """The evidence of each ring up to frequency `highest` (1/Angstrom) in a power averaged over `averages` spectra.

    Notes
    -----
    In two periods around each maximum of the squared CTF, a cubic background, cos 2 chi and sin 2 chi are fitted to
    the logarithm of the power along the rings: a bend of the background gives depth to one ring and not to its
    neighbours, and a wrong phase (phase plate, pixel size) shows as sine that changes from ring to ring.
    """
    spectrum = fitted.spectrum
    kept = slice(int(spectrum.ring[0]), int(spectrum.ring[-1]) + 1)
    count = to_host(spectrum.sums(spectrum.weight))[kept]
    turn = np.asarray(wave.phase(curves.frequency**2, parameters.defocus, parameters.phase_shift)) / np.pi
    used = (curves.frequency <= highest) & (count > 0)
    used[int(turn.argmax()) + 1 :] = False
    power = np.log(fitted.level[kept]) + np.log1p(np.maximum(curves.along, -0.95))
    found = []
    for middle in np.arange(math.floor(turn[0]), math.ceil(turn.max())) + 0.5:
        inside = used & (np.abs(turn - middle) <= _REACH)
        if inside.sum() >= _LEAST_BINS and np.ptp(turn[inside]) >= _LEAST_REACH:
            found.append(_ring(turn[inside], curves.frequency[inside], power[inside], averages * count[inside]))
    depth, offset = np.array(found).reshape(-1, 2).T
    return Evidence(depth, offset)


def _ring(
    turn: NDArray[np.float64], frequency: NDArray[np.float64], power: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Depth and offset of one ring over their standard deviations, at least those of the misfit."""
    x = 2 * (frequency - frequency.mean()) / np.ptp(frequency)
    phase = 2 * np.pi * turn
    design = np.column_stack([x**n for n in range(_DEGREE + 1)] + [-np.cos(phase), -np.sin(phase)])
    root = np.sqrt(weight)
    inverse = np.linalg.pinv(design * root[:, None])
    fit = inverse @ (power * root)
    misfit = float((((power - design @ fit) * root) ** 2).sum()) / (len(turn) - design.shape[1])
    covariance = (inverse @ inverse.T)[-2:, -2:] * max(1.0, misfit)
    depth, sine = fit[-2:]
    beyond = np.array([-math.tan(math.radians(ALLOWED_OFFSET)), math.copysign(1.0, sine)])
    deviations = np.sqrt([covariance[0, 0], beyond @ covariance @ beyond]) + 1e-30
    return float(depth / deviations[0]), float(beyond @ fit[-2:] / deviations[1])
