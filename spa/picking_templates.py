"""Templates for picking: projections of a map or rotated images, as the microscope shows them. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa import euler, healpix, symmetry
from spa.ctf import ctf_image
from spa.fourier import inverse, pad_or_crop, reference_transform, resample
from spa.grids import radius_grid, rfft_frequencies
from spa.kernels.backend import Array, xp_of
from spa.kernels.slices import extract_slices
from spa.mask import automatic_threshold
from spa.picking_image import Prepared, whitening
from spa.picking_scores import unit

_PADDING = 2
_WITHIN = 0.99  # of the power of 2D templates that lies inside the diameter
_EDGE = 0.15  # of the limiting frequency, over which the low-pass filter falls on either side
_AT_ONCE = 512


@dataclass(frozen=True)
class Templates:
    """Transforms of templates in all orientations, before the CTF.

    transforms : complex64 (n, box, box // 2 + 1), white particles. pixel_size : Angstrom.
    reference : int64 (n,), which direction of a map or which image, from 0. psi : float64 (n,), degrees.
    """

    transforms: Array
    pixel_size: float
    reference: NDArray[np.int64]
    psi: NDArray[np.float64]

    @property
    def box(self) -> int:
        """Box in pixels."""
        return int(self.transforms.shape[-2])

    def __len__(self) -> int:
        """The number of templates."""
        return len(self.psi)


def of_map(
    volume: Array, pixel_size: float, new_pixel_size: float, box: int, order: int, sym: str, step: float
) -> Templates:
    """Projections of a map in the directions of the asymmetric unit, at in-plane angles `step` degrees apart.

    volume : float32 (size, size, size), axes (z, y, x). pixel_size, new_pixel_size : Angstrom, of the map and of the
    templates. box : of the templates, even. order : HEALPix. sym : point group.
    """
    tilt, rot = healpix.pix2ang(order, _directions(order, sym))
    reference = resample(volume, pixel_size, new_pixel_size, box)
    transform = reference_transform(reference, _PADDING, box // 2 - 1)[None]
    return _turned(transform, np.degrees(rot), np.degrees(tilt), box, new_pixel_size, step)


def n_of_map(order: int, sym: str, step: float) -> int:
    """How many templates `of_map` makes (InputError for an unknown group)."""
    return len(_directions(order, sym)) * len(in_plane(step))


def of_images(images: Array, pixel_size: float, new_pixel_size: float, box: int, step: float) -> Templates:
    """Images, float32 (n, size, size), at in-plane angles `step` degrees apart; the rest as in `of_map`."""
    xp = xp_of(images)
    small = [resample(image, pixel_size, new_pixel_size, box, 2) for image in images]
    transforms = xp.stack([reference_transform(image, _PADDING, box // 2 - 1) for image in small])
    zeros = np.zeros(len(images))
    return _turned(transforms, zeros, zeros, box, new_pixel_size, step)


def _directions(order: int, sym: str) -> NDArray[np.int64]:
    """HEALPix pixels of the asymmetric unit."""
    directions = healpix.pix2vec(order, np.arange(healpix.n_pixels(order)))
    return np.flatnonzero(symmetry.asymmetric_unit(directions, symmetry.operators(sym)))


def in_plane(step: float) -> NDArray[np.float64]:
    """In-plane angles `step` degrees apart."""
    return np.arange(0.0, 360.0, step)


def _turned(
    references: Array, rot: NDArray[np.float64], tilt: NDArray[np.float64], box: int, pixel_size: float, step: float
) -> Templates:
    """Slices of one map in all directions, or of one image each, at all in-plane angles."""
    xp = xp_of(references)
    angles = in_plane(step)
    which = np.repeat(np.arange(len(rot)), len(angles))
    psi = np.tile(angles, len(rot))
    matrices = xp.asarray(euler.matrix(rot[which], tilt[which], psi).astype(np.float32))
    source = which if references.ndim == 3 else np.zeros_like(which)
    ky, kx = np.broadcast_arrays(*rfft_frequencies(box, 2))
    kx, ky = (xp.asarray(np.ascontiguousarray(k.ravel())) for k in (kx, ky))
    slices = extract_slices(references, xp.asarray(source.astype(np.int32)), matrices, kx, ky, _PADDING)
    return Templates(slices.reshape(-1, box, box // 2 + 1), pixel_size, which, psi)


def seen(
    templates: Templates,
    prepared: Prepared,
    inside: NDArray[np.bool_],
    lowpass: float,
    ctf_coefficients: NDArray[np.float32] | None,
) -> Array:
    """The templates as they look in a prepared micrograph, under its disc, float32 (n, n_pixels), for `Bank.of`.

    inside : bool, the disc of the field. lowpass : Angstrom. ctf_coefficients : float32 (1, 9), for the box of the
    templates, or None for no CTF.
    """
    xp, box = xp_of(templates.transforms), templates.box
    ky, kx = rfft_frequencies(box, 2)
    frequency = np.hypot(kx, ky) / box
    limit = templates.pixel_size / lowpass
    ramp = np.clip((frequency / limit - 1 + _EDGE) / (2 * _EDGE), 0, 1)
    window = xp.asarray((0.5 + 0.5 * np.cos(np.pi * ramp)).astype(np.float32))
    window = window * xp.asarray(whitening(prepared.amplitude, frequency))
    if ctf_coefficients is not None:
        window = window * ctf_image(xp.asarray(ctf_coefficients), box)[0]
    mask = xp.asarray(inside)
    out = xp.empty((len(templates), int(inside.sum())), dtype=np.float32)
    for start in range(0, len(templates), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        out[part] = unit(pad_or_crop(inverse(templates.transforms[part] * window, box), len(inside), 2)[:, mask])
    return out


def map_diameter(volume: NDArray[np.float32], pixel_size: float) -> float:
    """Largest diameter of a map's density, Angstrom; InputError if no density stands out."""
    inside = volume >= automatic_threshold(volume, pixel_size)
    return 2 * pixel_size * float((radius_grid(len(volume), 3) * inside).max())


def image_diameter(images: NDArray[np.float32], pixel_size: float) -> float:
    """Diameter of the disc that holds nearly all power of images (n, size, size), Angstrom."""
    radius = radius_grid(images.shape[-1], 2)
    background = images[:, radius >= images.shape[-1] / 2 - 1].mean(axis=1)
    power = ((images - background[:, None, None]) ** 2).mean(axis=0)
    inside = radius < images.shape[-1] / 2
    order = np.argsort(radius[inside])
    share = np.cumsum(power[inside][order])
    return 2 * pixel_size * float(radius[inside][order][np.searchsorted(share, _WITHIN * share[-1])])
