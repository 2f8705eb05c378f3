"""Several references, in three dimensions and in two: tables and slices score them alike, classes are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spa.em.descent import Descent
from spa.em.expectation import Reference, log_weights, score_slices
from spa.em.sampling import Candidates, Level, make_flat_level, make_level
from spa.em.settings import Search
from spa.em.state import Poses
from spa.fourier import reference_transform
from spa.kernels.backend import to_host
from tests.em import tiny
from tests.em.test_expectation import BOX, KMAX, TURN, log_prior, make_batch, make_step, place

N_CLASSES = 3
EVERYTHING = Search(mass=1 - 1e-12, temperature=1e-6, dense_cap=0, level_cap=0, insertion_mass=1.0, insertion_cap=0)


def volumes() -> list[np.ndarray]:
    return [tiny.blobs(BOX, seed) for seed in range(N_CLASSES)]


def make_references(put: Callable[[Any], Any], maps: list[np.ndarray], padding: int) -> Reference:
    """References of unequal prior probability; with much padding, linear interpolation is nearly exact."""
    transforms = np.stack([reference_transform(v, padding, BOX // 2 - 1) for v in maps])
    prior = np.log(np.arange(1, len(maps) + 1) / 6).astype(np.float32)
    return Reference(put(transforms), padding, put(prior), np.sqrt(3) * BOX / 2)


def every_orientation(step: Any, levels: tuple[Level, ...]) -> Any:
    first = levels[0]
    return replace(step, dense_orientations=np.arange(N_CLASSES * first.n_directions * first.n_psi, dtype=np.int64))


def by_slices(batch: Any, reference: Reference, level: Level, step: Any, n: int) -> np.ndarray:
    """Log weights of everything at a level, (image, orientation, shift), from slices."""
    n_orientations, n_shifts = N_CLASSES * level.n_directions * level.n_psi, level.n_offsets**2
    everything = Candidates(
        np.arange(n + 1) * n_orientations,
        np.tile(np.arange(n_orientations), n),
        np.arange(n * n_orientations + 1) * n_shifts,
        np.tile(np.arange(n_shifts, dtype=np.int32), n * n_orientations),
    )
    terms = score_slices(batch, reference, level, everything, level.offsets(), 10**9)
    found = log_weights(batch, reference, level, everything, step, *terms)
    return found.reshape(n, n_orientations, n_shifts)


@pytest.mark.parametrize("flat", [False, True])
def test_tables_of_several_references_score_as_slices_do(device: Callable[[Any], Any], flat: bool) -> None:
    data = tiny.simulate(4, BOX, snr=0.5)
    maps = [v.sum(0) for v in volumes()] if flat else volumes()
    levels = (
        (make_flat_level(2, 2.0, 3, KMAX, 2), make_flat_level(3, 1.0, 6, KMAX, 2))
        if flat
        else (make_level(0, 2.0, 1, KMAX, TURN, 0), make_level(1, 1.0, 2, KMAX, TURN, 0))
    )
    step = every_orientation(make_step(levels), levels)
    rotations = np.tile(np.eye(3), (4, 1, 1))
    descent = Descent(make_references(device, maps, 8), step, EVERYTHING, 10**9, 10**9, rotations)
    scores = descent.run(place(device, make_batch(data)), rotations)
    wanted = by_slices(make_batch(data), make_references(lambda a: a, maps, 8), levels[-1], step, 4)
    assert len(scores.log_weight) == wanted.size
    flat_wanted = wanted.reshape(4, -1)
    evidence = np.logaddexp.reduce(flat_wanted.astype(np.float64), axis=1)
    np.testing.assert_allclose(to_host(scores.posterior.log_evidence), evidence, atol=0.05)
    best = to_host(scores.posterior.best)
    ends = to_host(scores.candidates.candidate_offsets)
    np.testing.assert_allclose(to_host(scores.log_weight)[best], flat_wanted.max(1), atol=0.1)
    assert np.array_equal(np.searchsorted(ends[1:], best, side="right"), np.arange(4))


def test_the_prior_of_a_class_counts() -> None:
    """The same map three times: what tells the classes apart is their prior alone."""
    data = tiny.simulate(3, BOX, snr=0.5)
    levels = (make_level(1, 1.0, 3, KMAX, TURN, 1),)
    step = every_orientation(make_step(levels), levels)
    found = by_slices(make_batch(data), make_references(lambda a: a, [data.volume] * 3, 2), levels[0], step, 3)
    by_class = found.reshape(3, 3, -1)
    np.testing.assert_allclose(by_class[:, 1] - by_class[:, 0], np.log(2), atol=2e-3)
    np.testing.assert_allclose(by_class[:, 2] - by_class[:, 0], np.log(3), atol=2e-3)
    assert log_prior(levels[0], 1.5).max() == 0


@pytest.mark.parametrize("tables", [False, True])
def test_a_local_search_looks_at_every_class(monkeypatch: pytest.MonkeyPatch, tables: bool) -> None:
    monkeypatch.setattr("spa.em.descent.steerable_pays", lambda *_: tables)
    n = 12
    data = tiny.simulate(n, BOX, snr=20.0, seed=2, volume=volumes()[2])
    levels = (make_level(3, 0.25, 5, KMAX, TURN, 3), make_level(4, 0.25, 5, KMAX, TURN, 3))
    step = make_step(levels, local=True)
    reference = make_references(lambda a: a, volumes(), 2)
    descent = Descent(reference, step, Search(), 10**9, 10**9, data.rotations)
    poses = Poses.unknown(n)
    poses.rotations, poses.origins = data.rotations, data.origins
    scores = descent.run(make_batch(data, poses), poses.rotations)
    group = np.searchsorted(scores.candidates.group_offsets[1:], scores.posterior.best, side="right")
    assert np.all(scores.level.classes(scores.candidates.orientation[group]) == 2)


def test_images_of_2d_references_find_their_class_angle_and_shift() -> None:
    rng = np.random.default_rng(3)
    n, pictures = 18, np.stack([v.sum(0) for v in volumes()])
    which, psi, origins = rng.integers(0, N_CLASSES, n), rng.uniform(0, 360, n), rng.normal(scale=1.0, size=(n, 2))
    data = tiny.simulate_pictures(pictures, which, psi, origins, snr=20.0)
    levels = tuple(make_flat_level(order, 1.0 / 2**k, 7 * 2**k, KMAX, 2) for k, order in enumerate((2, 3, 4)))
    step = every_orientation(make_step(levels), levels)
    rotations = np.tile(np.eye(3), (n, 1, 1))
    descent = Descent(make_references(lambda a: a, list(pictures), 2), step, Search(), 10**9, 10**9, rotations)
    scores = descent.run(make_batch(data), rotations)
    best = scores.posterior.best
    group = np.searchsorted(scores.candidates.group_offsets[1:], best, side="right")
    orientation = scores.candidates.orientation[group]
    assert np.array_equal(scores.level.classes(orientation), which)
    found = np.degrees(scores.level.psi(orientation % scores.level.n_psi))
    error = (found - psi + 180) % 360 - 180
    assert np.median(np.abs(error)) < scores.level.angular_step
    offset = scores.level.offsets()[scores.candidates.shift[best]]
    assert np.median(np.hypot(*(offset - origins).T)) < 0.3
