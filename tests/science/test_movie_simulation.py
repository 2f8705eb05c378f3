"""Simulated movies: motion, damage and counts are those that the truth tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.micrograph_scene import draw_scene
from spa.movie_simulation import (
    Detector,
    Motion,
    Recipe,
    draw_detector,
    draw_motion,
    frames,
)
from tests.science.micrographs import PIXEL, recipe

MOVIE = Recipe(n_frames=8, dose=40.0, drift=2.0, doming=6.0)
STILL = Motion(np.zeros((8, 2)), np.zeros(8), np.zeros((2, 6)))


def _perfect(shape: tuple[int, int]) -> Detector:
    return Detector(np.ones(shape, np.float32), np.zeros(shape, bool), np.zeros(shape, bool))


def _waves(shape: tuple[int, int], kx: int, ky: int, amplitude: float) -> NDArray[np.float32]:
    y, x = np.indices(shape)
    return (1 + amplitude * np.cos(2 * np.pi * (kx * x / shape[1] + ky * y / shape[0]))).astype(np.float32)


def test_drift_starts_from_rest_and_slows_down() -> None:
    movie = replace(MOVIE, n_frames=30)
    steps = []
    for number in range(40):
        motion = draw_motion(movie, PIXEL, 1, number)
        assert np.array_equal(motion.drift[0], [0, 0])
        steps.append(np.hypot(*np.diff(motion.drift, axis=0).T) * PIXEL)
        assert steps[-1].mean() == pytest.approx(2.0)
        assert np.hypot(*motion.drift[-1]) * PIXEL <= movie.reach
    mean = np.mean(steps, axis=0)
    assert (np.diff(mean) < 0).all()
    assert mean[0] > 2 * mean[-1]
    directions = np.array([draw_motion(movie, PIXEL, 1, number).drift[-1] for number in range(200)])
    assert np.abs((directions > 0).mean(axis=0) - 0.5).max() < 0.2


def test_doming_is_smooth_of_the_size_asked_for_and_zero_on_average() -> None:
    motion, shape = draw_motion(MOVIE, PIXEL, 1, 3), (120, 200)
    y, x = np.indices(shape)
    local = motion.local(np.stack([x.ravel(), y.ravel()], axis=1), shape)
    assert local.shape == (8, y.size, 2)
    assert np.abs(local[0]).max() == 0
    lengths = np.hypot(*local[-1].T) * PIXEL
    assert lengths.max() == pytest.approx(6.0, rel=0.02)
    assert np.abs(local[-1].mean(axis=0)).max() * PIXEL < 0.05
    grid = local[-1].reshape(*shape, 2)
    assert np.abs(np.diff(grid, 3, axis=0)).max() < 1e-9
    assert np.abs(np.diff(grid, 3, axis=1)).max() < 1e-9


def test_motion_follows_from_seed_and_number_and_one_frame_is_at_rest() -> None:
    first = draw_motion(MOVIE, PIXEL, 1, 0)
    assert np.array_equal(first.drift, draw_motion(MOVIE, PIXEL, 1, 0).drift)
    for other in (draw_motion(MOVIE, PIXEL, 1, 1), draw_motion(MOVIE, PIXEL, 2, 0)):
        assert not np.array_equal(first.drift, other.drift)
        assert not np.array_equal(first.coefficients, other.coefficients)
    single = draw_motion(replace(MOVIE, n_frames=1), PIXEL, 1, 0)
    assert np.array_equal(single.drift, [[0, 0]])
    assert np.array_equal(single.course, [0])


def test_content_moves_as_the_truth_says() -> None:
    rec = recipe(electrons=8 * 2e4, motion=MOVIE.reach)
    motion = draw_motion(MOVIE, PIXEL, 5, 0)
    centres = np.array([[40.0, 30.0], [130.0, 95.0], [215.0, 160.0], [60.0, 150.0], [200.0, 40.0]])
    y, x = np.indices(rec.field_shape)
    image = np.ones(rec.field_shape, np.float32)
    for cx, cy in centres:
        image += np.exp(-((x - cx - rec.origin[1]) ** 2 + (y - cy - rec.origin[0]) ** 2) / (2 * 3.0**2))
    local = motion.local(centres, rec.shape)
    drawn = frames(rec, replace(MOVIE, dose=1e-6), draw_scene(rec, 0, 0), motion, _perfect(rec.shape), image)
    for i, frame in enumerate(drawn):
        excess = frame / (rec.electrons / 8) - 1
        for centre, moved in zip(centres, local[i], strict=True):
            expected = centre + motion.drift[i] + moved
            x0, y0 = np.rint(expected).astype(int) - 12
            patch = np.clip(excess[y0 : y0 + 25, x0 : x0 + 25], 0.05, None) - 0.05
            found = [(patch.sum(axis=axis) * np.arange(25)).sum() / patch.sum() for axis in (0, 1)]
            assert found == pytest.approx(expected - [x0, y0], abs=0.06)


@pytest.mark.parametrize("voltage", [300.0, 200.0])
def test_damage_takes_amplitude_away_as_published(voltage: float) -> None:
    rec = recipe(electrons=8 * 2e4, shape=(128, 128))
    rec = replace(rec, optics=[replace(rec.optics[0], voltage=voltage)])
    shape = rec.field_shape
    image = _waves(shape, shape[1] // 4, shape[0] // 8, 0.2)
    k = np.hypot(0.25, 0.125) / PIXEL
    nc = (0.245 * k**-1.665 + 2.81) * (1.0 if voltage == 300 else 0.8)
    for i, frame in enumerate(frames(rec, MOVIE, draw_scene(rec, 0, 0), STILL, _perfect(rec.shape), image)):
        amplitude = np.sqrt(2 * ((frame / (rec.electrons / 8)).var() - 8 / rec.electrons))
        assert amplitude == pytest.approx(0.2 * np.exp(-(40 * (i + 0.5) / 8) / (2 * nc)), rel=0.02)


def test_counts_times_gain_are_electrons_with_poisson_noise() -> None:
    rec = recipe(electrons=40.0)
    detector = draw_detector(rec.shape, 20, 10, seed=2)
    good = ~(detector.hot | detector.dead)
    assert detector.gain[good].mean() == pytest.approx(1, abs=0.01)
    assert detector.gain[good].std() == pytest.approx(0.05, abs=0.01)
    assert (detector.hot.sum(), detector.dead.sum()) == (20, 10)
    assert np.array_equal(detector.gain == 0, detector.dead)
    image = np.ones(rec.field_shape, np.float32)
    found = np.array(list(frames(rec, MOVIE, draw_scene(rec, 0, 0), STILL, detector, image)))
    assert found.dtype == np.uint8
    electrons = found.mean(axis=0) * detector.gain
    assert electrons[good].mean() == pytest.approx(5, rel=0.005)
    # pixel by pixel: the gain takes the pattern off the counts
    assert abs(np.corrcoef(electrons[good], detector.gain[good])[0, 1]) < 0.03
    assert np.corrcoef(found.mean(axis=0)[good], detector.gain[good])[0, 1] < -0.2
    assert (found.var(axis=0, ddof=1)[good] * detector.gain[good]).mean() == pytest.approx(5, rel=0.02)
    assert found[:, detector.dead].max() == 0
    assert found[:, detector.hot].mean() > 30


def test_many_counts_take_sixteen_bits() -> None:
    rec = recipe(electrons=8 * 300.0)
    image = np.ones(rec.field_shape, np.float32)
    frame = next(frames(rec, MOVIE, draw_scene(rec, 0, 0), STILL, _perfect(rec.shape), image))
    assert frame.dtype == np.uint16
    assert frame.mean() == pytest.approx(300, rel=0.01)


def test_frames_follow_from_the_seed_frame_by_frame() -> None:
    rec = recipe(electrons=40.0, motion=MOVIE.reach)
    image = _waves(rec.field_shape, 10, 10, 0.3)
    motion, detector, scene = draw_motion(MOVIE, PIXEL, 1, 0), _perfect(rec.shape), draw_scene(rec, 0, 0)
    first, again = (list(frames(rec, MOVIE, scene, motion, detector, image)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    other = next(frames(rec, MOVIE, draw_scene(rec, 1, 0), motion, detector, image))
    assert not np.array_equal(first[0], other)
