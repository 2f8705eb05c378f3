"""Spectra: averages over Fourier shells, power of images, noise with a given power.

Power is the mean of |F|^2 per Fourier pixel, F the unnormalised transform of `spa.fourier.forward`; the
variance sigma2 of the real or the imaginary part alone is half of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa.fourier import forward, inverse
from spa.grids import rfft_multiplicity, rfft_shells
from spa.kernels.backend import Array, to_host, xp_of


def shell_average(values: Array, ndim: int) -> NDArray[np.float64]:
    """Mean over each Fourier shell 0 .. box // 2, float64 (..., box // 2 + 1), of real values in the rfft
    layout (..., box, box // 2 + 1) or (..., box, box, box // 2 + 1)."""
    xp, half = xp_of(values), values.shape[-1]
    box = 2 * (half - 1)
    shells = xp.asarray(rfft_shells(box, ndim)).ravel()
    weight = xp.broadcast_to(xp.asarray(rfft_multiplicity(box)), values.shape[-ndim:]).ravel().astype(np.float64)
    count = xp.bincount(shells, weights=weight)[:half]
    flat = values.reshape(-1, shells.size)
    sums = [xp.bincount(shells, weights=row * weight)[:half] for row in flat]
    return np.asarray(to_host(xp.stack(sums) / count)).reshape(*values.shape[:-ndim], half)


def power_spectrum(images: Array) -> NDArray[np.float64]:
    """Mean |F|^2 per shell, float64 (n, box // 2 + 1), of real images (n, box, box)."""
    return shell_average(xp_of(images).abs(forward(images)) ** 2, 2)


def coloured_noise(shape: tuple[int, ...], spectrum: ArrayLike, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian noise, float32, whose expected power is `spectrum` per shell (box // 2 + 1,).

    `shape` is (n, box, box) or (n, box, box, box); the corners beyond Nyquist get the last shell's power.
    """
    ndim, box = len(shape) - 1, shape[-1]
    amplitude = np.sqrt(np.asarray(spectrum, dtype=np.float64) / box**ndim).astype(np.float32)
    window = amplitude[np.minimum(rfft_shells(box, ndim), len(amplitude) - 1)]
    white = rng.standard_normal(shape, dtype=np.float32)
    return np.asarray(inverse(forward(white, ndim) * window, box, ndim), dtype=np.float32)
