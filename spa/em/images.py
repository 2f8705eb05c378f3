"""From images as they lie on disk to centred, weighted spectra on the device, and their noise before any model."""

from __future__ import annotations

from typing import Any

import numpy as np

from spa.em.state import Batch, FloatArray, Poses
from spa.fourier import forward, gather, inverse, phase_factors, shift
from spa.grids import FourierPixels, half_plane, rfft_shells
from spa.kernels.backend import Array, to_device, xp_of
from spa.kernels.ctf import evaluate_ctf


class Preparer:
    """Makes batches for scoring; holds what all batches of a run share.

    Parameters
    ----------
    box : box size in pixels.
    coefficients : float32 (n_particles, 9) for `evaluate_ctf`, or None to take every CTF as one.
    optics, groups : optics group and micrograph group of each particle.
    mask : float32 (box, box) that zeroes the surroundings of centred images when scoring, or None.
    device : GPU number, None for the CPU.
    """

    def __init__(
        self,
        box: int,
        coefficients: np.ndarray[Any, Any] | None,
        optics: np.ndarray[Any, Any],
        groups: np.ndarray[Any, Any],
        mask: FloatArray | None,
        device: int | None,
    ) -> None:
        self.pixels: FourierPixels = half_plane(box, box // 2 - 1)
        self.coefficients = coefficients
        self.optics = optics
        self.groups = groups
        self.device = device
        self.kx = to_device(self.pixels.kx.astype(np.float32), device)
        self.ky = to_device(self.pixels.ky.astype(np.float32), device)
        self.mask = None if mask is None else to_device(mask, device)

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

        Notes
        -----
        Centring is a phase ramp, so the old origin need not be a whole number of pixels.
        """
        box = self.pixels.box_size
        origins = to_device(poses.origins[indices].astype(np.float32), self.device)
        factor = to_device((1 / poses.norm[indices]).astype(np.float32), self.device)
        raw = to_device(images, self.device) * factor[:, None, None]
        phases = phase_factors(origins, self.kx, self.ky, box)
        spectra = gather(forward(raw), self.pixels) * phases
        scored = spectra
        if self.mask is not None:
            inside = xp_of(raw).asarray(rfft_shells(box, 2) <= score_kmax)
            low_passed = inverse(forward(shift(raw, origins)) * inside, box)
            scored = gather(forward(low_passed * self.mask), self.pixels)
        precision = (1 / sigma2).astype(np.float32)[:, self.pixels.shell][self.optics[indices]]
        return Batch(
            indices=indices,
            spectra=spectra.astype(np.complex64),
            scored=scored.astype(np.complex64),
            ctf=self._ctf(indices, group_scale),
            inverse_sigma2=to_device(precision, self.device),
            origins=origins,
            pixels=self.pixels,
            kx=self.kx,
            ky=self.ky,
        )

    def _ctf(self, indices: np.ndarray[Any, np.dtype[np.int64]], group_scale: FloatArray) -> Array:
        scale = to_device(group_scale[self.groups[indices]].astype(np.float32)[:, None], self.device)
        if self.coefficients is None:
            xp = xp_of(self.kx)
            return xp.broadcast_to(scale, (len(indices), len(self.pixels))).astype(np.float32)
        coefficients = to_device(np.ascontiguousarray(self.coefficients[indices]), self.device)
        return evaluate_ctf(coefficients, self.kx, self.ky) * scale


class InitialNoise:
    """Noise spectra before there is a model: mean power of the images minus power of their mean."""

    def __init__(self, n_optics: int, box: int) -> None:
        self.pixels = half_plane(box, box // 2 - 1)
        self.power = np.zeros((n_optics, len(self.pixels)))
        self.mean = np.zeros((n_optics, len(self.pixels)), complex)
        self.count = np.zeros(n_optics, np.int64)

    def add(self, images: FloatArray, optics: np.ndarray[Any, Any]) -> None:
        """Add images (n, box, box) with their optics groups (n,)."""
        spectra = gather(forward(images), self.pixels)
        np.add.at(self.power, optics, np.abs(spectra) ** 2)
        np.add.at(self.mean, optics, spectra)
        np.add.at(self.count, optics, 1)

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
