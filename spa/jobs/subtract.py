"""Subtract from particles the projected density outside a mask, so that what the mask keeps is left.

The mask is 1 on what to keep (as in relion_particle_subtract): an image becomes X - n s CTF P[(1 - mask) V], with P the
projection of the map V in the particle's pose, moved to its origin, n its norm (rlnNormCorrection over the mean) and s
its intensity scale. Shifts, poses and all other columns stay; rlnImageOriginalName names the image before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import euler
from spa.aberrations import PixelAberrations
from spa.errors import InputError
from spa.fourier import forward, inverse, phase_factors, reference_transform
from spa.grids import rfft_frequencies, rfft_shells
from spa.io import mrc, star
from spa.io.extraction_checks import refuse_replacing
from spa.io.files import project_path
from spa.io.particle_io import ParticleImages, read_particles, to_star
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host, xp_of
from spa.kernels.ctf import evaluate_ctf
from spa.kernels.slices import extract_slices
from spa.options import CommonOptions, option
from spa.particles import Particles

_BATCH_PIXELS = 1 << 22
_STACK = 10000  # images in a file
_POSE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_FITTED = 300  # particles that the grey scale is fitted to
_COARSEST, _FINEST = 100.0, 15.0  # Å, of the shells that it is fitted to
_WRONG_SCALE = 1.25


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa subtract`."""

    i: str = option(help="Particle STAR file with poses", role="input")
    o: str = option(
        "Subtract/", help="Folder to write particles_subtracted.star and Particles/*.mrcs to", role="folder"
    )
    ref: str = option(help="Map of the whole particle, not sharpened", role="input", group="Reference")
    mask: str = option(
        help="Mask (0 to 1) of what to keep: density outside it is subtracted", role="input", group="Reference"
    )
    ctf: bool = option(False, help="Apply the CTFs and aberrations to the projections", group="CTF")
    model: str | None = option(
        None,
        help="Model STAR file of the refinement, whose intensity scale per micrograph (rlnGroupScaleCorrection) and "
        "mean norm are to be applied",
        role="input",
        group="Reference",
    )
    fit_scale: bool = option(
        False,
        help="Bring the map to the images' grey scale by least squares; for a map that was not refined from them",
        group="Reference",
    )
    pad: int = option(2, help="Padding factor of the map's transform", bounds=(1, 4), group="Reference")


def run(options: Options, job: Job) -> None:
    """Write the stacks, then the STAR file."""
    table = Path(options.o) / "particles_subtracted.star"
    refuse_replacing("--o", table, [options.i, options.model])
    particles = read_particles(options.i)
    for column in _POSE_COLUMNS:
        particles.source["particles"].require(column, "a subtraction needs")
    images = ParticleImages(particles)
    if not options.ctf and particles.has_ctf:
        job.warn(f"{options.i} has CTF parameters, but --ctf was not given: the projections will not have the CTF")
    volume, outside = _maps(options, images.box_size, images.pixel_size)
    scale = _intensity(options, particles)
    device = job.devices[0] if job.devices else None
    fitted = _fit(_Projections(volume, particles, options, device), images, scale)
    if options.fit_scale:
        scale = scale * fitted
        job.say(f"{options.ref}: grey values times {fitted:.4g}, to fit the images")
    elif not 1 / _WRONG_SCALE < fitted < _WRONG_SCALE:
        job.warn(f"{options.ref}: the images' signal is {fitted:.3g} times that of the map: give --fit_scale")
    names = _write_stacks(_Projections(outside, particles, options, device), images, scale, Path(options.o), job)
    found = to_star(particles)
    found["particles"].set("rlnImageOriginalName", list(particles.image_name))
    found["particles"].set("rlnImageName", names)
    star.write(table, found)
    job.say(f"{table}: {len(particles)} images less {_share(volume, outside):.0%} of the map's density")


