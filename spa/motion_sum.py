"""Sums of aligned frames: shifted, bent, binned and dose weighted; and their amplitude spectra for ctffind."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from spa import dose
from spa.errors import InputError
from spa.kernels.backend import Array, fft_of, fft_workers, is_device, xp_of
from spa.motion_fourier import crop_transform, shift_factors
from spa.motion_model import LocalModel

_SPECTRUM_PIXEL = 1.4  # Angstrom: finer pixels are cropped away from amplitude spectra, as CTFFIND and RELION do
_ROWS = 256


@dataclass(frozen=True)
class Binning:
    """Sizes of frames before and after binning, (rows, columns) in pixels.

    `full` of a frame, `used` what of it is kept so that it bins to whole pixels, `binned` of the result.
    """

    full: tuple[int, int]
    used: tuple[int, int]
    binned: tuple[int, int]


@dataclass(frozen=True)
class Exposure:
    """What dose weighting needs: pixel size of the binned frame in Å, kV, e/Å^2."""

    pixel_size: float
    voltage: float
    dose_per_frame: float
    preexposure: float


def binning(shape: tuple[int, int], bin_factor: float) -> Binning:
    """Sizes for a binning factor, which need not be whole; binned sizes are even.

    Where a size does not divide, pixels at its end are left out, so that the pixel size stays what it is along
    both axes to better than a part in a thousand. InputError if hardly anything would be left.
    """
    if bin_factor == 1:
        return Binning(shape, shape, shape)
    new = [2 * math.floor(n / bin_factor / 2 + 1e-9) for n in shape]
    if min(new) < 64:
        raise InputError(f"--bin_factor {bin_factor:g}: frames of {shape[1]} x {shape[0]} pixels would be too small")
    used = [min(n, round(m * bin_factor)) for n, m in zip(shape, new, strict=True)]
    return Binning(shape, (used[0], used[1]), (new[0], new[1]))


class FrameSum:
    """Adds up frames given one by one as transforms of their binned size.

    Parameters
    ----------
    sizes : of the frames.
    n_frames : how many there will be.
    shifts : (n_frames, 2), corrections x and y of whole frames in pixels of the full frame.
    model : local corrections on top of them, or None.
    exposure : for dose weights, or None for none.

    Notes
    -----
    Whole-frame shifts are phase factors. Where there is a model, a shifted frame is turned into cubic B-spline
    coefficients (a division in Fourier space), which are evaluated at the bent positions (Unser 1999); RELION
    interpolates linearly there, which costs contrast towards Nyquist.
    """

    def __init__(
        self,
        sizes: Binning,
        n_frames: int,
        shifts: NDArray[np.float64],
        model: LocalModel | None = None,
        exposure: Exposure | None = None,
    ) -> None:
        self._sizes, self._n_frames, self._shifts = sizes, n_frames, shifts
        self._model, self._exposure = model, exposure
        self._total: Array = None
        self._norm: Array = None
        self._spline: Array = None

    def add(self, number: int, ft: Array) -> None:
        """Add frame `number`, its transform (rows, columns // 2 + 1) of the binned size; it is not changed."""
        shape = self._sizes.binned
        scale = np.array([shape[1] / self._sizes.used[1], shape[0] / self._sizes.used[0]])
        fy, fx = shift_factors(shape, self._shifts[number] * scale, ft)
        ft = ft * fy
        ft *= fx
        if self._exposure is not None:
            ft *= self._weight(number, ft)
        if self._model is None:
            self._total = ft if self._total is None else self._total + ft
            return
        xp = xp_of(ft)
        if self._spline is None:
            self._spline = _spline_factor(shape, ft)
            self._total = xp.zeros(shape, dtype=np.float32)
        ft *= self._spline
        coefficients = fft_of(ft).irfft2(ft, s=shape, **fft_workers(ft)).astype(np.float32)
        bend = self._model.place_coefficients(float(number)) * scale[:, None]
        place = [full / used for full, used in zip(self._sizes.full, self._sizes.used, strict=True)]
        _add_bent(self._total, coefficients, bend, (place[0], place[1]))

    def finish(self) -> Array:
        """The sum, float32 (rows, columns) of the binned size."""
        if self._model is not None:
            return self._total
        total = fft_of(self._total).irfft2(self._total, s=self._sizes.binned, **fft_workers(self._total))
        return total.astype(np.float32)

    def _weight(self, number: int, like: Array) -> Array:
        xp, given = xp_of(like), self._exposure
        assert given is not None
        shape = self._sizes.binned
        fy = xp.asarray(np.fft.fftfreq(shape[0]).astype(np.float32))[:, None]
        fx = xp.asarray((np.arange(shape[1] // 2 + 1) / shape[1]).astype(np.float32))
        frequency = xp.sqrt(fy**2 + fx**2) / np.float32(given.pixel_size)
        conditions = (given.voltage, given.dose_per_frame, given.preexposure)
        if self._norm is None:
            self._norm = dose.weight_norm(self._n_frames, frequency, *conditions)
        return dose.frame_weight(number, frequency, *conditions) / self._norm


def binned_transform(frame: Array, sizes: Binning) -> Array:
    """Transform (rows, columns // 2 + 1) complex64 of a frame (rows, columns) at the binned size, grey values kept."""
    used = frame[: sizes.used[0], : sizes.used[1]].astype(np.float32, copy=False)
    ft = fft_of(used).rfft2(used, **fft_workers(used))
    if sizes.binned == sizes.used:
        return ft
    ratio = sizes.binned[0] * sizes.binned[1] / (sizes.used[0] * sizes.used[1])
    return crop_transform(ft, sizes.binned) * np.float32(ratio)


def _spline_factor(shape: tuple[int, int], like: Array) -> Array:
    """What turns the transform of an image into that of its periodic cubic B-spline coefficients."""
    xp = xp_of(like)
    fy = 2 * np.pi * np.fft.fftfreq(shape[0])[:, None]
    fx = 2 * np.pi * np.arange(shape[1] // 2 + 1) / shape[1]
    return xp.asarray((36 / ((4 + 2 * np.cos(fy)) * (4 + 2 * np.cos(fx)))).astype(np.float32))


def _add_bent(total: Array, coefficients: Array, bend: NDArray[np.float64], place: tuple[float, float]) -> None:
    """Add an image of B-spline coefficients whose content is moved by a quadratic field.

    `bend` (2, 6): coefficients of 1, x, x^2, y, y^2, xy in pixels; `place` (y, x): full over used size, by which
    the places of pixels in this frame become places in the full one.
    """
    if not is_device(total):
        _add_bent_cpu(total, coefficients, bend.astype(np.float32), np.float32(place[0]), np.float32(place[1]))
        return
    for start in range(0, total.shape[0], _ROWS):
        rows = slice(start, min(start + _ROWS, total.shape[0]))
        total[rows] += _bent_rows(coefficients, bend, place, rows)


def _bent_rows(coefficients: Array, bend: NDArray[np.float64], place: tuple[float, float], rows: slice) -> Array:
    """Rows of the image that `_add_bent` adds, in array operations."""
    xp, (n_rows, n_columns) = xp_of(coefficients), coefficients.shape
    iy = xp.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    ix = xp.arange(n_columns, dtype=np.float32)
    y, x = iy / np.float32(n_rows * place[0]) - np.float32(0.5), ix / np.float32(n_columns * place[1]) - np.float32(0.5)
    indices, weights = [], []
    for at, c, n in ((iy, bend[1], n_rows), (ix, bend[0], n_columns)):
        c = c.astype(np.float32)
        source = at - (c[0] + (c[1] + c[2] * x) * x + (c[3] + c[4] * y + c[5] * x) * y)
        floor = xp.floor(source)
        t = source - floor
        weights.append(((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6))
        indices.append([(floor.astype(np.int32) + k) % n for k in (-1, 0, 1, 2)])
    result = xp.zeros((rows.stop - rows.start, n_columns), dtype=np.float32)
    for row, wy in zip(indices[0], weights[0], strict=True):
        for column, wx in zip(indices[1], weights[1], strict=True):
            result += wy * wx * coefficients[row, column]
    return result


@numba.njit(parallel=True, fastmath=True, cache=True)
def _add_bent_cpu(total, coefficients, bend, place_y, place_x):  # type: ignore[no-untyped-def]
    n_rows, n_columns = coefficients.shape
    third, sixth = np.float32(2 / 3), np.float32(1 / 6)
    one, half = np.float32(1), np.float32(0.5)
    for iy in numba.prange(n_rows):
        y = np.float32(iy) / (np.float32(n_rows) * place_y) - half
        wx, wy = np.empty(4, np.float32), np.empty(4, np.float32)
        for ix in range(n_columns):
            x = np.float32(ix) / (np.float32(n_columns) * place_x) - half
            dx = bend[0, 0] + (bend[0, 1] + bend[0, 2] * x) * x + (bend[0, 3] + bend[0, 4] * y + bend[0, 5] * x) * y
            dy = bend[1, 0] + (bend[1, 1] + bend[1, 2] * x) * x + (bend[1, 3] + bend[1, 4] * y + bend[1, 5] * x) * y
            left, low = math.floor(-dx), math.floor(-dy)
            tx, ty = np.float32(-dx - left), np.float32(-dy - low)
            for t, w in ((tx, wx), (ty, wy)):
                w[0] = (one - t) ** 3 * sixth
                w[1] = third - t * t + t * t * t * half
                w[2] = third - (one - t) ** 2 + (one - t) ** 3 * half
                w[3] = t * t * t * sixth
            x0, y0 = ix + int(left) - 1, iy + int(low) - 1
            value = np.float32(0)
            if x0 >= 0 and y0 >= 0 and x0 + 3 < n_columns and y0 + 3 < n_rows:
                for j in range(4):
                    row = np.float32(0)
                    for i in range(4):
                        row += wx[i] * coefficients[y0 + j, x0 + i]
                    value += wy[j] * row
            else:
                for j in range(4):
                    for i in range(4):
                        value += wy[j] * wx[i] * coefficients[(y0 + j) % n_rows, (x0 + i) % n_columns]
            total[iy, ix] += value


class SpectrumSum:
    """Adds up amplitude spectra of groups of neighbouring frames, as RELION makes them for CTF estimation.

    Frames come as transforms of their binned size, in order. Aligned frames of one group are added before their
    amplitudes are taken.
    """

    def __init__(self, sizes: Binning, shifts: NDArray[np.float64], group: int) -> None:
        self._sizes, self._shifts, self._group = sizes, shifts, group
        self._frames: Array = None
        self._count = 0
        self._amplitudes: Array = None

    def add(self, number: int, ft: Array) -> None:
        """Add frame `number`, its transform (rows, columns // 2 + 1); it is not changed."""
        shape = self._sizes.binned
        scale = np.array([shape[1] / self._sizes.used[1], shape[0] / self._sizes.used[0]])
        fy, fx = shift_factors(shape, self._shifts[number] * scale, ft)
        moved = ft * fy
        moved *= fx
        self._frames = moved if self._frames is None else self._frames + moved
        self._count += 1
        if self._count == self._group:
            self._close_group()

    def _close_group(self) -> None:
        if self._count:
            amplitude = xp_of(self._frames).abs(self._frames)
            self._amplitudes = amplitude if self._amplitudes is None else self._amplitudes + amplitude
        self._frames, self._count = None, 0

    def finish(self, pixel_size: float, box: int) -> tuple[Array, float]:
        """Centred amplitude spectrum, float32 (box, box), and the pixel size it belongs to, in Å.

        The zero frequency is left out. `pixel_size` of the binned frame. The box is made smaller where the spectrum has
        fewer pixels.
        """
        self._close_group()
        half, shape = self._amplitudes, self._sizes.binned
        xp = xp_of(half)
        half = half / np.float32(shape[0] * shape[1])
        full = xp.empty(shape, dtype=np.float32)
        columns = shape[1] // 2 + 1
        full[:, :columns] = half
        ky = (-xp.arange(shape[0])) % shape[0]
        full[:, columns:] = half[ky][:, 1 : shape[1] - columns + 1][:, ::-1]
        full = xp.fft.fftshift(full)
        # the mean of the frames, thousands of times its neighbours, would ring through what follows
        full[shape[0] // 2, shape[1] // 2] = full[shape[0] // 2 - 1, shape[1] // 2 - 1 : shape[1] // 2 + 2].mean()
        square = min(shape) - min(shape) % 2
        full = _resized(full, (square, square))
        cut = square
        if pixel_size < _SPECTRUM_PIXEL:
            cut = min(square, 2 * math.ceil(square * pixel_size / _SPECTRUM_PIXEL / 2))
        start = square // 2 - cut // 2
        full = full[start : start + cut, start : start + cut]
        box = min(box, cut)
        return xp.maximum(_resized(full, (box, box)), np.float32(0)), square * pixel_size / cut


def _resized(image: Array, new_shape: tuple[int, int]) -> Array:
    """An image with its centre at half its size, resampled to fewer pixels by cropping its transform."""
    if tuple(image.shape) == new_shape:
        return image
    fft, old = fft_of(image), image.shape
    ft = fft.rfft2(xp_of(image).fft.ifftshift(image), **fft_workers(image))
    ft = crop_transform(ft, new_shape)
    # the Nyquist terms have no partner any more
    ft[new_shape[0] // 2] = 0
    ft[:, new_shape[1] // 2] = 0
    small = fft.irfft2(ft, s=new_shape, **fft_workers(ft)) * (new_shape[0] * new_shape[1] / (old[0] * old[1]))
    return xp_of(image).fft.fftshift(small).astype(np.float32)
