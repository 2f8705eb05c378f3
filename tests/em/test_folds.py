"""Particles held against classes made without them: what is noise in the maps, and what their differences are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spa.em.class_schedule import MapSchedule
from spa.em.classes import random_classes
from spa.em.engine import Engine
from spa.em.folds import envelope, evident, make_folds, noise_penalty, separable_shell
from spa.em.settings import RefinementOptions, Search
from spa.em.state import Sums
from spa.mask import soft_sphere
from tests.em import tiny
from tests.em.test_expectation import BOX

SHELLS = BOX // 2 + 1


def fold_maps(seed: int, maps: np.ndarray, sigma: tuple[float, ...], n_folds: int = 4) -> np.ndarray:
    """Maps (n_folds, n_classes, box, box, box), each the mean of all folds but one; `sigma` is that of a fold."""
    rng = np.random.default_rng(seed)
    scale = np.array(sigma)[:, None, None, None]
    folds = maps + scale * rng.normal(size=(n_folds, *maps.shape))
    return (folds.sum(0) - folds) / (n_folds - 1)


def test_the_penalty_is_what_noise_costs() -> None:
    """White noise of known variance in a map of known power: half of W |noise|^2 in the pixels of a shell."""
    rng = np.random.default_rng(1)
    signal = 3.0
    maps = np.stack([signal * rng.normal(size=(BOX,) * 3)] * 2)
    sigma = (0.6, 1.2)
    found = noise_penalty(fold_maps(2, maps, sigma), np.full(2, 0.5), np.full(SHELLS, 10.0))
    assert found.shape == (2, SHELLS)
    for c, s in enumerate(sigma):
        noise = s**2 / 3  # of the mean of three folds
        assert found[c, 4:].mean() == pytest.approx(10 / 2 * noise / (signal**2 + np.square(sigma).mean() / 4), rel=0.1)


def test_differences_that_are_noise_are_filtered_away_and_others_stay() -> None:
    one, other = tiny.blobs(BOX, 1), tiny.blobs(BOX, 2)
    share = np.array([0.4, 0.6])

    def difference(maps: np.ndarray) -> np.ndarray:
        return np.asarray(maps[:, 1] - maps[:, 0])

    alike = fold_maps(3, np.stack([one, one]), (0.2, 0.2))
    kept = evident(alike, share, 0)
    assert np.square(difference(kept)).mean() < 0.3 * np.square(difference(alike)).mean()
    np.testing.assert_allclose(
        np.einsum("c,fczyx->fzyx", share, kept), np.einsum("c,fczyx->fzyx", share, alike), atol=1e-5
    )
    unlike = fold_maps(3, np.stack([one, other]), (0.01, 0.01))
    found = difference(evident(unlike, share, 0))
    assert all(tiny.correlation(d, other - one) > 0.97 for d in found)
    np.testing.assert_allclose(evident(alike, share, BOX), alike, atol=1e-4)


def test_more_particles_and_a_smaller_mask_tell_finer_differences_apart() -> None:
    ball, half = soft_sphere(BOX, 6, 2), soft_sphere(BOX, 3, 1)
    assert separable_shell(8000, 1, ball) == pytest.approx(2 * separable_shell(1000, 1, ball), abs=1)
    assert separable_shell(1000, 4, ball) == separable_shell(4000, 1, ball)
    assert separable_shell(1000, 1, half) > separable_shell(1000, 1, ball)


def test_an_envelope_holds_the_particle_and_noise_has_none() -> None:
    sphere = np.asarray(soft_sphere(64, 12, 3))
    noisy = sphere + 0.02 * np.random.default_rng(0).normal(size=sphere.shape)
    found = envelope(noisy.astype(np.float32), 4.0)
    assert found is not None
    assert found[sphere > 0.5].min() > 0.99
    assert found.mean() < 4 * sphere.mean()
    assert envelope(np.random.default_rng(0).normal(size=(64,) * 3).astype(np.float32), 4.0) is None


def test_classes_are_their_mean_outside_the_focus() -> None:
    maps = np.stack([tiny.blobs(BOX, seed) for seed in (1, 2, 3)])
    mass = np.array([3.0, 1.0, 0.0])
    sums = Sums(*(np.zeros(1),) * 6, class_mass=mass)
    focus = np.asarray(soft_sphere(BOX, 4, 2))
    found = make_folds(1, np.arange(10), 4, focus).focused(maps, sums)
    mean = 0.75 * maps[0] + 0.25 * maps[1]
    np.testing.assert_allclose(found[:2, focus == 0], np.stack([mean[focus == 0]] * 2), atol=1e-6)
    np.testing.assert_allclose(found[:2, focus == 1], maps[:2, focus == 1], atol=1e-6)
    assert not found[2].any()


def staying(folder: Path, n_folds: int) -> float:
    """Share of the particles of one state, at true poses, that stay in the class of two to which a lot has put them."""
    n = 200
    data = tiny.simulate(n, BOX, snr=0.1, seed=4)
    options = RefinementOptions(
        i="x.star", o=str(folder / f"run{n_folds}"), ref="x.mrc", ctf=True, offset_range=2.0, offset_step=1.0,
        particle_diameter=75.0, random_seed=1, flatten_solvent=True, healpix_order=1, ini_high=20.0,
    )  # fmt: skip
    inputs = replace(data.inputs(), references=data.volume[None].astype(np.float32))
    seeds = random_classes(1, n, 2)
    plan = MapSchedule(options, Search(), BOX, tiny.PIXEL_SIZE, 2, -1.0, 2, skip_align=True, seeds=seeds)
    job = tiny.QuietJob(options.o)
    engine = Engine(options, inputs, plan, 1, job, folds=make_folds(1, np.arange(n), n_folds))  # type: ignore[arg-type]
    engine.poses.rotations, engine.poses.origins = data.rotations.copy(), data.origins.copy()
    engine.poses.known[:] = True
    plan.poses = engine.poses
    engine.run()
    return float((engine.poses.class_number == seeds).mean())


def test_particles_do_not_hold_on_to_their_own_noise(tmp_path: Path) -> None:
    assert staying(tmp_path, 1) > 0.7
    assert staying(tmp_path, 4) == pytest.approx(0.5, abs=0.12)


def test_rows_of_one_image_come_into_one_part() -> None:
    images = np.repeat(np.arange(25), 4)
    parts = make_folds(1, images, 4).of_particle.reshape(25, 4)
    assert (parts == parts[:, :1]).all()
    assert np.bincount(parts[:, 0], minlength=4).min() >= 6
