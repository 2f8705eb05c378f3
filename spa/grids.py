"""Coordinates and shells of real and Fourier grids: where the centre is and which pixel has which radius."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class FourierPixels:
    """The independent Fourier pixels of a real image, shell by shell and by angle within a shell.

    kx > 0, or kx = 0 and ky > 0, so one of each Friedel pair and no DC; radius < kmax + 1/2. A smaller kmax
    is a prefix of the list, and neighbours in the list lie next to each other, for the sake of caches. All arrays
    have shape (n_pixels,); frequencies are in Fourier pixels.
    """

    box_size: int
    kmax: int
    kx: IntArray
    ky: IntArray
    radius: FloatArray
    shell: IntArray

    def __len__(self) -> int:
        """The number of pixels."""
        return len(self.kx)

    def prefix(self, kmax: int) -> int:
        """The number of leading pixels with radius < kmax + 1/2."""
        return int(np.searchsorted(self.shell, kmax, side="right"))


@lru_cache(maxsize=64)
def half_plane(box_size: int, kmax: int) -> FourierPixels:
    """The half-plane pixels of a box up to shell `kmax`.

    Raises ValueError unless 1 <= kmax < box_size / 2 (the Nyquist pixel has no Friedel mate of its own).
    """
    check_even(box_size)
    if not 1 <= kmax < box_size // 2:
        raise ValueError(f"kmax {kmax}: expected 1 to {box_size // 2 - 1} for a box of {box_size}")
    k = np.arange(-kmax, kmax + 1)
    ky, kx = np.meshgrid(k, k, indexing="ij")
    squared = kx**2 + ky**2
    keep = (squared < (kmax + 0.5) ** 2) & ((kx > 0) | ((kx == 0) & (ky > 0)))
    kx, ky, radius = kx[keep], ky[keep], np.sqrt(squared[keep])
    shell = np.rint(radius).astype(np.int32)
    order = np.lexsort((np.arctan2(ky, kx), shell))
    arrays = (kx[order].astype(np.int32), ky[order].astype(np.int32), radius[order].astype(np.float32), shell[order])
    for a in arrays:
        a.setflags(write=False)
    return FourierPixels(box_size, kmax, *arrays)


@lru_cache(maxsize=64)
def mirror_pairs(box_size: int, kmax: int) -> IntArray:
    """Half-plane pixels with ky >= 0 and their mirror images at -ky, int32 (2, n_pairs): places in `half_plane`.

    A pixel on an axis has no mirror image of its own in the half plane: the place beyond the last, n_pixels.
    """
    pixels = half_plane(box_size, kmax)
    place = np.full((2 * kmax + 1, kmax + 1), len(pixels), np.int32)
    place[pixels.ky + kmax, pixels.kx] = np.arange(len(pixels))
    upper = np.nonzero(pixels.ky >= 0)[0]
    kx, ky = pixels.kx[upper], pixels.ky[upper]
    lower = np.where(ky > 0, place[kmax - ky, kx], len(pixels))
    pairs = np.stack([upper, lower]).astype(np.int32)
    pairs.setflags(write=False)
    return pairs


def check_even(box_size: int) -> None:
    """Raise ValueError unless the box size is even and positive."""
    if box_size < 2 or box_size % 2:
        raise ValueError(f"box size {box_size}: expected an even number")


def centred_coordinates(box_size: int, ndim: int) -> tuple[FloatArray, ...]:
    """Pixel coordinates from the centre (index box // 2) as an open mesh in axis order (z, y, x) or (y,
    x)."""
    axis = np.arange(box_size, dtype=np.float32) - box_size // 2
    return tuple(axis.reshape([-1 if i == j else 1 for j in range(ndim)]) for i in range(ndim))


@lru_cache(maxsize=4)
def radius_grid(box_size: int, ndim: int) -> FloatArray:
    """Distance from the centre in pixels, float32 (box,) * ndim; read-only."""
    squared = sum(c * c for c in centred_coordinates(box_size, ndim))
    grid = np.sqrt(np.asarray(squared, dtype=np.float32))
    grid.setflags(write=False)
    return grid


def rfft_frequencies(box_size: int, ndim: int) -> tuple[FloatArray, ...]:
    """Integer frequencies of the rfft layout as a float32 open mesh, axis order (z, y, x) or (y, x)."""
    full = np.rint(np.fft.fftfreq(box_size) * box_size).astype(np.float32)
    half = np.arange(box_size // 2 + 1, dtype=np.float32)
    axes = [full] * (ndim - 1) + [half]
    return tuple(a.reshape([-1 if i == j else 1 for j in range(ndim)]) for i, a in enumerate(axes))


@lru_cache(maxsize=4)
def rfft_shells(box_size: int, ndim: int) -> IntArray:
    """Rounded Fourier radius of each pixel of the rfft layout, int32 (box, ..., box // 2 + 1); read-only."""
    squared = sum(k * k for k in rfft_frequencies(box_size, ndim))
    shells = np.rint(np.sqrt(np.asarray(squared, dtype=np.float32))).astype(np.int32)
    shells.setflags(write=False)
    return shells


def rfft_multiplicity(box_size: int) -> FloatArray:
    """How many pixels of the full transform each rfft column stands for, float32 (box // 2 + 1,): 1 at kx = 0
    and at Nyquist, 2 between."""
    multiplicity = np.full(box_size // 2 + 1, 2, dtype=np.float32)
    multiplicity[[0, -1]] = 1
    return multiplicity
