"""Steps towards the top of a correlation, their errors, and values over time that agree with both."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.optimize import minimize

from spa.kernels.backend import Array, xp_of

_LARGEST_STEP = 1.0  # pixels of the cropped frame
_BLIND = 2.5  # below the mean curvature, in units of its noise
_BLIND_ERROR = 100.0  # of a frame that says nothing, in units of the typical error
_WALKS = (0.03, 300.0, 33)  # steps of the velocity that are tried, in units of the typical error
_UNLIKE = 1.0  # logarithm of how much those along the path may well differ from those across it

Floats = NDArray[np.float64]


def slopes(placed: Array, weight: Array, shape: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
    """Of the correlation of each frame with the sum of the others, along x and y, (n, 2) each:
    gradient, negative curvature, and noise variances (n, 2, 2) of both."""
    xp, n_frames = xp_of(placed), len(placed)
    ky = xp.asarray((2 * np.pi * np.fft.fftfreq(shape[0])).astype(np.float32))[:, None]
    kx = xp.asarray((2 * np.pi * np.arange(shape[1] // 2 + 1) / shape[1]).astype(np.float32))
    total = placed.sum(axis=0)
    gradient, curvature, noise = np.zeros((n_frames, 2)), np.zeros((n_frames, 2)), np.zeros((n_frames, 2, 2))
    for i in range(n_frames):
        product = (total - placed[i]).conj() * placed[i] * weight
        # marginal sums over one axis are all that the moments along the other need
        power = xp.abs(product) ** 2
        for axis, k, other in ((0, kx, 0), (1, ky[:, 0], 1)):
            marginal, spread = product.sum(axis=other), power.sum(axis=other)
            gradient[i, axis] = float((k * marginal.imag).sum())
            curvature[i, axis] = float((k**2 * marginal.real).sum())
            noise[i, axis] = float((k**2 * spread).sum()) / 2, float((k**4 * spread).sum()) / 2
    return gradient, curvature, noise


def _typical_curvature(curvature: Floats, noise: Floats) -> Floats:
    """Mean over the frames (..., n_frames, 2) of the curvature, (..., 1, 2), and at least its noise.

    Values of many patches (n_patches, n_frames, 2) are drawn towards their mean as far as noise makes them differ.
    """
    mean = curvature.mean(axis=-2, keepdims=True)
    variance = noise[..., 1].mean(axis=-2, keepdims=True) / curvature.shape[-2]
    if curvature.ndim == 3:
        spread = ((mean - mean.mean(axis=0)) ** 2).mean(axis=0)
        kept = np.maximum(1 - variance.mean(axis=0) / np.maximum(spread, 1e-30), 0)
        mean = mean.mean(axis=0) + kept * (mean - mean.mean(axis=0))
    return np.asarray(np.maximum(mean, np.maximum(np.sqrt(variance), 1e-30)))


def newton_steps(gradient: Floats, curvature: Floats, noise: Floats, information: Floats) -> tuple[Floats, Floats]:
    """Newton steps (..., n_frames, 2) and their errors; a step is at most a pixel.

    The curvature, which is noisy, is that of all frames together, shared out by `information` (n_frames,) of mean 1; a
    frame far below its share says nothing.
    """
    mean = _typical_curvature(curvature, noise) * np.maximum(information, 1e-6)[:, None]
    errors = np.sqrt(noise[..., 0]) / mean
    blind = (curvature < mean - _BLIND * np.sqrt(noise[..., 1])) & (curvature < 0.5 * mean)
    return np.clip(gradient / mean, -_LARGEST_STEP, _LARGEST_STEP), np.where(blind | (errors == 0), np.inf, errors)


def smooth(measured: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Path (n, 2), x and y over time, tied by second differences of the sizes that explain it best, and its errors.

    Notes: a random walk of the velocity, whose steps are those of the largest evidence given the errors: first alike
    along both axes, then apart for steps along the path, which change the speed, and across it, which turn it.
    """
    n_frames = len(measured)
    if n_frames < 4 or not np.isfinite(errors).any():
        return measured.copy(), errors
    typical = float(np.median(errors[np.isfinite(errors)]))
    variances = np.where(np.isfinite(errors), np.maximum(errors, 1e-3 * typical), _BLIND_ERROR * typical) ** 2
    bends, noise = np.diff(measured, 2, axis=0), _bend_noise(variances)
    alike = np.broadcast_to(np.eye(2), (n_frames - 2, 2, 2))
    sizes = np.log(typical * np.geomspace(*_WALKS))
    size = float(sizes[np.argmin([_surprise(bends, noise, math.exp(2 * s) * alike) for s in sizes])])
    path = measured - variances * _pull(bends, noise, math.exp(2 * size) * alike)[0]

    along = path[2:] - path[:-2]
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-30)[:, None]
    across = alike - along[:, :, None] * along[:, None]

    def walk(both: Floats) -> Floats:
        return np.asarray(alike * math.exp(2 * both[0]) + across * (math.exp(2 * both[1]) - math.exp(2 * both[0])))

    def surprise(both: Floats) -> float:
        inside = np.clip(both, sizes[0], sizes[-1])
        return _surprise(bends, noise, walk(inside)) + 0.5 * float((both[0] - both[1]) / _UNLIKE) ** 2

    best = minimize(surprise, np.full(2, size), method="Nelder-Mead", options={"xatol": 0.05, "fatol": 0.01})
    pull, sharpness = _pull(bends, noise, walk(np.clip(best.x, sizes[0], sizes[-1])))
    left = variances * (1 - variances * sharpness)
    return measured - variances * pull, np.where(np.isfinite(errors), np.sqrt(np.maximum(left, 0)), np.inf)


