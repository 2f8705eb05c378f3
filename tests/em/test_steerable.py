"""Steerable likelihoods against slices summed in float64 from the map itself, and the properties of rings and bases."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spa import healpix
from spa.em.steerable import STRICT, Basis, Precision, Rings, make_basis, make_rings, table_rows
from spa.em.tables import norm_turns
from spa.fourier import reference_transform
from spa.grids import half_plane
from spa.kernels.slices import extract_slices
from spa.kernels.steerable import shifted_rows, steered_scores
from spa.mask import soft_sphere

BOX, KMAX, RADIUS, SOFT_EDGE = 32, 13, 5.0, 3.0
N_DIRECTIONS, N_PSI, N_SHIFTS = 4, 6, 3
LEVELS = {"default": Precision(), "strict": STRICT}


class Problem:
    """A masked random map, images of it with astigmatic CTFs and coloured noise, poses and their exact likelihoods."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        grid = np.fft.fftfreq(BOX)
        squared = sum(g**2 for g in np.meshgrid(grid, grid, grid))
        noise = np.fft.ifftn(np.fft.fftn(rng.standard_normal((BOX,) * 3)) * np.exp(-60 * squared)).real
        self.volume = (noise * soft_sphere(BOX, RADIUS, SOFT_EDGE)).astype(np.float32)
        half = int(RADIUS + SOFT_EDGE) + 1
        inner = slice(BOX // 2 - half, BOX // 2 + half + 1)
        self.inside, self.grid = self.volume[inner, inner, inner].astype(np.float64), np.arange(-half, half + 1)
        self.pixels = half_plane(BOX, KMAX)
        self.kx, self.ky = (np.asarray(k, np.float64) for k in (self.pixels.kx, self.pixels.ky))
        self.frames = Rotation.random(N_DIRECTIONS, random_state=1).as_matrix()
        self.psi = rng.uniform(0, 2 * np.pi, N_PSI)
        self.shifts = rng.uniform(-3, 3, (N_SHIFTS, 2)).astype(np.float32)
        poses = [turned(frame, psi) for frame in self.frames for psi in self.psi]
        slices = np.stack([self.slice(pose, self.kx, self.ky) for pose in poses])
        self.exact_slices, self.poses = slices.reshape(N_DIRECTIONS, N_PSI, -1), np.stack(poses)
        truth = self.exact_slices[0, 0]
        r, theta = np.hypot(self.kx, self.ky), np.arctan2(self.ky, self.kx)
        ctf = [np.sin(0.05 * r**2 * (1 + a * np.cos(2 * (theta - t))) + 0.1) for a, t in ((0.03, 0.4), (0.06, 2.0))]
        sigma2 = 1 + 4 * np.exp(-r / 4)
        power = 0.5 * np.mean([np.sum(c**2 / sigma2 * np.abs(truth) ** 2) for c in ctf])
        self.weights = np.stack([c**2 / sigma2 for c in ctf]) * 100 / power
        noise = rng.standard_normal((2, *self.weights.shape))
        self.images = self.weights * truth + np.sqrt(self.weights) * (noise[0] + 1j * noise[1])
        self.transform = reference_transform(self.volume, 2, BOX // 2 - 1)[None]

    def slice(self, frame: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The slice at (x, y): a direct Fourier sum over the map in float64."""
        points = np.outer(x, frame[0]) + np.outer(y, frame[1])
        ex, ey, ez = (np.exp(-2j * np.pi / BOX * np.outer(self.grid, p)) for p in points.T)
        n = len(self.grid)
        lines = (self.inside.reshape(n * n, n) @ ex).reshape(n, n, -1)
        return np.einsum("zk,zk->k", np.einsum("zyk,yk->zk", lines, ey), ez)

    def scores(self, slices: np.ndarray) -> np.ndarray:
        """Log-likelihoods cross - norm (image, direction, psi, shift) from slices (direction, psi, pixel)."""
        k = np.stack([self.kx, self.ky])
        moved = self.images[:, None] * np.exp(-2j * np.pi / BOX * (self.shifts @ k))
        cross = np.einsum("isk,dpk->idps", moved.conj(), slices).real
        return cross - 0.5 * np.einsum("ik,dpk->idp", self.weights, np.abs(slices) ** 2)[..., None]

    def rings_of(self, frames: np.ndarray, rings: Rings, exact: bool) -> np.ndarray:
        if exact:
            values = [self.slice(frame, *rings.points.astype(np.float64)) for frame in frames]
            return np.stack(values).reshape(len(frames), rings.n_rings, -1).astype(np.complex64)
        classes = np.zeros(len(frames), np.int32)
        values = extract_slices(self.transform, classes, frames.astype(np.float32), *rings.points, 2)
        return values.reshape(len(frames), rings.n_rings, -1)

    def steered(self, basis: Basis, exact: bool) -> np.ndarray:
        """The same log-likelihoods from coefficients."""
        coefficients, moments = table_rows(basis, self.rings_of(self.frames, basis.rings, exact))
        row_image, row_shift = (a.ravel().astype(np.int32) for a in np.mgrid[:2, :N_SHIFTS])
        pixels = (np.asarray(k[basis.pairs[0]], np.float32) for k in (self.kx, self.ky))
        folded = basis.folded(self.images.astype(np.complex64))
        parts = shifted_rows(folded, *pixels, self.shifts, row_image, row_shift, BOX)
        n_groups = N_DIRECTIONS * N_PSI
        angle = self.psi[:, None] * basis.orders
        cross, norm = steered_scores(
            basis.rows(parts),
            np.arange(2 * N_SHIFTS, dtype=np.int32).reshape(2, N_SHIFTS),
            self.weights.astype(np.float32) @ basis.norm_rows,
            coefficients,
            moments,
            np.arange(N_DIRECTIONS, dtype=np.int32),
            np.cos(angle).astype(np.float32),
            np.sin(angle).astype(np.float32),
            norm_turns(basis.rings, self.psi),
            basis.rings.norm_starts,
            basis.n_even,
            np.arange(3) * n_groups,
            np.tile(np.arange(n_groups), 2),
            np.arange(2 * n_groups + 1) * N_SHIFTS,
            np.tile(np.arange(N_SHIFTS, dtype=np.int32), 2 * n_groups),
        )
        score = cross.reshape(2, N_DIRECTIONS, N_PSI, N_SHIFTS).astype(np.float64)
        return score - norm.reshape(2, N_DIRECTIONS, N_PSI, 1)


def turned(frame: np.ndarray, psi: float) -> np.ndarray:
    c, s = np.cos(psi), np.sin(psi)
    return np.stack([c * frame[0] + s * frame[1], c * frame[1] - s * frame[0], frame[2]])


@cache
def the_problem() -> Problem:
    return Problem()


@cache
def the_basis(level: str, exact: bool, kmax: int = KMAX) -> Basis:
    problem, precision = the_problem(), LEVELS[level]
    rings = make_rings(BOX, kmax, RADIUS + SOFT_EDGE, precision)
    sample = problem.rings_of(healpix.frames(1), rings, exact)
    n = len(half_plane(BOX, kmax))
    mean_weight = problem.weights[:, :n].mean(0)
    return make_basis(rings, problem.kx[:n], problem.ky[:n], sample, mean_weight, precision.tolerance)


def error_of(scores: np.ndarray, exact: np.ndarray) -> float:
    """Standard deviation of what scores miss, per image: a constant does not matter."""
    return float((scores - exact).reshape(len(exact), -1).std(axis=1).max())


def test_the_problem_is_of_realistic_size():
    problem = the_problem()
    scores = problem.scores(problem.exact_slices)
    assert 200 < np.ptp(scores.reshape(2, -1), axis=1).min() < 2000


@pytest.mark.parametrize(("level", "allowed"), [("default", 0.05), ("strict", 0.005)])
def test_exact_rings_give_the_exact_likelihood(level, allowed):
    """Where the log-likelihoods of an image range over some five hundred."""
    problem = the_problem()
    error = error_of(problem.steered(the_basis(level, True), True), problem.scores(problem.exact_slices))
    assert error <= allowed


def test_trilinear_rings_are_closer_than_trilinear_slices():
    problem = the_problem()
    exact = problem.scores(problem.exact_slices)
    poses = problem.poses.astype(np.float32)
    pixels = (np.asarray(k, np.float32) for k in (problem.kx, problem.ky))
    slices = extract_slices(problem.transform, np.zeros(len(poses), np.int32), poses, *pixels, 2)
    of_slices = error_of(problem.scores(slices.reshape(problem.exact_slices.shape).astype(np.complex128)), exact)
    of_rings = error_of(problem.steered(the_basis("default", False), False), exact)
    assert of_rings <= 0.5 * of_slices


def test_an_image_of_the_half_plane_has_the_coefficients_of_the_whole():
    """Coefficients are sums over all pixels of Y u exp(-i m theta), with half of each Friedel pair given."""
    problem, basis = the_problem(), the_basis("default", True)
    kx, ky = (np.concatenate([k, -k]) for k in (problem.kx, problem.ky))
    image = np.concatenate([problem.images[0], problem.images[0].conj()])
    u, angles = radial_functions(basis, np.hypot(kx, ky)), np.arctan2(ky, kx)
    want = np.einsum("k,kn,kn->n", image, u, np.exp(-1j * angles[:, None] * basis.orders))
    want[basis.orders == 0] *= 0.5
    row = basis.rows(parts_of(basis, problem.images[:1]))[0].astype(np.float64)
    n_even, n_odd = basis.n_even, len(basis.orders) - basis.n_even
    got = np.concatenate([row[:n_even], row[2 * n_even : 2 * n_even + n_odd]]).astype(np.complex128)
    got += 1j * np.concatenate([row[n_even : 2 * n_even], row[2 * n_even + n_odd :]])
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def parts_of(basis: Basis, images: np.ndarray) -> np.ndarray:
    """What `shifted_rows` gives for images that are not shifted."""
    upper, lower = basis.folded(images.astype(np.complex64)).swapaxes(0, 1)
    return np.stack([(upper + lower).real, (upper - lower).real, (upper - lower).imag, (upper + lower).imag])


def test_pixels_that_sample_elsewhere_have_a_basis_of_their_own():
    """With a skewed magnification, mirrored pixels lie at different radii: coefficients are sums over pixels all the
    same."""
    problem, basis = the_problem(), the_basis("default", True)
    x, y = np.array([[1.01, 0.02], [0.005, 0.98]]) @ np.stack([problem.kx, problem.ky])
    skewed = basis.sampled_at(x, y)
    assert skewed.other
    assert not basis.other
    u, angles = radial_functions(basis, np.hypot(x, y)), np.arctan2(y, x)
    turned = np.exp(-1j * angles[:, None] * basis.orders)
    image, n_even = problem.images[0], basis.n_even
    both = np.einsum("k,kn,kn->n", image, u, turned)
    both += np.einsum("k,kn,kn->n", image.conj(), u, turned * (-1.0) ** basis.orders)
    both[basis.orders == 0] *= 0.5
    row = skewed.rows(parts_of(skewed, problem.images[:1]))[0]
    want = np.concatenate([both[:n_even].real, both[:n_even].imag, both[n_even:].real, both[n_even:].imag])
    np.testing.assert_allclose(row, want, atol=2e-5 * np.abs(want).max())


def radial_functions(basis: Basis, radius: np.ndarray) -> np.ndarray:
    """Each function's values at some radii, (len(radius), n), by Lagrange interpolation from the rings."""
    rings = basis.rings
    position = np.arange(-2, rings.n_rings) * rings.step
    columns = []
    for order in dict.fromkeys(basis.orders.tolist()):
        ring = basis.synthesis[order]
        mirrored = np.concatenate([ring[2:0:-1], ring])
        for function in mirrored.T:
            first = np.floor(radius / rings.step).astype(int)
            nodes = first[:, None] + np.arange(6)
            total = np.zeros(len(radius))
            for j in range(6):
                others = [i for i in range(6) if i != j]
                x = position[nodes]
                ratio = [(radius - x[:, i]) / (x[:, j] - x[:, i]) for i in others]
                total += np.prod(ratio, axis=0) * function[nodes[:, j]]
            columns.append(total)
    return np.stack(columns, 1)


def test_a_lower_tolerance_keeps_more_and_none_keeps_all():
    problem, rings = the_problem(), the_basis("default", True).rings
    sample, weight = problem.rings_of(healpix.frames(0), rings, False), problem.weights.mean(0)
    kept = [len(make_basis(rings, problem.kx, problem.ky, sample, weight, t).orders) for t in (1.0, 0.1, 0.01, 0.0)]
    assert kept == sorted(set(kept))
    assert kept[-1] == sum(b.shape[1] for b in rings.bessel)


def test_the_basis_grows_with_the_resolution():
    sizes = [len(the_basis("default", True, kmax).orders) for kmax in (5, 9, 13)]
    assert sizes == sorted(set(sizes))


def test_a_basis_for_the_same_pixels_is_the_same():
    problem, basis = the_problem(), the_basis("default", True)
    again = basis.sampled_at(problem.kx, problem.ky)
    for one, other in zip((*again.own, again.norm_rows), (*basis.own, basis.norm_rows), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert again.other == basis.other == ()


def test_a_slice_turns_with_its_coefficients():
    """The coefficients of a direction turned in the plane are those of its slice times exp(i m psi)."""
    problem, basis = the_problem(), the_basis("strict", True)
    angle = 0.7
    frames = np.stack([problem.frames[0], turned(problem.frames[0], angle)])
    (here, there), moments = table_rows(basis, problem.rings_of(frames, basis.rings, True))
    n_even, split = basis.n_even, 2 * basis.n_even
    for part, orders in ((slice(split), basis.orders[:n_even]), (slice(split, None), basis.orders[n_even:])):
        a, b = (np.split(c[part].astype(np.float64), 2) for c in (here, there))
        want = (a[0] + 1j * a[1]) * np.exp(1j * angle * orders)
        np.testing.assert_allclose(b[0] + 1j * b[1], want, atol=1e-4 * np.abs(want).max())
    power = moments[:, : basis.rings.n_rings]
    np.testing.assert_allclose(power[0], power[1], rtol=1e-4, atol=1e-4 * power.max())
