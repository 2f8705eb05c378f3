"""Particles out of micrographs: windows, Fourier cropping, normalisation, recentring, and what a box can hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa import ctf
from spa.euler import matrix
from spa.grids import centred_coordinates, check_even, radius_grid
from spa.kernels.backend import Array, fft_of, fft_workers, to_host, xp_of

_FARTHEST = 1e9  # pixels: no micrograph reaches so far
_FLAT = 1e-6  # of the level of an image: less is rounding, not contrast


@dataclass(frozen=True)
class Background:
    """How particles are normalised.

    `radius` in pixels of the circle outside which the background lies; with `ramp` a plane is subtracted, else its
    mean; pixels more than `white_dust` (`black_dust`) standard deviations above (below) it become noise, none where
    that is not positive.
    """

    radius: float
    ramp: bool = True
    white_dust: float = -1.0
    black_dust: float = -1.0


def corners(centres: ArrayLike, box_size: int) -> NDArray[np.int64]:
    """The first pixel (x, y) of the window around each centre (n, 2): int64 (n, 2).

    Fractions of a coordinate are cut off, as RELION does, so that pixel box // 2 of the window is the whole part.
    """
    whole = np.trunc(np.clip(np.asarray(centres, dtype=np.float64), -_FARTHEST, _FARTHEST))
    return whole.astype(np.int64).reshape(-1, 2) - box_size // 2


def reaches(centres: ArrayLike, box_size: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which windows (n,) hold at least one pixel of a micrograph of `shape` (rows, columns)."""
    first = corners(centres, box_size)
    return np.asarray(((first < np.array(shape[::-1])) & (first + box_size > 0)).all(axis=1))


def varied(micrograph: NDArray[np.float32], centres: ArrayLike, box_size: int) -> NDArray[np.bool_]:
    """Which windows (n,) around `centres` (n, 2) in a micrograph (rows, columns) are not one grey value throughout."""
    places = np.asarray(centres, dtype=np.float64).reshape(-1, 2)
    each = (windows(micrograph, place, box_size) for place in places)
    return np.array([np.ptp(window) > 0 for window in each], dtype=bool)


def windows(micrograph: Array, centres: ArrayLike, box_size: int) -> Array:
    """Cut windows (n, box, box) around `centres` (n, 2), in pixels (x, y), out of a micrograph (rows, columns).

    Beyond the edge of the micrograph its last pixel is repeated.
    """
    xp = xp_of(micrograph)
    first = xp.asarray(corners(centres, box_size))
    along = xp.arange(box_size)
    y = xp.clip(first[:, 1, None] + along, 0, micrograph.shape[0] - 1)
    x = xp.clip(first[:, 0, None] + along, 0, micrograph.shape[1] - 1)
    return micrograph[y[:, :, None], x[:, None, :]]


def rescale(images: Array, new_box: int) -> Array:
    """Resample images (n, box, box) to a smaller even box by cropping their transforms; grey values stay.

    Raises
    ------
    ValueError
        An odd box, or a new one larger than the old.

    Notes
    -----
    The pixel box // 2 stays where it is. Unlike `spa.fourier.fourier_crop` the terms at the new Nyquist frequency
    are taken from its positive side only, as RELION does, so that its particles and these are the same.
    """
    box = images.shape[-1]
    check_even(new_box)
    check_even(box)
    if new_box > box:
        raise ValueError(f"box {new_box}: expected at most {box}")
    if new_box == box:
        return images
    xp, fft = xp_of(images), fft_of(images)
    mean = images.mean(axis=(1, 2), keepdims=True)
    half = new_box // 2
    rows = xp.asarray(np.concatenate([np.arange(half + 1), np.arange(box - half + 1, box)]))
    ft = fft.rfft(images - mean, axis=2, **fft_workers(images))[:, :, : half + 1]
    ft = fft.fft(ft, axis=1, **fft_workers(images))[:, rows]
    small = fft.irfft2(ft, s=(new_box, new_box), axes=(1, 2), **fft_workers(images)) * (new_box / box) ** 2
    return (small + mean).astype(np.float32)


