"""What a simulated micrograph shows: its CTF, its particles and their places, what else is there. Arrays only.

Everything in a micrograph follows from (seed, micrograph number), so neither order nor threads matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from spa import ctf
from spa.particles import OpticsGroup, Particles
from spa.simulation import poses_of
from spa.specimen import Surroundings, draw_surroundings, place

CTF, PLACES, SURROUNDINGS, ICE, SHOT = range(11, 16)
"""Purposes of random numbers, beside those of `spa.simulation`."""

_FINEST = 3.0  # Å, to which a particle keeps what the CTF spreads
_MARGIN = 64  # pixels around a micrograph, so that its borders do not match


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the micrographs of one run share.

    shape : rows and columns, pixels. motion : the farthest that anything moves in a movie, Å.
    pixel_size, diameter (of a particle), defocus (smallest and largest), astigmatism (largest), defocus_spread
    (standard deviation among the particles of a micrograph) : Å.
    phase_shift : smallest and largest, degrees. bfactor : Å², of the envelope exp(-B s² / 4).
    optics : groups that the micrographs take in turn. fractions : of the particles that show each model.
    electrons : per pixel. ice : fraction of the noise variance. ice_peak : power of the 3.7 Å peak over that around.
    carbon : fraction of the micrographs. contamination : mean number of blobs in one.
    """

    shape: tuple[int, int]
    pixel_size: float
    diameter: float
    optics: Sequence[OpticsGroup]
    defocus: tuple[float, float]
    astigmatism: float
    defocus_spread: float
    phase_shift: tuple[float, float]
    bfactor: float
    fractions: Sequence[float]
    electrons: float
    ice: float
    ice_peak: float
    carbon: float
    contamination: float
    seed: int
    motion: float = 0.0

    @property
    def noise_deviation(self) -> float:
        """sqrt(v): the standard deviation of ice and counting noise together, in units of the mean intensity."""
        return float(1 / np.sqrt(self.electrons * (1 - self.ice)))

    @property
    def field_shape(self) -> tuple[int, int]:
        """Rows and columns with the margins, even and quick to transform."""
        margin = _MARGIN + int(np.ceil(self.motion / self.pixel_size))
        rows, columns = (2 * next_fast_len(-(-n // 2) + margin, real=True) for n in self.shape)
        return rows, columns

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the field where the micrograph starts."""
        (rows, columns), shape = self.field_shape, self.shape
        return (rows - shape[0]) // 2, (columns - shape[1]) // 2

    @property
    def particle_box(self) -> int:
        """Box in pixels that holds a particle and what the CTF spreads of it down to 3 Å, even and quick.

        Notes: the ring at frequency s moves by the slope of chi / 2 pi, lambda df s - Cs lambda^3 s^3.
        """
        s = min(1 / _FINEST, 0.5 / self.pixel_size)
        waves = [float(ctf.wavelength(group.voltage)) for group in self.optics]
        worst = self.defocus[1] + self.astigmatism / 2 + 4 * self.defocus_spread
        spread = max(
            max(wave * worst * s, group.cs * 1e7 * wave**3 * s**3)
            for wave, group in zip(waves, self.optics, strict=True)
        )
        return 2 * int(next_fast_len(int(np.ceil((self.diameter / 2 + spread) / self.pixel_size)) + 2, real=True))

    def rng(self, number: int, purpose: int) -> np.random.Generator:
        """Random numbers of one micrograph for one purpose."""
        return np.random.default_rng([self.seed, number, purpose])


@dataclass(frozen=True)
class Scene:
    """One micrograph before it is seen.

    number : of the micrograph, from 0. coordinates : float64 (n, 2), particle centres (x, y) in pixels.
    particles : their poses, classes and CTFs. defocus_u, defocus_v (Å), defocus_angle, phase_shift (degrees) : of
    the micrograph. surroundings : carbon and contamination.
    """

    number: int
    optics_index: int
    coordinates: NDArray[np.float64]
    particles: Particles
    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float
    bfactor: float
    surroundings: Surroundings


def draw_scene(recipe: Recipe, number: int, n_particles: int) -> Scene:
    """A micrograph's CTF, surroundings and particles, drawn at random; those that carbon or dirt touches are left out.

    Raises
    ------
    InputError
        If the particles do not fit without overlap.
    """
    where, astigmatism, angle, phase = recipe.rng(number, CTF).random(4)
    mean = recipe.defocus[0] + (recipe.defocus[1] - recipe.defocus[0]) * where
    half = recipe.astigmatism * astigmatism / 2
    phase_shift = recipe.phase_shift[0] + (recipe.phase_shift[1] - recipe.phase_shift[0]) * phase
    surroundings = draw_surroundings(
        recipe.shape, recipe.pixel_size, recipe.carbon, recipe.contamination, recipe.rng(number, SURROUNDINGS)
    )
    rng = recipe.rng(number, PLACES)
    diameter = recipe.diameter / recipe.pixel_size
    coordinates = place(n_particles, recipe.shape, diameter, rng)
    coordinates = coordinates[surroundings.clearance(coordinates) >= diameter / 2]
    n = len(coordinates)
    poses = poses_of(rng.random((n, 4)), np.zeros((n, 2)), recipe.fractions)
    offsets = recipe.defocus_spread * np.clip(rng.standard_normal(n), -4, 4)
    index = number % len(recipe.optics)
    particles = Particles.create(
        recipe.optics,
        np.full(n, index),
        defocus_u=mean + half + offsets,
        defocus_v=mean - half + offsets,
        defocus_angle=180.0 * angle,
        phase_shift=phase_shift,
        ctf_bfactor=recipe.bfactor,
    )
    particles.update(**vars(poses))
    return Scene(
        number=number,
        optics_index=index,
        coordinates=coordinates,
        particles=particles,
        defocus_u=mean + half,
        defocus_v=mean - half,
        defocus_angle=180.0 * angle,
        phase_shift=phase_shift,
        bfactor=recipe.bfactor,
        surroundings=surroundings,
    )
