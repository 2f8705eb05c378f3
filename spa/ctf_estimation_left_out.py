"""Whether rings fit far better with what the fit of a CTF left out: a phase shift, or another spherical aberration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spa.ctf_estimation_levels import Basis
from spa.ctf_estimation_model import Wave
from spa.ctf_estimation_refine import RingFit, refine
from spa.ctf_estimation_spectrum import Spectrum

_PER_MM = 1e-7
_FREE = ("phase_shift", "spherical")


@dataclass(frozen=True)
class LeftOut:
    """The phase shift (degrees, -90 to 90) that fits best, what is to be added to the spherical aberration (mm)
    instead of it, and by how much either raises the log-likelihood (nats)."""

    phase_shift: float = 0.0
    phase_gain: float = 0.0
    spherical: float = 0.0
    spherical_gain: float = 0.0


def left_out(flat: Spectrum, wave: Wave, shape: Basis, fit: RingFit, restraint: float, dispersion: float) -> LeftOut:
    """Refine a fit of a flattened spectrum once with a phase shift and once with the spherical aberration free.

    `restraint` is that of the fit; `dispersion` what twice the log-likelihood is divided by.

    Notes
    -----
    A wrong voltage, aberration or pixel size leaves its trace in the term of s^4, since the defocus takes up that of
    s^2: the free aberration stands for all three.
    """
    phase, spherical = (refine(flat, wave, shape, fit.parameters, (name,), restraint) for name in _FREE)
    return LeftOut(
        phase_shift=(math.degrees(phase.parameters.phase_shift) + 90) % 180 - 90,
        phase_gain=max(0.0, fit.penalty - phase.penalty) / (2 * dispersion),
        spherical=spherical.parameters.spherical * _PER_MM,
        spherical_gain=max(0.0, fit.penalty - spherical.penalty) / (2 * dispersion),
    )