def normalise(images: Array, background: Background, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Bring the background of images (n, box, box) to mean 0 and standard deviation 1.

    Returns
    -------
    (images, flat): float32, and which of them (n,) have a background without contrast, which are not divided.

    Raises
    ------
    ValueError
        If the circle is wider than the box, which leaves RELION without a background.

    Notes
    -----
    RELION's normalise(): the plane is a least-squares fit to the pixels further from the centre than the whole part
    of the radius; before that, dust is replaced by Gaussian noise with the mean and deviation of the background.
    """
    xp, box = xp_of(images), images.shape[-1]
    radius = int(background.radius)
    if 2 * radius > box:
        raise ValueError(f"radius of {radius} px: expected at most {box // 2}, half the box")
    basis, fit, weight = (xp.asarray(a) for a in _background(box, radius))
    pixels = images.reshape(len(images), -1)
    level = pixels.mean(axis=1, keepdims=True)
    pixels = (pixels - level).astype(np.float32)  # without which single precision would not do for the sums
    if background.white_dust > 0 or background.black_dust > 0:
        _replace_dust(pixels, weight, background, rng)
    if background.ramp:
        pixels -= (pixels @ fit) @ basis
    mean, deviation = _moments(pixels, weight)
    flat = deviation <= _FLAT * xp.abs(level[:, 0])
    pixels -= mean[:, None]
    pixels /= xp.where(flat, 1, deviation)[:, None]
    return pixels.reshape(images.shape), np.asarray(to_host(flat))


@lru_cache(maxsize=4)
def _background(box: int, radius: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """What the pixels (box^2,) outside a circle need: x, y and 1 as (3, box^2), the matrix (box^2, 3) that gives the
    coefficients of an image's plane, and weights (box^2,) that give its mean."""
    y, x = np.broadcast_arrays(*centred_coordinates(box, 2))
    basis = np.stack([x, y, np.ones_like(x)]).reshape(3, -1).astype(np.float64)
    outside = basis * (radius_grid(box, 2).ravel() > radius)
    fit = np.linalg.solve(outside @ basis.T, outside).T
    return basis.astype(np.float32), fit.astype(np.float32), (outside[2] / outside[2].sum()).astype(np.float32)


def _moments(pixels: Array, weight: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (n,) of the background of pixels (n, box^2)."""
    mean = pixels @ weight
    return mean, xp_of(pixels).sqrt((pixels - mean[:, None]) ** 2 @ weight)


def _replace_dust(pixels: Array, weight: Array, background: Background, rng: np.random.Generator) -> None:
    """Put noise in the place of pixels (n, box^2) that lie too far from their background."""
    xp = xp_of(pixels)
    mean, deviation = _moments(pixels, weight)
    above, below = (
        limit * deviation[:, None] if limit > 0 else xp.inf for limit in (background.white_dust, background.black_dust)
    )
    distance = pixels - mean[:, None]
    image, pixel = xp.nonzero((distance > above) | (distance < -below))
    noise = xp.asarray(rng.standard_normal(len(image)), dtype=np.float32)
    pixels[image, pixel] = mean[image] + deviation[image] * noise


def recentre(
    centres: ArrayLike,
    origins: ArrayLike,
    angles: ArrayLike,
    pixel_size: float,
    point: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fold whole pixels of the shifts of particles into their coordinates.

    Parameters
    ----------
    centres : coordinates (n, 2) in pixels of the micrograph, x and y.
    origins : rlnOriginX/YAngst (n, 2) in Å.
    angles : rot, tilt and psi (n, 3) in degrees.
    pixel_size : of the micrograph, in Å.
    point : of the reference, x, y and z in Å from its centre, that becomes the new centre.

    Returns
    -------
    (centres, origins): what is left of the shift, at most half a pixel each way, stays an origin in Å.

    Notes
    -----
    A particle lies at coordinate minus origin, and a point of the reference at its projection from there.
    """
    shift = np.asarray(origins, dtype=np.float64).reshape(-1, 2)
    if any(point):
        shift = shift - (matrix(*np.asarray(angles, dtype=np.float64).reshape(-1, 3).T) @ np.array(point))[:, :2]
    shift = shift / pixel_size
    whole = np.sign(shift) * np.floor(np.abs(shift) + 0.5)
    return np.asarray(centres, dtype=np.float64).reshape(-1, 2) - whole, (shift - whole) * pixel_size


def delocalisation(defocus: ArrayLike, voltage: float, resolution: float) -> NDArray[np.float64]:
    """How far in Å, defocus * wavelength / resolution, the CTF carries signal of a `resolution` in Å.

    defocus in Å, voltage in kV. The spherical aberration takes a few Å off at high resolution, and is left out.
    """
    return np.asarray(np.asarray(defocus, dtype=np.float64) * ctf.wavelength(voltage) / resolution)


def contrast(images: Array, radius: float) -> float:
    """How many standard errors images (n, box, box) are brighter in the middle than towards a circle of `radius` px.

    Notes
    -----
    The weight 1 - 2 (r / radius)^2 inside the circle has mean 0: an offset of the grey values drops out, and the dark
    fringe that underfocus leaves around a bright particle adds to what is seen of it.
    """
    xp, box = xp_of(images), images.shape[-1]
    relative = radius_grid(box, 2) / max(radius, 1.0)
    weight = np.where(relative <= 1, 1 - 2 * relative**2, 0.0)
    values = np.asarray(to_host((images * xp.asarray(weight)).sum(axis=(1, 2), dtype=np.float64)))
    error = values.std() / np.sqrt(len(values))
    return float(values.mean() / error) if error > 0 else 0.0
