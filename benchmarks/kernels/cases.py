"""One benchmark case per kernel and size: what to run, its work and traffic, and a plain NumPy peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from spa import grids
from spa.kernels.ctf import evaluate_ctf
from spa.kernels.posterior import posterior
from spa.kernels.scoring import squared_difference, weighted_images
from spa.kernels.slices import extract_slices, half_radius, insert_slices
from spa.kernels.symmetrise import symmetrise_half_volumes
from spa.symmetry import operators

Put = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """`run` does `flops` operations and must move `traffic` bytes; `peer` does the share `peer_share` of the work."""

    kernel: str
    size: str
    run: Callable[[], Any]
    flops: float
    traffic: float
    peer: Callable[[], Any]
    peer_share: float


def half_plane(kmax: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (kx, ky), one pixel of each Friedel pair within kmax + 1/2, in the engine's order."""
    pixels = grids.half_plane(2 * kmax + 2, kmax)
    return pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)


def clustered(n: int, size: int = 16, spread: float = 2.0) -> np.ndarray:
    """float32 (n, 3, 3): rotations in groups that lie `spread` degrees apart, as the candidates of an image do."""
    centres = Rotation.random(-(-n // size), random_state=1).as_matrix()
    away = Rotation.from_rotvec(np.random.default_rng(1).normal(scale=np.radians(spread), size=(n, 3))).as_matrix()
    return (np.repeat(centres, size, axis=0)[:n] @ away).astype(np.float32)


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """complex64 white noise."""
    return rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]


def _corners(points: np.ndarray, radius: int) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Index and weight of the eight voxels around points (n, 3) with x >= 0."""
    position = points + np.array([0, radius + 1, radius + 1], np.float32)
    low = position.astype(np.int64)
    fraction = position - low
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
        yield tuple((low + corner).T[::-1]), weight


def slice_cases(box: int, n: int, put: Put) -> Iterator[Case]:
    """Extraction and insertion, with padding 2, of n slices in groups of neighbours."""
    rng = np.random.default_rng(0)
    kmax = box // 2 - 2
    kx, ky = half_plane(kmax)
    radius = half_radius(2, kmax)
    m, n_pixels = 2 * radius + 3, kx.size
    volume = noise(rng, 1, m, m, radius + 2)
    matrices = clustered(n)
    values, weights = noise(rng, n, n_pixels), np.ones((n, n_pixels), np.float32)
    references, geometry = put(volume), tuple(map(put, (np.zeros(n, np.int32), matrices, kx, ky)))
    data, weight = put(np.zeros_like(volume)), put(np.zeros(volume.shape, np.float32))
    on_device = put(values), put(weights)
    few = max(1, n // 20)
    points = 2 * np.einsum("dk,nda->nka", np.stack([kx, ky]), matrices[:few, :2]).reshape(-1, 3)
    points *= np.where(points[:, :1] < 0, -1, 1)
    sums, counts = np.zeros_like(volume[0]), np.zeros(volume[0].shape, np.float32)

    def gather() -> np.ndarray:
        return np.sum([w * volume[0][at] for at, w in _corners(points, radius)], axis=0)

    def scatter() -> None:
        for at, w in _corners(points, radius):
            np.add.at(sums, at, w * values[:few].ravel())
            np.add.at(counts, at, w)

    size, pixels = f"box {box}, {n} slices of {n_pixels}", float(n * n_pixels)
    yield Case(
        "extract_slices",
        size,
        lambda: extract_slices(references, *geometry, 2),
        60 * pixels,
        72 * pixels,
        gather,
        few / n,
    )
    yield Case(
        "insert_slices",
        size,
        lambda: insert_slices(data, weight, *geometry, *on_device, 2),
        90 * pixels,
        204 * pixels,
        scatter,
        few / n,
    )


def scoring_cases(box: int, n_images: int, put: Put) -> Iterator[Case]:
    """Sparse scoring (200 groups of 13 shifts per image) and the weighted sums of the same list."""
    rng = np.random.default_rng(1)
    kx, ky = half_plane(box // 2 - 2)
    n_pixels, n_slices, n_shifts, per_image, per_group = kx.size, 400, 49, 200, 13
    images, slices = noise(rng, n_images, n_pixels), noise(rng, n_slices, n_pixels)
    weights = rng.random((n_images, n_pixels), np.float32)
    shifts = rng.uniform(-5, 5, (n_shifts, 2)).astype(np.float32)
    n_groups = n_images * per_image
    image_offsets = np.arange(n_images + 1) * per_image
    group_slice = rng.integers(0, n_slices, n_groups).astype(np.int32)
    group_offsets = np.arange(n_groups + 1) * per_group
    candidates = rng.integers(0, n_shifts, n_groups * per_group).astype(np.int32)
    share = rng.random(candidates.size, np.float32)
    arrays = tuple(map(put, (images, weights, slices, kx, ky, shifts)))
    lists = tuple(map(put, (image_offsets, group_slice, group_offsets, candidates)))
    placed_share = put(share)

    def phases(used: np.ndarray) -> np.ndarray:
        return np.exp(-2j * np.pi / box * (used @ np.stack([kx, ky]))).astype(np.complex64)

    def one_image_sparse() -> list[Any]:
        scores = []
        for g in range(per_image):
            used = shifts[candidates[g * per_group : (g + 1) * per_group]]
            p = slices[group_slice[g]]
            scores.append(((phases(used) @ (p.conj() * images[0])).real, np.sum(weights[0] * np.abs(p) ** 2)))
        return scores

    def one_image_weighted() -> None:
        for g in range(per_image):
            chosen = slice(g * per_group, (g + 1) * per_group)
            images[0] * (share[chosen] @ phases(shifts[candidates[chosen]]))

    pairs, grouped = float(candidates.size) * n_pixels, float(n_groups) * n_pixels
    size = f"box {box}, {n_images} images, {candidates.size} candidates"
    yield Case(
        "squared_difference",
        size,
        lambda: squared_difference(*arrays, *lists, box),
        4 * pairs + 5 * grouped,
        8 * pairs + 12 * grouped,
        one_image_sparse,
        1 / n_images,
    )
    image_arrays = arrays[0], arrays[1], *arrays[3:]
    yield Case(
        "weighted_images",
        size,
        lambda: weighted_images(*image_arrays, lists[0], lists[2], lists[3], placed_share, box),
        4 * pairs,
        8 * pairs + 12 * grouped,
        one_image_weighted,
        1 / n_images,
    )


def posterior_case(length: int, n_images: int, put: Put) -> Case:
    """Posterior of equally long segments; two passes over the log weights, two over the weights."""
    log_weight = (20 * np.random.default_rng(2).standard_normal(length * n_images)).astype(np.float32)
    offsets = put(np.arange(n_images + 1) * length)
    placed = put(log_weight)

    def one_image() -> None:
        segment = log_weight[:length]
        weight = np.exp(segment - segment.max())
        weight /= weight.sum()
        np.searchsorted(np.cumsum(np.sort(weight)[::-1]), 0.999)

    candidates = float(length * n_images)
    return Case(
        "posterior",
        f"{n_images} images of {length}",
        lambda: posterior(placed, offsets, 0.999, 0.4, 800),
        25 * candidates,
        24 * candidates,
        one_image,
        1 / n_images,
    )


def ctf_case(box: int, n: int, put: Put) -> Case:
    """CTF of n particles."""
    kx, ky = half_plane(box // 2 - 2)
    row = np.array([15000, 200, 0.3, 6e-6, 2e-9, 0.1, 1e-4, 1, 0], np.float32)
    arguments = put(np.tile(row, (n, 1))), put(kx), put(ky)

    def one() -> np.ndarray:
        r2, theta = kx**2 + ky**2, np.arctan2(ky, kx)
        defocus = row[0] + row[1] * np.cos(2 * (theta - row[2]))
        return row[7] * np.sin(row[3] * defocus * r2 - row[4] * r2**2 + row[5]) * np.exp(-row[6] * r2)

    pixels = float(n * kx.size)
    run = lambda: evaluate_ctf(*arguments)  # noqa: E731
    return Case("evaluate_ctf", f"box {box}, {n} particles", run, 45 * pixels, 4 * pixels, one, 1 / n)


def symmetrise_case(box: int, group: str, put: Put) -> Case:
    """Sum of a half volume with padding 2 over a point group."""
    rng, rotations = np.random.default_rng(3), np.array(operators(group))
    radius = half_radius(2, box // 2 - 2)
    m = 2 * radius + 3
    data, weight = noise(rng, m, m, radius + 2), rng.random((m, m, radius + 2), np.float32)
    arguments = put(data), put(weight), put(rotations)

    def one_plane_and_rotation() -> None:
        y, x = np.mgrid[-radius - 1 : radius + 2, : radius + 2].reshape(2, -1).astype(np.float32)
        points = np.stack([x, y, 0 * x], axis=1)[x**2 + y**2 <= radius**2] @ rotations[-1].T
        points *= np.where(points[:, :1] < 0, -1, 1)
        np.sum([w * data[at] for at, w in _corners(points, radius)], axis=0)
        np.sum([w * weight[at] for at, w in _corners(points, radius)], axis=0)

    voxels, n = 2 / 3 * np.pi * radius**3, len(rotations)
    return Case(
        "symmetrise",
        f"box {box}, {group}",
        lambda: symmetrise_half_volumes(*arguments),
        100 * voxels * n,
        (96 * n + 12) * voxels,
        one_plane_and_rotation,
        np.pi / 2 * radius**2 / (voxels * n),
    )


def cases(put: Put) -> Iterator[Case]:
    """Every kernel at two sizes."""
    for box, n_slices, n_images in ((64, 600, 12), (128, 200, 6)):
        yield from slice_cases(box, n_slices, put)
        yield from scoring_cases(box, n_images, put)
        yield ctf_case(box, 400, put)
        yield symmetrise_case(box, "D2", put)
    yield posterior_case(226_000, 8, put)
    yield posterior_case(600, 4000, put)
