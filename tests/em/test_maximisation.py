"""The maximisation step: likelihood that rises, noise and scales that come out as planted, halves that stay apart."""

from __future__ import annotations

import numpy as np
import pytest

from spa.em.descent import Descent
from spa.em.expectation import Reference, Scores, Step
from spa.em.images import Preparer
from spa.em.maximisation import accumulate, new_sums, noise_spectra, reconstruct_halves
from spa.em.sampling import Candidates, make_level
from spa.em.settings import Search
from spa.em.state import Poses, Sums
from spa.fourier import low_pass, reference_transform
from spa.kernels.posterior import posterior
from spa.mask import soft_sphere
from spa.reconstruct import solve
from tests.em import tiny

BOX, PADDING, KMAX = 16, 2, 6
CORNER = np.sqrt(3) * BOX / 2
EVERYTHING = Search(mass=1 - 1e-12, temperature=1e-6, dense_cap=0, level_cap=0, insertion_mass=1.0, insertion_cap=0)


def em_pass(data: tiny.Data, volume: np.ndarray, levels: tuple, search: Search) -> tuple[Sums, float]:
    """Sums and mean log evidence of one pass over all images."""
    n = len(data.images)
    prepare = Preparer(BOX, data.coefficients, np.zeros(n, int), np.zeros(n, int), None, None)
    sigma2 = np.full((1, BOX // 2 + 1), data.sigma2)
    batch = prepare.batch(data.images, np.arange(n), Poses.unknown(n), sigma2, np.ones(1), KMAX)
    first = levels[0]
    orientations = np.arange(first.n_directions * first.n_psi, dtype=np.int64)
    step = Step(levels, False, orientations, np.arange(first.n_offsets**2, dtype=np.int32), False, 2.0, KMAX, KMAX)
    transform = reference_transform(volume, PADDING, BOX // 2 - 1)[None]
    reference = Reference(transform, PADDING, np.zeros(1, np.float32), CORNER)
    rotations = np.tile(np.eye(3), (n, 1, 1))
    scores = Descent(reference, step, search, 10**9, 10**9, rotations).run(batch, rotations)
    sums = new_sums(1, 1, 1, BOX, PADDING, KMAX, prepare.kx)
    uniform = np.random.default_rng(0).random(n)
    accumulate(sums, batch, scores, reference, step, search, np.zeros(n, int), np.zeros(n, int), uniform, 10**9)
    return sums, float(scores.posterior.log_evidence.sum())


def test_likelihood_never_falls_with_fixed_spectra() -> None:
    data = tiny.simulate(150, BOX, snr=0.3, seed=5)
    volume = low_pass(data.volume, tiny.PIXEL_SIZE, 40.0)
    tau2 = 100 * np.abs(np.fft.rfftn(data.volume)).max() ** 2
    levels = (make_level(0, 2.0, 1, KMAX, np.eye(3), 0), make_level(1, 1.0, 2, KMAX, np.eye(3), 0))
    evidence = []
    for _ in range(6):
        sums, total = em_pass(data, volume, levels, EVERYTHING)
        evidence.append(total)
        volume = solve(sums.data[0], sums.weight[0], BOX, PADDING, KMAX, np.full(BOX // 2 + 1, 1 / tau2))
    gains = np.diff(evidence)
    assert gains[0] > 0
    assert np.all(gains > -1e-3 * (max(evidence) - evidence[0])), evidence


def true_pose_scores(data: tiny.Data, level_shift: int = 0) -> tuple:
    """A batch centred on the truth and scores that put all weight on (nearly) the true orientation."""
    n = len(data.images)
    prepare = Preparer(BOX, data.coefficients, np.zeros(n, int), np.arange(n) % 2, None, None)
    poses = Poses.unknown(n)
    poses.origins = data.origins
    sigma2 = np.full((1, BOX // 2 + 1), data.sigma2)
    batch = prepare.batch(data.images, np.arange(n), poses, sigma2, np.ones(2), KMAX)
    level = make_level(5, 1.0, 1, KMAX, np.eye(3), 5)
    near = np.argmax(level.frames[:, 2] @ data.rotations[:, 2].T, 0)
    psi = np.arange(level.n_psi)
    orientation = []
    for direction, rotation in zip(near, data.rotations, strict=True):
        mine = level.rotations(direction * level.n_psi + psi)
        orientation.append(direction * level.n_psi + np.einsum("nij,ij->n", mine, rotation).argmax())
    candidates = Candidates(np.arange(n + 1), np.array(orientation), np.arange(n + 1), np.zeros(n, np.int32))
    log_weight = np.zeros(n, np.float32)
    scores = Scores(level, candidates, log_weight, posterior(log_weight, np.arange(n + 1), 0.999, 1.0, 0), n)
    step = Step((level,), True, np.zeros(0, np.int64), np.zeros(1, np.int32), False, 1.0, KMAX, KMAX)
    return batch, scores, step


def test_noise_variance_comes_out_as_planted() -> None:
    data = tiny.simulate(400, BOX, snr=0.5, seed=6)
    batch, scores, step = true_pose_scores(data)
    reference = Reference(reference_transform(data.volume, 3, BOX // 2 - 1)[None], 3, np.zeros(1, np.float32), CORNER)
    sums = new_sums(1, 1, 2, BOX, 3, KMAX, batch.kx)
    groups = np.arange(400) % 2
    estimates = accumulate(
        sums, batch, scores, reference, step, Search(), np.zeros(400, int), groups, np.full(400, 0.5), 10**9
    )
    sigma2 = noise_spectra(sums, np.ones((1, BOX // 2 + 1)))[0]
    np.testing.assert_allclose(sigma2[1 : BOX // 2], data.sigma2, rtol=0.12)
    assert estimates.noise_ratio.mean() == pytest.approx(1.0, abs=0.05)


def test_signal_sums_measure_the_intensity_of_each_group() -> None:
    data = tiny.simulate(400, BOX, snr=2.0, seed=7)
    data.images[1::2] = data.images[1::2] + 0.0
    strong = np.arange(400) % 2 == 1
    clean = tiny.simulate(400, BOX, snr=1e9, seed=7).images
    data.images[strong] += 0.5 * clean[strong]
    batch, scores, step = true_pose_scores(data)
    reference = Reference(reference_transform(data.volume, 3, BOX // 2 - 1)[None], 3, np.zeros(1, np.float32), CORNER)
    sums = new_sums(1, 1, 2, BOX, 3, KMAX, batch.kx)
    accumulate(
        sums, batch, scores, reference, step, Search(), np.zeros(400, int), strong.astype(int), np.full(400, 0.5), 10**9
    )
    ratio = sums.signal_cross[:, 1:KMAX].sum(1) / sums.signal_power[:, 1:KMAX].sum(1)
    assert ratio[1] / ratio[0] == pytest.approx(1.5, rel=0.05)


def half_sums(data: tiny.Data, seed: int) -> Sums:
    batch, scores, step = true_pose_scores(data)
    n = len(data.images)
    reference = Reference(
        reference_transform(data.volume, PADDING, BOX // 2 - 1)[None], PADDING, np.zeros(1, np.float32), CORNER
    )
    sums = new_sums(1, 1, 2, BOX, PADDING, KMAX, batch.kx)
    accumulate(
        sums, batch, scores, reference, step, Search(), np.zeros(n, int), np.zeros(n, int), np.full(n, 0.5), 10**9
    )
    return sums


def test_halves_meet_only_below_the_join() -> None:
    volume = tiny.blobs(BOX, 1)
    halves = [half_sums(tiny.simulate(300, BOX, 0.5, seed, volume=volume), seed) for seed in (8, 9)]
    before = [h.data.copy() for h in halves]
    sphere = np.asarray(soft_sphere(BOX, 6, 1))
    reconstruct_halves(halves, np.eye(3)[None], BOX, PADDING, KMAX, KMAX, 1.0, sphere, 0, False)
    for now, then in zip(halves, before, strict=True):
        np.testing.assert_array_equal(now.data, then)
    reconstruct_halves(halves, np.eye(3)[None], BOX, PADDING, KMAX, KMAX, 1.0, sphere, 3, False)
    centre = halves[0].data.shape[-2] // 2
    grid = np.arange(-centre, centre + 1)
    radius = np.sqrt(grid[:, None, None] ** 2 + grid[:, None] ** 2 + np.arange(halves[0].data.shape[-1]) ** 2)
    low = radius < 3 * PADDING
    np.testing.assert_allclose(halves[0].data[0][low], halves[1].data[0][low])
    for now, then in zip(halves, before, strict=True):
        np.testing.assert_array_equal(now.data[0][~low], then[0][~low])


def test_reconstruction_from_the_true_poses_is_the_map() -> None:
    volume = tiny.blobs(BOX, 1)
    halves = [half_sums(tiny.simulate(600, BOX, 2.0, seed, volume=volume), seed) for seed in (8, 9)]
    sphere = np.asarray(soft_sphere(BOX, 6, 1))
    maps = reconstruct_halves(halves, np.eye(3)[None], BOX, PADDING, KMAX, KMAX, 1.0, sphere, 0, True)
    wanted = low_pass(volume, tiny.PIXEL_SIZE, BOX * tiny.PIXEL_SIZE / KMAX)
    assert maps.joined is not None
    assert tiny.correlation(maps.joined[0] * sphere, wanted * sphere) > 0.98
    slope = float((maps.joined[0] * wanted * sphere).sum() / (wanted**2 * sphere).sum())
    assert slope == pytest.approx(1.0, abs=0.1)
    assert maps.halves.curve[4] > 0.9
