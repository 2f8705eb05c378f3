"""Soft masks: spheres, and masks around the density of a map with the threshold found automatically."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from scipy import ndimage

from spa.errors import InputError
from spa.grids import radius_grid
from spa.kernels.backend import Array, to_host

_LEVEL = 0.3  # of the way from the background to the mean density of the particle
_NOISE_SIGMAS = 4.0
_SMALLEST_RADIUS = 10.0  # Å; a ball of 3.5 kDa of protein
_NEGLIGIBLE = 0.02
_KEPT_ISLANDS = 0.1  # of the volume of the largest


def soft_sphere(box: int, radius: float, edge: float, ndim: int = 3, xp: ModuleType = np) -> Array:
    """A sphere (ndim 3) or disc (ndim 2) that falls from 1 at `radius` to 0 at `radius + edge` pixels.

    Returns float32 (box,) * ndim, centre at index box // 2, made by the array module `xp`; raised-cosine
    edge.
    """
    return _raised_cosine(xp.asarray(radius_grid(box, ndim)) - radius, edge, xp)


def support_radius(mask: Array, box: int, ndim: int = 3) -> float:
    """Distance from the centre, in pixels, of the furthest voxel where a mask exceeds 2 %.

    mask : float (box,) * ndim, or a scalar, which masks nothing: the corners of a 3D box are sqrt(3) box / 2 away.
    """
    inside = np.asarray(to_host(mask)) > _NEGLIGIBLE
    return float((radius_grid(box, ndim) * inside).max())


def automatic_threshold(volume: Array, pixel_size: float) -> float:
    """The density that separates the particle from its surroundings in a map low-passed to about 15 Å.

    Parameters
    ----------
    volume : float (box, box, box), axes (z, y, x); a noisy map must be low-passed before.
    pixel_size : Å.

    Raises
    ------
    InputError if nothing that could be a particle (a connected piece above the threshold of at least the
    volume of a ball of 10 Å radius, and half of all that lies above) stands out.

    Notes
    -----
    Looks inside the sphere that fits the box. The background is the mode of the density (half-sample mode),
    its noise the median absolute deviation of what lies below the mode, the particle's level the mean above
    the threshold of Otsu (1979), IEEE Trans. SMC 9, 62. The result is the background plus 0.3 of the step
    from background to particle, or plus 4 sigma of the noise where that is more. At 15 Å this encloses 1.3 to
    1.5 times the volume of the atoms.
    """
    density = np.asarray(to_host(volume), dtype=np.float64)
    box = density.shape[0]
    values = density[radius_grid(box, 3) < box / 2]
    background = _half_sample_mode(values)
    below = values[values < background]
    noise = 1.4826 * float(np.median(background - below)) if below.size else 0.0
    particle = float(values[values >= _otsu(values)].mean())
    threshold = background + max(_LEVEL * (particle - background), _NOISE_SIGMAS * noise)
    sizes = _component_sizes(density >= threshold)[1]
    smallest = 4 / 3 * np.pi * (_SMALLEST_RADIUS / pixel_size) ** 3
    if particle <= background or not sizes.size or sizes.max() < max(smallest, sizes.sum() / 2):
        raise InputError("no density stands out of the noise: give a threshold, or a map of lower resolution")
    return float(threshold)


def largest_pieces(binary: Array, fraction: float = _KEPT_ISLANDS) -> Array:
    """`binary` without the connected pieces that are smaller than `fraction` of the largest one.

    bool (box, box, box) NumPy arrays in and out; voxels that share a face are connected.
    """
    labels, sizes = _component_sizes(np.asarray(binary))
    kept = np.concatenate([[False], sizes >= fraction * sizes.max(initial=0)])
    return kept[labels]


def soft_mask(volume: Array, threshold: float, extend: float, edge: float) -> Array:
    """Mask of the density at or above `threshold`, extended, with a soft edge, as by relion_mask_create.

    Parameters
    ----------
    volume : float (box, box, box), axes (z, y, x); a bool volume with threshold 0.5 is taken as it is.
    extend : pixels added around (negative: taken away): all voxels nearer than this to the density.
    edge : width in pixels of the raised-cosine edge outside the extended volume.

    Returns
    -------
    float32 NumPy array like volume, 1 inside to 0 outside.
    """
    inside = np.asarray(to_host(volume)) >= threshold
    mask = np.zeros(inside.shape, dtype=np.float32)
    near = _surroundings(inside, int(np.ceil(max(extend, 0) + max(edge, 0))) + 1)
    mask[near] = _extended(inside[near], extend, edge)
    return mask


def _extended(inside: Array, extend: float, edge: float) -> Array:
    if extend > 0 and inside.any():
        inside = ndimage.distance_transform_edt(~inside) < extend
    elif extend < 0 and not inside.all():
        inside = ndimage.distance_transform_edt(inside) >= -extend
    if edge <= 0 or not inside.any():
        return inside.astype(np.float32)
    return _raised_cosine(ndimage.distance_transform_edt(~inside), edge, np)


def _surroundings(inside: Array, margin: int) -> tuple[slice, ...]:
    """The smallest box around the voxels `inside`, and a margin: beyond it no distance needs to be known."""
    bounds = []
    for axis in range(inside.ndim):
        where = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        low, high = (where[0], where[-1] + 1) if where.size else (0, 0)
        bounds.append(slice(max(0, low - margin), high + margin))
    return tuple(bounds)


def _raised_cosine(distance: Array, edge: float, xp: ModuleType) -> Array:
    """1 at distance <= 0, 0 at distance >= edge, half a cosine between."""
    if edge <= 0:
        return (distance <= 0).astype(np.float32)
    return (0.5 + 0.5 * xp.cos(np.pi * xp.clip(distance / edge, 0, 1))).astype(np.float32)


def _component_sizes(binary: Array) -> tuple[Array, Array]:
    """Labels (0 outside) of the connected pieces and the number of voxels of each, from label 1 on."""
    labels, _ = ndimage.label(binary)
    return labels, np.bincount(labels.ravel())[1:]


def _otsu(values: Array, bins: int = 512) -> float:
    """The level that splits `values` into two groups with the largest variance between them."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    weight, moment = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    total, mean = counts.sum(), (counts * centres).sum() / counts.sum()
    between = (mean * weight - moment) ** 2 / np.maximum(weight * (total - weight), 1)
    return float(edges[1 + int(np.argmax(between))])


def _half_sample_mode(values: Array) -> float:
    """The mode of a sample: the shortest half of the shortest half, and so on (Bickel & Frühwirth 2006)."""
    values = np.sort(values)
    while len(values) > 8:
        half = len(values) // 2
        start = int(np.argmin(values[half:] - values[: len(values) - half]))
        values = values[start : start + half]
    return float(np.median(values))
