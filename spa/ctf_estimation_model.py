"""The model of a power spectrum with CTF rings, and its fit by the Whittle likelihood.

S(s, theta) = a(s) - b(s) cos 2 chi(s, theta): `a` the mean power, `b` the depth of the rings, both smooth in s. What
dampens the rings (envelope, tapering of the tiles, spread of heights, drift) is in b and need not be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import nnls

from spa.ctf import wavelength
from spa.ctf_estimation_spectrum import Spectrum
from spa.kernels.backend import Array, to_host, xp_of

PEDESTAL = 0.25
"""Added to the power, in units of its smooth mean, before a fit."""

_FLOOR = 0.3
_DEEPEST = 0.8
_SMOOTH = 1e-3
_MAX_STEPS, _MAX_DAMPING = 15, 10.0
_SETTLED = 1e-4


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
    angle), in Angstrom; phase shift in radians."""

    defocus: float
    along: float = 0.0
    across: float = 0.0
    phase_shift: float = 0.0

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


@dataclass(frozen=True)
class Basis:
    """Smooth functions of the radial bin from which a and b are made, float64 (n_rings, n) and zero out of range."""

    level: NDArray[np.float64]
    depth: NDArray[np.float64]


@dataclass(frozen=True)
class RingFit:
    """A fit: parameters, a and b per radial bin (n_rings,), and twice the negative log-likelihood per average."""

    parameters: Parameters
    level: NDArray[np.float64]
    depth: NDArray[np.float64]
    deviance: float
    penalty: float = 0.0


def basis(spectrum: Spectrum, n_level: int = 9, n_depth: int = 8) -> Basis:
    """Cubic B-splines over the rings the spectrum has."""
    host = to_host(spectrum.ring)
    first, last = int(host[0]), int(host[-1])
    x = np.arange(first, last + 1)
    level, depth = np.zeros((spectrum.n_rings, n_level)), np.zeros((spectrum.n_rings, n_depth))
    level[first : last + 1], depth[first : last + 1] = _splines(x, n_level), _splines(x, n_depth)
    return Basis(level, depth)


