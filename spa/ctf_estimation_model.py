"""The model of a power spectrum with CTF rings.

S(s, theta) = a(s) - b(s) cos 2 chi(s, theta): `a` the mean power, `b` the depth of the rings, both smooth in s. What
dampens the rings (envelope, tapering of the tiles, spread of heights, drift) is in b and need not be known. The fit is
in `spa.ctf_estimation_levels` (a and b) and `spa.ctf_estimation_refine` (defocus, astigmatism, phase shift).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.ctf import wavelength
from spa.ctf_estimation_spectrum import Spectrum
from spa.kernels.backend import Array, to_host, xp_of

PEDESTAL = 0.25
"""Added to the power, in units of its smooth mean, before a fit."""


@dataclass(frozen=True)
class Wave:
    """The microscope: wavelength and spherical aberration in Angstrom, phase of the amplitude contrast in radians."""

    wavelength: float
    cs: float
    amplitude_phase: float

    @classmethod
    def of(cls, voltage: float, cs: float, q0: float) -> Wave:
        """From voltage in kV, spherical aberration in mm and amplitude contrast (0 to 1)."""
        return cls(float(wavelength(voltage)), cs * 1e7, math.asin(q0))

    def phase(self, s2: Array, defocus: Array | float, phase_shift: float = 0.0) -> Array:
        """chi in radians at squared frequencies s2 (1/Angstrom^2); defocus in Angstrom, phase shift in radians."""
        lam = self.wavelength
        offset = self.amplitude_phase + phase_shift
        return np.pi * lam * s2 * (defocus - 0.5 * self.cs * lam**2 * s2) + offset


@dataclass(frozen=True)
class Parameters:
    """Mean defocus and the astigmatism vector (along = half the difference times cos, across = sin of twice the
    angle), in Angstrom; phase shift in radians; what is added to the spherical aberration, in Angstrom."""

    defocus: float
    along: float = 0.0
    across: float = 0.0
    phase_shift: float = 0.0
    spherical: float = 0.0

    @property
    def half_difference(self) -> float:
        """Half of defocus U minus defocus V, Angstrom."""
        return math.hypot(self.along, self.across)

    @property
    def angle(self) -> float:
        """Azimuth of the larger defocus, degrees from the x axis, -90 to 90."""
        return math.degrees(0.5 * math.atan2(self.across, self.along))

    def towards(self, cos2: Array, sin2: Array) -> Array:
        """Defocus along azimuths given by cosine and sine of twice the angle."""
        return self.defocus + self.along * cos2 + self.across * sin2


def flattened(spectrum: Spectrum) -> tuple[Spectrum, NDArray[np.float64]]:
    """The spectrum over its smooth mean power plus a pedestal of a quarter; and that mean, float64 (n_rings,).

    Where rings are deep the model nears zero between them, and 1 / S^2 would let the finest misfit there decide.
    The expectation of the likelihood has its optimum at the same place with the pedestal in power and model.
    """
    xp = xp_of(spectrum.power)
    mean = smooth_power(spectrum)
    smooth = xp.asarray(mean, dtype=np.float32)[spectrum.ring]
    return replace(spectrum, power=spectrum.power / smooth + np.float32(PEDESTAL)), mean


def smooth_power(spectrum: Spectrum, degree: int = 5) -> NDArray[np.float64]:
    """A smooth curve through the logarithm of the mean power of each radial bin, float64 (n_rings,).

    Notes: a polynomial in log s; rings oscillate around it.
    """
    count = to_host(spectrum.sums(spectrum.weight))
    mean = to_host(spectrum.sums(spectrum.weight * spectrum.power)) / np.maximum(count, 1)
    used = np.flatnonzero((count > 0) & (mean > 0))
    x = np.log(np.maximum(np.arange(spectrum.n_rings), 1.0))
    middle, half = (x[used[0]] + x[used[-1]]) / 2, max((x[used[-1]] - x[used[0]]) / 2, 1e-3)
    x = np.clip((x - middle) / half, -1.0, 1.0)
    fit = np.polynomial.chebyshev.Chebyshev.fit(
        x[used], np.log(mean[used]), degree, w=np.sqrt(count[used]), domain=(-1, 1)
    )
    return np.asarray(np.exp(fit(x)))


def ring_phase(spectrum: Spectrum, wave: Wave, parameters: Parameters) -> Array:
    """2 chi in radians at the pixels of a spectrum."""
    defocus = parameters.towards(spectrum.cos2, spectrum.sin2)
    wave = replace(wave, cs=wave.cs + parameters.spherical)
    return 2 * wave.phase(spectrum.s2, defocus, parameters.phase_shift)
