"""Power spectra of micrographs for the estimation of the CTF: averages over tapered tiles, or one computed elsewhere.

A spectrum is a list of Fourier pixels of one half plane, sorted by radius; pixel k is the frequency k / extent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from spa.grids import FourierPixels, half_plane
from spa.kernels.backend import Array, fft_of, fft_workers, to_host, xp_of

SENSIBLE_PIXEL_SIZE = 1.4
"""Angstrom: finer micrographs are seen through larger tiles, so that rings stay more than a few pixels wide."""

BIN_PER_PIXEL = 2
_OUTLIER = 3.5
_PIXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Spectrum:
    """Power over one half plane of Fourier pixels.

    Attributes
    ----------
    power : float32 (n_pixels,), mean |F|^2 of the tiles.
    weight : float32 (n_pixels,), 1, or 0 for pixels that are not used (on the axes, or spoilt).
    s2 : float32 (n_pixels,), squared spatial frequency in 1/Angstrom^2.
    cos2, sin2 : float32 (n_pixels,), of twice the azimuth from the x axis.
    ring : int32 (n_pixels,), the radial bin, `BIN_PER_PIXEL` to a pixel, rising.
    box_size : pixels; extent : Angstrom, box times pixel size.
    """

    power: Array
    weight: Array
    s2: Array
    cos2: Array
    sin2: Array
    ring: Array
    box_size: int
    extent: float

    @property
    def n_rings(self) -> int:
        """The number of radial bins, from frequency zero to the edge of the box."""
        return self.box_size // 2 * BIN_PER_PIXEL

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Spatial frequency of each radial bin, 1/Angstrom."""
        return np.arange(self.n_rings) / (BIN_PER_PIXEL * self.extent)

    def within(self, low: float, high: float) -> Spectrum:
        """The pixels with frequencies from `low` to `high`, 1/Angstrom."""
        first, last = (round(s * self.extent * BIN_PER_PIXEL) for s in (low, high))
        start, stop = (int(n) for n in np.searchsorted(to_host(self.ring), (first, last + 1)))
        cut = slice(start, stop)
        names = ("power", "weight", "s2", "cos2", "sin2", "ring")
        return replace(self, **{name: getattr(self, name)[cut] for name in names})

    def sums(self, values: Array) -> Array:
        """Sums of values (n_pixels,) over each radial bin, float64 (n_rings,)."""
        if not isinstance(values, np.ndarray):
            return xp_of(values).bincount(self.ring, weights=values, minlength=self.n_rings)[: self.n_rings]
        # as the pixels are sorted, adding up runs does the same in a fifth of the time
        out = np.zeros(self.n_rings)
        out[self.ring[self._runs]] = np.add.reduceat(values, self._runs, dtype=np.float64)
        return out

    @cached_property
    def _runs(self) -> NDArray[np.int64]:
        """Where each radial bin starts."""
        return np.flatnonzero(np.diff(self.ring, prepend=-1))