def _splines(x: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    inner = np.linspace(x[0], x[-1] + 1e-9, n - 2)
    knots = np.concatenate([[inner[0]] * 3, inner, [inner[-1]] * 3])
    return np.asarray(BSpline.design_matrix(x.astype(np.float64), knots, 3).toarray())


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


def fit_levels(
    spectrum: Spectrum,
    ring_cos: Array,
    shape: Basis,
    start: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    rounds: int = 3,
    rings: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """a and b per radial bin that fit the power for given cos 2 chi (n_pixels,): iterated weighted least squares.

    b is not negative; with `rings=False` it is zero. The weights 1 / S^2 make it the Whittle likelihood.
    """
    level = np.full(spectrum.n_rings, 1 + PEDESTAL)
    depth = np.zeros(spectrum.n_rings)
    if start is not None:
        level, depth = start
    n = shape.level.shape[1]
    columns = shape.depth if rings else shape.depth[:, :0]
    for _ in range(rounds):
        _, weight = _expected(spectrum, ring_cos, level, depth)
        wc = weight * ring_cos
        w0, w1, w2, y0, y1 = (
            to_host(spectrum.sums(v)) for v in (weight, wc, wc * ring_cos, weight * spectrum.power, wc * spectrum.power)
        )
        aa = shape.level.T @ (w0[:, None] * shape.level)
        ab = -shape.level.T @ (w1[:, None] * columns)
        bb = columns.T @ (w2[:, None] * columns)
        right_a, right_b = shape.level.T @ y0, -columns.T @ y1
        aa += 1e-9 * np.trace(aa) / n * np.eye(n)
        solved = np.linalg.solve(aa, np.column_stack([ab, right_a]))
        b = _not_negative(bb - ab.T @ solved[:, :-1], right_b - ab.T @ solved[:, -1]) if rings else np.zeros(0)
        a = solved[:, -1] - solved[:, :-1] @ b
        level = np.maximum(shape.level @ a, _FLOOR)
        depth = np.minimum(columns @ b, _DEEPEST * level)
    return level, depth


def _not_negative(normal: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with coefficients >= 0 and a weak wish for smoothness, from normal equations."""
    n = len(right)
    second = np.diff(np.eye(n), 2, axis=0)
    normal = normal + (_SMOOTH * np.trace(normal) / n) * (second.T @ second + 1e-3 * np.eye(n))
    root = np.linalg.cholesky(normal)
    found, _ = nnls(root.T, np.linalg.solve(root, right))
    return np.asarray(found)


def _expected(
    spectrum: Spectrum, ring_cos: Array, level: NDArray[np.float64], depth: NDArray[np.float64]
) -> tuple[Array, Array]:
    """The model S and the weights 1 / S^2 per pixel."""
    xp = xp_of(ring_cos)
    a, b = (xp.asarray(v, dtype=np.float32)[spectrum.ring] for v in (level, depth))
    model = a - b * ring_cos
    return model, spectrum.weight / model**2


def ring_phase(spectrum: Spectrum, wave: Wave, parameters: Parameters) -> Array:
    """2 chi in radians at the pixels of a spectrum."""
    defocus = parameters.towards(spectrum.cos2, spectrum.sin2)
    return 2 * wave.phase(spectrum.s2, defocus, parameters.phase_shift)


def deviance(spectrum: Spectrum, ring_cos: Array, level: NDArray[np.float64], depth: NDArray[np.float64]) -> float:
    """Twice the sum of log S + P / S - log P - 1 over the pixels: 2 x negative log-likelihood per average."""
    return float(_deviances(spectrum, ring_cos, level, depth).sum())


def _deviances(spectrum: Spectrum, ring_cos: Array, level: NDArray[np.float64], depth: NDArray[np.float64]) -> Array:
    """The terms of the deviance, (n_pixels,)."""
    xp = xp_of(ring_cos)
    model, _ = _expected(spectrum, ring_cos, level, depth)
    ratio = xp.maximum(spectrum.power / model, 1e-6)
    return 2 * spectrum.weight * (ratio - 1 - xp.log(ratio))


def deviance_by_ring(spectrum: Spectrum, wave: Wave, shape: Basis, fit: RingFit | None) -> NDArray[np.float64]:
    """The deviance of each radial bin, (n_rings,), of a fit, or of the best one without rings (None)."""
    xp = xp_of(spectrum.power)
    if fit is None:
        ring_cos = xp.zeros_like(spectrum.power)
        level, depth = fit_levels(spectrum, ring_cos, shape, rings=False)
    else:
        ring_cos, level, depth = xp.cos(ring_phase(spectrum, wave, fit.parameters)), fit.level, fit.depth
    return np.asarray(to_host(spectrum.sums(_deviances(spectrum, ring_cos, level, depth))))


def refine(
    spectrum: Spectrum,
    wave: Wave,
    shape: Basis,
    start: Parameters,
    with_phase: bool = False,
    restraint: float = 0.0,
) -> RingFit:
    """Maximise the Whittle likelihood over defocus, astigmatism and (`with_phase`) phase shift.

    Fisher scoring on the parameters, with step control, in turn with `fit_levels`; ends when a step promises less
    than a thousandth of what noise would make of the likelihood. `restraint` times the squared half difference of
    the defoci (Angstrom^2) is added to the deviance.
    """
    best = _evaluated(spectrum, wave, shape, start, restraint, None, 4)
    damping = 1e-3
    for _ in range(_MAX_STEPS):
        normal, gradient = information(spectrum, wave, best, with_phase, restraint)
        scale = np.sqrt(np.diag(normal)) + 1e-30
        trial = best
        while damping <= _MAX_DAMPING:
            damped = normal / np.outer(scale, scale) + damping * np.eye(len(gradient))
            step = np.linalg.solve(damped, gradient / scale) / scale
            moved = _moved(best.parameters, step)
            trial = _evaluated(spectrum, wave, shape, moved, restraint, (best.level, best.depth), 2)
            if trial.penalty <= best.penalty:
                break
            damping = max(10 * damping, 1e-2)
        if trial.penalty >= best.penalty:
            break
        best, damping = trial, damping / 10
        if step @ gradient < _SETTLED:
            break
    return best


def _evaluated(
    spectrum: Spectrum,
    wave: Wave,
    shape: Basis,
    parameters: Parameters,
    restraint: float,
    start: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    rounds: int,
) -> RingFit:
    ring_cos = xp_of(spectrum.power).cos(ring_phase(spectrum, wave, parameters))
    level, depth = fit_levels(spectrum, ring_cos, shape, start, rounds)
    misfit = deviance(spectrum, ring_cos, level, depth)
    return RingFit(parameters, level, depth, misfit, misfit + restraint * parameters.half_difference**2)


def _moved(parameters: Parameters, step: NDArray[np.float64]) -> Parameters:
    values = [parameters.defocus, parameters.along, parameters.across, parameters.phase_shift]
    moved = [v + (step[i] if i < len(step) else 0.0) for i, v in enumerate(values)]
    return replace(parameters, defocus=moved[0], along=moved[1], across=moved[2], phase_shift=moved[3])


def information(
    spectrum: Spectrum, wave: Wave, fit: RingFit, with_phase: bool, restraint: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fisher information and gradient of the log-likelihood in the parameters, at fixed a and b."""
    xp = xp_of(spectrum.power)
    twice = ring_phase(spectrum, wave, fit.parameters)
    model, weight = _expected(spectrum, xp.cos(twice), fit.level, fit.depth)
    b = xp.asarray(fit.depth, dtype=np.float32)[spectrum.ring]
    slope = 2 * b * xp.sin(twice)
    per_defocus = slope * (np.float32(np.pi * wave.wavelength) * spectrum.s2)
    columns = [per_defocus, per_defocus * spectrum.cos2, per_defocus * spectrum.sin2] + ([slope] if with_phase else [])
    design = xp.stack(columns)
    weighted = design * weight
    normal = to_host(weighted @ design.T).astype(np.float64)
    gradient = to_host(weighted @ (spectrum.power - model)).astype(np.float64)
    normal[[1, 2], [1, 2]] += restraint
    gradient[1:3] -= restraint * np.array([fit.parameters.along, fit.parameters.across])
    return normal, gradient
