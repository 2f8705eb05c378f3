"""Simulated particles: poses, projections seen through the CTF, noise, normalisation. Arrays only.

Everything about a particle follows from (seed, particle number), so neither the size of the batches nor their order
matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa import euler
from spa.aberrations import Aberrations, PixelAberrations, with_beam_tilt
from spa.ctf import ctf_image, wavelength
from spa.fourier import inverse, phase_factors, reference_transform
from spa.grids import radius_grid, rfft_frequencies, rfft_multiplicity, rfft_shells
from spa.kernels.backend import Array, xp_of
from spa.kernels.slices import extract_slices
from spa.noise import coloured_noise
from spa.particles import OpticsGroup

PADDING = 3
"""Of the transforms that projections are cut from.

Linear interpolation then errs by about 1 % of the amplitude for an object as wide as two thirds of the box, by 3 % for
views along the axes; both fall with the square of the padding and of the width.
"""

_POSE, _NOISE = 1, 2
_CORNER = 100.0  # Å, below which the coloured part of the noise is flat


@dataclass(frozen=True)
class Poses:
    """Where simulated particles are.

    rot, tilt, psi : float64 (n,), degrees. origin_x_angst, origin_y_angst : float64 (n,), the shift in Å that would
    centre the image. class_number : int64 (n,), the model each one shows, from 1.
    """

    rot: NDArray[np.float64]
    tilt: NDArray[np.float64]
    psi: NDArray[np.float64]
    origin_x_angst: NDArray[np.float64]
    origin_y_angst: NDArray[np.float64]
    class_number: NDArray[np.int64]


def random_poses(n: int, sigma_offset: float, fractions: ArrayLike, seed: int) -> Poses:
    """Poses uniform over all rotations, with Gaussian offsets and a model drawn for each.

    Parameters
    ----------
    n : number of particles.
    sigma_offset : standard deviation of each component of the offset, Å.
    fractions : float (n_models,), how much of the particles shows each model; need not add up to 1.
    seed : of the random numbers.
    """
    uniform, normal = np.empty((n, 4)), np.empty((n, 2))
    for i in range(n):
        rng = np.random.default_rng([seed, i, _POSE])
        uniform[i], normal[i] = rng.random(4), rng.standard_normal(2)
    return poses_of(uniform, sigma_offset * normal, fractions)


def poses_of(uniform: NDArray[np.float64], origins: NDArray[np.float64], fractions: ArrayLike) -> Poses:
    """Poses from random numbers: uniform over all rotations where those are uniform between 0 and 1.

    Parameters
    ----------
    uniform : float64 (n, 4), for rot, tilt, psi and the model.
    origins : float64 (n, 2), in Å (x, y).
    fractions : float (n_models,), how much of the particles shows each model; need not add up to 1.
    """
    limits = np.cumsum(np.asarray(fractions, dtype=np.float64))
    return Poses(
        rot=360.0 * uniform[:, 0] - 180.0,
        tilt=np.degrees(np.arccos(1.0 - 2.0 * uniform[:, 1])),
        psi=360.0 * uniform[:, 2] - 180.0,
        origin_x_angst=origins[:, 0],
        origin_y_angst=origins[:, 1],
        class_number=1 + np.searchsorted(limits, uniform[:, 3] * limits[-1], side="right"),
    )


class Projector:
    """Projections of maps in any orientation, through the CTF if given.

    Parameters
    ----------
    volumes : float32 (n_models, box, box, box), axes (z, y, x); their device does the work.
    padding : of the transforms the slices are cut from.
    maxres_shell : last Fourier shell of the projections; default the one below Nyquist.
    aberrations : of each optics group, of which the odd phases are applied; empty for none.
    pixel_size : Å; matters to aberrations only.
    """

    def __init__(
        self,
        volumes: Array,
        padding: int = PADDING,
        maxres_shell: int | None = None,
        aberrations: Sequence[Aberrations] = (),
        pixel_size: float = 1.0,
    ) -> None:
        xp = self.xp = xp_of(volumes)
        self.box_size: int = volumes.shape[-1]
        self.padding = padding
        kmax = min(maxres_shell or self.box_size, self.box_size // 2 - 1)
        self._references = xp.stack([reference_transform(volume, padding, kmax) for volume in volumes])
        ky, kx = np.broadcast_arrays(*rfft_frequencies(self.box_size, 2))
        self._inside = xp.asarray((kx**2 + ky**2 < (kmax + 0.5) ** 2).astype(np.float32).ravel())
        self._kx, self._ky = (xp.asarray(np.ascontiguousarray(k.ravel(), dtype=np.float32)) for k in (kx, ky))
        self._aberrations = PixelAberrations(aberrations, self._kx, self._ky, self.box_size * pixel_size)

    @property
    def like(self) -> Array:
        """An array on the device that does the work."""
        return self._inside

    def __call__(
        self,
        classes: ArrayLike,
        angles: ArrayLike,
        shifts: ArrayLike,
        ctf_coefficients: NDArray[np.float32] | None = None,
        optics: NDArray[np.integer[Any]] | None = None,
    ) -> Array:
        """Images, float32 (n, box, box), axes (y, x): line sums of the map in voxels.

        Parameters
        ----------
        classes : int (n,), from 0. angles : float (n, 3), rot, tilt, psi in degrees.
        shifts : float (n, 2), pixels (x, y) by which the content moves from the centre (minus the origin).
        ctf_coefficients : float32 (n, 9) of `spa.ctf.coefficients`, or None for no CTF.
        optics : int (n,), the optics group of each image, or None for no aberrations.

        Notes
        -----
        The central slice theorem: F2(projection) = F3(map) on the plane; band-limited to a disc below Nyquist.
        """
        xp, box = self.xp, self.box_size
        rotations = xp.asarray(euler.matrix(*np.asarray(angles, dtype=np.float64).T), dtype=np.float32)
        chosen = xp.asarray(np.asarray(classes, dtype=np.int32))
        slices = extract_slices(self._references, chosen, rotations, self._kx, self._ky, self.padding)
        slices *= self._inside
        slices *= phase_factors(xp.asarray(np.asarray(shifts, dtype=np.float32)), self._kx, self._ky, box)
        errors = None if optics is None else self._aberrations.phase_errors(optics)
        if errors is not None:
            slices *= errors
        slices = slices.reshape(-1, box, box // 2 + 1)
        if ctf_coefficients is not None:
            slices *= ctf_image(xp.asarray(ctf_coefficients), box)
        return inverse(slices, box).astype(np.float32)


def beam_tilts(optics: Sequence[OpticsGroup], tilts: Sequence[tuple[float, float]]) -> list[Aberrations]:
    """The aberrations of optics groups with beam tilts (x, y) in mrad; none if there are no tilts."""
    return [
        Aberrations(odd=tuple(with_beam_tilt((), x, y, group.cs, float(wavelength(group.voltage))).tolist()))
        for group, (x, y) in zip(optics, tilts, strict=False)
    ]


def noise_spectrum(box_size: int, pixel_size: float, coloured: float) -> NDArray[np.float64]:
    """Power per Fourier shell, float64 (box // 2 + 1,), of noise with variance 1 per pixel.

    The fraction `coloured` of the variance falls as 1 / (s + 1/100 Å) with the spatial frequency s, the rest is white.
    """
    shells = rfft_shells(box_size, 2)
    frequency = np.arange(box_size // 2 + 1) / (box_size * pixel_size)
    falling = 1.0 / (frequency + 1.0 / _CORNER)
    share = np.broadcast_to(rfft_multiplicity(box_size), shells.shape)
    mean = np.average(falling[np.minimum(shells, box_size // 2)], weights=share)
    return np.asarray(box_size**2 * (1.0 - coloured + coloured * falling / mean))


def particle_noise(numbers: ArrayLike, spectrum: NDArray[np.float64], seed: int) -> NDArray[np.float32]:
    """Noise images, float32 (n, box, box), of the particles with these numbers, with the power `spectrum`."""
    box = 2 * (len(spectrum) - 1)
    images = [
        coloured_noise((1, box, box), spectrum, np.random.default_rng([seed, int(number), _NOISE]))
        for number in np.atleast_1d(numbers)
    ]
    return np.concatenate(images)


def circle_variance(images: Array, radius: float) -> Array:
    """Variance of the pixels inside a circle of `radius` pixels about the centre, float64 (n,)."""
    xp = xp_of(images)
    inside = xp.asarray(radius_grid(images.shape[-1], 2) <= radius)
    return images[:, inside].astype(np.float64).var(axis=1)


def normalise(images: Array, radius: float) -> tuple[Array, Array, Array]:
    """Images with mean 0 and standard deviation 1 outside a circle of `radius` pixels about the centre.

    Returns
    -------
    (images, mean, deviation): float32 (n, box, box), and what was subtracted and divided by, float64 (n,).

    Raises
    ------
    ValueError
        If fewer than 16 pixels lie outside the circle, or they all have the same value.
    """
    xp = xp_of(images)
    outside = xp.asarray(radius_grid(images.shape[-1], 2) > radius)
    if int(outside.sum()) < 16:
        raise ValueError(f"circle of radius {radius:g} px: no background is left in a box of {images.shape[-1]}")
    background = images[:, outside].astype(np.float64)
    mean, deviation = background.mean(axis=1), background.std(axis=1)
    if bool((deviation <= 0).any()):
        raise ValueError("an image whose background is constant cannot be normalised")
    normalised = (images - mean[:, None, None]) / deviation[:, None, None]
    return normalised.astype(np.float32), mean, deviation