@dataclass(frozen=True)
class Tiles:
    """The power of each tile of a micrograph.

    Attributes
    ----------
    power : float32 (n_tiles, n_pixels), of the pixels of `half_plane`, in units of the variance of the micrograph.
    centres : float64 (n_tiles, 2), (x, y) in Angstrom from the centre of the micrograph.
    kept : bool (n_tiles,), False for tiles unlike the others in their total power.
    box_size, extent : of the spectra, in pixels and Angstrom.
    """

    power: Array
    centres: NDArray[np.float64]
    kept: NDArray[np.bool_]
    box_size: int
    extent: float

    def spectrum(self, chosen: NDArray[np.bool_] | None = None) -> Spectrum:
        """The mean over the tiles kept, or over those `chosen` (n_tiles,)."""
        rows = np.flatnonzero(self.kept if chosen is None else chosen)
        mean = self.power[xp_of(self.power).asarray(rows)].mean(axis=0)
        return from_pixels(mean, half_plane(self.box_size, self.box_size // 2 - 1), self.extent)


def tile_powers(micrograph: Array, pixel_size: float, box_size: int) -> Tiles:
    """Power spectra of half-overlapping tiles of a micrograph under a sine taper.

    Parameters
    ----------
    micrograph : float32 (rows, columns), all finite.
    pixel_size : Angstrom.
    box_size : pixels of the spectra, even; a micrograph finer than `SENSIBLE_PIXEL_SIZE` gets larger tiles, of
        which the lowest frequencies are kept, as if it had been resampled.

    Raises
    ------
    ValueError
        If the micrograph has no contrast, or is smaller than a quarter of the box.

    Notes
    -----
    A sine taper keeps more of rings that are fine against the box than a Hann taper does (its autocorrelation
    falls more slowly), and still holds down the leakage of strong low frequencies.
    """
    xp = xp_of(micrograph)
    if not micrograph.max() > micrograph.min():
        raise ValueError("no contrast: all its pixels have one value")
    # squares of float32 overflow from 1e19 on, and vanish below 1e-22
    scale = np.float32(1 / float(micrograph.std(dtype=np.float64)))
    size = _tile_size(min(micrograph.shape), pixel_size, box_size)
    box = min(box_size, size)
    starts = [_starts(n, size) for n in micrograph.shape]
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    taper = xp.sin(np.pi * (xp.arange(size, dtype=np.float32) + 0.5) / size)
    window = taper[:, None] * taper[None, :]
    pixels = half_plane(box, box // 2 - 1)
    rows, columns = xp.asarray(pixels.ky % size), xp.asarray(pixels.kx)
    power = xp.empty((len(corners), len(pixels)), dtype=np.float32)
    at_once = max(1, _PIXELS_AT_ONCE // size**2)
    for first in range(0, len(corners), at_once):
        part = corners[first : first + at_once]
        tiles = xp.stack([micrograph[y : y + size, x : x + size] * scale for y, x in part])
        tiles = (tiles - tiles.mean(axis=(1, 2), keepdims=True)) * window
        ft = fft_of(tiles).rfft2(tiles, **fft_workers(tiles))[:, rows, columns]
        power[first : first + len(part)] = (ft.real**2 + ft.imag**2) / size**2
    total = to_host(power.mean(axis=1))
    if not total.max() > 0:
        raise ValueError("no contrast: all its pixels have one value")
    middle = (np.array(corners)[:, ::-1] + size / 2 - np.array(micrograph.shape[::-1]) / 2) * pixel_size
    return Tiles(power, middle, _alike(total), box, size * pixel_size)


def _tile_size(shortest: int, pixel_size: float, box_size: int) -> int:
    size = max(box_size, next_fast_len(round(box_size * SENSIBLE_PIXEL_SIZE / pixel_size)))
    size = min(size + size % 2, shortest - shortest % 2)
    if size < box_size // 4:
        raise ValueError(f"{shortest} pixels along its short side: too small for a box of {box_size}")
    return size


def _starts(length: int, size: int) -> list[int]:
    """Corners of half-overlapping tiles that reach from edge to edge."""
    n = max(1, round((length - size) / (size / 2)) + 1) if length > size else 1
    return [round(float(x)) for x in np.linspace(0, length - size, n)]


def _alike(total: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tiles whose total power is not far above or below that of most (contamination, grid bars, emptiness)."""
    log = np.log(np.maximum(total, 1e-30 + total.max() * 1e-12))
    middle = np.median(log)
    spread = max(1.4826 * float(np.median(np.abs(log - middle))), 0.05)
    return np.asarray(np.abs(log - middle) < _OUTLIER * spread)


def from_image(amplitudes: Array, pixel_size: float, amplitude: bool = True) -> Spectrum:
    """A spectrum computed elsewhere, with the zero frequency at index box // 2.

    Parameters
    ----------
    amplitudes : float32 (box, box), not negative: amplitudes as RELION's motioncorr writes them, or powers with
        `amplitude=False`.
    pixel_size : Angstrom.

    Raises
    ------
    ValueError
        If it is not square with an even box, or constant.
    """
    rows, columns = amplitudes.shape
    if rows != columns or rows % 2:
        raise ValueError(f"{columns} x {rows} pixels: expected a square spectrum with an even box")
    if not amplitudes.max() > amplitudes.min():
        raise ValueError("no contrast: all its pixels have one value")
    pixels = half_plane(rows, rows // 2 - 1)
    xp = xp_of(amplitudes)
    values = amplitudes[xp.asarray(pixels.ky + rows // 2), xp.asarray(pixels.kx + rows // 2)]
    values = values / amplitudes.max()
    return from_pixels(values**2 if amplitude else values, pixels, rows * pixel_size)


def from_pixels(power: Array, pixels: FourierPixels, extent: float) -> Spectrum:
    """A spectrum from power (n_pixels,) at the pixels of a half plane; `extent` in Angstrom.

    Pixels on the axes, where the edges of images leave a cross, get no weight.
    """
    xp = xp_of(power)
    kx, ky = (k.astype(np.float64) for k in (pixels.kx, pixels.ky))
    r2 = kx**2 + ky**2
    ring = np.rint(np.sqrt(r2) * BIN_PER_PIXEL).astype(np.int32)
    order = np.argsort(ring, kind="stable")
    columns = {
        "weight": ((np.abs(kx) > 1) & (np.abs(ky) > 1)).astype(np.float32),
        "s2": (r2 / extent**2).astype(np.float32),
        "cos2": ((kx**2 - ky**2) / r2).astype(np.float32),
        "sin2": (2 * kx * ky / r2).astype(np.float32),
        "ring": ring,
    }
    arrays = {name: xp.asarray(column[order]) for name, column in columns.items()}
    return Spectrum(power=power[xp.asarray(order)], **arrays, box_size=pixels.box_size, extent=extent)
