"""What a refinement starts from: particles, images, reference and masks, read and checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spa import euler
from spa.aberrations import Aberrations, magnification_classes
from spa.em.settings import ClassificationOptions, SearchOptions
from spa.em.state import FloatArray, Poses
from spa.errors import InputError
from spa.fourier import low_pass, resample
from spa.fourier import pad_or_crop as pad_or_crop_real
from spa.io import mrc
from spa.io.particle_io import ParticleImages, read_particles
from spa.particles import Particles

COARSEST_SHELL = 3
"""Shells that classes are at least compared on."""


@dataclass
class Inputs:
    """Particles and maps of a run.

    Attributes
    ----------
    particles : the table, half sets assigned.
    images : reader of their images.
    coefficients : float32 (n, 9) CTF coefficients, or None without --ctf.
    optics, groups : int (n,), optics group and micrograph group of each particle, from zero.
    group_names : name of each micrograph group.
    references : float32 (n_classes, box, box, box), low-passed as asked, or (n_classes, box, box).
    solvent_mask : float32 (box, box, box), 0 to 1, or None.
    low_resol_join_halves : Å; the halves share what is coarser than this (<= 0: nothing).
    aberrations : of each optics group; empty where there are none.
    seeds : the references are one and the same, and classes start from random parts of the particles.
    """

    particles: Particles
    images: ParticleImages
    coefficients: np.ndarray[Any, Any] | None
    optics: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any]
    group_names: list[str]
    references: FloatArray
    solvent_mask: FloatArray | None
    low_resol_join_halves: float = -1.0
    aberrations: list[Aberrations] = field(default_factory=list)
    seeds: bool = False

    @property
    def box_size(self) -> int:
        """Box size of the images in pixels."""
        return self.images.box_size

    @property
    def pixel_size(self) -> float:
        """Pixel size of the images in Å."""
        return self.images.pixel_size

    @property
    def n_particles(self) -> int:
        """Number of particles."""
        return self.particles.n

    @property
    def n_optics(self) -> int:
        """Number of optics groups."""
        return len(self.particles.optics)

    @property
    def n_groups(self) -> int:
        """Number of micrograph groups."""
        return len(self.group_names)

    @property
    def magnification(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which of the distinct magnifications each particle has, int64 (n,) from zero.

        Images of one batch share one (`spa.em.images.by_magnification`).
        """
        if not self.aberrations:
            return np.zeros(self.n_particles, np.int64)
        return np.asarray(magnification_classes(self.aberrations)[self.optics])

    @property
    def half_set(self) -> np.ndarray[Any, Any]:
        """Half set of each particle, 1 or 2."""
        return self.particles.half_set

    def first_poses(self) -> Poses:
        """Poses as the particle table gives them; all zero angles mean that they are not known."""
        p = self.particles
        poses = Poses.unknown(p.n)
        poses.rotations = np.asarray(euler.matrix(p.rot, p.tilt, p.psi))
        poses.origins = np.stack([p.origin_x_angst, p.origin_y_angst], -1) / self.pixel_size
        poses.known[:] = bool(np.any(p.rot) or np.any(p.tilt))
        poses.norm = p.norm_correction / max(float(p.norm_correction.mean()), 1e-10)
        return poses


