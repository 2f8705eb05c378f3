"""Fit of defocus, astigmatism and phase shift by the Whittle likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.ctf_estimation_levels import Basis, Levels, deviances, expected, fit_levels, normal_equations, on_levels
from spa.ctf_estimation_model import Parameters, Wave, ring_phase
from spa.ctf_estimation_spectrum import Spectrum
from spa.kernels.backend import to_host, xp_of

_MAX_STEPS, _MAX_DAMPING = 15, 10.0
_SETTLED = 1e-4
_ALWAYS = ("defocus", "along", "across")


@dataclass(frozen=True)
class RingFit:
    """A fit, twice its negative log-likelihood per average, and that with what restrains the parameters."""

    parameters: Parameters
    levels: Levels
    deviance: float
    penalty: float = 0.0


def deviance_by_ring(spectrum: Spectrum, wave: Wave, shape: Basis, fit: RingFit | None) -> NDArray[np.float64]:
    """The deviance of each radial bin, (n_rings,), of a fit, or of the best one without rings (None)."""
    xp = xp_of(spectrum.power)
    if fit is None:
        ring_cos = xp.zeros_like(spectrum.power)
        levels = fit_levels(spectrum, ring_cos, shape, rings=False)
    else:
        ring_cos, levels = xp.cos(ring_phase(spectrum, wave, fit.parameters)), fit.levels
    return np.asarray(to_host(spectrum.sums(deviances(spectrum, ring_cos, levels))))


def refine(
    spectrum: Spectrum,
    wave: Wave,
    shape: Basis,
    start: Parameters,
    also: Sequence[str] = (),
    restraint: float = 0.0,
) -> RingFit:
    """Maximise the Whittle likelihood over defocus, astigmatism and what `also` names of phase_shift and spherical.

    Fisher scoring on the parameters, with a and b following (variable projection: Golub & Pereyra 1973, SIAM J Numer
    Anal 10:413) and step control; ends when a step promises less than a thousandth of what noise would make of the
    likelihood. `restraint` times the squared half difference of the defoci (Angstrom^2) is added to the deviance.
    """
    best = _evaluated(spectrum, wave, shape, start, restraint, None, 4)
    damping = 1e-3
    for _ in range(_MAX_STEPS):
        normal, gradient = information(spectrum, wave, shape, best, also, restraint)
        scale = np.sqrt(np.diag(normal)) + 1e-30
        trial = best
        while damping <= _MAX_DAMPING:
            damped = normal / np.outer(scale, scale) + damping * np.eye(len(gradient))
            step = np.linalg.solve(damped, gradient / scale) / scale
            moved = _moved(best.parameters, (*_ALWAYS, *also), step)
            trial = _evaluated(spectrum, wave, shape, moved, restraint, best.levels, 2)
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
    start: Levels | None,
    rounds: int,
) -> RingFit:
    ring_cos = xp_of(spectrum.power).cos(ring_phase(spectrum, wave, parameters))
    levels = fit_levels(spectrum, ring_cos, shape, start, rounds)
    misfit = float(deviances(spectrum, ring_cos, levels).sum())
    return RingFit(parameters, levels, misfit, misfit + restraint * parameters.half_difference**2)


def _moved(parameters: Parameters, names: Sequence[str], step: NDArray[np.float64]) -> Parameters:
    return replace(
        parameters, **{name: getattr(parameters, name) + v for name, v in zip(names, step.tolist(), strict=True)}
    )


def information(
    spectrum: Spectrum, wave: Wave, shape: Basis, fit: RingFit, also: Sequence[str], restraint: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fisher information and gradient of the log-likelihood in the parameters, where a and b follow them."""
    xp = xp_of(spectrum.power)
    twice = ring_phase(spectrum, wave, fit.parameters)
    ring_cos = xp.cos(twice)
    model, weight = expected(spectrum, ring_cos, fit.levels.level, fit.levels.depth)
    b = xp.asarray(fit.levels.depth, dtype=np.float32)[spectrum.ring]
    slope = 2 * b * xp.sin(twice)
    per_defocus = slope * (np.float32(np.pi * wave.wavelength) * spectrum.s2)
    columns = [per_defocus, per_defocus * spectrum.cos2, per_defocus * spectrum.sin2]
    others = {"phase_shift": slope, "spherical": -np.float32(0.5 * wave.wavelength**2) * spectrum.s2 * per_defocus}
    design = xp.stack([*columns, *(others[name] for name in also)])
    weighted = design * weight
    residual = spectrum.power - model
    normal = to_host(weighted @ design.T).astype(np.float64)
    gradient = to_host(weighted @ residual).astype(np.float64)
    free = fit.levels.free
    levels = normal_equations(spectrum, ring_cos, weight, shape)[np.ix_(free, free)]
    levels += 1e-9 * np.trace(levels) / len(levels) * np.eye(len(levels))
    cross = np.stack([on_levels(spectrum, ring_cos, column, shape)[free] for column in weighted])
    right = on_levels(spectrum, ring_cos, weight * residual, shape)[free]
    follow = np.linalg.solve(levels, np.column_stack([cross.T, right]))
    normal -= cross @ follow[:, :-1]
    gradient -= cross @ follow[:, -1]
    normal[[1, 2], [1, 2]] += restraint
    gradient[1:3] -= restraint * np.array([fit.parameters.along, fit.parameters.across])
    return normal, gradient
