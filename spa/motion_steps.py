"""Steps towards the top of a correlation, their errors, and values over time that agree with both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, xp_of

_LARGEST_STEP = 1.0  # pixels of the cropped frame
_BLIND = 2.5  # below the mean curvature, in units of its noise
_BLIND_ERROR = 100.0  # of a frame that says nothing, in units of the typical error
_WALKS = (0.03, 300.0, 33)  # steps of the velocity that are tried, in units of the typical error

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
    """Values (n, axes) over time, tied by second differences of the size that explains them best, and their errors.

    Notes: a random walk of the velocity, whose step is that of the largest evidence given the errors.
    """
    n_frames = len(measured)
    if n_frames < 4 or not np.isfinite(errors).any():
        return measured.copy(), errors
    second = np.diff(np.eye(n_frames), 2, axis=0)
    typical = float(np.median(errors[np.isfinite(errors)]))
    variances = np.where(np.isfinite(errors), np.maximum(errors, 1e-3 * typical), _BLIND_ERROR * typical) ** 2
    bends = second @ measured
    noise = np.einsum("ij,ja,kj->aik", second, variances, second)
    unit = np.eye(len(second))
    walks = (typical * np.geomspace(*_WALKS)) ** 2
    walk = walks[int(np.argmax([_evidence(bends, noise + variance * unit) for variance in walks]))]
    result, left = np.empty_like(measured), np.empty_like(measured)
    for axis in range(measured.shape[1]):
        gain = second.T @ np.linalg.inv(noise[axis] + walk * unit)
        result[:, axis] = measured[:, axis] - variances[:, axis] * (gain @ bends[:, axis])
        left[:, axis] = variances[:, axis] * (1 - variances[:, axis] * np.einsum("ij,ji->i", gain, second))
    return result, np.where(np.isfinite(errors), np.sqrt(np.maximum(left, 0)), np.inf)


def _evidence(values: Floats, covariances: Floats) -> float:
    """Logarithm of the probability of values (n, axes) under normal distributions (axes, n, n), up to a constant."""
    total = 0.0
    for value, covariance in zip(values.T, covariances, strict=True):
        total -= 0.5 * float(value @ np.linalg.solve(covariance, value)) + 0.5 * float(np.linalg.slogdet(covariance)[1])
    return total


def beyond_noise(evidence: float, count: int) -> float:
    """Which part, 0 to 1, of `count` values to keep whose squares in units of their errors add up to `evidence`.

    Notes: 1 - count / evidence (James & Stein 1961); noise alone makes that about 0.
    """
    return max(0.0, 1 - count / max(evidence, 1e-30))