def read_inputs(
    options: SearchOptions,
    references: Callable[[int, float], FloatArray],
    warn: Callable[[str], None],
    with_halves: bool,
    solvent_mask: str | None = None,
) -> Inputs:
    """Read and check what the options name.

    Parameters
    ----------
    references : gives the references for a box and a pixel size (Å), as in `Inputs`.

    Raises
    ------
    InputError
        Anything a run would fail on later: missing or damaged stacks, box sizes that differ, fewer than two
        particles in a half set, aberrations that cannot be read, a mask of another box, a reference that is empty.
    """
    particles = read_particles(options.i)
    images = ParticleImages(particles)
    if with_halves:
        particles.assign_half_sets(options.random_seed)
        smallest = min(int((particles.half_set == h).sum()) for h in (1, 2))
        if smallest < 2:
            raise InputError(
                f"{options.i}: data_particles: expected at least 2 particles in each half set, found {smallest}"
            )
        images_of = particles.image_numbers()
        in_both = np.intersect1d(*(images_of[particles.half_set == h] for h in (1, 2)))
        if len(in_both):
            warn(
                f"{options.i}: {len(in_both)} images are in both half sets (rlnRandomSubset): the FSC of the halves "
                "takes their noise for signal"
            )
    if not options.ctf and particles.has_ctf:
        warn(f"{options.i} has CTF parameters, but --ctf was not given: the map will not be corrected for the CTF")
    names, groups = particles.groups()
    box, pixel_size = images.box_size, images.pixel_size
    if options.particle_diameter > box * pixel_size:
        raise InputError(
            f"--particle_diameter {options.particle_diameter:g}: expected at most the box, {box * pixel_size:g} Å"
        )
    return Inputs(
        particles=particles,
        images=images,
        coefficients=particles.ctf_coefficients() if options.ctf else None,
        optics=particles.optics_index,
        groups=groups,
        group_names=names,
        references=references(box, pixel_size),
        solvent_mask=_read_mask(solvent_mask, box, pixel_size) if solvent_mask else None,
        aberrations=particles.aberrations(),
    )


def check_number_of_classes(options: ClassificationOptions, inputs: Inputs) -> None:
    """Raises InputError where there are more classes than particles, or too few shells to tell them by."""
    n, n_classes = inputs.n_particles, options.nr_classes
    if n < n_classes:
        raise InputError(f"--K {n_classes}: expected at most as many classes as particles, {options.i} has {n}")
    coarsest = inputs.box_size * inputs.pixel_size / COARSEST_SHELL
    if options.strict_highres_exp > coarsest:
        raise InputError(
            f"--strict_highres_exp {options.strict_highres_exp:g}: expected at most {coarsest:.0f} Å, "
            f"{COARSEST_SHELL} shells of the box"
        )


def read_reference(path: str, ini_high: float, box: int, pixel_size: float, say: Callable[[str], None]) -> FloatArray:
    """A reference on the grid of the images, float32 (box, box, box), low-passed to `ini_high` (Å; <= 0: as it is).

    Raises InputError for a map that is empty, not finite or without a voxel size.
    """
    volume, voxel_size = mrc.read_volume(path)
    if not np.isfinite(volume).all():
        raise InputError(f"{path}: expected finite voxels, found NaN or infinity")
    if float(volume.std()) == 0:
        raise InputError(f"{path}: expected a map, found the same value everywhere")
    if voxel_size <= 0:
        raise InputError(f"{path}: expected a voxel size in the header, found {voxel_size:g} Å")
    if abs(voxel_size - pixel_size) > 1e-3 * pixel_size:
        say(
            f"{path}: resampled from {volume.shape[0]} voxels of {voxel_size:g} Å "
            f"to {box} voxels of {pixel_size:g} Å, as the images"
        )
        volume = resample(volume, voxel_size, pixel_size, box)
    elif volume.shape[0] != box:
        verb = "padded" if box > volume.shape[0] else "cropped"
        say(f"{path}: {verb} from a box of {volume.shape[0]} to {box} voxels, as the images")
        volume = pad_or_crop_real(volume, box, 3)
    if ini_high > 0:
        volume = low_pass(volume, pixel_size, ini_high)
    return np.asarray(volume, np.float32)


def _read_mask(path: str, box: int, pixel_size: float) -> FloatArray:
    mask, voxel_size = mrc.read_volume(path)
    if voxel_size > 0 and abs(voxel_size - pixel_size) > 0.01 * pixel_size:
        raise InputError(f"{path}: expected voxels of {pixel_size:g} Å as the images, found {voxel_size:g} Å")
    if mask.shape[0] != box:
        raise InputError(f"{path}: expected a mask of {box} voxels as the images, found {mask.shape[0]}")
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -1e-3 and high <= 1.001 and high > 0.5):
        raise InputError(f"{path}: expected mask values from 0 to 1, found {low:g} to {high:g}")
    return np.asarray(np.clip(mask, 0, 1), np.float32)
