"""Picking without templates: Laplacian of Gaussian over a ladder of diameters, then the particles' own profile.

Notes
-----
The Laplacian of a Gaussian, scale-normalised, responds most to a blob whose diameter is 2 sqrt(2) sigma (Lindeberg
1998, Int J Comput Vis 30:79). It finds particles, but hollow or crowded ones neither all nor where their centres
are. The rotational average of those found first is a far better template, and needs nothing but the micrograph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, fft_of, fft_workers, xp_of
from spa.picking_image import fast_shape
from spa.picking_scores import unit

_STEP = 1.12  # between the diameters of the ladder
_SIGMA_OF_DIAMETER = 1 / (2 * np.sqrt(2))
FEWEST_SEEDS = 6
"""Particles that a profile can be made of."""

PROFILE_REACH = 1.2
"""Diameter of the disc under which profiles are compared, in diameters of the particle: holds the fringe around it."""


def ladder(smallest: float, largest: float) -> NDArray[np.float64]:
    """Diameters from `smallest` to `largest`, evenly on a logarithmic scale, at most 12 % apart."""
    n = 1 + int(np.ceil(np.log(largest / smallest) / np.log(_STEP) - 1e-9))
    return np.geomspace(smallest, largest, max(n, 1))


def blob_scores(values: Array, usable: Array, diameters: NDArray[np.float64]) -> tuple[Array, Array]:
    """Scores of blobs and which of the diameters (pixels) fits best, float32 and int32 (rows, columns).

    A score is in robust standard deviations of all scores of its diameter; minus infinity where nothing is usable.
    """
    xp, fft = xp_of(values), fft_of(values)
    shape = fast_shape(values.shape, int(np.ceil(2 * diameters.max())))
    squared = np.fft.fftfreq(shape[0])[:, None] ** 2 + np.fft.rfftfreq(shape[1])[None] ** 2
    ft = fft.rfft2(values, s=shape, **fft_workers(values))
    best, largest = (xp.full(values.shape, -np.inf, dtype=np.float32) for _ in range(2))
    which = xp.zeros(values.shape, dtype=np.int32)
    for i, diameter in enumerate(diameters):
        a = (2 * np.pi * diameter * _SIGMA_OF_DIAMETER) ** 2 * squared
        window = xp.asarray((a * np.exp(-a / 2)).astype(np.float32))
        response = fft.irfft2(ft * window, s=shape, **fft_workers(values))[: values.shape[0], : values.shape[1]]
        which = xp.where(response > largest, i, which)
        largest = xp.maximum(largest, response)
        inside = response[usable]
        centre = xp.median(inside)
        deviation = xp.maximum(1.4826 * xp.median(xp.abs(inside - centre)), 1e-6)
        best = xp.maximum(best, (response - centre) / deviation)
    return xp.where(usable, best, -np.inf).astype(np.float32), which.astype(np.int32)


def profile(values: NDArray[np.float32], centres: NDArray[np.float64], inside: NDArray[np.bool_]) -> Array:
    """The rotational average of a micrograph around centres (n, 2) under the disc, float32 (1, n_pixels), a template.

    Notes: each pixel near a centre goes to the two radii around its distance from it, in proportion.
    """
    half = inside.shape[0] // 2
    offset = np.arange(-half, half)
    middle = np.rint(centres).astype(np.int64)
    rows, columns = (middle[:, axis, None] + offset for axis in (1, 0))
    there = ((rows >= 0) & (rows < values.shape[0]))[:, :, None] & ((columns >= 0) & (columns < values.shape[1]))[
        :, None
    ]
    rows, columns = np.clip(rows, 0, values.shape[0] - 1), np.clip(columns, 0, values.shape[1] - 1)
    windows = values[rows[:, :, None], columns[:, None]]
    shift = centres - middle
    distance = np.hypot(offset[None, :, None] - shift[:, 1, None, None], offset[None, None] - shift[:, 0, None, None])
    radius = distance.astype(np.int64)
    part = distance - radius
    n = 2 * half + 3
    sums, weights = np.zeros(n), np.zeros(n)
    for r, share in ((radius, 1 - part), (radius + 1, part)):
        sums += np.bincount(r.ravel(), (share * windows * there).ravel(), n)[:n]
        weights += np.bincount(r.ravel(), (share * there).ravel(), n)[:n]
    curve = sums / np.maximum(weights, 1e-9)
    grid = np.hypot(*np.meshgrid(offset, offset, indexing="ij"))[inside]
    return unit(np.interp(grid, np.arange(n), curve)[None])


def scrambled(image: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Noise with the power of an image: the amplitudes of its transform with the phases of white noise."""
    noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
    phases = np.fft.rfft2(noise)
    mixed = np.abs(np.fft.rfft2(image)) * phases / np.maximum(np.abs(phases), 1e-30)
    return np.asarray(np.fft.irfft2(mixed, s=image.shape), dtype=np.float32)