def _bend_noise(variances: Floats) -> Floats:
    """Covariance of second differences of values with variances (n, 2), as the lower bands of a matrix.

    Rows and columns: the x and y of the first difference, of the second and so on.
    """
    bands = np.zeros((6, 2 * (len(variances) - 2)))
    bands[0] = (variances[:-2] + 4 * variances[1:-1] + variances[2:]).ravel()
    bands[2, :-2] = -2 * (variances[1:-2] + variances[2:-1]).ravel()
    bands[4, :-4] = variances[2:-2].ravel()
    return bands


def _factor(noise: Floats, walk: Floats) -> Floats:
    """Cholesky factor, in bands, of the covariance of second differences: their noise and walk (n - 2, 2, 2)."""
    bands = noise.copy()
    bands[0] += walk[:, [0, 1], [0, 1]].ravel()
    bands[1, ::2] += walk[:, 0, 1]
    return np.asarray(cholesky_banded(bands, lower=True, check_finite=False))


def _surprise(bends: Floats, noise: Floats, walk: Floats) -> float:
    """Minus the logarithm of the probability of second differences (n - 2, 2), up to a constant."""
    factor, values = _factor(noise, walk), bends.ravel()
    return float(0.5 * values @ cho_solve_banded((factor, True), values) + np.log(factor[0]).sum())


def _pull(bends: Floats, noise: Floats, walk: Floats) -> tuple[Floats, Floats]:
    """What values (n, 2) move by for each unit of their variance, and how much surer (n, 2) that makes them."""
    factor, n_frames = _factor(noise, walk), len(bends) + 2
    second = np.kron(np.diff(np.eye(n_frames), 2, axis=0), np.eye(2))
    gain = cho_solve_banded((factor, True), second)
    return (bends.ravel() @ gain).reshape(-1, 2), (second * gain).sum(axis=0).reshape(-1, 2)


def beyond_noise(evidence: float, count: int) -> float:
    """Which part, 0 to 1, of `count` values to keep whose squares in units of their errors add up to `evidence`.

    Notes: 1 - count / evidence (James & Stein 1961); noise alone makes that about 0.
    """
    return max(0.0, 1 - count / max(evidence, 1e-30))
