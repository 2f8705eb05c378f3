"""Micrographs made ready for picking: shrunken, even in mean and variance, white in their spectrum. Arrays only.

Positions are in pixels, x along the columns, pixel centres at whole numbers; pixel 0 of a shrunken image lies on pixel
0 of the micrograph, so that x there is x here times the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from spa.kernels.backend import Array, fft_of, fft_workers, to_host, xp_of

_EIGHTHS = np.array(sorted({2**a * 3**b * 5**c for a in range(11) for b in range(7) for c in range(5)}))
_CLIP = 8.0  # robust standard deviations of single pixels, beyond which they are outliers
_SAMPLED = 1 << 20  # pixels that a median is taken of, about
_FLOOR = 0.1  # of the image's standard deviation: less contrast than that around a pixel is none
_WHITENED = 1e-2  # of the largest amplitude: the spectrum is not raised beyond it
_RINGS = 48
_HIGHEST = float(np.sqrt(0.5))  # frequency, 1/pixel, in the corner of a transform


@dataclass(frozen=True)
class Prepared:
    """A shrunken micrograph of which particles can be picked.

    values : float32 (rows, columns), particles bright, local mean 0 and variance 1, white spectrum; 0 where nothing
    can be picked. flat : like it, before its spectrum was made white. usable : bool, like it. plain : float32, like it,
    in robust standard deviations from the median, as bright as in the micrograph. amplitude : float64 (n_rings,), what
    the spectrum was divided by, up to the corner. pixel_size : Angstrom.
    """

    values: Array
    flat: Array
    usable: Array
    plain: Array
    amplitude: NDArray[np.float64]
    pixel_size: float


def working_step(pixel_size: float, wanted: float) -> float:
    """The step, in pixels, that brings `pixel_size` nearest to `wanted` (Angstrom) without exceeding it; 1 or more."""
    eighths = 8 * wanted / pixel_size
    fitting = _EIGHTHS[(_EIGHTHS >= 8) & (eighths * (1 + 1e-9) >= _EIGHTHS)]
    return float(fitting.max(initial=8)) / 8


def shrink(image: Array, step: float) -> Array:
    """An image (rows, columns) without outliers, in robust standard deviations, with pixels `step` times as large.

    The transform is cropped; the image is padded first, so that the step, a multiple of 1/8, holds exactly along both
    axes. Returns float32 (ceil(rows / step), ceil(columns / step)).

    Raises
    ------
    ValueError
        If the image has no contrast.
    """
    xp, fft = xp_of(image), fft_of(image)
    eighths = round(8 * step)
    centre, deviation = robust(image)
    shape = [int(next_fast_len(-(-n // eighths) + 1)) for n in image.shape]
    padded = xp.zeros([n * eighths for n in shape], dtype=np.float32)
    inner = padded[: image.shape[0], : image.shape[1]]
    inner[:] = xp.clip((image - np.float32(centre)) / np.float32(deviation), -_CLIP, _CLIP)
    small = [8 * n for n in shape]
    if eighths > 8:
        ft = fft.rfft2(padded, **fft_workers(image))[:, : small[1] // 2 + 1]
        ft = xp.concatenate([ft[: small[0] // 2], ft[-(small[0] // 2) :]]) * np.float32(1 / step**2)
        ft[small[0] // 2], ft[:, -1] = 0, 0
        padded = fft.irfft2(ft, s=small, **fft_workers(image))
    kept = [int(np.ceil(n / step)) for n in image.shape]
    small_image = xp.ascontiguousarray(padded[: kept[0], : kept[1]])
    centre, deviation = robust(small_image)
    return ((small_image - np.float32(centre)) / np.float32(deviation)).astype(np.float32)


def robust(image: Array) -> tuple[float, float]:
    """Median and standard deviation (from the median deviation) of an image; ValueError if it has no contrast."""
    every = max(1, int(np.sqrt(image.size / _SAMPLED)))
    sample = to_host(image[::every, ::every]).astype(np.float32)
    centre = median(sample)
    deviation = 1.4826 * median(np.abs(sample - np.float32(centre))) or float(sample.std(dtype=np.float64))
    if deviation <= 1e-6 * max(abs(centre), 1e-30):
        raise ValueError("the micrograph has no contrast")
    return centre, deviation


def median(values: NDArray[np.float32]) -> float:
    """The middle one of values of any shape, the upper of two.

    Notes: for one rank NumPy partitions with vector instructions, which for the several ranks of its own median it
    does not: ten times faster.
    """
    return float(np.partition(values, values.size // 2, axis=None)[values.size // 2])


def fast_shape(shape: Sequence[int], margin: int) -> tuple[int, ...]:
    """A size that is quick to transform and leaves a margin, so that what wraps around does not reach the image."""
    return tuple(int(next_fast_len(n + margin, real=True)) for n in shape)


def blurred(image: Array, sigma: float) -> Array:
    """Convolution of an image (rows, columns) with a Gaussian of unit sum, zeros outside; float32."""
    xp, fft = xp_of(image), fft_of(image)
    shape = fast_shape(image.shape, int(np.ceil(4 * sigma)))
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    window = [xp.asarray(np.exp(-2 * (np.pi * sigma * f) ** 2).astype(np.float32)) for f in (fy, fx)]
    ft = fft.rfft2(image.astype(np.float32), s=shape, **fft_workers(image)) * window[0] * window[1]
    return fft.irfft2(ft, s=shape, **fft_workers(image))[: image.shape[0], : image.shape[1]]


def coverage(usable: Array, sigma: float) -> Array:
    """How much of the Gaussian around each pixel lies on usable ones, at least 0.001, float32 (rows, columns)."""
    xp = xp_of(usable)
    if bool(usable.all()):  # then it is a product of two lines
        rows, columns = (xp.asarray(_covered_line(n, sigma)) for n in usable.shape)
        return xp.maximum(rows[:, None] * columns, 1e-3)
    return xp.maximum(blurred(usable, sigma), 1e-3)


def _covered_line(n: int, sigma: float) -> NDArray[np.float32]:
    """How much of the Gaussian around each pixel of a line of `n` lies on it."""
    size = fast_shape((n,), int(np.ceil(4 * sigma)))[0]
    window = np.exp(-2 * (np.pi * sigma * np.fft.rfftfreq(size)) ** 2)
    return np.asarray(np.fft.irfft(np.fft.rfft(np.ones(n), size) * window, size)[:n], dtype=np.float32)


def local_mean(image: Array, usable: Array, sigma: float, covered: Array | None = None) -> Array:
    """Gaussian average of the usable pixels around each pixel, float32 like the image; `covered` is `coverage`."""
    covered = coverage(usable, sigma) if covered is None else covered
    return blurred(xp_of(image).where(usable, image, 0), sigma) / covered


def prepare(plain: Array, usable: Array, pixel_size: float, diameter: float, bright: bool = False) -> Prepared:
    """Bring a shrunken micrograph to local mean 0 and variance 1, and its spectrum to white.

    Parameters
    ----------
    plain : float32 (rows, columns), of `shrink`. usable : bool, where something may be picked.
    pixel_size, diameter (of the particle) : Angstrom.
    bright : particles are bright in the micrograph; dark ones are turned over.

    Raises
    ------
    ValueError
        If nothing is usable.
    """
    xp = xp_of(plain)
    if not bool(usable.any()):
        raise ValueError("carbon or contamination everywhere")
    sigma = diameter / pixel_size
    covered = coverage(usable, sigma)
    values = (plain - local_mean(plain, usable, sigma, covered)) * np.float32(1 if bright else -1)
    values = xp.where(usable, values, 0)
    overall = float(xp.sqrt((values**2).sum() / usable.sum()))
    deviation = xp.sqrt(xp.maximum(local_mean(values**2, usable, sigma, covered), 0))
    values = xp.where(usable, values / xp.maximum(deviation, _FLOOR * overall), 0).astype(np.float32)
    amplitude = _amplitude(values, float(usable.mean()))
    white = xp.where(usable, _whitened(values, amplitude), 0).astype(np.float32)
    return Prepared(white, values, usable, plain, amplitude, pixel_size)


def whitening(amplitude: NDArray[np.float64], frequency: NDArray[np.floating]) -> NDArray[np.float32]:
    """What makes a transform as white as the prepared image, at frequencies in 1/pixel of that image."""
    places = (np.arange(len(amplitude)) + 0.5) * _HIGHEST / len(amplitude)
    return np.asarray(1 / np.interp(frequency, places, amplitude), dtype=np.float32)


def _radius(shape: Sequence[int]) -> NDArray[np.float64]:
    return np.asarray(np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]))


def _amplitude(values: Array, covered: float) -> NDArray[np.float64]:
    """Root mean power per pixel in rings up to the corner, smooth; `covered` is the fraction that is not 0."""
    xp, fft = xp_of(values), fft_of(values)
    shape = fast_shape(values.shape, 0)
    radius = _radius(shape)
    ring = xp.asarray(np.minimum((radius / _HIGHEST * _RINGS).astype(np.int32), _RINGS - 1).ravel())
    power = xp.abs(fft.rfft2(values, s=shape, **fft_workers(values))).ravel().astype(np.float64) ** 2
    sums, counts = (to_host(xp.bincount(ring, weights=w, minlength=_RINGS)) for w in (power, xp.ones_like(power)))
    mean = sums / np.maximum(counts, 1) / (values.size * covered)
    smooth = np.convolve(np.pad(mean, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    amplitude = np.sqrt(smooth)
    return np.asarray(np.maximum(amplitude, _WHITENED * amplitude.max()))


def _whitened(values: Array, amplitude: NDArray[np.float64]) -> Array:
    xp, fft = xp_of(values), fft_of(values)
    shape = fast_shape(values.shape, 0)
    ft = fft.rfft2(values, s=shape, **fft_workers(values))
    ft *= xp.asarray(whitening(amplitude, _radius(shape)))
    return fft.irfft2(ft, s=shape, **fft_workers(values))[: values.shape[0], : values.shape[1]]
