"""From images as they lie on disk to centred, weighted spectra on the device, and their noise before any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spa.aberrations import Aberrations, PixelAberrations
from spa.em.state import Batch, FloatArray, Poses
from spa.errors import InputError
from spa.fourier import forward, gather, inverse, phase_factors, scatter, shift
from spa.grids import FourierPixels, half_plane, rfft_shells
from spa.kernels.backend import Array, to_device, to_host, xp_of
from spa.kernels.ctf import evaluate_ctf

UNDERSAMPLED = 0.9 * np.pi
"""Phase (radians) by which CTF^2 may change from one Fourier pixel to the next and still count as smooth."""
OUTLIER_POWER = 30.0
"""Power of an image, in units of the median, beyond which it is no noisy image but a damaged one."""
ALL_ORDERS = 48
"""Highest angular order of the norm; beyond it nothing was left to gain."""


class Preparer:
    """Makes batches for scoring; holds what all batches of a run share.

    Parameters
    ----------
    box : box size in pixels.
    coefficients : float32 (n_particles, 9) for `evaluate_ctf`, or None to take every CTF as one.
    optics, groups : optics group and micrograph group of each particle.
    mask : float32 (box, box) that zeroes the surroundings of centred images when scoring, or None.
    device : GPU number, None for the CPU.
    aberrations : of each optics group, or empty for none.
    pixel_size : Å; matters to aberrations only.

    Notes
    -----
    Odd phases are taken off the spectra before anything else, even phases enter the CTF, and with an anisotropic
    magnification slices and CTF lie at the magnified frequencies (see `spa.aberrations`). As in RELION, this does not
    depend on whether there is a CTF.
    """

    def __init__(
        self,
        box: int,
        coefficients: np.ndarray[Any, Any] | None,
        optics: np.ndarray[Any, Any],
        groups: np.ndarray[Any, Any],
        mask: FloatArray | None,
        device: int | None,
        aberrations: Sequence[Aberrations] = (),
        pixel_size: float = 1.0,
    ) -> None:
        self.pixels: FourierPixels = half_plane(box, box // 2 - 1)
        self.coefficients = coefficients
        self.optics = optics
        self.groups = groups
        self.device = device
        self.kx = to_device(self.pixels.kx.astype(np.float32), device)
        self.ky = to_device(self.pixels.ky.astype(np.float32), device)
        self.mask = None if mask is None else to_device(mask, device)
        groups_of_optics = aberrations or [Aberrations()] * (1 + int(np.max(optics, initial=0)))
        self.aberrations = PixelAberrations(groups_of_optics, self.kx, self.ky, box * pixel_size)

    @property
    def stretch(self) -> float:
        """Radius at which slices are sampled over the radius of the pixel, at most; 1 without magnification."""
        radius = np.hypot(self.pixels.kx, self.pixels.ky)
        sampled = [np.hypot(to_host(x), to_host(y)) / radius for x, y in self.aberrations.slices]
        return float(np.max(sampled))

    def norm_orders(self, kmax: int) -> int:
        """Highest angular order of CTF^2 that matters up to a Fourier radius.

        Astigmatism turns the phase by a cos(2 theta), whose orders die out a few beyond 2 a. Where CTF^2 changes by
        half a period from one pixel to the next, the pixels of a ring see a pattern of all orders.
        """
        if self.coefficients is None:
            return 0
        defocus, astigmatism, _, quadratic = np.abs(self.coefficients[:, :4]).T
        if float((4 * quadratic * defocus).max()) * kmax > UNDERSAMPLED:
            return ALL_ORDERS
        swing = float((2 * quadratic * astigmatism).max()) * kmax**2
        return min(ALL_ORDERS, 2 * int(np.ceil(swing + 3)))

    def batch(
        self,
        images: FloatArray,
        indices: np.ndarray[Any, np.dtype[np.int64]],
        poses: Poses,
        sigma2: FloatArray,
        group_scale: FloatArray,
        score_kmax: int,
    ) -> Batch:
        """Transform images (n, box, box), centre them on their last origins and weigh them.

        Parameters
        ----------
        sigma2 : float64 (n_optics, n_shells) of their half set.
        group_scale : float64 (n_groups,) of their half set.
        score_kmax : Fourier radius beyond which nothing may reach the scores, not even through the mask.

        Raises ValueError for images of different magnifications (see `by_magnification`).

        Notes
        -----
        Centring is a phase ramp, so the old origin need not be a whole number of pixels.
        """
        box = self.pixels.box_size
        origins = to_device(poses.origins[indices].astype(np.float32), self.device)
        factor = to_device((1 / poses.norm[indices]).astype(np.float32), self.device)
        raw = to_device(images, self.device) * factor[:, None, None]
        phases = phase_factors(origins, self.kx, self.ky, box)
        optics = self.optics[indices]
        magnification = self._magnification(optics)
        errors = self.aberrations.phase_errors(optics)
        if errors is not None:
            phases = phases * errors.conj()
        spectra = gather(forward(raw), self.pixels) * phases
        scored = spectra
        if self.mask is not None:
            if errors is None:
                inside = xp_of(raw).asarray(rfft_shells(box, 2) <= score_kmax)
                low_passed = inverse(forward(shift(raw, origins)) * inside, box)
            else:
                inside = xp_of(raw).asarray(self.pixels.shell <= score_kmax)
                centred = scatter(spectra * inside, self.pixels)
                centred[:, 0, 0] = raw.sum((1, 2))
                low_passed = inverse(centred, box)
            scored = gather(forward(low_passed * self.mask), self.pixels)
        precision = (1 / sigma2).astype(np.float32)[:, self.pixels.shell][optics]
        return Batch(
            indices=indices,
            spectra=spectra.astype(np.complex64),
            scored=scored.astype(np.complex64),
            ctf=self._ctf(indices, group_scale, magnification),
            inverse_sigma2=to_device(precision, self.device),
            origins=origins,
            pixels=self.pixels,
            kx=self.kx,
            ky=self.ky,
            slice_x=self.aberrations.slices[magnification][0],
            slice_y=self.aberrations.slices[magnification][1],
            magnification=magnification,
        )

    def _magnification(self, optics: np.ndarray[Any, Any]) -> int:
        """The magnification that the images of these optics groups share."""
        found = np.unique(self.aberrations.magnification[optics])
        if len(found) > 1:
            raise ValueError(f"images of {len(found)} magnifications: expected those of a batch to share one")
        return int(found[0]) if len(found) else 0

    def _ctf(self, indices: np.ndarray[Any, np.dtype[np.int64]], group_scale: FloatArray, magnification: int) -> Array:
        scale = to_device(group_scale[self.groups[indices]].astype(np.float32)[:, None], self.device)
        if self.coefficients is None:
            xp = xp_of(self.kx)
            return xp.broadcast_to(scale, (len(indices), len(self.pixels))).astype(np.float32)
        coefficients = to_device(np.ascontiguousarray(self.coefficients[indices]), self.device)
        symmetric = self.aberrations.symmetric(self.optics[indices])
        return evaluate_ctf(coefficients, *self.aberrations.slices[magnification], *symmetric) * scale


def by_magnification(
    indices: np.ndarray[Any, np.dtype[np.int64]], magnification: np.ndarray[Any, np.dtype[np.int64]]
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Particles `indices` split into runs of one magnification each, their order kept within a run.

    magnification : int64 (n_particles,) of all particles (`Inputs.magnification`). `indices` itself, as the only run,
    where it is the same for all.
    """
    classes = magnification[indices]
    present = np.unique(classes)
    return [indices] if len(present) < 2 else [indices[classes == c] for c in present]


