"""Slices against the definition of linear interpolation, the central slice theorem, and their own adjoint."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from spa.kernels.backend import to_host
from spa.kernels.slices import extract_slices, half_radius, insert_slices
from tests.kernels import truth

KMAX = 5
BOX = 16


def problem(ndim, padding, n=12, n_classes=2):
    rng = np.random.default_rng(ndim + 10 * padding)
    references = truth.half_stack(rng, n_classes, half_radius(padding, KMAX), ndim)
    classes = rng.integers(0, n_classes, n).astype(np.int32)
    kx, ky = truth.half_plane(KMAX + 4)
    return rng, references, classes, truth.rotations(n, ndim), kx, ky


def inner(a, b):
    return float(np.sum(a.real.astype(np.float64) * b.real + a.imag.astype(np.float64) * b.imag))


@pytest.mark.parametrize("padding", [1, 2, 3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_extraction_is_linear_interpolation_within_the_radius(device, ndim, padding):
    _, references, classes, matrices, kx, ky = problem(ndim, padding)
    got = extract_slices(*map(device, (references, classes, matrices, kx, ky)), padding)
    points = truth.slice_points(matrices, kx, ky, padding, ndim)
    want = np.stack([truth.interpolate(references[c], p) for c, p in zip(classes, points, strict=True)])
    clear = np.abs(np.linalg.norm(points, axis=-1) - half_radius(padding, KMAX)) > 1e-3
    assert (want[clear] == 0).any()
    np.testing.assert_allclose(to_host(got)[clear], want[clear], atol=2e-5)


@pytest.mark.parametrize("padding", [1, 2, 3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_slices_are_transforms_of_projections(device, ndim, padding):
    """Against the sum over voxels, to the error bound h^2/8 max|f''| of linear interpolation in each direction."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(BOX) - BOX // 2] * ndim, indexing="ij"))[::-1].reshape(ndim, -1)
    density = np.zeros(BOX**ndim)
    for centre in rng.uniform(-2, 2, (4, ndim)):
        density += rng.uniform(0.5, 1) * np.exp(-((grid - centre[:, None]) ** 2).sum(axis=0) / 3)
    density[(grid**2).sum(axis=0) > 25] = 0
    matrices, (kx, ky) = truth.rotations(6, ndim, seed=3), truth.half_plane(KMAX)
    radius, size = half_radius(padding, KMAX), padding * BOX
    frequencies = [np.arange(-radius - 1, radius + 2)] * (ndim - 1) + [np.arange(radius + 2)]
    half = density.reshape((BOX,) * ndim)
    for axis, frequency in enumerate(frequencies):
        kernel = np.exp(-2j * np.pi * np.outer(frequency, np.arange(BOX) - BOX // 2) / size)
        half = np.moveaxis(np.tensordot(kernel, half, axes=(1, axis)), 0, axis)
    references, classes = np.ascontiguousarray(half[None], np.complex64), np.zeros(6, np.int32)
    got = to_host(extract_slices(*map(device, (references, classes, matrices, kx, ky)), padding))
    points = truth.slice_points(matrices, kx, ky, 1, ndim)
    want = np.exp(-2j * np.pi * (points @ grid) / BOX) @ density
    bound = density @ ((2 * np.pi * grid / size) ** 2).sum(axis=0) / 8
    assert np.abs(got - want).max() <= bound + 1e-5
    assert padding == 1 or bound < 0.25 * np.abs(want).max()


@pytest.mark.parametrize("padding", [1, 2, 3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_insertion_is_the_adjoint_of_extraction(device, ndim, padding):
    """Re<Px, y> = Re<x, P^T y>, real and imaginary parts of the stored half taken as independent coordinates."""
    rng, references, classes, matrices, kx, ky = problem(ndim, padding)
    geometry = tuple(map(device, (classes, matrices, kx, ky)))
    values = truth.complex_normal(rng, (classes.size, kx.size))
    weights = rng.uniform(0, 1, values.shape).astype(np.float32)
    data = device(np.zeros_like(references))
    weight = device(np.zeros(references.shape, np.float32))
    insert_slices(data, weight, *geometry, device(values), device(weights), padding)

    slices = to_host(extract_slices(device(references), *geometry, padding))
    scale = np.linalg.norm(slices) * np.linalg.norm(values)
    assert abs(inner(slices, values) - inner(references, to_host(data))) < 1e-6 * scale

    density = np.abs(references).astype(np.complex64)
    seen = to_host(extract_slices(device(density), *geometry, padding)).real.astype(np.float64)
    assert float((seen * weights).sum()) == pytest.approx(
        float((density.real.astype(np.float64) * to_host(weight)).sum()), rel=1e-6
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_insertion_adds_to_what_is_there(device, ndim):
    rng, references, classes, matrices, kx, ky = problem(ndim, 2)
    geometry = tuple(map(device, (classes, matrices, kx, ky)))
    values, weights = truth.complex_normal(rng, (classes.size, kx.size)), np.ones((classes.size, kx.size), np.float32)
    data, weight = device(references.copy()), device(np.ones(references.shape, np.float32))
    insert_slices(data, weight, *geometry, device(values), device(weights), 2)
    fresh, fresh_weight = device(np.zeros_like(references)), device(np.zeros(references.shape, np.float32))
    insert_slices(fresh, fresh_weight, *geometry, device(values), device(weights), 2)
    np.testing.assert_allclose(to_host(data), references + to_host(fresh), atol=2e-5)
    np.testing.assert_allclose(to_host(weight), 1 + to_host(fresh_weight), atol=2e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_cpu_insertion_does_not_depend_on_the_number_of_threads(ndim):
    rng, references, classes, matrices, kx, ky = problem(ndim, 2, n=40)
    values, weights = truth.complex_normal(rng, (40, kx.size)), rng.uniform(0, 1, (40, kx.size)).astype(np.float32)
    before, results = numba.get_num_threads(), []
    try:
        for threads in range(1, min(4, numba.config.NUMBA_NUM_THREADS) + 1):
            numba.set_num_threads(threads)
            data, weight = np.zeros_like(references), np.zeros(references.shape, np.float32)
            insert_slices(data, weight, classes, matrices, kx, ky, values, weights, 2)
            results.append((data, weight))
    finally:
        numba.set_num_threads(before)
    for data, weight in results[1:]:
        np.testing.assert_array_equal(data, results[0][0])
        np.testing.assert_array_equal(weight, results[0][1])


def test_no_slices(device):
    _, references, _, _, kx, ky = problem(3, 1)
    none = device(np.zeros(0, np.int32)), device(np.zeros((0, 3, 3), np.float32))
    assert extract_slices(device(references), *none, device(kx), device(ky), 1).shape == (0, kx.size)


@pytest.mark.parametrize(
    ("position", "change", "error"),
    [
        (0, lambda a: a.astype(np.complex128), TypeError),
        (0, lambda a: a[:, :, :, :-1].copy(), ValueError),
        (0, lambda a: a[0, 0], ValueError),
        (1, lambda a: a.astype(np.int64), TypeError),
        (2, lambda a: a[:-1].copy(), ValueError),
        (2, lambda a: a.transpose(0, 2, 1), ValueError),
        (3, lambda a: a.astype(np.float64), TypeError),
        (4, lambda a: a[:-1].copy(), ValueError),
    ],
)
def test_wrong_arguments_are_refused(device, position, change, error):
    _, *arguments = problem(3, 1)
    arguments = [device(a) for a in arguments]
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=("references", "classes", "rotations", "kx", "ky")[position]):
        extract_slices(*arguments, 1)
