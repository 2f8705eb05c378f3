"""Scoring against the likelihood written out in float64, and the weighted sums against an einsum."""

from __future__ import annotations

import numpy as np
import pytest

from spa.kernels.backend import to_host
from spa.kernels.scoring import squared_difference, weighted_images
from spa.kernels.slices import extract_slices, half_radius
from tests.kernels import truth

BOX, KMAX = 16, 7


class Problem:
    """Images, CTFs, noise and slices of a tiny box, and a ragged list of candidates."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        n_images, n_slices = 4, 6
        self.kx, self.ky = truth.half_plane(KMAX)
        n_pixels = self.kx.size
        self.observed = truth.complex_normal(rng, (n_images, n_pixels))
        self.ctf = rng.uniform(-1, 1, (n_images, n_pixels))
        self.sigma2 = rng.uniform(0.5, 2, KMAX + 1)[np.rint(np.hypot(self.kx, self.ky)).astype(int)]
        self.images = (self.ctf * self.observed / self.sigma2).astype(np.complex64)
        self.weights = (self.ctf**2 / self.sigma2).astype(np.float32)
        reference = truth.half_stack(rng, 1, half_radius(2, KMAX), 3)
        geometry = np.zeros(n_slices, np.int32), truth.rotations(n_slices, 3), self.kx, self.ky
        self.slices = extract_slices(reference, *geometry, 2)
        self.shifts = rng.uniform(-5, 5, (9, 2)).astype(np.float32)
        # an image without groups, a group without candidates, groups longer than a register tile
        self.image_offsets = np.array([0, 3, 3, 4, 9])
        self.group_slice = rng.integers(0, n_slices, 9).astype(np.int32)
        self.group_offsets = np.concatenate([[0], np.cumsum([1, 0, 13, 4, 8, 9, 2, 16, 3])])
        self.candidate_shift = rng.integers(0, 9, self.group_offsets[-1]).astype(np.int32)
        self.posterior = rng.uniform(0, 1, self.candidate_shift.size).astype(np.float32)
        self.image_of_group = np.repeat(np.arange(n_images), np.diff(self.image_offsets))
        self.group_of_candidate = np.repeat(np.arange(9), np.diff(self.group_offsets))

    def log_likelihood(self, image: int, slice_: int, shift: int) -> float:
        moved = self.observed[image] * truth.phases(self.kx, self.ky, self.shifts[shift : shift + 1], BOX)[0]
        residual = moved - self.ctf[image] * self.slices[slice_].astype(np.complex128)
        return float(-0.5 * np.sum(np.abs(residual) ** 2 / self.sigma2))

    def constant(self, image: int) -> float:
        return float(-0.5 * np.sum(np.abs(self.observed[image]) ** 2 / self.sigma2))


@pytest.fixture(scope="module")
def problem():
    return Problem()


def test_sparse_scores_are_the_likelihood(device, problem):
    arrays = problem.images, problem.weights, problem.slices, problem.kx, problem.ky, problem.shifts
    lists = problem.image_offsets, problem.group_slice, problem.group_offsets, problem.candidate_shift
    cross, norm = map(to_host, squared_difference(*map(device, (*arrays, *lists)), BOX))
    assert norm.shape == (9,)
    assert cross.shape == problem.candidate_shift.shape
    for candidate, group in enumerate(problem.group_of_candidate):
        image, shift = problem.image_of_group[group], problem.candidate_shift[candidate]
        got = float(cross[candidate]) - float(norm[group]) + problem.constant(image)
        want = problem.log_likelihood(image, problem.group_slice[group], shift)
        assert got == pytest.approx(want, abs=2e-3, rel=1e-5)


def test_the_norm_of_a_group_without_candidates(device, problem):
    arrays = problem.images, problem.weights, problem.slices, problem.kx, problem.ky, problem.shifts
    lists = problem.image_offsets, problem.group_slice, problem.group_offsets, problem.candidate_shift
    _, norm = map(to_host, squared_difference(*map(device, (*arrays, *lists)), BOX))
    power = np.abs(problem.slices[problem.group_slice].astype(np.complex128)) ** 2
    want = 0.5 * (problem.weights[problem.image_of_group] * power).sum(axis=1)
    np.testing.assert_allclose(norm, want, rtol=1e-5)


def test_a_shift_moves_the_content_forward(device):
    """The cross term of an image with its copy rolled by (x, y) = (3, -2) peaks at that shift, with all the power."""
    image = np.random.default_rng(4).standard_normal((BOX, BOX))
    kx, ky = truth.half_plane(KMAX)
    at = ky.astype(int) % BOX, kx.astype(int)
    here, moved = (np.fft.rfft2(a)[at][None].astype(np.complex64) for a in (image, np.roll(image, (-2, 3), (0, 1))))
    x, y = np.meshgrid(np.arange(-4, 5), np.arange(-4, 5))
    shifts = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    ones = np.ones(here.shape, np.float32)
    every = np.arange(len(shifts), dtype=np.int32)
    lists = np.array([0, 1]), np.zeros(1, np.int32), np.array([0, len(shifts)]), every
    cross, norm = map(to_host, squared_difference(*map(device, (here, ones, moved, kx, ky, shifts, *lists)), BOX))
    assert tuple(shifts[cross.argmax()]) == (3, -2)
    assert cross.max() == pytest.approx(2 * float(norm[0]), rel=1e-5)


def test_weighted_images_sum_over_shifts(device, problem):
    arrays = problem.images, problem.weights, problem.kx, problem.ky, problem.shifts
    lists = problem.image_offsets, problem.group_offsets, problem.candidate_shift, problem.posterior
    values, weights = map(to_host, weighted_images(*map(device, (*arrays, *lists)), BOX))
    share = np.zeros((9, problem.shifts.shape[0]))
    np.add.at(share, (problem.group_of_candidate, problem.candidate_shift), problem.posterior)
    phases = truth.phases(problem.kx, problem.ky, problem.shifts, BOX)
    want = np.einsum("gs,sk,gk->gk", share, phases, problem.images[problem.image_of_group])
    np.testing.assert_allclose(values, want, atol=2e-5)
    want = np.einsum("gs,gk->gk", share, problem.weights[problem.image_of_group])
    np.testing.assert_allclose(weights, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("images", lambda a: a.astype(np.complex128), TypeError),
        ("weights", lambda a: a[:, :-1].copy(), ValueError),
        ("slices", lambda a: a[:, ::2], ValueError),
        ("shifts", lambda a: a.reshape(-1), ValueError),
        ("image_offsets", lambda a: a.astype(np.int32), TypeError),
        ("group_slice", lambda a: a[:-1].copy(), ValueError),
        ("group_offsets", lambda a: a.astype(np.float32), TypeError),
        ("candidate_shift", lambda a: a.astype(np.int64), TypeError),
    ],
)
def test_wrong_arguments_are_refused(device, problem, name, change, error):
    names = "images", "weights", "slices", "kx", "ky", "shifts"
    lists = "image_offsets", "group_slice", "group_offsets", "candidate_shift"
    arguments = {n: device(getattr(problem, n)) for n in (*names, *lists)}
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=name):
        squared_difference(*arguments.values(), BOX)
