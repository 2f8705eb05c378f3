"""Every scoring path of the engine against a float64 likelihood written out; poses planted and found again."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spa import euler
from spa.em.descent import Descent
from spa.em.expectation import Reference, Step, log_likelihood, log_weights, score_slices
from spa.em.images import Preparer
from spa.em.sampling import Candidates, make_level
from spa.em.settings import Search
from spa.em.state import Batch, Poses
from spa.fourier import reference_transform
from spa.kernels.backend import to_host
from tests.em import tiny
from tests.kernels import truth

BOX, KMAX, PADDING = 16, 6, 2
CORNER = np.sqrt(3) * BOX / 2
TURN = np.asarray(euler.random_rotations(1, np.random.default_rng(7)))[0]


def place(put: Callable[[Any], Any], batch: Batch) -> Batch:
    """The batch on the device of this run."""
    names = ("spectra", "scored", "ctf", "inverse_sigma2", "origins", "kx", "ky", "slice_x", "slice_y")
    return Batch(batch.indices, pixels=batch.pixels, **{n: put(getattr(batch, n)) for n in names})


def make_batch(data: tiny.Data, poses: Poses | None = None) -> Batch:
    n = len(data.images)
    prepare = Preparer(BOX, data.coefficients, np.zeros(n, int), np.zeros(n, int), None, None)
    sigma2 = np.full((1, BOX // 2 + 1), data.sigma2)
    return prepare.batch(data.images, np.arange(n), poses or Poses.unknown(n), sigma2, np.ones(1), KMAX)


def make_step(levels: tuple[Any, ...], fit_scale: bool = False, local: bool = False, sigma: float = 1.5) -> Step:
    first = levels[0]
    orientations = np.arange(first.n_directions * first.n_psi, dtype=np.int64)
    shifts = np.arange(first.n_offsets**2, dtype=np.int32)
    return Step(levels, local, orientations, shifts, fit_scale, sigma, KMAX, KMAX)


def make_reference(put: Callable[[Any], Any], volume: np.ndarray, padding: int = PADDING) -> Reference:
    transform = reference_transform(volume, padding, BOX // 2 - 1)[None]
    return Reference(put(transform), padding, put(np.zeros(1, np.float32)), CORNER)


def exact_slices(volume: np.ndarray, rotations: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Fourier sums over all voxels, complex128 (n, n_pixels): slices without interpolation."""
    grid = np.stack(np.meshgrid(*[np.arange(BOX) - BOX // 2] * 3, indexing="ij"), -1).reshape(-1, 3)[:, ::-1]
    points = kx[:, None] * rotations[:, None, 0] + ky[:, None] * rotations[:, None, 1]
    values = volume.astype(np.float64).ravel()
    return np.array([np.exp(-2j * np.pi / BOX * (p @ grid.T)) @ values for p in points])


def brute_force(
    data: tiny.Data, level: Any, orientation: np.ndarray, scale: float = 1.0, exact: bool = False
) -> np.ndarray:
    """-1/2 sum |X - a C P S|^2 / sigma2 + 1/2 sum |X|^2 / sigma2, float64 (n_images, n_orientations, n_shifts).

    Slices are exact, or interpolated linearly as those that `score_slices` takes.
    """
    kx, ky = truth.half_plane(level.kmax)
    batch = make_batch(data)
    n = batch.pixels.prefix(level.kmax)
    order = np.lexsort((ky, kx))
    mine = np.lexsort((batch.pixels.ky[:n], batch.pixels.kx[:n]))
    kx, ky = kx[order], ky[order]
    spectra = tiny.spectra(data)[:, :n][:, mine].astype(np.complex128)
    ctf = batch.ctf[:, :n][:, mine].astype(np.float64)
    rotations = level.rotations(orientation).astype(np.float64)
    if exact:
        slices = exact_slices(data.volume, rotations, kx, ky)
    else:
        half = reference_transform(data.volume, PADDING, BOX // 2 - 1)
        slices = truth.interpolate(half, truth.slice_points(rotations, kx, ky, PADDING, 3))
    back = truth.phases(kx, ky, -level.offsets(), BOX)
    model = scale * ctf[:, None, None] * slices[None, :, None] * back[None, None]
    difference = np.abs(spectra[:, None, None] - model) ** 2 - np.abs(spectra[:, None, None]) ** 2
    return -difference.sum(-1) / (2 * data.sigma2)


def log_prior(level: Any, sigma: float) -> np.ndarray:
    return -(level.offsets().astype(np.float64) ** 2).sum(1) / (2 * sigma**2)


@pytest.fixture(scope="module")
def data() -> tiny.Data:
    return tiny.simulate(4, BOX, snr=0.5)


def test_sparse_scores_are_the_likelihood(device: Callable[[Any], Any], data: tiny.Data) -> None:
    level = make_level(1, 1.0, 3, KMAX, TURN, 1)
    rng = np.random.default_rng(1)
    n_orientations = level.n_directions * level.n_psi
    groups = np.concatenate([np.sort(rng.choice(n_orientations, 5, replace=False)) for _ in range(4)])
    counts = rng.integers(1, 9, len(groups))
    shift = np.concatenate([np.sort(rng.choice(9, c, replace=False)) for c in counts]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    lists = [device(a) for a in (np.arange(5) * 5, groups, offsets, shift)]
    step = make_step((level,))
    batch = place(device, make_batch(data))
    for memory in (10**9, 1):
        candidates, reference = Candidates(*lists), make_reference(device, data.volume)
        terms = score_slices(batch, reference, level, candidates, device(level.offsets()), memory)
        found = to_host(log_weights(batch, reference, level, candidates, step, *terms))
        expected = brute_force(data, level, np.arange(n_orientations)) + log_prior(level, 1.5)
        image = np.repeat(np.arange(4), 5)
        wanted = np.concatenate(
            [expected[i, g, shift[a:b]] for i, g, a, b in zip(image, groups, offsets, offsets[1:], strict=False)]
        )
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-3)


def test_angles_scatter_about_the_last_pose(device: Callable[[Any], Any], data: tiny.Data) -> None:
    level, sigma = make_level(1, 1.0, 1, KMAX, TURN, 1), 20.0
    n = level.n_directions * level.n_psi
    orientation = np.tile(np.arange(n), 4)
    lists = [device(a) for a in (np.arange(5) * n, orientation, np.arange(4 * n + 1), np.zeros(4 * n, np.int32))]
    last = Rotation.random(4, rng=1).as_matrix()
    batch, reference = place(device, make_batch(data)), make_reference(device, data.volume)
    cross, norm = (device(np.zeros(4 * n, np.float32)) for _ in range(2))
    plain = make_step((level,))
    step = dataclasses.replace(plain, angle_sigma=sigma)
    arguments = batch, reference, level, Candidates(*lists)
    without = to_host(log_weights(*arguments, plain, cross, norm))
    found = to_host(log_weights(*arguments, step, cross, norm, device(last.astype(np.float32))))
    turned = Rotation.from_matrix(level.rotations(orientation) @ np.repeat(last, n, axis=0).transpose(0, 2, 1))
    wanted = -(np.degrees(turned.magnitude()) ** 2) / (2 * sigma**2)
    np.testing.assert_allclose(found - without, wanted, rtol=1e-3, atol=1e-2)


def test_profile_likelihood_is_the_maximum_over_the_scale(data: tiny.Data) -> None:
    level = make_level(0, 1.0, 1, KMAX, TURN, 0)
    orientation = np.arange(40)
    scales = np.linspace(0, 4, 2001)
    curves = np.array([brute_force(data, level, orientation, s)[..., 0] for s in scales])
    a, b = curves[500], curves[1000]  # scales 1 and 2: LL(a) = a c - a^2 m
    norm = (2 * a - b) / 2
    cross = a + norm
    found = log_likelihood(cross.astype(np.float32), norm.astype(np.float32), fit_scale=True)
    interior = curves.argmax(0) < 2000
    np.testing.assert_allclose(found[interior], curves.max(0)[interior], rtol=1e-3, atol=1e-3)
    assert np.all(found >= -1e-6)


def test_descent_without_pruning_is_the_exhaustive_search(device: Callable[[Any], Any], data: tiny.Data) -> None:
    coarse = make_level(0, 2.0, 1, KMAX, TURN, 0)
    fine = make_level(1, 1.0, 2, KMAX, TURN, 0)
    everything = Search(mass=1 - 1e-12, temperature=1e-6, dense_cap=0, level_cap=0, insertion_mass=1.0, insertion_cap=0)
    step = make_step((coarse, fine))
    batch = place(device, make_batch(data))
    # with much padding, linear interpolation onto the rings is nearly exact
    rotations = np.tile(np.eye(3), (4, 1, 1))
    descent = Descent(make_reference(device, data.volume, 8), step, everything, 10**9, 10**9, rotations)
    scores = descent.run(batch, rotations)
    orientations = np.arange(fine.n_directions * fine.n_psi)
    wanted = brute_force(data, fine, orientations, exact=True) + log_prior(fine, 1.5)
    assert len(scores.log_weight) == wanted.size
    evidence = np.logaddexp.reduce(wanted.reshape(4, -1), axis=1)
    np.testing.assert_allclose(to_host(scores.posterior.log_evidence), evidence, atol=0.05)
    weights = to_host(scores.posterior.weights).astype(np.float64)
    ends = to_host(scores.candidates.candidate_offsets)
    np.testing.assert_allclose([weights[a:b].sum() for a, b in itertools.pairwise(ends)], 1, atol=1e-4)


@pytest.mark.parametrize("fit_scale", [False, True])
def test_planted_poses_are_found(fit_scale: bool) -> None:
    data = tiny.simulate(24, BOX, snr=50.0, seed=3)
    levels = tuple(make_level(order, 1.0 / 2**k, 7 * 2**k, KMAX, TURN, 1) for k, order in enumerate((1, 2, 3)))
    reference = make_reference(lambda a: a, data.volume * (40 if fit_scale else 1))
    rotations = np.tile(np.eye(3), (24, 1, 1))
    descent = Descent(reference, make_step(levels, fit_scale), Search(), 10**9, 10**9, rotations)
    scores = descent.run(make_batch(data), rotations)
    best = scores.posterior.best
    group = np.searchsorted(scores.candidates.group_offsets[1:], best, side="right")
    rotations = scores.level.rotations(scores.candidates.orientation[group])
    error = euler.angular_distance(rotations, data.rotations)
    assert np.median(error) < scores.level.angular_step
    assert (error < 2 * scores.level.angular_step).mean() >= 0.9
    offset = scores.level.offsets()[scores.candidates.shift[best]]
    assert np.median(np.hypot(*(offset - data.origins).T)) < 0.3


def test_local_search_starts_at_the_last_pose() -> None:
    data = tiny.simulate(16, BOX, snr=5.0, seed=4)
    poses = Poses.unknown(16)
    poses.rotations, poses.origins = data.rotations, data.origins
    levels = (make_level(3, 0.25, 5, KMAX, TURN, 3), make_level(4, 0.25, 5, KMAX, TURN, 3))
    step = make_step(levels, local=True)
    descent = Descent(make_reference(lambda a: a, data.volume), step, Search(), 10**9, 10**9, poses.rotations)
    scores = descent.run(make_batch(data, poses), poses.rotations)
    group = np.searchsorted(scores.candidates.group_offsets[1:], scores.posterior.best, side="right")
    found = scores.level.rotations(scores.candidates.orientation[group])
    assert np.median(euler.angular_distance(found, data.rotations)) < 4.0


def test_a_global_search_does_not_lose_the_last_pose() -> None:
    """However much it prunes; without the last pose this one finds hardly any."""
    data = tiny.simulate(24, BOX, snr=5.0, seed=5)
    poses = Poses.unknown(24)
    poses.rotations, poses.origins = data.rotations, data.origins
    levels = tuple(make_level(order, 1.0 / 2**k, 3 * 2**k, KMAX, TURN, 1) for k, order in enumerate((1, 2, 3)))
    reference, batch, found = make_reference(lambda a: a, data.volume), make_batch(data, poses), []
    hasty = Search(temperature=1.0, coarse_error=1e-9, mass=0.01, dense_cap=1, level_cap=1)
    for known in (False, True):
        step = replace(make_step(levels), known=known)
        scores = Descent(reference, step, hasty, 10**9, 10**9, data.rotations).run(batch, data.rotations)
        group = np.searchsorted(scores.candidates.group_offsets[1:], scores.posterior.best, side="right")
        rotations = scores.level.rotations(scores.candidates.orientation[group])
        found.append((euler.angular_distance(rotations, data.rotations) < 2 * scores.level.angular_step).mean())
    assert found[0] < 0.6
    assert found[1] > 0.9


@pytest.mark.parametrize("local", [True, False])
def test_tables_hold_every_direction_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, local: bool) -> None:
    """Also those outside the asymmetric unit, around poses at its edge: tables and slices score alike."""
    data = tiny.simulate(12, BOX, snr=5.0, seed=6)
    poses = Poses.unknown(12)
    poses.rotations, poses.origins = data.rotations, data.origins
    levels = (make_level(3, 0.25, 5, KMAX, TURN, 3), make_level(4, 0.25, 5, KMAX, TURN, 3))
    step = replace(make_step(levels, local=local), dense_orientations=np.zeros(1, np.int64), known=True)
    batch, found = make_batch(data, poses), []
    for tables in (True, False):
        monkeypatch.setattr("spa.em.descent.steerable_pays", lambda *_, pays=tables: pays)
        reference = make_reference(lambda a: a, data.volume, 8)
        wide = replace(Search(), mass=1 - 1e-9, level_cap=0)
        descent = Descent(reference, step, wide, 10**9, 10**9, poses.rotations)
        found.append(descent.run(batch, poses.rotations))
    evidence = [s.posterior.log_evidence for s in found]
    np.testing.assert_allclose(*evidence, atol=0.3)
