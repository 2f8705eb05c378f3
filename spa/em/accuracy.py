"""How finely orientations and shifts can be told apart, given the reference, the CTF and the noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from spa.em.expectation import Reference
from spa.em.state import Batch, FloatArray
from spa.kernels.backend import to_host, to_like, xp_of
from spa.kernels.slices import extract_slices

DISTINGUISHABLE = 4.605
"""Log-likelihood difference at which a pose is told from another with 99 % confidence: -ln 0.01."""
SCAN_RATIO = 1.7
"""Step of the scan for it."""
UNKNOWN = 999.0
"""What stands for the accuracy of a class without particles."""


def mean_accuracy(share: FloatArray, accuracy: FloatArray) -> FloatArray:
    """Mean (2,) of the accuracies (n_classes, 2) of classes, by share, of those that have one."""
    known = share * (accuracy < UNKNOWN).all(1)
    return np.asarray(known @ accuracy / known.sum() if known.sum() > 0 else accuracy.min(0))


def estimate_accuracy(
    batch: Batch,
    reference: Reference,
    class_number: np.ndarray[Any, Any],
    rotations: np.ndarray[Any, Any],
    kmax: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Expected angular (degrees) and shift (pixels) accuracy of a batch.

    Parameters
    ----------
    class_number : int32 (n,), class of each of the batch's images.
    rotations : (n, 3, 3), their poses.
    kmax : Fourier radius (pixels) up to which images are compared.

    Notes
    -----
    As in RELION (Scheres 2012, J Struct Biol 180:519, section 2.5): the smallest change of pose whose
    expected log-likelihood difference, half of sum W |P(pose) - P(changed pose)|^2, reaches -ln 0.01.
    Rotations are about random axes, for 2D references in the plane; shifts along random directions.
    """
    xp = xp_of(batch.scored)
    n = batch.pixels.prefix(kmax)
    kx, ky = batch.kx[:n], batch.ky[:n]
    x, y = batch.slice_x[:n], batch.slice_y[:n]
    _, weights = batch.weighted(kmax)
    classes = to_like(class_number.astype(np.int32), batch.scored)

    def project(matrices: np.ndarray[Any, Any]) -> Any:
        on_device = to_like(np.ascontiguousarray(matrices, np.float32), batch.scored)
        return extract_slices(reference.transform, classes, on_device, x, y, reference.padding)

    true = project(rotations)
    axes = rng.standard_normal((len(rotations), 3))
    if reference.transform.ndim == 3:
        axes[:] = 0, 0, 1
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    directions = rng.uniform(0, 2 * np.pi, len(rotations))
    phase = kx * to_like(np.cos(directions).astype(np.float32)[:, None], kx) + ky * to_like(
        np.sin(directions).astype(np.float32)[:, None], ky
    )

    def angular(angle: float) -> float:
        turned = rotations @ Rotation.from_rotvec(np.radians(angle) * axes).as_matrix()
        return float(to_host((weights * xp.abs(true - project(turned)) ** 2).sum(1).mean() / 2))

    def shifted(distance: float) -> float:
        squared = 2 - 2 * xp.cos(phase * np.float32(2 * np.pi * distance / batch.pixels.box_size))
        return float(to_host((weights * xp.abs(true) ** 2 * squared).sum(1).mean() / 2))

    return _crossing(angular, 0.05, 60.0), _crossing(shifted, 0.01, 20.0)


def _crossing(difference: Any, low: float, high: float) -> float:
    """Smallest value at which `difference` reaches DISTINGUISHABLE: a geometric scan, a power law between its steps."""
    value, previous = low, 0.0
    while value < high:
        now = difference(value)
        if now >= DISTINGUISHABLE:
            # nearly quadratic while small, which is all that is known at the first step
            exponent = np.log(now / previous) / np.log(SCAN_RATIO) if previous > 0 else 2.0
            return float(value * (DISTINGUISHABLE / now) ** (1 / max(exponent, 0.5)))
        previous = now
        value *= SCAN_RATIO
    return high
