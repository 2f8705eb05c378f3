"""A data set small enough for brute force: an asymmetric map, images of it at known poses, the engine's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from spa import ctf, euler
from spa.comm import Serial
from spa.em.inputs import Inputs
from spa.fourier import forward, gather, inverse, phase_factors, reference_transform, scatter
from spa.grids import half_plane, radius_grid
from spa.kernels.ctf import evaluate_ctf
from spa.kernels.slices import extract_slices
from spa.particles import OpticsGroup, Particles

PIXEL_SIZE = 5.0


def blobs(box: int, seed: int = 0, n: int = 12, width: float = 1.2) -> np.ndarray:
    """float32 (box, box, box): Gaussian blobs of different weight inside a sphere of 0.3 box, no symmetry."""
    rng = np.random.default_rng(seed)
    grid = np.arange(box) - box // 2
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    volume = np.zeros((box,) * 3)
    for weight in rng.uniform(0.5, 2.0, n):
        centre = rng.normal(size=3)
        centre *= 0.3 * box * rng.uniform(0, 1) ** (1 / 3) / np.linalg.norm(centre)
        squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        volume += weight * np.exp(-squared / (2 * width**2))
    return volume.astype(np.float32)


class Images:
    """Images in memory behind the interface of ParticleImages."""

    def __init__(self, stack: np.ndarray) -> None:
        self.stack = stack
        self.box_size = stack.shape[-1]
        self.pixel_size = PIXEL_SIZE

    def batches(self, indices: np.ndarray, size: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Consecutive batches."""
        head = min(first or size, size)
        for part in np.split(indices, range(head, len(indices), size)):
            yield part, self.stack[part]


@dataclass
class Data:
    """Images with their truth."""

    volume: np.ndarray
    images: np.ndarray
    rotations: np.ndarray
    origins: np.ndarray
    coefficients: np.ndarray
    sigma2: float

    def inputs(self, reference: np.ndarray | None = None, n_groups: int = 2, with_ctf: bool = True) -> Inputs:
        """The engine's inputs, starting from `reference` (default: the truth)."""
        n = len(self.images)
        box = self.images.shape[-1]
        optics = [OpticsGroup(1, "opticsGroup1", PIXEL_SIZE, box, 300.0, 2.7, 0.1)]
        names = np.array([f"{i + 1:06d}@stack.mrcs" for i in range(n)], dtype=object)
        micrographs = np.array([f"mic{i % n_groups}.mrc" for i in range(n)], dtype=object)
        particles = Particles.create(optics, np.zeros(n, np.int32), image_name=names, micrograph_name=micrographs)
        particles.assign_half_sets(1)
        group_names, groups = particles.groups()
        return Inputs(
            particles=particles,
            images=Images(self.images),  # type: ignore[arg-type]
            coefficients=self.coefficients if with_ctf else None,
            optics=particles.optics_index,
            groups=groups,
            group_names=group_names,
            references=(self.volume if reference is None else reference).astype(np.float32)[None],
            solvent_mask=None,
        )


def simulate(n: int, box: int, snr: float, seed: int = 0, shift: float = 1.0, volume: np.ndarray | None = None) -> Data:
    """Images of `blobs` at random poses, with CTF, shifts (standard deviation in pixels) and white noise."""
    rng = np.random.default_rng(seed + 1)
    volume = blobs(box, seed) if volume is None else volume
    rotations = np.asarray(euler.random_rotations(n, rng))
    origins = rng.normal(scale=shift, size=(n, 2)) if shift else np.zeros((n, 2))
    half = reference_transform(volume, 3, box // 2 - 1)[None]
    return _images(rng, volume, half, np.zeros(n, np.int32), rotations, origins, snr)


def simulate_pictures(
    pictures: np.ndarray, classes: np.ndarray, psi: np.ndarray, origins: np.ndarray, snr: float
) -> Data:
    """Images of 2D references (n_classes, box, box), turned by psi (degrees) and shifted, with CTF and white noise."""
    half = np.stack([reference_transform(picture, 3, pictures.shape[-1] // 2 - 1) for picture in pictures])
    rotations = np.asarray(euler.matrix(np.zeros(len(psi)), np.zeros(len(psi)), psi))
    return _images(np.random.default_rng(1), pictures, half, classes.astype(np.int32), rotations, origins, snr)


def _images(
    rng: np.random.Generator,
    volume: np.ndarray,
    half: np.ndarray,
    classes: np.ndarray,
    rotations: np.ndarray,
    origins: np.ndarray,
    snr: float,
) -> Data:
    n, box = len(rotations), volume.shape[-1]
    pixels = half_plane(box, box // 2 - 1)
    kx, ky = pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)
    defocus = rng.uniform(8000, 16000, n)
    coefficients = ctf.coefficients(defocus, defocus + 200, 30.0, 300.0, 2.7, 0.1, 0.0, 0.0, 1.0, PIXEL_SIZE, box)
    slices = extract_slices(half, classes, rotations.astype(np.float32), kx, ky, 3)
    clean = slices * evaluate_ctf(coefficients, kx, ky) * phase_factors(-origins, kx, ky, box)
    images = np.asarray(inverse(scatter(clean, pixels), box), np.float32)
    inside = radius_grid(box, 2) < 0.4 * box
    deviation = float(np.sqrt(images[:, inside].var() / snr))
    images += rng.normal(scale=deviation, size=images.shape).astype(np.float32)
    return Data(volume, images, rotations, origins, coefficients, deviation**2 * box**2 / 2)


def spectra(data: Data) -> np.ndarray:
    """complex64 half-plane pixels of the images."""
    box = data.images.shape[-1]
    return np.asarray(gather(forward(data.images), half_plane(box, box // 2 - 1)))


class QuietJob:
    """The parts of a job that the engine uses, keeping what is said."""

    def __init__(self, rootname: str, devices: tuple[int, ...] = ()) -> None:
        self.rootname = rootname
        self.devices = devices
        self.comm = Serial()
        self.resume_from: Any = None
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.said.append(f"warning: {text}")

    def progress(self, total: int, description: str) -> Any:
        """A bar that shows nothing."""
        return SimpleNamespace(update=lambda n: None, close=lambda: None)

    def check_abort(self) -> None:
        """Nobody aborts."""


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two maps."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
