"""Transforms of movie frames at the size at which they are correlated: cropped, filtered, whitened, moved.

Transforms are unnormalised rfft2 of (rows, columns), origin at pixel 0.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, to_host, xp_of

_LOWEST_WEIGHT = 1e-4  # where the filter leaves less than this, nothing is kept of a transform

Floats = NDArray[np.float64]


def working_shape(shape: tuple[int, int], bfactor: float) -> tuple[int, int]:
    """(rows, columns) to which frames are cropped in Fourier space before they are correlated.

    `bfactor` in pixels^2: what lies beyond has a weight below 1e-4.
    """
    fraction = min(1.0, 2 * math.sqrt(-math.log(_LOWEST_WEIGHT) / (2 * bfactor))) if bfactor > 0 else 1.0
    return even_size(shape[0] * fraction, shape[0]), even_size(shape[1] * fraction, shape[1])


def even_size(size: float, largest: int) -> int:
    """The next even size without large prime factors, not more than `largest` (made even)."""
    top = largest - largest % 2
    for candidate in range(max(2 * math.ceil(size / 2), 16), top, 2):
        rest = candidate
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
    return top


def crop_transform(ft: Array, new_shape: tuple[int, int]) -> Array:
    """The low frequencies (..., new_rows, new_columns // 2 + 1) of transforms (..., rows, columns // 2 + 1).

    Values stay, so that sums over pixels stay: grey values of the smaller image are multiplied by the ratio of
    the numbers of pixels. Frequencies at the new Nyquist are those of the negative side, as RELION crops.
    """
    rows, new_rows = ft.shape[-2], new_shape[0]
    columns = new_shape[1] // 2 + 1
    if new_rows == rows:
        return ft[..., :columns].copy()
    upper = (new_rows + 1) // 2
    lower = new_rows - upper
    return xp_of(ft).concatenate([ft[..., :upper, :columns], ft[..., rows - lower :, :columns]], axis=-2)


def shift_factors(shape: tuple[int, int], shift: Array, like: Array) -> tuple[Array, Array]:
    """Factors (rows, 1) and (columns // 2 + 1,), complex64, that move content by `shift` (x, y) pixels of `shape`."""
    xp = xp_of(like)
    ky = np.fft.fftfreq(shape[0])[:, None]
    kx = np.arange(shape[1] // 2 + 1) / shape[1]
    return tuple(
        xp.asarray(np.exp(-2j * np.pi * k * float(s)).astype(np.complex64)) for k, s in ((ky, shift[1]), (kx, shift[0]))
    )


def moved(frames: Array, shape: tuple[int, int], shifts: Floats) -> Array:
    """Transforms (n, rows, columns // 2 + 1) of images of `shape` with content moved by shifts (n, 2), x and y."""
    result = xp_of(frames).empty_like(frames)
    for i, shift in enumerate(shifts):
        fy, fx = shift_factors(shape, shift, frames)
        result[i] = frames[i] * fy * fx
    return result


def weights(shape: tuple[int, int], full_shape: tuple[int, int], bfactor: float) -> NDArray[np.float32]:
    """exp(-2 B f^2) without the mean and the row and column of zero frequency, which edges and stripes fill."""
    fy = np.fft.fftfreq(shape[0]) * shape[0] / full_shape[0]
    fx = np.arange(shape[1] // 2 + 1) / full_shape[1]
    weight = np.exp(-2 * bfactor * (fy[:, None] ** 2 + fx**2))
    weight[0] = 0
    weight[:, 0] = 0
    return weight.astype(np.float32)


def whitened(ft: Array, shape: tuple[int, int]) -> Array:
    """Transforms divided by the square root of their mean power per ring and by that of each frame, in place."""
    xp, ring = xp_of(ft), rings(shape).ravel()
    power = np.zeros(ring.size)
    for frame in ft:
        power += to_host(xp.abs(frame.ravel()) ** 2)
    mean = np.bincount(ring, power) / np.maximum(np.bincount(ring), 1)
    factor = 1 / np.sqrt(np.maximum(mean, mean.max() * 1e-12))[ring].reshape(ft.shape[1:])
    ft *= xp.asarray(factor.astype(np.float32))
    for frame in ft:
        frame /= xp.sqrt(xp.mean(xp.abs(frame) ** 2)) + 1e-12
    return ft


@lru_cache(maxsize=4)
def rings(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Number of the ring of each frequency, (rows, columns // 2 + 1), not to be written to."""
    fy = np.fft.fftfreq(shape[0]) * shape[0]
    fx = np.arange(shape[1] // 2 + 1) * (shape[0] / shape[1])
    ring: NDArray[np.int64] = np.rint(np.hypot(fy[:, None], fx)).astype(np.int64)
    ring.flags.writeable = False
    return ring
