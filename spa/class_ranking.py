"""Rank 2D class averages: a score from 0 (junk) to 1 (protein) from features of each average and what the model says.

A class of protein has detail beyond its outline, to a resolution that is a small part of its size; the detail lies
within a bright region near the centre, and the solvent about it, up to the mask, is flat. Averages of noise have as
much detail near the mask as in the centre; contamination, ice and edges of carbon are smooth, dark or off the centre,
or run over the mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa.fourier import forward, inverse
from spa.grids import centred_coordinates, radius_grid, rfft_frequencies
from spa.mask import soft_sphere

Floats = NDArray[np.float64]

_INNER, _SOLVENT, _EDGE = 0.5, (0.72, 0.87), (0.8, 0.97)  # of the mask's radius
_FINE = 3.0  # detail is what is shorter than the mask's diameter over this
_BRIGHT = 0.3  # of the highest value, above which density counts for the middle of a class
_TAPER = 0.15  # of the radius, over which averages fade before their transform
_TINY = 1e-12

LIMITS: dict[str, tuple[float, float]] = {
    "fineness": (0.5, 0.2),
    "size": (-3.0, 0.5),
    "detail": (-2.2, 0.2),
    "solvent": (1.2, -0.1),
    "centre": (1.15, 0.12),
    "edge": (0.65, -0.06),
    "angular": (0.18, 0.02),
}
"""Feature -> the value at which it alone makes a class as likely junk as protein, and the step that changes the odds
by a factor e; the sign of the step says which side is better."""


def features(
    averages: ArrayLike, shares: ArrayLike, resolutions: ArrayLike, pixel_size: float, diameter: float | None = None
) -> dict[str, Floats]:
    """The features of class averages, float64 (n,) each; zero for averages that are flat or have no particles.

    fineness : ln(diameter of the mask over the resolution).
    size : ln(share of the particles times the number of classes), 0 for a class of mean size.
    detail : ln(deviation of what is finer than a third of the mask's diameter, over that of the average).
    solvent : deviation of that detail between the particle and the mask, over that within half the mask's radius.
    centre : mean within half the radius less the mean at the mask, in deviations of the average.
    edge : deviation along the mask, over that of the average.
    angular : deviation from the rotational average about the middle of the bright part, over that of the average.

    Parameters
    ----------
    averages : (n, box, box), axes (y, x), protein white.
    shares : fraction of the particles in each, (n,).
    resolutions : Å, (n,); infinite where there is none.
    pixel_size, diameter : Å; the diameter of the circular mask, found from where the averages end if not given.
    """
    images = np.asarray(averages, dtype=np.float64)
    n, box = images.shape[0], images.shape[-1]
    radius = mask_radius(images) if diameter is None else min(diameter / (2 * pixel_size), box / 2)
    share, resolution = np.asarray(shares, dtype=np.float64), np.asarray(resolutions, dtype=np.float64)
    grid = radius_grid(box, 2) / radius
    inside, inner = grid < _EDGE[1], grid < _INNER
    solvent, edge = ((grid >= low) & (grid < high) for low, high in (_SOLVENT, _EDGE))
    level = images[:, edge].mean(axis=1)
    deviation = images[:, inside].std(axis=1)
    empty = (deviation <= _TINY * np.abs(images).max(initial=0)) | (share <= 0)
    deviation = np.where(empty, 1, deviation)
    tapered = (images - level[:, None, None]) * soft_sphere(box, radius * (1 - _TAPER), radius * _TAPER, 2)
    fine = _finer(tapered, 2 * radius / _FINE)
    values = {
        "fineness": np.log(2 * radius * pixel_size / np.minimum(np.maximum(resolution, pixel_size), 1e6)),
        "size": np.log(np.maximum(share * n, _TINY)),
        "detail": np.log(np.maximum(fine[:, inside].std(axis=1) / deviation, _TINY)),
        "solvent": fine[:, solvent].std(axis=1) / np.maximum(fine[:, inner].std(axis=1), _TINY),
        "centre": (images[:, inner].mean(axis=1) - level) / deviation,
        "edge": images[:, edge].std(axis=1) / deviation,
        "angular": _angular(tapered, radius) / deviation,
    }
    return {name: np.where(empty, 0.0, value) for name, value in values.items()}


def score(found: dict[str, Floats]) -> Floats:
    """Score of classes from their `features`, float64 (n,), from 0 (junk) to 1 (protein); 0 for empty classes.

    Notes: the odds of junk, exp((limit - value) / step), add over the features (`LIMITS`): one bad feature is enough,
    and a class at the limit of one and far from those of the others scores 0.5. The limits were set by hand on class
    averages of simulated specimens (3C91, 1OEL, 6VSB, 7L2I, a phantom) with noise, ice, dirt, rings, carbon edges and
    ripples, and of beta-galactosidase.
    """
    odds = sum(np.exp(np.clip((limit - found[name]) / step, -50, 50)) for name, (limit, step) in LIMITS.items())
    empty = np.all([values == 0 for values in found.values()], axis=0)
    return np.where(empty, 0.0, 1 / (1 + odds))


def mask_radius(averages: Floats) -> float:
    """Radius in pixels of the circle that averages (n, box, box) were masked with, from where they end."""
    box = averages.shape[-1]
    ring = np.minimum(np.rint(radius_grid(box, 2)).astype(np.int64), box // 2).ravel()
    power = ((averages - np.median(averages[:, 0, :], axis=1)[:, None, None]) ** 2).reshape(len(averages), -1)
    scale = np.maximum(power.max(axis=1), _TINY)
    profile = np.bincount(ring, (power / scale[:, None]).mean(axis=0)) / np.bincount(ring)
    within = np.flatnonzero(profile[: box // 2] > 0.02 * profile.max())
    return float(max(within.max(initial=0), 4))


def _finer(images: Floats, wavelength: float) -> Floats:
    """Images (n, box, box) without what is coarser than a wavelength in pixels."""
    box = images.shape[-1]
    frequency = np.hypot(*np.broadcast_arrays(*rfft_frequencies(box, 2))) / box
    return np.asarray(inverse(forward(images) * (frequency > 1 / wavelength), box), dtype=np.float64)


def _angular(images: Floats, radius: float) -> Floats:
    """Deviation (n,) of images from their averages over rotations about the middle of their bright part."""
    y, x = (np.broadcast_to(c, images.shape[1:]).astype(np.float64) for c in centred_coordinates(images.shape[-1], 2))
    found = np.zeros(len(images))
    for i, image in enumerate(images):
        weight = np.maximum(image - _BRIGHT * image.max(), 0)
        total = max(float(weight.sum()), _TINY)
        distance = np.hypot(x - (weight * x).sum() / total, y - (weight * y).sum() / total)
        within = ((distance < _SOLVENT[0] * radius) & (np.hypot(x, y) < _SOLVENT[1] * radius)).ravel()
        found[i] = (image.ravel() - _rotational_average(image.ravel(), distance.ravel()))[within].std()
    return found


def _rotational_average(values: Floats, distance: Floats) -> Floats:
    """The mean (n,) of values (n,) on the circle of each, by linear interpolation between circles one pixel apart."""
    share, near = np.modf(distance)
    near = near.astype(np.int64)
    n = int(near.max()) + 2
    weight = np.bincount(near, 1 - share, n) + np.bincount(near + 1, share, n)
    total = np.bincount(near, (1 - share) * values, n) + np.bincount(near + 1, share * values, n)
    mean = total / np.maximum(weight, _TINY)
    return np.asarray((1 - share) * mean[near] + share * mean[near + 1])
