"""Simulated particle sets: who is where, what is seen of it, and the grey scale that gives the noise its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa import simulation
from spa.kernels.backend import Array, to_host
from spa.particles import OpticsGroup, Particles

_BATCH_PIXELS = 1 << 22
_CALIBRATED_ON = 256  # particles whose signal and noise set the grey scale


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the particles of one run share.

    n, n_micrographs : numbers of particles and of micrographs they come from. radius : of the particle circle, pixels.
    optics : groups that the micrographs take in turn, which hold box and pixel size. defocus : smallest and largest,
    astigmatism : largest, sigma_offset : of the offsets from the box centre, Å. fractions : of the particles that
    show each model. with_ctf : whether images are seen through it. snr : variance of the signal over that of the
    noise inside the circle. coloured : see `simulation.noise_spectrum`.
    """

    n: int
    n_micrographs: int
    radius: float
    optics: Sequence[OpticsGroup]
    defocus: tuple[float, float]
    astigmatism: float
    sigma_offset: float
    fractions: Sequence[float]
    with_ctf: bool
    snr: float
    coloured: float
    seed: int

    @property
    def box_size(self) -> int:
        """Box of the images, pixels."""
        return self.optics[0].box_size

    @property
    def pixel_size(self) -> float:
        """Å."""
        return self.optics[0].pixel_size

    @property
    def batch_size(self) -> int:
        """Images to work on at once."""
        return max(1, _BATCH_PIXELS // self.box_size**2)

    def spectrum(self) -> NDArray[np.float64]:
        """Power of the noise per Fourier shell."""
        return simulation.noise_spectrum(self.box_size, self.pixel_size, self.coloured)


def draw_particles(recipe: Recipe, stack: Callable[[str], str]) -> Particles:
    """All particles with their poses, micrographs and CTFs.

    `stack` makes the name of a stack from that of its micrograph.
    """
    n, n_micrographs = recipe.n, min(recipe.n_micrographs, recipe.n)
    poses = simulation.random_poses(n, recipe.sigma_offset, recipe.fractions, recipe.seed)
    micrograph = np.arange(n) * n_micrographs // n
    first = np.searchsorted(micrograph, np.arange(n_micrographs))
    names = [f"mic{m + 1:05d}" for m in range(n_micrographs)]
    stacks = [stack(name) for name in names]
    defocus, astigmatism, angle = np.random.default_rng([recipe.seed, 0]).random((n_micrographs, 3)).T
    mean = recipe.defocus[0] + (recipe.defocus[1] - recipe.defocus[0]) * defocus
    half = recipe.astigmatism * astigmatism / 2
    ctf = {"defocus_u": mean + half, "defocus_v": mean - half, "defocus_angle": 180.0 * angle}
    particles = Particles.create(
        recipe.optics,
        micrograph % len(recipe.optics),
        image_name=[f"{i - first[m] + 1:06d}@{stacks[m]}" for i, m in enumerate(micrograph)],
        micrograph_name=[f"micrographs/{names[m]}.mrc" for m in micrograph],
        **{name: values[micrograph] for name, values in ctf.items()},
    )
    particles.update(half_set=1 + np.arange(n) % 2, **vars(poses))
    return particles


def without_truth(particles: Particles) -> Particles:
    """The same particles as a user would get them: no poses, classes or half sets."""
    kept = ("image_name", "micrograph_name", "defocus_u", "defocus_v", "defocus_angle")
    columns = {name: getattr(particles, name) for name in kept}
    return Particles.create(particles.optics, particles.optics_index, **columns)


def project(
    recipe: Recipe, particles: Particles, projector: simulation.Projector, chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Images without noise, float32 (n, box, box), of the particles `chosen`."""
    some = particles.subset(chosen)
    origins = np.stack([some.origin_x_angst, some.origin_y_angst], axis=1)
    coefficients = some.ctf_coefficients() if recipe.with_ctf else None
    angles = np.stack([some.rot, some.tilt, some.psi], axis=1)
    images: Array = projector(
        some.class_number - 1, angles, -origins / recipe.pixel_size, coefficients, some.optics_index
    )
    return np.asarray(to_host(images))


def grey_scale(recipe: Recipe, particles: Particles, projector: simulation.Projector) -> np.float32:
    """The factor that gives the maps the signal-to-noise ratio asked for against noise of variance 1."""
    chosen = np.unique(np.linspace(0, len(particles) - 1, _CALIBRATED_ON).astype(np.int64))
    signal = noise = 0.0
    for part in np.array_split(chosen, -(-len(chosen) // recipe.batch_size)):
        images = project(recipe, particles, projector, part)
        signal += float(simulation.circle_variance(images, recipe.radius).sum())
        images = simulation.particle_noise(part, recipe.spectrum(), recipe.seed)
        noise += float(simulation.circle_variance(images, recipe.radius).sum())
    return np.float32(np.sqrt(recipe.snr * noise / signal))
