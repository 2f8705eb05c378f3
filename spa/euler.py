"""Euler angles in RELION's convention, rotations and the distances between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Matrices = NDArray[np.float64]


def matrix(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike) -> Matrices:
    """RELION's Euler matrices A, float64 (n, 3, 3), of angles in degrees that broadcast to (n,).

    The rows of A are the image's x axis, y axis and view direction in the frame of the object (x, y, z).

    Notes: Heymann et al. 2005, J Struct Biol 151:196, ZYZ convention.
    """
    angles = np.stack(np.broadcast_arrays(*np.atleast_1d(rot, tilt, psi)), axis=-1).astype(np.float64)
    return np.ascontiguousarray(Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().swapaxes(-1, -2))


def angles(matrices: ArrayLike) -> NDArray[np.float64]:
    """Angles (rot, tilt, psi) in degrees, (n, 3), of Euler matrices (n, 3, 3).

    rot and psi lie in [-180, 180], tilt in [0, 180]; at tilt 0 and 180, where only one angle is defined,
    rot is 0.
    """
    a = np.asarray(matrices, dtype=np.float64).reshape(-1, 3, 3)
    sin_tilt = np.hypot(a[:, 0, 2], a[:, 1, 2])
    pole = sin_tilt < 1e-7
    up = np.sign(a[:, 2, 2])
    rot = np.where(pole, 0.0, np.arctan2(a[:, 2, 1], a[:, 2, 0]))
    psi = np.where(pole, np.arctan2(-up * a[:, 1, 0], up * a[:, 0, 0]), np.arctan2(a[:, 1, 2], -a[:, 0, 2]))
    return np.asarray(np.degrees(np.stack([rot, np.arctan2(sin_tilt, a[:, 2, 2]), psi], axis=-1)))


def angular_distance(a: ArrayLike, b: ArrayLike, operators: ArrayLike | None = None) -> NDArray[np.float64]:
    """Rotation angle in degrees, (n,), between Euler matrices a and b, (n, 3, 3) each (either may be one
    matrix).

    With symmetry `operators` (m, 3, 3) the smallest angle over the equivalent poses a @ operator.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    group = np.eye(3)[None] if operators is None else np.asarray(operators, dtype=np.float64)
    # the chord is exact for small angles, where the arc cosine of the trace is not
    squared = np.min([np.sum((a @ h - b) ** 2, axis=(-2, -1)) for h in group], axis=0)
    return np.atleast_1d(2 * np.degrees(np.arcsin(np.minimum(np.sqrt(squared / 8), 1))))


def random_rotations(n: int, rng: np.random.Generator) -> Matrices:
    """Euler matrices (n, 3, 3) distributed uniformly over all rotations."""
    return np.asarray(Rotation.random(n, random_state=rng).as_matrix())


def nearest_rotation(matrices: ArrayLike) -> Matrices:
    """The proper rotations (..., 3, 3) closest in the Frobenius norm to any matrices (..., 3, 3)."""
    u, _, vt = np.linalg.svd(np.asarray(matrices, dtype=np.float64))
    u[..., :, -1] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return np.asarray(u @ vt)
