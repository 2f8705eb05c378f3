"""Benchmark cases of steerable scoring: its kernels, and the dense pass over a level that they make up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.kernels.cases import Case, Put, clustered, half_plane, noise
from spa.em.expectation import Reference, Step
from spa.em.sampling import make_level
from spa.em.state import Batch
from spa.em.steerable import Precision, make_basis, make_rings
from spa.em.tables import DensePass, DirectionTable, ring_slices
from spa.fourier import reference_transform
from spa.grids import half_plane as pixels_of
from spa.kernels.backend import to_host
from spa.kernels.scoring import weighted_images
from spa.kernels.slices import insert_slices
from spa.kernels.steerable import grouped_products, shifted_rows, steered_scores
from spa.kernels.survivors import keep_best, new_survivors
from spa.mask import soft_sphere


def shift_case(box: int, n_images: int, put: Put) -> Case:
    """49 shifts of every image, up to the largest radius."""
    rng = np.random.default_rng(0)
    kx, ky = half_plane(box // 2 - 2)
    kx, ky = (k[ky >= 0] for k in (kx, ky))
    images, shifts = noise(rng, n_images, 2, kx.size), rng.uniform(-5, 5, (49, 2)).astype(np.float32)
    row_image, row_shift = (a.ravel().astype(np.int32) for a in np.mgrid[:n_images, :49])
    arguments = tuple(map(put, (images, kx, ky, shifts, row_image, row_shift)))

    def one_image() -> Any:
        upper, lower = (
            image * np.exp(-2j * np.pi / box * (shifts @ np.stack([kx, y]))).astype(np.complex64)
            for image, y in zip(images[0], (ky, -ky), strict=True)
        )
        return np.stack([(upper + lower).real, (upper - lower).real, (upper - lower).imag, (upper + lower).imag])

    values = float(2 * row_image.size * kx.size)
    size = f"box {box}, {row_image.size} rows of {kx.size} pairs"
    return Case(
        "shifted_rows", size, lambda: shifted_rows(*arguments, box), 30 * values, 24 * values, one_image, 1 / n_images
    )


def listed_case(n: int, n_images: int, put: Put) -> Case:
    """200 groups of 13 shifts per image, n functions."""
    rng = np.random.default_rng(1)
    n_places, n_psi, n_shifts, per_image, per_group, n_rings, n_orders = 800, 48, 49, 200, 13, n // 10, 10
    n_groups, even = n_images * per_image, n // 2

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    rows, coefficients = normal(n_images * n_shifts, 2 * n), normal(n_places, 2 * n)
    norm_rows, moments = normal(n_images, n_rings * n_orders), normal(n_places, n_rings * n_orders)
    row_of = np.arange(n_images * n_shifts, dtype=np.int32).reshape(n_images, n_shifts)
    cosine, sine, norm_turns = normal(n_psi, n), normal(n_psi, n), normal(n_psi, n_orders)
    starts = (np.arange(n_orders // 2 + 1) * n_rings).astype(np.int32)
    orientation = rng.integers(0, n_places * n_psi, n_groups)
    candidates = rng.integers(0, n_shifts, n_groups * per_group).astype(np.int32)
    tables = rows, row_of, norm_rows, coefficients, moments, np.arange(n_places, dtype=np.int32), cosine, sine
    lists = np.arange(n_images + 1) * per_image, orientation, np.arange(n_groups + 1) * per_group, candidates
    placed, placed_lists = tuple(map(put, (*tables, norm_turns, starts))), tuple(map(put, lists))

    def one_image() -> list[Any]:
        scores = []
        for group in range(per_image):
            direction, psi = divmod(int(orientation[group]), n_psi)
            p, c, s = coefficients[direction], cosine[psi], sine[psi]
            a = np.concatenate([p[:even], p[2 * even : even + n]]), np.concatenate([p[even : 2 * even], p[even + n :]])
            turned = a[0] * c - a[1] * s, a[0] * s + a[1] * c
            row = np.concatenate([turned[0][:even], turned[1][:even], turned[0][even:], turned[1][even:]])
            shifts = candidates[group * per_group : (group + 1) * per_group]
            scores.append((rows[shifts] @ row, moments[direction] @ norm_rows[0]))
        return scores

    work = 4.0 * n * candidates.size + (6.0 * n + 4 * n_rings * n_orders) * n_groups
    traffic = 8.0 * n * candidates.size + (16.0 * n + 8 * n_rings * n_orders) * n_groups
    size = f"{n} functions, {n_images} images, {candidates.size} candidates"
    return Case(
        "steered_scores",
        size,
        lambda: steered_scores(*placed, even, *placed_lists),
        work,
        traffic,
        one_image,
        1 / n_images,
    )


def best_case(n_psi: int, n_images: int, n_directions: int, n_tiles: int, put: Put) -> Case:
    """Tiles of directions at 29 shifts and n_psi angles, the best 1000 of each image kept."""
    rng = np.random.default_rng(2)
    n_shifts, cap, n_q = 29, 1000, n_psi // 2 + 1
    shape = n_q, n_images * n_shifts, n_directions
    real, imag = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    norm = rng.random((n_images, n_psi // 2, n_directions), np.float32)
    priors = np.zeros((n_images, n_shifts), np.float32), np.zeros(n_directions, np.float32)
    placed = tuple(map(put, (real, imag, norm, *priors)))
    tile = n_directions * n_psi * n_shifts

    def run() -> None:
        survivors = new_survivors(n_images, cap, tile, placed[0])
        for number in range(n_tiles):
            keep_best(survivors, *placed, number * n_directions, n_psi, False, cap)

    angle = 2 * np.pi / n_psi * np.outer(np.arange(n_psi), np.r_[0:n_q:2, 1:n_q:2])
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def one_image() -> None:
        first = slice(0, n_shifts)
        parts = (np.ascontiguousarray(a[:, first]).reshape(n_q, -1) for a in (real, imag))
        cross = cosine @ next(parts)
        cross -= sine @ next(parts)
        scores = cross.reshape(n_psi, n_shifts, -1) - np.concatenate([norm[0], norm[0]])[:, None]
        np.argpartition(scores.ravel(), -cap)

    transforms = float(n_images * n_shifts * n_directions * n_tiles)
    size = f"{n_tiles} x {n_directions} directions, {n_psi} angles, {n_images} images of {n_shifts} shifts"
    work = transforms * (4 * (n_psi // 4 + 1) * n_q + 5 * n_psi)
    traffic = transforms * (8 * n_q + 2 * n_psi / n_shifts)
    return Case("keep_best", size, run, work, traffic, one_image, 1 / (n_images * n_tiles))


def product_case(n_rows: int, width: int, n_groups: int, n_directions: int, put: Put) -> Case:
    """Coefficients of shifted images times those of a tile of directions, in groups of functions; the peer: one matmul
    for each group."""
    rng = np.random.default_rng(5)
    ends = width * np.arange(1, n_groups + 1)
    rows = rng.standard_normal((n_rows, int(ends[-1])), np.float32)
    matrix = rng.standard_normal((int(ends[-1]), n_directions), np.float32)
    out = np.zeros((n_groups, n_rows, n_directions), np.float32)
    placed, target = (put(rows), put(matrix)), put(out)

    def peer() -> None:
        for j, stop in enumerate(ends):
            np.matmul(rows[:, stop - width : stop], matrix[stop - width : stop], out=out[j])

    size = f"{n_rows} rows, {n_groups} groups of {width} functions, {n_directions} directions"
    work, traffic = 2.0 * rows.size * n_directions, 4.0 * out.size
    return Case(
        "grouped_products", size, lambda: grouped_products(placed[0], ends, placed[1], target), work, traffic, peer, 1.0
    )


def dense_pass_case(box: int, order: int, kmax: int, n_images: int, put: Put) -> Case:
    """Every direction and in-plane angle of a HEALPix order at 29 shifts, table not counted; the peer is the floor:
    matrix products of the same number of multiplications as the cross terms take, in products of the pass's own shape.
    """
    rng = np.random.default_rng(3)
    radius = 0.35 * box
    smooth = ndimage.gaussian_filter(rng.standard_normal((box,) * 3, np.float32), 1.5)
    volume = smooth * soft_sphere(box, radius, 4.0)
    level = make_level(order, 2.0, 7, kmax, np.eye(3), order)
    x, y = level.offsets().T / level.offset_step
    shifts = np.nonzero(x**2 + y**2 <= 9)[0].astype(np.int32)
    n_orientations = level.n_directions * level.n_psi
    reference = Reference(put(reference_transform(volume, 2, kmax + 6)[None]), 2, put(np.zeros(1, np.float32)), radius)
    pixels = pixels_of(box, kmax)
    kx, ky = (np.asarray(k, np.float32) for k in (pixels.kx, pixels.ky))
    spectra = put(noise(rng, n_images, kx.size))
    ctf, inverse = (put(rng.random((n_images, kx.size), np.float32)) for _ in range(2))
    origins = put(np.zeros((n_images, 2), np.float32))
    batch = Batch(np.arange(n_images), spectra, spectra, ctf, inverse, origins, pixels, put(kx), put(ky))
    step = Step((level,), False, np.arange(n_orientations), shifts, False, 10.0, kmax, kmax)
    precision = Precision()
    rings = make_rings(box, kmax, radius + 4, precision)
    sphere = make_level(2, 1.0, 1, kmax, np.eye(3), 2)
    sample = ring_slices(reference, sphere, put(np.arange(sphere.n_directions)), rings)
    weight = to_host(batch.weighted(kmax)[1].mean(0)).astype(np.float64)
    scale = weight.size / (np.abs(to_host(sample)) ** 2).mean() / weight.sum()
    basis = make_basis(rings, kx.astype(float), ky.astype(float), sample, 400 * scale * weight, precision.tolerance)
    table = DirectionTable(reference, level, np.arange(level.n_directions), basis, 0)
    dense = DensePass(table, reference)
    # one product per q, and two where 0 < q < n_psi / 2
    widths = np.bincount(
        np.minimum(basis.orders % level.n_psi, -basis.orders % level.n_psi), minlength=level.n_psi // 2 + 1
    )
    twice = np.r_[1, np.full(level.n_psi // 2 - 1, 2), 1]
    multiplied = float(n_images * shifts.size * level.n_directions * (2 * widths * twice).sum())
    rows, tile = min(n_images * shifts.size, dense.tile_rows // shifts.size * shifts.size), dense.tile_directions
    factors = [(np.ones((rows, 2 * w), np.float32), np.ones((2 * w, tile), np.float32)) for w in widths if w]
    products = [np.empty((rows, tile), np.float32) for _ in range(2)]

    def floor() -> None:
        for (a, b), number in zip(factors, twice[widths > 0], strict=True):
            for product in products[:number]:
                np.matmul(a, b, out=product)

    done = rows * tile * float((2 * widths * twice).sum())
    transforms = float(n_images * shifts.size * level.n_directions)
    n_q = level.n_psi // 2 + 1
    work = 2 * multiplied + transforms * (4 * (level.n_psi // 4 + 1) * n_q + 5 * level.n_psi)
    traffic = 16.0 * transforms * n_q
    size = f"box {box}, order {order}, kmax {kmax}, {len(basis.orders)} functions, {n_images} images"
    return Case(
        "dense coarse pass", size, lambda: dense.run(batch, step, 1000), work, traffic, floor, done / multiplied
    )


def insertion_case(box: int, n_images: int, put: Put) -> Case:
    """A maximisation step by slices: 10 orientations an image with 4 of its 12 shifts each, at the largest radius.

    The peer is what accumulation on rings would begin with: the coefficients of the 12 shifted images in the complete
    Bessel basis, without their sums over directions and the insertion of these.
    """
    rng = np.random.default_rng(4)
    n_orientations, n_shifts, per_group, kmax = 10, 12, 4, box // 2 - 2
    kx, ky = half_plane(kmax)
    n_groups, half = n_images * n_orientations, 2 * (kmax + 2)
    images, weights = noise(rng, n_images, kx.size), rng.random((n_images, kx.size), np.float32)
    shifts = rng.uniform(-2, 2, (n_shifts, 2)).astype(np.float32)
    lists = (
        np.arange(n_images + 1) * n_orientations,
        np.arange(n_groups + 1) * per_group,
        rng.integers(0, n_shifts, n_groups * per_group).astype(np.int32),
        np.full(n_groups * per_group, 1 / (n_orientations * per_group), np.float32),
    )
    volume = np.zeros((1, 2 * half + 3, 2 * half + 3, half + 2), np.complex64)
    sums = put(volume), put(np.zeros(volume.shape, np.float32))
    geometry = put(np.zeros(n_groups, np.int32)), put(clustered(n_groups, n_orientations))
    placed = tuple(map(put, (images, weights, kx, ky, shifts, *lists)))

    def run() -> None:
        values, summed = weighted_images(*placed, box)
        insert_slices(*sums, *geometry, placed[2], placed[3], values, summed, 2)

    rings = make_rings(box, kmax, 0.35 * box, Precision())
    functions = [sum(b.shape[1] for b in rings.bessel[parity::2]) for parity in (0, 1)]
    matrices = [np.ones((kx.size, 2 * n), np.float32) for n in functions]
    rows = np.ones((16 * n_shifts, kx.size), np.float32)

    def image_rows() -> None:
        for matrix in matrices:
            np.matmul(rows, matrix)

    points = float(n_groups * kx.size)
    size = f"box {box}, {n_images} images of {n_orientations} orientations, {sum(functions)} functions"
    return Case("maximisation step", size, run, 80 * points, 100 * points, image_rows, 16 / n_images)


def steerable_cases(put: Put) -> Iterator[Case]:
    """Every kernel at two sizes, and the dense pass."""
    for box, n_images, n in ((64, 12, 400), (128, 6, 1000)):
        yield shift_case(box, n_images, put)
        yield listed_case(n, n_images, put)
        yield insertion_case(box, 64, put)
    yield product_case(232, 20, 13, 96, put)
    yield best_case(24, 8, 192, 1, put)
    yield best_case(48, 8, 96, 8, put)
    yield dense_pass_case(128, 3, 32, 8, put)
