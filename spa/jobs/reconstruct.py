"""Reconstruct a map from particles with known poses.

The sum of all images in Fourier space, CTF-weighted with `--ctf`, divided by the sum of the weights. The anisotropic
magnification of the optics groups is corrected for, with `--ctf` also beam tilt and higher aberrations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa import euler, symmetry
from spa.aberrations import Aberrations, PixelAberrations
from spa.errors import InputError
from spa.fourier import forward, phase_factors
from spa.grids import half_plane
from spa.io import mrc
from spa.io.particle_io import ParticleImages, read_particles
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host
from spa.kernels.ctf import evaluate_ctf
from spa.kernels.slices import insert_slices
from spa.mask import soft_sphere
from spa.options import CommonOptions, option
from spa.particles import Particles
from spa.reconstruct import new_accumulator, solve, symmetrise

_BATCH_PIXELS = 1 << 22
_EDGE = 3.0  # px
_POSE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa reconstruct`."""

    i: str = option(help="Particle STAR file with poses", role="input")
    o: str = option("relion.mrc", help="Output map", role="file")
    ctf: bool = option(False, help="Correct for the CTF, beam tilt and higher aberrations", group="CTF")
    sym: str = option("C1", help="Point group, in RELION's setting", group="Particles")
    subset: int = option(
        -1,
        help="Half set to use: 1 or 2; all particles otherwise",
        bounds=(-1, 2),
        group="Particles",
        default_text="all",
    )
    class_: int = option(
        -1, help="Class to use", bounds=(-1, None), flag="--class", group="Particles", default_text="all"
    )
    angpix: float | None = option(
        None,
        help="Pixel size of the map",
        unit="Å",
        bounds=(0.01, 1000),
        group="Reference",
        default_text="that of the particles",
    )
    maxres: float | None = option(
        None,
        help="Resolution to reconstruct to",
        unit="Å",
        bounds=(0.01, None),
        group="Reference",
        default_text="Nyquist",
    )
    pad: int = option(2, help="Padding factor of the transforms", bounds=(1, 4), group="Reference")


