"""Mean power and depth of the rings of a spectrum, for rings whose places are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import nnls

from spa.ctf_estimation_model import PEDESTAL
from spa.ctf_estimation_spectrum import Spectrum
from spa.kernels.backend import Array, to_host, xp_of

_SMOOTH = 1e-3


@dataclass(frozen=True)
class Basis:
    """Smooth functions of the radial bin for noise and rings, float64 (n_rings, n) and zero out of range."""

    noise: NDArray[np.float64]
    depth: NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """Mean power `level` and ring depth `depth` per radial bin, float64 (n_rings,).

    `free` bool (n_noise + n_depth,) tells which coefficients of the basis are not held at zero.
    """

    level: NDArray[np.float64]
    depth: NDArray[np.float64]
    free: NDArray[np.bool_]


def basis(spectrum: Spectrum, n_noise: int = 9, n_depth: int = 8) -> Basis:
    """Cubic B-splines over the rings the spectrum has, with knots at equal steps of log s.

    Notes: the power changes fastest at low frequencies, and what the splines do not follow there the phase shift does.
    """
    host = to_host(spectrum.ring)
    first, last = int(host[0]), int(host[-1])
    x = np.log(np.maximum(np.arange(first, last + 1), 1))
    noise, depth = np.zeros((spectrum.n_rings, n_noise)), np.zeros((spectrum.n_rings, n_depth))
    noise[first : last + 1], depth[first : last + 1] = _splines(x, n_noise), _splines(x, n_depth)
    return Basis(noise, depth)


def _splines(x: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    inner = np.linspace(x[0], x[-1] + 1e-9, n - 2)
    knots = np.concatenate([[inner[0]] * 3, inner, [inner[-1]] * 3])
    return np.asarray(BSpline.design_matrix(x, knots, 3).toarray())


def fit_levels(
    spectrum: Spectrum,
    ring_cos: Array,
    shape: Basis,
    start: Levels | None = None,
    rounds: int = 3,
    rings: bool = True,
) -> Levels:
    """The levels that fit the power of a flattened spectrum for given cos 2 chi (n_pixels,).

    Iterated weighted least squares, whose weights 1 / S^2 make it the Whittle likelihood; with `rings=False` the depth
    is zero.

    Notes
    -----
    S = pedestal + n + b (1 - cos 2 chi), where neither the noise n nor the depth b is negative (Lawson & Hanson 1974),
    so that S is nowhere below the pedestal.
    """
    n, n_noise = shape.noise.shape[1] + shape.depth.shape[1] * rings, shape.noise.shape[1]
    level, depth = np.full(spectrum.n_rings, 1 + PEDESTAL), np.zeros(spectrum.n_rings)
    if start is not None:
        level, depth = start.level, start.depth
    coefficients = np.zeros(n)
    for _ in range(rounds):
        _, weight = expected(spectrum, ring_cos, level, depth)
        normal = normal_equations(spectrum, ring_cos, weight, shape)[:n, :n]
        right = on_levels(spectrum, ring_cos, weight * (spectrum.power - np.float32(PEDESTAL)), shape)[:n]
        coefficients = _not_negative(normal, right, n_noise)
        depth = shape.depth @ coefficients[n_noise:] if rings else depth
        level = PEDESTAL + shape.noise @ coefficients[:n_noise] + depth
    return Levels(level, depth, coefficients > 0)


def normal_equations(spectrum: Spectrum, ring_cos: Array, weight: Array, shape: Basis) -> NDArray[np.float64]:
    """Normal equations of the coefficients of noise and depth, under weights (n_pixels,)."""
    rings = 1 - ring_cos
    wr = weight * rings
    w0, w1, w2 = (to_host(spectrum.sums(v)) for v in (weight, wr, wr * rings))
    cross = shape.noise.T @ (w1[:, None] * shape.depth)
    noise, depth = (part.T @ (w[:, None] * part) for part, w in ((shape.noise, w0), (shape.depth, w2)))
    return np.block([[noise, cross], [cross.T, depth]])


def on_levels(spectrum: Spectrum, ring_cos: Array, values: Array, shape: Basis) -> NDArray[np.float64]:
    """Scalar products of values (n_pixels,) with what each coefficient of noise and depth adds to the power."""
    noise, depth = (to_host(spectrum.sums(v)) for v in (values, values * (1 - ring_cos)))
    return np.concatenate([shape.noise.T @ noise, shape.depth.T @ depth])


def _not_negative(normal: NDArray[np.float64], right: NDArray[np.float64], n_noise: int) -> NDArray[np.float64]:
    """Least squares with coefficients >= 0 and a weak wish for smoothness, from normal equations."""
    n = len(right)
    wish = np.zeros((n, n))
    for part in (slice(0, n_noise), slice(n_noise, n)):
        size = part.stop - part.start
        second = np.diff(np.eye(size), 2, axis=0)
        own = normal[part, part]
        wish[part, part] = _SMOOTH * np.trace(own) / max(size, 1) * (second.T @ second + 1e-3 * np.eye(size))
    root = np.linalg.cholesky(normal + wish)
    found, _ = nnls(root.T, np.linalg.solve(root, right))
    return np.asarray(found)


def expected(
    spectrum: Spectrum, ring_cos: Array, level: NDArray[np.float64], depth: NDArray[np.float64]
) -> tuple[Array, Array]:
    """The model S and the weights 1 / S^2 per pixel."""
    xp = xp_of(ring_cos)
    a, b = (xp.asarray(v, dtype=np.float32)[spectrum.ring] for v in (level, depth))
    model = a - b * ring_cos
    return model, spectrum.weight / model**2


def deviances(spectrum: Spectrum, ring_cos: Array, levels: Levels) -> Array:
    """The terms of twice the negative log-likelihood per average, 2 (P / S - 1 - log(P / S)), (n_pixels,)."""
    xp = xp_of(ring_cos)
    model, _ = expected(spectrum, ring_cos, levels.level, levels.depth)
    ratio = xp.maximum(spectrum.power / model, 1e-6)
    return 2 * spectrum.weight * (ratio - 1 - xp.log(ratio))
