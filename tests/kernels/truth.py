"""Float64 definitions that the kernels are held against, written for clarity."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def half_plane(kmax: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (kx, ky) of one pixel of each Friedel pair within kmax + 1/2, sorted by radius, without the origin."""
    ky, kx = np.mgrid[-kmax : kmax + 1, : kmax + 1]
    chosen = ((kx > 0) | (ky > 0)) & (np.hypot(kx, ky) < kmax + 0.5)
    order = np.argsort(np.hypot(kx, ky)[chosen], kind="stable")
    return kx[chosen][order].astype(np.float32), ky[chosen][order].astype(np.float32)


def rotations(n: int, ndim: int, seed: int = 0) -> np.ndarray:
    """float32 (n, 3, 3) random rotations; about z for 2D references."""
    if ndim == 3:
        return Rotation.random(n, random_state=seed).as_matrix().astype(np.float32)
    angles = np.random.default_rng(seed).uniform(0, 360, (n, 1))
    return Rotation.from_euler("z", angles, degrees=True).as_matrix().astype(np.float32)


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """complex64 white noise."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def half_stack(rng: np.random.Generator, n_classes: int, radius: int, ndim: int) -> np.ndarray:
    """complex64 stack of random half transforms of padded radius `radius`."""
    m = 2 * radius + 3
    return complex_normal(rng, (n_classes, *(m,) * (ndim - 1), radius + 2))


def slice_points(matrices: np.ndarray, kx: np.ndarray, ky: np.ndarray, padding: int, ndim: int) -> np.ndarray:
    """float64 (n, n_pixels, ndim): padded coordinates (x, y, z) of every slice pixel."""
    a = matrices[:, :2, :ndim].astype(np.float64)
    return padding * (kx[None, :, None] * a[:, None, 0] + ky[None, :, None] * a[:, None, 1])


def interpolate(half: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Multilinear value of one half transform at points (x, y, z), by the definition; 0 beyond its radius."""
    radius, ndim = half.shape[-1] - 2, points.shape[-1]
    negative = points[..., 0] < 0
    points = np.where(negative[..., None], -points, points)
    origin = np.array([0, radius + 1, radius + 1])[:ndim]
    inside = (points**2).sum(axis=-1) <= radius**2
    position = np.where(inside[..., None], points, 0) + origin
    low = np.floor(position).astype(int)
    result = np.zeros(points.shape[:-1], np.complex128)
    for corner in np.ndindex(*(2,) * ndim):
        weight = np.prod(1 - np.abs(position - (low + corner)), axis=-1)
        result += weight * half[tuple(np.moveaxis(low + corner, -1, 0)[::-1])]
    return np.where(inside, np.where(negative, result.conj(), result), 0)


def phases(kx: np.ndarray, ky: np.ndarray, shifts: np.ndarray, box_size: int) -> np.ndarray:
    """complex128 (n_shifts, n_pixels): exp(-2 pi i k.shift / box), which moves content by +shift."""
    turns = shifts.astype(np.float64) @ np.stack([kx, ky]).astype(np.float64) / box_size
    return np.exp(-2j * np.pi * turns)