def run(options: Options, job: Job) -> None:
    """Write the map `--o`."""
    particles = read_particles(options.i)
    operators = symmetry.operators(options.sym)
    chosen = _chosen(options, particles)
    images = ParticleImages(particles)
    box, pixel_size = images.box_size, images.pixel_size
    new_pixel_size = options.angpix or pixel_size
    ratio = new_pixel_size / pixel_size
    kmax = _last_shell(options, box, new_pixel_size)
    device = job.devices[0] if job.devices else None
    adder = _Adder(box, pixel_size, kmax, options.pad, ratio, particles.aberrations(), device)
    with job.progress(len(chosen), "Reconstructing") as progress:
        for part, batch in images.batches(chosen, max(1, _BATCH_PIXELS // box**2)):
            job.check_abort()
            adder.add(particles.subset(part), batch, options.ctf)
            progress.update(len(part))
    data, weight = symmetrise(adder.data[0], adder.weight[0], operators)
    volume = _without_corners(to_host(solve(data, weight, box, options.pad, kmax)))
    mrc.write_volume(options.o, volume, new_pixel_size)
    job.say(
        f"{options.o}: {len(chosen)} particles, {options.sym}, {box} px of {new_pixel_size:g} Å, "
        f"to {box * new_pixel_size / kmax:.2f} Å"
    )


class _Adder:
    """The sums of one reconstruction, and how a batch of images enters them."""

    def __init__(
        self,
        box: int,
        pixel_size: float,
        kmax: int,
        padding: int,
        ratio: float,
        aberrations: list[Aberrations],
        device: int | None,
    ) -> None:
        # a magnification below one brings pixels from beyond kmax into it
        smallest = min(float(np.linalg.svd(a.matrix, compute_uv=False)[-1]) for a in aberrations)
        within = half_plane(box, min(box // 2 - 1, int(np.ceil((kmax + 1) / ratio / min(smallest, 1.0)))))
        # the origin is its own Friedel mate, so it enters with half its weight
        self.kx = to_device(np.concatenate([[0], within.kx]).astype(np.float32), device)
        self.ky = to_device(np.concatenate([[0], within.ky]).astype(np.float32), device)
        self.share = to_device(np.where(np.arange(len(within) + 1) == 0, 0.5, 1.0).astype(np.float32), device)
        self.data, self.weight = new_accumulator(1, box, padding, kmax, like=self.kx)
        self.box, self.padding, self.ratio, self.device = box, padding, ratio, device
        self.aberrations = PixelAberrations(aberrations, self.kx, self.ky, box * pixel_size)

    def add(self, particles: Particles, images: NDArray[np.float32], ctf: bool) -> None:
        """Insert the images (n, box, box) of particles (n) into the sums."""
        magnification = self.aberrations.magnification[particles.optics_index]
        present = np.unique(magnification)
        for number in present:
            which = np.flatnonzero(magnification == number)
            every = len(present) == 1
            self._add(particles.subset(which), images if every else images[which], ctf, self.aberrations.slices[number])

    def _add(
        self, particles: Particles, images: NDArray[np.float32], ctf: bool, positions: tuple[Array, Array]
    ) -> None:
        """Insert images of one magnification, whose pixels lie at these positions on the central slice."""
        ft = forward(to_device(images, self.device))
        values = ft[:, self.ky.astype(np.int32) % self.box, self.kx.astype(np.int32)]
        origins = np.stack([particles.origin_x_angst, particles.origin_y_angst], axis=1) / particles.pixel_size
        shifts = to_device(origins.astype(np.float32), self.device)
        values = values * phase_factors(shifts, self.kx, self.ky, self.box)
        weights: Array = np.float32(1) + 0 * values.real
        if ctf:
            coefficients = to_device(particles.ctf_coefficients(self.box), self.device)
            transfer = evaluate_ctf(coefficients, *positions, *self.aberrations.symmetric(particles.optics_index))
            values, weights = values * transfer, transfer**2
            errors = self.aberrations.phase_errors(particles.optics_index)
            if errors is not None:
                values = values * errors.conj()
        rotations = euler.matrix(particles.rot, particles.tilt, particles.psi).astype(np.float32)
        insert_slices(
            self.data,
            self.weight,
            to_device(np.zeros(len(images), dtype=np.int32), self.device),
            to_device(rotations, self.device),
            positions[0] * np.float32(self.ratio),
            positions[1] * np.float32(self.ratio),
            (values * (self.share / np.float32(self.ratio**3))).astype(np.complex64),
            (weights * self.share).astype(np.float32),
            self.padding,
        )


def _without_corners(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map with all outside the sphere that fits the box set to its mean there, as RELION leaves it."""
    inside = soft_sphere(len(volume), len(volume) / 2, _EDGE)
    background = np.average(volume, weights=1 - inside)
    return np.asarray(background + (volume - background) * inside, dtype=np.float32)


def _chosen(options: Options, particles: Particles) -> NDArray[np.int64]:
    """The particles to use; refuses a file without poses and a choice that leaves none."""
    table = particles.source["particles"]
    for column in _POSE_COLUMNS:
        table.require(column, "a reconstruction needs")
    kept = np.ones(len(particles), dtype=bool)
    if options.subset > 0:
        table.require("rlnRandomSubset", "--subset needs")
        kept &= particles.half_set == options.subset
    if options.class_ > 0:
        table.require("rlnClassNumber", "--class needs")
        kept &= particles.class_number == options.class_
    if not kept.any():
        raise InputError(f"{options.i}: no particle is in half set {options.subset} and class {options.class_}")
    return np.flatnonzero(kept)


def _last_shell(options: Options, box: int, pixel_size: float) -> int:
    nyquist = box // 2 - 1
    if options.maxres is None:
        return nyquist
    shell = int(box * pixel_size / options.maxres + 1e-6)
    if shell < 1:
        raise InputError(f"--maxres {options.maxres:g}: expected less than the box, {box * pixel_size:.0f} Å")
    return min(nyquist, shell)