def unlike_the_others(power: FloatArray, path: str) -> str | None:
    """What is to be said of images far stronger than the others, None where there are none.

    power : float64 (n_particles,), mean power of each image, NaN where it was not looked at. Raises InputError if half
    of the images or more hold nothing.
    """
    typical = float(np.nanmedian(power))
    if not (np.isfinite(typical) and typical > 0):
        row = int(np.argmax(power == 0)) + 1
        raise InputError(
            f"{path}: data_particles, row {row}: expected an image with contrast; it is constant, as are half or more"
        )
    strong = np.nonzero(power > OUTLIER_POWER * typical)[0]
    if not len(strong):
        return None
    return (
        f"{path}: {len(strong)} image{'s have' if len(strong) > 1 else ' has'} more than {OUTLIER_POWER:.0f} times the "
        f"power of the others and will spoil the noise spectra; the first is data_particles, row {strong[0] + 1}"
    )


class InitialNoise:
    """Noise spectra before there is a model: mean power of the images minus power of their mean."""

    def __init__(self, n_optics: int, box: int) -> None:
        self.pixels = half_plane(box, box // 2 - 1)
        self.power = np.zeros((n_optics, len(self.pixels)))
        self.mean = np.zeros((n_optics, len(self.pixels)), complex)
        self.count = np.zeros(n_optics, np.int64)

    def add(self, images: FloatArray, optics: np.ndarray[Any, Any]) -> FloatArray:
        """Add images (n, box, box) with their optics groups (n,); returns the mean power of each image, (n,)."""
        spectra = gather(forward(images), self.pixels)
        power = np.abs(spectra) ** 2
        np.add.at(self.power, optics, power)
        np.add.at(self.mean, optics, spectra)
        np.add.at(self.count, optics, 1)
        return np.asarray(power.mean(1))

    def spectra(self) -> FloatArray:
        """Variance of the real and of the imaginary part, float64 (n_optics, n_shells)."""
        count = np.maximum(self.count, 1)[:, None]
        excess = self.power / count - np.abs(self.mean / count) ** 2
        excess[self.count == 0] = (self.power.sum(0) / self.count.sum())[None]
        shells = self.pixels.box_size // 2 + 1
        number = np.maximum(np.bincount(self.pixels.shell, minlength=shells), 1)
        sigma2 = np.stack([np.bincount(self.pixels.shell, row, shells) / number / 2 for row in excess])
        sigma2[:, 0] = sigma2[:, 1]
        sigma2[:, -1] = sigma2[:, -2]
        return np.asarray(np.maximum(sigma2, sigma2.max() * 1e-8))
