"""RELION's model of local motion: cubic in time, quadratic in space, 18 coefficients for each axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.motion_steps import beyond_noise

N_COEFFICIENTS = 18
N_TIMES, N_PLACES = 3, 6

_ROBUST_ROUNDS = 5
_HUBER = 2.0
_PRIOR = 20.0  # pixels: a coefficient's expected size, with time and place from 0 to 1

_FIELD_MEANS = np.array([1, 0, 1 / 12, 0, 1 / 12, 0])  # of 1, x, x^2, y, y^2, xy from -0.5 to 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LocalModel:
    """Local corrections on top of the shifts of whole frames.

    coefficients : (2, 18), for x and y, pixels of the unbinned frame: for each of the places 1, x, x^2, y, y^2, xy
    the powers z, z^2, z^3 of the frame number counted from 0, where x and y are pixel / size - 0.5.
    """

    coefficients: Floats

    def at(self, frame: float | Floats, places: Floats) -> Floats:
        """Corrections (..., n_places, 2) of frames (...) at places (n_places, 2), x and y from -0.5 to 0.5."""
        times = time_powers(np.asarray(frame, dtype=np.float64))
        table = self.coefficients.reshape(2, N_PLACES, N_TIMES)
        return np.asarray(np.einsum("...t,apt,np->...na", times, table, place_terms(places)))

    def field_mean(self, frame: Floats) -> Floats:
        """Mean correction over the whole field, (n_frames, 2), of frames (n_frames,)."""
        table = self.coefficients.reshape(2, N_PLACES, N_TIMES)
        return np.asarray(np.einsum("ft,apt,p->fa", time_powers(frame), table, _FIELD_MEANS))

    def around_field_mean(self) -> LocalModel:
        """The model without its mean over the field, which `field_mean` gives."""
        table = self.coefficients.reshape(2, N_PLACES, N_TIMES).copy()
        table[:, 0] -= np.einsum("apt,p->at", table, _FIELD_MEANS)
        return LocalModel(table.reshape(2, N_COEFFICIENTS))

    def place_coefficients(self, frame: float) -> Floats:
        """Coefficients (2, 6) of 1, x, x^2, y, y^2, xy for one frame."""
        table = self.coefficients.reshape(2, N_PLACES, N_TIMES)
        return np.asarray(table @ time_powers(np.asarray(frame, dtype=np.float64)))


def time_powers(frame: Floats) -> Floats:
    """z, z^2, z^3 along a new last axis."""
    return np.stack([frame, frame**2, frame**3], axis=-1)


def place_terms(places: Floats) -> Floats:
    """1, x, x^2, y, y^2, xy, (n, 6), of places (n, 2)."""
    x, y = places[:, 0], places[:, 1]
    return np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=-1)


def fit_model(places: Floats, measured: Floats, errors: Floats) -> LocalModel:
    """Fit the model to shifts of patches, each known up to a constant.

    Parameters
    ----------
    places : (n_patches, 2), x and y from -0.5 to 0.5.
    measured, errors : (n_patches, n_frames, 2), pixels of the unbinned frame; an infinite error leaves one out.

    Notes
    -----
    Weighted least squares with Huber's weights against outlying patches, and a wide prior around no motion,
    which keeps terms small that the data do not determine. All are then shrunk (`beyond_noise`) by what the model
    explains in units of the errors. The constant of each patch is left free: the first frame is as noisy as any
    other, and a constant only moves the image of a patch without blurring it.
    """
    n_patches, n_frames, _ = measured.shape
    last = max(n_frames - 1, 1)
    times = time_powers(np.arange(n_frames) / last)
    design = np.einsum("np,ft->nfpt", place_terms(places), times).reshape(n_patches, n_frames, N_COEFFICIENTS)
    to_frames = np.tile(float(last) ** -np.arange(1.0, N_TIMES + 1), N_PLACES)
    coefficients, evidence = np.zeros((2, N_COEFFICIENTS)), 0.0
    for axis in range(2):
        weight = np.where(np.isfinite(errors[..., axis]), 1 / np.maximum(errors[..., axis], 1e-6) ** 2, 0.0)
        solution, explained = _robust_fit(design, measured[..., axis], weight)
        coefficients[axis] = solution * to_frames
        evidence += explained
    return LocalModel(coefficients * beyond_noise(evidence, coefficients.size))


def _robust_fit(design: Floats, values: Floats, weight: Floats) -> tuple[Floats, float]:
    """Coefficients of values (n_patches, n_frames), each patch with a constant of its own; chi^2 they explain."""
    n_patches, _, n_terms = design.shape
    solution, normal = np.zeros(n_terms), np.eye(n_terms)
    huber = np.ones(n_patches)
    for _ in range(_ROBUST_ROUNDS):
        used = weight * huber[:, None]
        total = np.maximum(used.sum(axis=1), 1e-30)[:, None]
        centred = design - ((used / total)[..., None] * design).sum(axis=1, keepdims=True)
        target = values - (used / total * values).sum(axis=1, keepdims=True)
        rows = centred.reshape(-1, n_terms)
        normal = rows.T @ (used.ravel()[:, None] * rows) + np.eye(n_terms) / _PRIOR**2
        solution = np.linalg.solve(normal, rows.T @ (used * target).ravel())
        residual = (weight * (target - centred @ solution) ** 2).sum(axis=1)
        counts = np.maximum((weight > 0).sum(axis=1), 1)
        misfit = np.sqrt(residual / counts)
        middle = float(np.median(misfit))
        huber = np.minimum(1.0, _HUBER * max(middle, 1e-12) / np.maximum(misfit, 1e-12))
    return solution, float(solution @ normal @ solution)
