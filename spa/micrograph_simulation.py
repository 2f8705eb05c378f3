"""Simulated micrographs: particles, ice and what else is there, seen through the CTF and counted. Arrays only.

Everything in a micrograph follows from (seed, micrograph number), so neither order nor threads matter.

Notes
-----
The expected image is m = T (1 + c), with the electrons that a micrograph receives per pixel as its unit. The contrast
c is dark where the specimen scatters more: c = sqrt(v) (i - p), with p the projections of the particles and i the
structural noise of the ice, both through the CTF; v is the variance of all noise, ice and counting, where T = 1, so
that p is in standard deviations of the noise. T < 1 is what carbon, dirt and uneven ice take away. Counting
electrons adds noise that the CTF does not shape, hence the Thon rings on a background (Baxter et al. 2009, J Struct
Biol 166:126; McMullan et al. 2015, Ultramicroscopy 158:26).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spa import ctf
from spa.fourier import forward, inverse, pad_or_crop
from spa.grids import rfft_multiplicity
from spa.kernels.backend import Array, fft_of, fft_workers, to_host, xp_of
from spa.kernels.ctf import evaluate_ctf
from spa.micrograph_scene import ICE, SHOT, Recipe, Scene, draw_scene
from spa.particles import Particles
from spa.simulation import Projector, circle_variance
from spa.specimen import Lump

Image = NDArray[np.float32]

_BATCH_PIXELS = 1 << 22
_CALIBRATED_ON = 256  # particles whose signal sets the grey scale
_ICE_PEAK, _ICE_WIDTH = 1 / 3.7, 0.015  # 1/Å, of amorphous ice
_UNEVEN, _UNEVEN_FROM = 0.02, 800.0  # rms of the intensity through uneven ice, and its shortest wavelength in Å
_LUMP_PHASE = 4.0  # of carbon and blobs, whose edges get fringes, in standard deviations of the ice


def particle_images(particles: Particles, projector: Projector, fractions: NDArray[np.float64], box_size: int) -> Array:
    """Particles through their CTF, float32 (n, box, box), white, moved by `fractions` (n, 2) of a pixel (x, y)."""
    angles = np.stack([particles.rot, particles.tilt, particles.psi], axis=1)
    images = projector(particles.class_number - 1, angles, fractions, optics=particles.optics_index)
    images = pad_or_crop(images, box_size, 2)
    coefficients = xp_of(images).asarray(particles.ctf_coefficients(box_size))
    return inverse(forward(images) * ctf.ctf_image(coefficients, box_size), box_size).astype(np.float32)


def grey_scale(recipe: Recipe, counts: Sequence[int], projector: Projector, snr: float) -> np.float32:
    """The factor for the maps that makes `snr` the variance of the signal over that of the noise.

    The signal is that inside the particle circle, seen through the CTF, on average over the particles of the first
    micrographs, of which `counts` gives the numbers; the noise has variance 1.
    """
    total, n, radius, box = 0.0, 0, recipe.diameter / 2 / recipe.pixel_size, recipe.particle_box
    for number, count in enumerate(counts):
        particles = draw_scene(recipe, number, count).particles
        for part in _batches(len(particles), box):
            images = particle_images(particles.subset(part), projector, np.zeros((len(part), 2)), box)
            total += float(circle_variance(images, radius).sum())
        n += len(particles)
        if n >= _CALIBRATED_ON:
            break
    return np.float32(np.sqrt(snr * n / total) if n else 1)


def expected_image(recipe: Recipe, scene: Scene, projector: Projector) -> Image:
    """The expected intensity with margins, float32 `recipe.field_shape`, about 1 where there is ice alone.

    `projector` projects maps in units of the noise's standard deviation, on the device that then does the rest.
    """
    lumps = [one.drawn(recipe.field_shape, recipe.origin) for one in scene.surroundings.all]
    image = _ice(recipe, scene, lumps, projector.like)
    _add_particles(recipe, scene, projector, image)
    image *= np.float32(recipe.noise_deviation)
    image += 1
    for lump in lumps:
        lump.part(image)[:] *= 1 - np.float32(lump.loss) * lump.thickness
    return image


def crop(recipe: Recipe, image: Array) -> Array:
    """The micrograph without its margins."""
    row, column = recipe.origin
    return image[row : row + recipe.shape[0], column : column + recipe.shape[1]]


def counted(recipe: Recipe, scene: Scene, image: Image) -> Image:
    """The micrograph, float32 `recipe.shape`, in electrons per pixel, of an expected image with margins.

    Counting noise is Gaussian here: at ten electrons and more it is as good as Poisson's.
    """
    expected = np.float32(recipe.electrons) * crop(recipe, image)
    noise = recipe.rng(scene.number, SHOT).standard_normal(recipe.shape, dtype=np.float32)
    noise *= np.sqrt(np.maximum(expected, 0))
    noise += expected
    return noise


def frequencies(shape: tuple[int, int], pixel_size: float) -> tuple[Image, Image]:
    """Spatial frequencies y (rows, 1) and x (1, columns // 2 + 1) in 1/Å of the rfft layout of an image."""
    fy = np.fft.fftfreq(shape[0], pixel_size).astype(np.float32)
    fx = np.fft.rfftfreq(shape[1], pixel_size).astype(np.float32)
    return fy[:, None], fx[None]


def _ice(recipe: Recipe, scene: Scene, lumps: Sequence[Lump], like: Array) -> Image:
    """Ice, carbon and blobs through the CTF, with the variance `recipe.ice` where there is ice alone.

    In units of the noise's standard deviation, with the uneven transmission of the ice, which no CTF shapes.
    """
    xp, shape = xp_of(like), recipe.field_shape
    rng = recipe.rng(scene.number, ICE)
    grain = rng.standard_normal(shape, dtype=np.float32)
    for lump in lumps:
        lump.part(grain)[:] *= 1 + np.float32(lump.grain - 1) * lump.thickness
        lump.part(grain)[:] -= np.float32(_LUMP_PHASE) * lump.thickness
    ft = fft_of(like).rfft2(xp.asarray(grain), **fft_workers(like))
    window = _ice_window(recipe, scene, like)
    weight = xp.asarray(rfft_multiplicity(shape[1]))
    power = float((xp.square(window).sum(axis=0, dtype=np.float64) * weight).sum() / (shape[0] * shape[1]))
    ft *= window * np.float32(np.sqrt(recipe.ice / power))
    _add_unevenness(recipe, ft, rng)
    return np.ascontiguousarray(to_host(fft_of(like).irfft2(ft, s=shape, **fft_workers(like))), dtype=np.float32)


def _ice_window(recipe: Recipe, scene: Scene, like: Array) -> Array:
    """CTF, envelope and structure factor of ice, float32 in the rfft layout of the field."""
    xp, group = xp_of(like), recipe.optics[scene.optics_index]
    unit = 256  # a box whose Fourier pixels the frequencies are counted in
    coefficients = ctf.coefficients(
        scene.defocus_u,
        scene.defocus_v,
        scene.defocus_angle,
        group.voltage,
        group.cs,
        group.q0,
        scene.phase_shift,
        recipe.bfactor,
        1.0,
        recipe.pixel_size,
        unit,
    )
    fy, fx = (xp.asarray(f) for f in frequencies(recipe.field_shape, recipe.pixel_size))
    scale = np.float32(unit * recipe.pixel_size)
    ky, kx = (xp.ascontiguousarray(k).ravel() for k in xp.broadcast_arrays(fy * scale, fx * scale))
    window = evaluate_ctf(xp.asarray(coefficients), kx, ky).reshape(len(fy), -1)
    if recipe.ice_peak > 0:
        distance = (xp.sqrt(fy**2 + fx**2) - _ICE_PEAK) / _ICE_WIDTH
        window *= xp.sqrt(1 + np.float32(recipe.ice_peak) * xp.exp(-0.5 * distance**2))
    return window


def _add_unevenness(recipe: Recipe, ft: Array, rng: np.random.Generator) -> None:
    """Add the slow changes of the ice's thickness to a transform of the field."""
    fy, fx = frequencies(recipe.field_shape, recipe.pixel_size)
    rows, columns = np.flatnonzero(np.abs(fy[:, 0]) < 1 / _UNEVEN_FROM), int((fx < 1 / _UNEVEN_FROM).sum())
    s2 = fy[rows] ** 2 + fx[:, :columns] ** 2
    s2[0, 0] = np.inf
    weight = 1 / s2
    if not weight.any():
        return
    both = weight**2 * np.minimum(1 + np.arange(columns), 2)  # a column x > 0 stands for its mate as well
    weight *= _UNEVEN / recipe.noise_deviation / np.sqrt(2 * both.sum()) * np.prod(recipe.field_shape)
    values = weight * (rng.standard_normal(s2.shape) + 1j * rng.standard_normal(s2.shape))
    ft[xp_of(ft).asarray(rows), :columns] += xp_of(ft).asarray(values.astype(np.complex64))


def _add_particles(recipe: Recipe, scene: Scene, projector: Projector, image: Image) -> None:
    """Subtract the projections (dark protein) from a field, each at its place."""
    box, (top, left) = recipe.particle_box, recipe.origin
    whole = np.rint(scene.coordinates)
    for part in _batches(len(scene.particles), box):
        images = particle_images(scene.particles.subset(part), projector, (scene.coordinates - whole)[part], box)
        for drawn, (x, y) in zip(to_host(images), whole[part].astype(int), strict=True):
            _paste(image, -drawn, y + top - box // 2, x + left - box // 2)


def _paste(image: Image, patch: Image, row: int, column: int) -> None:
    """Add a patch whose first pixel goes to (row, column), as far as it lies inside."""
    first, last = (max(row, 0), max(column, 0)), (row + patch.shape[0], column + patch.shape[1])
    inside = patch[first[0] - row : image.shape[0] - row, first[1] - column : image.shape[1] - column]
    image[first[0] : last[0], first[1] : last[1]] += inside


def _batches(n: int, box: int) -> list[NDArray[np.int64]]:
    size = max(1, _BATCH_PIXELS // box**2)
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