class _Projections:
    """Images of a map in the poses of particles, without their intensity scale."""

    def __init__(self, volume: NDArray[np.float32], particles: Particles, options: Options, device: int | None) -> None:
        box = len(volume)
        self.box, self.padding, self.particles = box, options.pad, particles
        self.pixel_size, self.device = particles.pixel_size, device
        self.reference = reference_transform(to_device(volume, device), options.pad, box // 2 - 1)[None]
        ky, kx = np.broadcast_arrays(*rfft_frequencies(box, 2))
        self.inside = to_device((np.hypot(kx, ky) < box // 2 - 0.5).astype(np.float32).ravel(), device)
        self.kx, self.ky = (to_device(np.ascontiguousarray(k.ravel(), dtype=np.float32), device) for k in (kx, ky))
        self.aberrations = PixelAberrations(particles.aberrations(), self.kx, self.ky, box * self.pixel_size)
        self.coefficients = particles.ctf_coefficients() if options.ctf else None

    def spectra(self, which: NDArray[np.int64]) -> Array:
        """Transforms, complex64 (n, box, box // 2 + 1), of the images of the particles `which` (n,)."""
        magnification = self.aberrations.magnification[self.particles.optics_index[which]]
        xp = xp_of(self.kx)
        values = xp.empty((len(which), self.kx.size), dtype=np.complex64)
        for number in np.unique(magnification):
            chosen = np.flatnonzero(magnification == number)
            values[xp.asarray(chosen)] = self._slices(which[chosen], *self.aberrations.slices[number])
        return values.reshape(len(which), self.box, self.box // 2 + 1)

    def _slices(self, which: NDArray[np.int64], slice_x: Array, slice_y: Array) -> Array:
        """Central slices, as the microscope shows them, of particles of one magnification."""
        p = self.particles.subset(which)
        rotations = to_device(euler.matrix(p.rot, p.tilt, p.psi).astype(np.float32), self.device)
        one = to_device(np.zeros(len(which), dtype=np.int32), self.device)
        values = extract_slices(self.reference, one, rotations, slice_x, slice_y, self.padding) * self.inside
        shifts = -np.stack([p.origin_x_angst, p.origin_y_angst], axis=1) / self.pixel_size
        values *= phase_factors(to_device(shifts.astype(np.float32), self.device), self.kx, self.ky, self.box)
        if self.coefficients is not None:
            coefficients = to_device(np.ascontiguousarray(self.coefficients[which]), self.device)
            values *= evaluate_ctf(coefficients, slice_x, slice_y, *self.aberrations.symmetric(p.optics_index))
            errors = self.aberrations.phase_errors(p.optics_index)
            values = values if errors is None else values * errors
        return values

    def images(self, which: NDArray[np.int64]) -> Array:
        """The images, float32 (n, box, box)."""
        return inverse(self.spectra(which), self.box).astype(np.float32)


def _write_stacks(
    projections: _Projections, images: ParticleImages, scale: NDArray[np.float64], folder: Path, job: Job
) -> list[str]:
    """Write the subtracted images; returns their names."""
    n, box = len(images), images.box_size
    size = max(1, _BATCH_PIXELS // box**2)
    names: list[str] = []
    with job.progress(n, "Subtracting", "images") as progress:
        for number, first in enumerate(range(0, n, _STACK), 1):
            path = folder / "Particles" / f"subtracted_{number:03d}.mrcs"
            members = np.arange(first, min(first + _STACK, n))
            with mrc.stack_writer(path, len(members), box, images.pixel_size) as writer:
                for part, batch in images.batches(members, size):
                    job.check_abort()
                    factor = scale[part].astype(np.float32)[:, None, None]
                    writer.append(batch - factor * to_host(projections.images(part)))
                    progress.update(len(part))
            names += [f"{i + 1:06d}@{project_path(path)}" for i in range(len(members))]
    return names


def _maps(options: Options, box: int, pixel_size: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The map and its part outside the mask, both on the grid of the images."""
    volume, mask = (_on_grid(path, box, pixel_size) for path in (options.ref, options.mask))
    if float(volume.std()) == 0:
        raise InputError(f"{options.ref}: expected a map, found the same value everywhere")
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -1e-3 and 0.5 < high <= 1.001):
        raise InputError(f"{options.mask}: expected mask values from 0 to 1, found {low:g} to {high:g}")
    outside = (volume * (1 - np.clip(mask, 0, 1))).astype(np.float32)
    if not outside.any():
        raise InputError(f"{options.mask}: expected a mask that leaves density out, found one that keeps all of it")
    return volume, outside


def _on_grid(path: str, box: int, pixel_size: float) -> NDArray[np.float32]:
    volume, voxel_size = mrc.read_volume(path)
    if len(volume) != box or abs(voxel_size / pixel_size - 1) > 1e-3:
        raise InputError(
            f"{path}: expected {box} voxels of {pixel_size:g} Å, as the images, found {len(volume)} of {voxel_size:g} Å"
        )
    return volume


def _intensity(options: Options, particles: Particles) -> NDArray[np.float64]:
    """What multiplies the projection of each particle: its norm over the mean and the scale of its group."""
    norm = particles.norm_correction
    if norm.min() <= 0:
        row = int(np.argmin(norm)) + 1
        raise InputError(f"{options.i}: data_particles, row {row}, column rlnNormCorrection: expected more than 0")
    if options.model is None:
        return np.asarray(norm / norm.mean())
    model = star.read(options.model)
    mean = model["model_general"].get_float("rlnNormCorrectionAverage", float(norm.mean()))
    groups = model["model_groups"]
    number, scale = groups.integers("rlnGroupNumber"), groups.floats("rlnGroupScaleCorrection")
    particles.source["particles"].require("rlnGroupNumber", "--model needs")
    order = np.argsort(number)
    place = np.searchsorted(number[order], particles.group_number)
    found = order[np.minimum(place, len(number) - 1)]
    missing = np.flatnonzero(number[found] != particles.group_number)
    if len(missing):
        raise InputError(
            f"{options.i}: data_particles, row {missing[0] + 1}, column rlnGroupNumber: group "
            f"{particles.group_number[missing[0]]} is not in {options.model}"
        )
    return np.asarray(norm / mean * scale[found])


def _fit(projections: _Projections, images: ParticleImages, scale: NDArray[np.float64]) -> float:
    """Grey scale of the images over that of the projections, by least squares weighted by the images' power."""
    n, box = len(images), images.box_size
    sample = np.unique(np.linspace(0, n - 1, min(n, _FITTED)).astype(np.int64))
    extent = box * images.pixel_size
    last = max(2, min(box // 2 - 1, round(extent / _FINEST)))
    first = min(max(1, round(extent / _COARSEST)), last - 1)
    shells = rfft_shells(box, 2).ravel()
    sums: NDArray[Any] = np.zeros((3, shells.max() + 1))
    for part, batch in images.batches(sample, max(1, _BATCH_PIXELS // box**2)):
        seen = forward(batch / scale[part].astype(np.float32)[:, None, None])
        expected = to_host(projections.spectra(part))
        for row, values in enumerate(((expected.conj() * seen).real, np.abs(expected) ** 2, np.abs(seen) ** 2)):
            sums[row] += np.bincount(shells, values.sum(axis=0).ravel(), len(sums[row]))
    cross, expected_power, power = sums[:, first : last + 1]
    weight = 1 / np.maximum(power, power.max() * 1e-12)
    total = float((weight * expected_power).sum())
    return float((weight * cross).sum() / total) if total > 0 else 1.0


def _share(volume: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    """How much of a map's squared density lies outside the mask."""
    return float((outside.astype(np.float64) ** 2).sum() / (volume.astype(np.float64) ** 2).sum())
